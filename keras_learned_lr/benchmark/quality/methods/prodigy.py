"""Prodigy: Adam that estimates the distance to the solution."""

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


class Prodigy(GlobalOptimizer):
    """Adam with the step size of Mishchenko & Defazio 2023, algorithm 4.

    The names are the paper's: d is the estimate of the distance, r its weighted
    numerator, s the weighted sum of gradients. Adam's bias correction is on, as in
    optax.
    """

    def build(self, variables: Any) -> None:
        """Makes the state."""
        super().build(variables)
        self._d, self._r = self.scalar(FIRST_ESTIMATE), self.scalar(0.0)
        self._step_size = self.scalar(0.0)
        self._first = self.like(variables, "first")
        self._momentum = self.like(variables, "momentum")
        self._velocity = self.like(variables, "velocity")
        self._s = self.like(variables, "s")
        for first, variable in zip(self._first, variables, strict=True):
            first.assign(variable)

    def look(self, gradients: list[tf.Tensor], weights: list[keras.Variable]) -> None:
        """Estimates d anew; the step is taken with the estimate before."""
        t = tf.cast(self.iterations + 1, tf.float32)
        rate = tf.cast(self.learning_rate, tf.float32)
        d = tf.identity(self._d.value)
        correction = tf.sqrt(1.0 - BETA_2**t) / (1.0 - BETA_1**t)
        step_size = d * rate * correction
        way = [f - w for f, w in zip(self._first, weights, strict=True)]
        weight = (d / FIRST_ESTIMATE) * step_size
        forget = BETA_2**0.5
        self._r.assign(forget * self._r + weight * dot(gradients, way))
        for s, gradient in zip(self._s, gradients, strict=True):
            s.assign(forget * s + weight * gradient)
        estimate = tf.math.divide_no_nan(self._r.value, absolute_sum(self._s))
        self._step_size.assign(step_size)
        self._previous_d = d
        self._d.assign(tf.maximum(d, estimate))

    def update_step(
        self, gradient: Any, variable: keras.Variable, learning_rate: Any
    ) -> None:
        """Moves one weight as Adam does on gradients scaled by d."""
        index = self._get_variable_index(variable)
        m, v = self._momentum[index], self._velocity[index]
        scaled = self._previous_d * gradient
        m.assign(BETA_1 * m + (1.0 - BETA_1) * scaled)
        v.assign(BETA_2 * v + (1.0 - BETA_2) * scaled**2)
        step = m / (tf.sqrt(v) + self._d * EPSILON) + self.decay * variable
        variable.assign_sub(self._step_size * step)


def prodigy(run: Run) -> Setup:
    """Prodigy under the cosine that its authors advise (Mishchenko & Defazio 2023)."""
    schedule = cosine_schedule(run.learning_rate, run.steps, warmup=0.0)
    return Setup(Prodigy(schedule, decay_of(run.task.optimizer(1.0))))
