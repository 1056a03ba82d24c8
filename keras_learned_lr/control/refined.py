"""A controller, and a small correction of its levels that whole runs have taught."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_learned_lr.control.actions import ActionForm, ScaleFactor
from keras_learned_lr.control.controller import Exportable, PolicyOutput
from keras_learned_lr.observation.spec import ObservationSpec

# What a correction looks at: what a run is like. What one window happens to show would
# come back through the next ones (docs/experiments.md, 32).
FEATURES = (
    "log_level",
    "previous_action@0.5",
    "training_vs_first@0.5",
    "training_trend@0.5",
    "training_noise@0.5",
    "validation_vs_best@0.5",
    "validation_trend@0.5",
    "validation_vs_training@0.5",
    "log_update_ratio@0.5",
    "update_cosine@0.5",
    "log_output_change@0.5",
    "log_output_growth@0.5",
    "validation_vs_first@0.5",
)
# Shares of a run at which each feature has a weight of its own; between two of them it
# is on the line that joins them.
KNOTS = (0.0, 0.1, 0.4, 1.0)
# The same for the constant.
CONSTANT_KNOTS = (0.0, 0.05, 0.15, 0.4, 0.7, 1.0)
FEATURE_WEIGHTS = len(KNOTS) * len(FEATURES)
QUANTITIES = FEATURE_WEIGHTS + len(CONSTANT_KNOTS)
# Most decades that a correction adds to a decision, or takes away.
LIMIT = 0.25


class Scales(NamedTuple):
    """What features are like on average.

    Attributes:
        mean: Of each of `FEATURES`.
        deviation: Standard deviation of each.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]


def check_refinable(spec: ObservationSpec) -> None:
    """Raises a ValueError if an observation lacks what a correction looks at."""
    missing = sorted({"progress", *FEATURES} - set(spec.names))
    if missing:
        raise ValueError(
            "A correction of levels looks at features that this controller does not "
            f"observe. Refine one that was trained with them. Received: {spec.names}; "
            f"missing: {missing}"
        )


def between(progress: tf.Tensor, knots: Sequence[float]) -> tf.Tensor:
    """Returns how much each knot counts at a share of the run.

    Args:
        progress: The share, `[...]`.
        knots: Ascending from 0 to 1.

    Returns:
        `[..., knots]`, the two around the share between 0 and 1, all others 0.
    """
    shares = []
    for index, knot in enumerate(knots):
        up = down = tf.ones_like(progress)
        if index > 0:
            up = (progress - knots[index - 1]) / (knot - knots[index - 1])
        if index + 1 < len(knots):
            down = (knots[index + 1] - progress) / (knots[index + 1] - knot)
        shares.append(tf.clip_by_value(tf.minimum(up, down), 0.0, 1.0))
    return tf.stack(shares, -1)


class Refined:
    """Does what a controller does, and adds some decades to each of its moves.

    How many is `limit * tanh(sum / limit)` of a weighted sum: of tanh of the
    standardised features, each with weights that change along the run, and of a
    constant that does, too. All of it is bounded, so that nothing unheard of moves a
    level far. The weights come from `keras_learned_lr.learning.refining`.

    Args:
        controller: The other one; its action form must be a `ScaleFactor`, and
            `progress` and `FEATURES` must be in its observation.
        weights: In decades: `[QUANTITIES]`, or `[batch, QUANTITIES]` where each trainee
            has its own.
        scales: What features are like on average.

    Raises:
        ValueError: If the controller is of another kind, or there are more or fewer
            weights than quantities.

    Attributes:
        observation_spec: What it must be shown.
        action_form: What its actions mean, and when it decides.
        variables: What it computes with.
    """

    def __init__(
        self, controller: Exportable, weights: np.ndarray, scales: Scales
    ) -> None:
        spec, form = controller.observation_spec, controller.action_form
        if not isinstance(form, ScaleFactor):
            raise ValueError(
                "Only moves by a factor can be corrected: pass a controller whose "
                f"action form is a ScaleFactor. Received: {form}"
            )
        check_refinable(spec)
        if np.shape(weights)[-1:] != (QUANTITIES,):
            raise ValueError(
                f"A correction has {QUANTITIES} weights. Received: {np.shape(weights)}"
            )
        self.observation_spec = spec
        self.action_form: ActionForm = form
        self._width = form.width
        self._columns = [spec.names.index(name) for name in FEATURES]
        self._progress = spec.names.index("progress")
        self._scales = scales
        self._weights = tf.Variable(
            np.asarray(weights, "float32"), trainable=False, name="correction"
        )
        self._controller = controller
        self.variables: Sequence[Any] = [*controller.variables, self._weights]

    def assign(self, weights: np.ndarray) -> None:
        """Sets other weights, also after `act` was traced into a graph."""
        self._weights.assign(np.asarray(weights, "float32"))

    def initial_state(self, batch_size: int) -> list[tf.Tensor]:
        """Returns the controller's state before the first decision."""
        return self._controller.initial_state(batch_size)

    def quantities(self, observation: tf.Tensor) -> tf.Tensor:
        """Returns what the weights are for.

        Args:
            observation: float32 `[..., features]`.

        Returns:
            float32 `[..., QUANTITIES]`: the features at one knot after another, then
            the constant's knots.
        """
        progress = self._share(observation)
        features = tf.gather(observation, self._columns, axis=-1)
        mean, deviation = map(tf.constant, self._scales)
        told = tf.tanh((features - mean) / deviation)
        each = between(progress, KNOTS)[..., tf.newaxis] * told[..., tf.newaxis, :]
        shape = tf.concat([tf.shape(progress), [FEATURE_WEIGHTS]], 0)
        constant = between(progress, CONSTANT_KNOTS)
        return tf.concat([tf.reshape(each, shape), constant], -1)

    @tf.autograph.experimental.do_not_convert
    def act(self, observation: tf.Tensor, state: list[tf.Tensor]) -> PolicyOutput:
        """Answers observations of shape `[batch, features]`; works inside a graph."""
        output = self._controller.act(observation, state)
        decades = tf.reduce_sum(self.quantities(observation) * self._weights, -1)
        decades = LIMIT * tf.tanh(decades / LIMIT)
        # In the units of the action form, which are narrower as a run goes on.
        more = decades / self._width.at(self._share(observation))
        action = tf.clip_by_value(output.action, -1.0, 1.0) + more
        return output._replace(action=action)

    def _share(self, observation: tf.Tensor) -> tf.Tensor:
        return 0.5 * (observation[..., self._progress] + 1.0)
