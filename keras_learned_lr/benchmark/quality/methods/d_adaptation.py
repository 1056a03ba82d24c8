"""D-Adaptation: Adam with a lower bound on the distance to the solution."""

from typing import Any

import keras
import tensorflow as tf

from keras_learned_lr.benchmark.quality.methods.global_optimizer import (
    GlobalOptimizer,
    absolute_sum,
    decay_of,
    dot,
)
from keras_learned_lr.benchmark.quality.methods.method import Run, Setup
from keras_learned_lr.benchmark.quality.methods.schedules import cosine_schedule

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8
FIRST_ESTIMATE = 1e-6


class DAdaptAdam(GlobalOptimizer):
    """Adam with the step size of Defazio & Mishchenko 2023, algorithm 5.

    The names are the paper's: d is the bound on the distance, r its weighted
    numerator, s the weighted sum of gradients. Adam's bias correction is on, as in
    optax.
    """

    def build(self, variables: Any) -> None:
        """Makes the state."""
        super().build(variables)
        self._d, self._r = self.scalar(FIRST_ESTIMATE), self.scalar(0.0)
        self._step_size = self.scalar(0.0)
        self._momentum = self.like(variables, "momentum")
        self._velocity = self.like(variables, "velocity")
        self._s = self.like(variables, "s")

    def look(self, gradients: list[tf.Tensor], weights: list[keras.Variable]) -> None:
        """Raises d; the step is taken with the bound before."""
        t = tf.cast(self.iterations + 1, tf.float32)
        rate = tf.cast(self.learning_rate, tf.float32)
        correction = tf.sqrt(1.0 - BETA_2**t) / (1.0 - BETA_1**t)
        step_size = self._d * rate * correction
        forget = BETA_2**0.5
        weighted = [
            s / (tf.sqrt(v) + EPSILON)
            for s, v in zip(self._s, self._velocity, strict=True)
        ]
        gained = (1.0 - forget) * step_size * dot(gradients, weighted)
        self._r.assign(forget * self._r + gained)
        for s, gradient in zip(self._s, gradients, strict=True):
            s.assign(forget * s + (1.0 - forget) * step_size * gradient)
        estimate = tf.math.divide_no_nan(
            self._r.value, (1.0 - forget) * absolute_sum(self._s)
        )
        self._step_size.assign(step_size)
        self._d.assign(tf.maximum(self._d.value, estimate))

    def update_step(
        self, gradient: Any, variable: keras.Variable, learning_rate: Any
    ) -> None:
        """Moves one weight as Adam does, the step size inside the momentum."""
        index = self._get_variable_index(variable)
        m, v = self._momentum[index], self._velocity[index]
        m.assign(BETA_1 * m + (1.0 - BETA_1) * self._step_size * gradient)
        v.assign(BETA_2 * v + (1.0 - BETA_2) * gradient**2)
        decay = self.decay * self._step_size * variable
        variable.assign_sub(m / (tf.sqrt(v) + EPSILON) + decay)


def d_adaptation(run: Run) -> Setup:
    """D-Adaptation's Adam under a cosine (Defazio & Mishchenko 2023)."""
    schedule = cosine_schedule(run.learning_rate, run.steps, warmup=0.0)
    return Setup(DAdaptAdam(schedule, decay_of(run.task.optimizer(1.0))))
