"""An average of the weights that a run passes towards its end, for it to end with."""

import math

import keras
import tensorflow as tf

from keras_learned_lr.control.graph import Traced
from keras_learned_lr.observation.layers import moving_statistics, room_for

# How often weights are taken in while the average forgets all but 1/e of one.
SAMPLES = 20
# It begins so many times its share before the end: earlier weights would weigh 5 %.
REACH = 3.0


class WeightAverage:
    """A moving average of a model's weights over the last part of a run.

    An average of weights that training passes generalises better than the last of
    them, and forgives a learning rate that is still too high (Polyak & Juditsky 1992;
    Izmailov et al. 2018). It is of the trainable weights and of the moving statistics
    of normalisation, takes the memory of these once more, and a pass through them
    whenever a twentieth of its share has gone by.

    Args:
        model: The compiled model.
        share: See `ActionForm.average`.
    """

    def __init__(self, model: keras.Model, share: float) -> None:
        self._model = model
        self._share = share
        self._weights: list[keras.Variable] = []
        self._averages: list[tf.Variable] = []
        with tf.device("CPU:0"):
            self._count = tf.Variable(0, dtype=tf.int64, trainable=False)
        # The averages are restored when they are put here.
        self._checkpoint = tf.train.Checkpoint(count=self._count)
        self._take_in = Traced(self._weigh)
        self._exchange = Traced(self._swap)

    @property
    def checkpoint(self) -> tf.train.Checkpoint:
        """All that a run which is interrupted goes on from."""
        return self._checkpoint

    @property
    def nbytes(self) -> int:
        """Memory of the average, in bytes; 0 before it begins."""
        return sum(a.dtype.size * a.shape.num_elements() for a in self._averages)

    def start(self) -> None:
        """Begins anew: with a run, or where weights have gone back."""
        self._count.assign(0)

    def go_on(self, step: int, horizon: int) -> None:
        """Takes the weights in if it is time to; call it after each execution.

        Args:
            step: Training steps taken.
            horizon: Training steps of the whole run.
        """
        memory = self._share * horizon
        if step < horizon - REACH * memory:
            return
        every = max(1, round(memory / SAMPLES))
        # Whether a multiple of it has just been passed; at the end, whatever the step.
        if step % every >= self._model.steps_per_execution and step < horizon:
            return
        if not self._averages:
            model = self._model
            self._weights = [*model.trainable_variables, *moving_statistics(model)]
            self._averages = room_for(self._weights)
            self._checkpoint.averages = self._averages
        self._take_in(tf.constant(-math.expm1(-every / memory), tf.float32))

    def exchange(self) -> None:
        """Gives the model the average for its weights, or takes it back again."""
        self._exchange()

    def _weigh(self, forgotten: tf.Tensor) -> None:
        count = tf.cast(self._count.assign_add(1), tf.float32)
        # The first ones weigh the same: nothing is left of what was there before.
        share = tf.maximum(1.0 / count, forgotten)
        for average, weight in zip(self._averages, self._weights, strict=True):
            value = tf.convert_to_tensor(weight.value)
            moved = average + tf.cast(share, value.dtype) * (value - average)
            average.assign(tf.where(count > 1.0, moved, value))

    def _swap(self) -> None:
        for average, weight in zip(self._averages, self._weights, strict=True):
            value, mean = tf.convert_to_tensor(weight.value), average.read_value()
            with tf.control_dependencies([value, mean]):
                weight.assign(mean)
                average.assign(value)
