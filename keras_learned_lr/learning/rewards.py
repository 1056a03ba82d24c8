"""What an action earned: validation losses in, reward out.

Rewards are elementwise tf ops, for one run on the host and for many in a batched
environment. They see losses only relative to the run's first, since a controller that
is paid in raw losses does not travel between tasks.
"""

import dataclasses
from typing import Any, ClassVar

import tensorflow as tf

from keras_learned_lr.control.config import Configurable
from keras_learned_lr.observation.log_scale import SMALL


@dataclasses.dataclass(frozen=True)
class Reward(Configurable):
    """Base of all rewards: what counts as divergence is the same for each.

    Attributes:
        explosion: A loss beyond this multiple of the first loss, or one that is not
            finite, counts as exactly this multiple. So divergence is the worst that
            can be earned, and finite.
    """

    kind: ClassVar[str] = "reward"
    explosion: float = 50.0

    def __post_init__(self) -> None:
        if not 1 < self.explosion < float("inf"):
            raise ValueError(
                f"`explosion` must be above 1 and finite. Received: {self.explosion}"
            )

    def __call__(self, first_loss: Any, previous_loss: Any, loss: Any) -> tf.Tensor:
        """Returns the reward of the action between two looks, float32, always finite.

        Args:
            first_loss: The run's first validation loss; floats, NumPy arrays or
                tensors of one shape, like the others.
            previous_loss: Validation loss when the action was taken.
            loss: Validation loss at the next decision.
        """
        first = tf.convert_to_tensor(first_loss, tf.float32)
        unit = tf.where(tf.math.is_finite(first), tf.maximum(tf.abs(first), SMALL), 1.0)
        return self._earned(
            self._relative(previous_loss, unit), self._relative(loss, unit)
        )

    def _relative(self, loss: Any, unit: tf.Tensor) -> tf.Tensor:
        loss = tf.convert_to_tensor(loss, tf.float32)
        finite = tf.clip_by_value(loss / unit, -self.explosion, self.explosion)
        return tf.where(tf.math.is_finite(loss), finite, self.explosion)

    def _earned(self, previous: tf.Tensor, now: tf.Tensor) -> tf.Tensor:
        """Returns the reward from losses relative to the first, within ±explosion."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class NegativeValidationLoss(Reward):
    """-loss / |first loss| (a form that the published system names, made relative).

    It charges for every decision, so a run that ends early is charged less; `explosion`
    has to outweigh what a whole bad run costs.
    """

    def _earned(self, previous: tf.Tensor, now: tf.Tensor) -> tf.Tensor:
        return -now


@dataclasses.dataclass(frozen=True)
class InverseValidationLoss(Reward):
    """|first loss| / loss (the other form that the published system names).

    Attributes:
        limit: Largest reward, reached by losses below `|first loss| / limit` and by
            those that are not positive.
    """

    limit: float = 50.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 < self.limit < float("inf"):
            raise ValueError(
                f"`limit` must be above 1 and finite. Received: {self.limit}"
            )

    def _earned(self, previous: tf.Tensor, now: tf.Tensor) -> tf.Tensor:
        return 1.0 / tf.maximum(now, 1.0 / self.limit)


@dataclasses.dataclass(frozen=True)
class LogImprovement(Reward):
    """How much the log of the loss fell, -Δ log(loss / first loss + resolution).

    In place of the logarithm stands `asinh(loss / (2 · resolution · |first loss|))`,
    which equals it up to a constant for losses well above the resolution and goes on,
    linearly at first, for those at or below 0 (see `observation.log_scale`).

    It is the difference of a potential that is itself bounded, so the rewards of a run
    add up to its whole improvement whatever happened on the way (potential-based
    shaping: Ng, Harada & Russell 1999): exploding and recovering earns nothing, which
    it would if each difference were capped.

    Attributes:
        resolution: Share of the first loss below which improvements stop to count in
            full: ratios of losses near 0 are noise.
    """

    resolution: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.resolution < 1:
            raise ValueError(
                f"`resolution` must be between 0 and 1. Received: {self.resolution}"
            )

    def _earned(self, previous: tf.Tensor, now: tf.Tensor) -> tf.Tensor:
        return self._potential(previous) - self._potential(now)

    def _potential(self, relative: tf.Tensor) -> tf.Tensor:
        return tf.asinh(relative / (2.0 * self.resolution))
