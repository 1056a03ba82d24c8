"""DoG: the distance moved over the gradients seen."""

from typing import Any

import keras
import tensorflow as tf

from keras_learned_lr.benchmark.quality.methods.averaging import EvaluateAveraged
from keras_learned_lr.benchmark.quality.methods.global_optimizer import (
    GlobalOptimizer,
    decay_of,
    dot,
)
from keras_learned_lr.benchmark.quality.methods.method import Run, Setup

FIRST_DISTANCE = 1e-6
EPSILON = 1e-8
# γ of the average, which weighs late weights more (Ivgi et al. 2023, section 3.3).
AVERAGE = 8.0


class DoG(GlobalOptimizer):
    """SGD with the step size of Ivgi, Hinder & Carmon 2023.

    η = max distance to the first weights / root of the sum of squared gradient norms,
    the first distance being 1e-6 · (1 + norm of the weights).
    """

    def build(self, variables: Any) -> None:
        """Makes the state."""
        super().build(variables)
        self._distance, self._squares = self.scalar(0.0), self.scalar(0.0)
        self._first = self.like(variables, "first")
        self._average = self.like(variables, "average")
        for first, average, v in zip(
            self._first, self._average, variables, strict=True
        ):
            first.assign(v)
            average.assign(v)
        norm = tf.sqrt(dot(variables, variables))
        self._distance.assign(FIRST_DISTANCE * (1.0 + norm))

    def look(self, gradients: list[tf.Tensor], weights: list[keras.Variable]) -> None:
        """Measures distance and gradients."""
        gradients = self._decayed(gradients, weights)
        way = [w - f for w, f in zip(weights, self._first, strict=True)]
        self._distance.assign(tf.maximum(self._distance, tf.sqrt(dot(way, way))))
        self._squares.assign_add(dot(gradients, gradients))

    def update_step(
        self, gradient: Any, variable: keras.Variable, learning_rate: Any
    ) -> None:
        """Moves one weight, and its average after it."""
        step = learning_rate * self._distance / tf.sqrt(self._squares + EPSILON)
        variable.assign_sub(step * self._decayed([gradient], [variable])[0])
        average = self._average[self._get_variable_index(variable)]
        t = tf.cast(self.iterations + 1, tf.float32)
        share = (1.0 + AVERAGE) / (t + AVERAGE)
        average.assign((1.0 - share) * average + share * variable)

    def averaged(self) -> list[tf.Tensor]:
        """Returns the averaged weights."""
        return [average.value for average in self._average]

    def _decayed(
        self, gradients: list[tf.Tensor], weights: list[keras.Variable]
    ) -> list[tf.Tensor]:
        return [g + self.decay * w for g, w in zip(gradients, weights, strict=True)]


def dog(run: Run) -> Setup:
    """DoG, evaluated at its averaged weights (Ivgi, Hinder & Carmon 2023)."""
    optimizer = DoG(run.learning_rate, decay_of(run.task.optimizer(1.0)))
    x = run.task.data.train[0]
    averaging = EvaluateAveraged(optimizer.averaged, x, run.task.batch_size)
    return Setup(optimizer, averaging=(averaging,))
