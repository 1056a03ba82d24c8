"""Schedule-Free AdamW: averaging in place of annealing.

Keras 3.15.1 has one, but on TensorFlow its average goes wrong: it recovers the last
average with the iterate that it has just overwritten.
"""

from typing import Any

import keras
import tensorflow as tf

from keras_learned_lr.benchmark.quality.methods.averaging import EvaluateAveraged
from keras_learned_lr.benchmark.quality.methods.global_optimizer import (
    GlobalOptimizer,
    decay_of,
)
from keras_learned_lr.benchmark.quality.methods.method import Run, Setup
from keras_learned_lr.benchmark.quality.methods.schedules import WARMUP

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


class ScheduleFreeAdamW(GlobalOptimizer):
    """AdamW on z, evaluated at its average x (Defazio et al. 2024, algorithm 1).

    Gradients are taken at y = (1 - β₁) z + β₁ x, where the model trains. Iterates are
    weighted by the square of the largest learning rate so far, against the warm-up.

    Args:
        learning_rate: The largest learning rate.
        warmup: Steps in which it rises from 0.
        decay: Decoupled weight decay, at y.
    """

    def __init__(
        self, learning_rate: float = 0.0025, warmup: int = 0, decay: float = 0.0
    ) -> None:
        super().__init__(learning_rate, decay)
        self.warmup = warmup

    def build(self, variables: Any) -> None:
        """Makes the state."""
        super().build(variables)
        self._weight_sum, self._share = self.scalar(0.0), self.scalar(0.0)
        self._rate = self.scalar(0.0)
        self._velocity = self.like(variables, "velocity")
        self._z = self.like(variables, "z")
        for z, variable in zip(self._z, variables, strict=True):
            z.assign(variable)

    def look(self, gradients: list[tf.Tensor], weights: list[keras.Variable]) -> None:
        """Weighs this step's iterate in the average."""
        rate = tf.cast(self.learning_rate, tf.float32)
        if self.warmup:
            t = tf.cast(self.iterations, tf.float32)
            rate *= tf.minimum((t + 1.0) / self.warmup, 1.0)
        # It never falls, so it is the largest so far.
        self._rate.assign(rate)
        self._weight_sum.assign_add(rate**2)
        self._share.assign(tf.math.divide_no_nan(rate**2, self._weight_sum.value))

    def update_step(
        self, gradient: Any, variable: keras.Variable, learning_rate: Any
    ) -> None:
        """Moves z as AdamW does, then the average, then y between them."""
        index = self._get_variable_index(variable)
        v, z = self._velocity[index], self._z[index]
        x = self._average(variable, z)
        t = tf.cast(self.iterations + 1, tf.float32)
        v.assign(BETA_2 * v + (1.0 - BETA_2) * gradient**2)
        size = tf.sqrt(v / (1.0 - BETA_2**t)) + EPSILON
        z.assign_sub(self._rate * (gradient / size + self.decay * variable))
        x = (1.0 - self._share) * x + self._share * z
        variable.assign((1.0 - BETA_1) * z + BETA_1 * x)

    def averaged(self) -> list[tf.Tensor]:
        """Returns x, the averaged weights."""
        pairs = zip(self._trainable_variables, self._z, strict=True)
        return [self._average(y, z) for y, z in pairs]

    def _average(self, y: keras.Variable, z: keras.Variable) -> tf.Tensor:
        return (y - (1.0 - BETA_1) * z) / BETA_1


def schedule_free(run: Run) -> Setup:
    """Schedule-Free AdamW at its averaged weights (Defazio et al. 2024)."""
    optimizer = ScheduleFreeAdamW(
        run.learning_rate, round(WARMUP * run.steps), decay_of(run.task.optimizer(1.0))
    )
    x = run.task.data.train[0]
    averaging = EvaluateAveraged(optimizer.averaged, x, run.task.batch_size)
    return Setup(optimizer, averaging=(averaging,))
