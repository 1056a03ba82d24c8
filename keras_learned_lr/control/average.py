"""The last step of a run: along the line from its last weights to their average."""

import math
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_learned_lr.control.graph import Traced
from keras_learned_lr.observation.layers import bytes_of, moving_statistics, room_for

# How often weights are taken in while the average forgets all but 1/e of one.
SAMPLES = 20
# It begins so many times its share before the end: earlier weights would weigh 5 %.
REACH = 3.0
# Where the loss is looked at: shares of the way from the last weights to the average.
LOOKS = (-0.5, 0.0, 0.5)
# Beyond the last weights there is nothing that the run has seen.
BEYOND, AVERAGE = -0.5, 1.0


class WeightAverage:
    """A moving average of a model's weights, and a step towards it at the end.

    Weights that training passes at a learning rate which is too high for them lie
    around a better place, their average (Polyak & Juditsky 1992; Izmailov et al. 2018).
    Where a run ends before it has arrived, a better place lies the other way, beyond
    its last weights. Which it is shows in the loss: a parabola through three losses on
    the line says where, and a fourth whether that is so.

    The average is of the trainable weights and of the moving statistics of
    normalisation. It takes the memory of these once more, and a pass through them
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

    @property
    def checkpoint(self) -> tf.train.Checkpoint:
        """All that a run which is interrupted goes on from."""
        return self._checkpoint

    @property
    def nbytes(self) -> int:
        """Memory of the average, in bytes; 0 before it begins."""
        return bytes_of(self._averages)

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

    def last_step(self, measure: Callable[[], float]) -> float:
        """Moves the model to where on the line its loss is lowest.

        Args:
            measure: Returns the loss of the model as it is.

        Returns:
            The share of the way to the average: 0 where the weights are the last ones
            still, to the last bit, and below 0 beyond them.
        """
        last = [tf.convert_to_tensor(weight.value) for weight in self._weights]

        def loss_at(share: float) -> float:
            self._place(last, share)
            return measure()

        share = 0.0
        try:
            losses = [loss_at(share) for share in LOOKS]
            lowest = lowest_at(losses)
            if lowest and loss_at(lowest) < losses[LOOKS.index(0.0)]:
                share = lowest
        finally:
            if not share:
                self._place(last, share)
        return share

    def _place(self, last: Sequence[tf.Tensor], share: float) -> None:
        for weight, value, average in zip(
            self._weights, last, self._averages, strict=True
        ):
            # Beyond the last ones a variance may be negative, or a constraint broken.
            free = weight.trainable and weight.constraint is None
            way = share if free else max(share, 0.0)
            moved = value if way == 0.0 else value + way * (average - value)
            weight.assign(moved)

    def _weigh(self, forgotten: tf.Tensor) -> None:
        count = tf.cast(self._count.assign_add(1), tf.float32)
        # The first ones weigh the same: nothing is left of what was there before.
        share = tf.maximum(1.0 / count, forgotten)
        for average, weight in zip(self._averages, self._weights, strict=True):
            value = tf.convert_to_tensor(weight.value)
            moved = average + tf.cast(share, value.dtype) * (value - average)
            average.assign(tf.where(count > 1.0, moved, value))


def lowest_at(losses: Sequence[float]) -> float:
    """Returns where on the line the loss is lowest, as its values at `LOOKS` tell.

    Args:
        losses: The loss at each of `LOOKS`.

    Returns:
        The lowest point of the parabola through them, within `BEYOND` and `AVERAGE`; of
        one that has none, the lowest of the three; 0 where a loss is not finite.
    """
    if not np.all(np.isfinite(losses)):
        return 0.0
    before, here, after = losses
    curvature = before + after - 2.0 * here
    if curvature <= 0.0:
        return LOOKS[int(np.argmin(losses))]
    vertex = 0.5 * LOOKS[-1] * (before - after) / curvature
    return float(np.clip(vertex, BEYOND, AVERAGE))
