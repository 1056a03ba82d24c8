"""A controller, and a small correction of its levels that whole runs have taught."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_learned_lr.control.actions import ActionForm, ScaleFactor
from keras_learned_lr.control.controller import Exportable, PolicyOutput

# Beyond this a feature says no more; its square would.
_FARTHEST = 3.0
# Makes of a feature one that tells which side of 0 it is on.
_STEEP = 3.0


def refinable(names: Sequence[str]) -> list[str]:
    """Returns those of an observation's features that a correction is made of.

    All of the present window; averages of the ones before are left out.

    Args:
        names: The features' names.

    Raises:
        ValueError: If `progress` is not among them.
    """
    if "progress" not in names:
        raise ValueError(
            "A correction depends on the progress of the run: `progress` must be in "
            f"the observation. Received: {list(names)}"
        )
    return [name for name in names if "@" not in name]


def quantities(features: Any, progress: int, library: Any = np) -> Any:
    """Returns what a correction is a weighted sum of.

    The features x, clipped to ±3; x²; x times the progress from -1 to 1; tanh 3x; and
    a constant.

    Args:
        features: Of the present window, `[..., features]`.
        progress: Which of them is the progress.
        library: The module to compute with.

    Returns:
        `[..., 4 * features + 1]`, of the features' dtype.
    """
    x = library.clip(features, -_FARTHEST, _FARTHEST)
    along = x[..., progress : progress + 1]
    steep, one = library.tanh(_STEEP * x), library.ones_like(along)
    return library.concatenate([x, x * x, x * along, steep, one], -1)


def quantities_of(names: Sequence[str]) -> int:
    """Returns how many `quantities` there are of features with these names."""
    return 4 * len(names) + 1


class _TensorFlow:
    """The functions of NumPy that `quantities` calls, inside a graph."""

    clip = staticmethod(tf.clip_by_value)
    tanh = staticmethod(tf.tanh)
    ones_like = staticmethod(tf.ones_like)
    concatenate = staticmethod(tf.concat)


class Refined:
    """Does what a controller does, and adds some decades to each of its moves.

    How many is a weighted sum of a few functions of the observation. The weights come
    from `keras_learned_lr.learning.refining`.

    Args:
        controller: The other one; its action form must be a `ScaleFactor`, and
            `progress` must be among its features.
        weights: One for each of `quantities`, in decades, `[quantities]`.
        limit: Most decades that it adds to a decision, or takes away.

    Raises:
        ValueError: If the controller is of another kind, or there are more or fewer
            weights than quantities.

    Attributes:
        observation_spec: What it must be shown.
        action_form: What its actions mean, and when it decides.
        width: How far an action of 1 moves the level.
        variables: What it computes with.
    """

    def __init__(
        self, controller: Exportable, weights: np.ndarray, limit: float
    ) -> None:
        spec, form = controller.observation_spec, controller.action_form
        if not isinstance(form, ScaleFactor):
            raise ValueError(
                "Only moves by a factor can be corrected: pass a controller whose "
                f"action form is a ScaleFactor. Received: {form}"
            )
        chosen = refinable(spec.names)
        expected = quantities_of(chosen)
        if np.shape(weights) != (expected,):
            raise ValueError(
                f"A correction by {len(chosen)} features has {expected} weights. "
                f"Received: {np.shape(weights)}"
            )
        self.observation_spec = spec
        self.action_form: ActionForm = form
        self.width = form.width
        self._columns = [spec.names.index(name) for name in chosen]
        self._progress = chosen.index("progress")
        self._weights = tf.Variable(
            np.asarray(weights, "float32"), trainable=False, name="correction"
        )
        self._limit = limit
        self._controller = controller
        self.variables: Sequence[Any] = [*controller.variables, self._weights]

    def assign(self, weights: np.ndarray) -> None:
        """Sets other weights, also after `act` was traced into a graph."""
        self._weights.assign(np.asarray(weights, "float32"))

    def initial_state(self, batch_size: int) -> list[tf.Tensor]:
        """Returns the controller's state before the first decision."""
        return self._controller.initial_state(batch_size)

    @tf.autograph.experimental.do_not_convert
    def act(self, observation: tf.Tensor, state: list[tf.Tensor]) -> PolicyOutput:
        """Answers observations of shape `[batch, features]`; works inside a graph."""
        output = self._controller.act(observation, state)
        features = tf.gather(observation, self._columns, axis=-1)
        found: Any = quantities(features, self._progress, _TensorFlow)
        decades = tf.linalg.matvec(found, self._weights)
        decades = tf.clip_by_value(decades, -self._limit, self._limit)
        progress = 0.5 * (features[..., self._progress] + 1.0)
        # In the units of the action form, which are narrower as a run goes on.
        more = decades / self.width.at(progress)
        action = tf.clip_by_value(output.action, -1.0, 1.0) + more
        return output._replace(action=action)
