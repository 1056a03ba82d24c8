"""Moving averages of normalisation layers without the values that they begin with."""

from typing import Any, NamedTuple

import keras
import tensorflow as tf


class Average(NamedTuple):
    """A moving average of a batch normalisation.

    Attributes:
        variable: The average.
        initial: What it begins with, 0 for a mean and 1 for a variance.
        momentum: How much of it a training step leaves.
    """

    variable: keras.Variable
    initial: float
    momentum: float

    def unbiased(self, value: tf.Tensor, steps: tf.Tensor) -> tf.Tensor:
        """Returns the average over what has been seen alone.

        A hundred steps into a run, Keras's averages are still a third of what they
        began with, and no loss that goes by them tells how good the weights are. The
        correction is that of Adam's moments (Kingma & Ba 2015, section 3).

        Args:
            value: The average, `[..., *shape]`.
            steps: Training steps that it has seen, of a shape that goes with `value`.
        """
        left = tf.cast(self.momentum, value.dtype) ** tf.cast(steps, value.dtype)
        seen = (value - self.initial * left) / (1.0 - left)
        if self.initial:
            # A layer that its model calls more than once has left more behind.
            seen = tf.maximum(seen, 0.0)
        return tf.where(steps > 0, seen, value)


def averages(model: keras.Model) -> list[Average]:
    """Returns the moving averages that each training step of a model moves once."""
    found = []
    for layer in model._flatten_layers():
        if not isinstance(layer, keras.layers.BatchNormalization):
            continue
        moves = layer.built and layer.trainable and layer.momentum < 1.0
        # A layer in several places moves as often. One that is synchronised asks all
        # replicas, and a measurement is of one.
        if moves and len(layer._inbound_nodes) <= 1 and not layer.synchronized:
            found += [
                Average(layer.moving_mean, 0.0, layer.momentum),
                Average(layer.moving_variance, 1.0, layer.momentum),
            ]
    return found


class UnbiasedAverages:
    """What stands for a model's moving averages where its loss is measured.

    That is what they have seen alone, and before step 1, when they have seen nothing,
    what they would see of a batch. Only of a model whose averages a run finds as they
    were made: those of a model that was trained before are worth more than what the
    first steps see.

    Args:
        model: The compiled model.
    """

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        self._fresh = tf.Variable(False, trainable=False)
        # What a run that is interrupted goes on from.
        self.checkpoint = tf.train.Checkpoint(fresh=self._fresh)

    def start(self) -> None:
        """Begins a run: notes whether the averages have seen anything."""
        begun = [
            tf.reduce_any(tf.convert_to_tensor(a.variable.value) != a.initial)
            for a in self._counted()
        ]
        # An optimizer that has made steps did not make them on these averages.
        begun.append(self._steps() > 0)
        self._fresh.assign(~tf.reduce_any(begun))

    def mapping(self, x: Any) -> list[tuple[keras.Variable, tf.Tensor]]:
        """Returns what stands for each, for a `StatelessScope`.

        Args:
            x: A batch of the model's inputs, to look at before step 1.
        """
        found = self._counted()
        if not found:
            return []
        # Weights that are put back bring their number of steps with them.
        steps, fresh = self._steps(), self._fresh.read_value()

        def kept() -> list[tf.Tensor]:
            return [tf.convert_to_tensor(a.variable.value) for a in found]

        def looked() -> list[tf.Tensor]:
            try:
                with keras.StatelessScope() as scope:
                    self._model(x, training=True)
            except Exception:
                # A model may take other inputs where it trains than where it is tested.
                return kept()
            seen = [scope.get_current_value(a.variable) for a in found]
            # What the model did not call it did not change.
            return [
                old if new is None else tf.convert_to_tensor(new)
                for new, old in zip(seen, kept(), strict=True)
            ]

        values = tf.cond(fresh & (steps == 0), looked, kept)
        steps = tf.where(fresh, tf.maximum(steps, 1), 0)
        return [
            (a.variable, a.unbiased(value, steps))
            for a, value in zip(found, values, strict=True)
        ]

    def _counted(self) -> list[Average]:
        """Returns the averages that move as often as the optimizer counts."""
        # What a loss scaler does not count moves averages all the same, and a step of
        # the model's own may call it several times.
        own_step = type(self._model).train_step is not keras.Model.train_step
        if own_step or hasattr(self._model.optimizer, "inner_optimizer"):
            return []
        return averages(self._model)

    def _steps(self) -> tf.Tensor:
        # Each batch counts, also where gradients of several make one update.
        iterations = self._model.optimizer._iterations
        return tf.cast(tf.convert_to_tensor(iterations.value), tf.int64)
