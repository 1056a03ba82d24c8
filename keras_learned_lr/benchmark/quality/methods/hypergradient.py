"""Hypergradient descent: gradient descent on the learning rate itself."""

from typing import Any

import keras
import tensorflow as tf

from keras_learned_lr.benchmark.quality.methods.global_optimizer import dot
from keras_learned_lr.benchmark.quality.methods.method import Run, Setup

STRENGTH = 0.02


class Hypergradient(keras.optimizers.Optimizer):
    """Mixed into an optimizer, it adapts the learning rate before every step.

    The multiplicative rule of Baydin et al. 2018 (section 3), which needs no scale:
    α ← α · (1 + β cos(∇f, u)), where u is the direction of the last update before its
    sign, whatever the optimizer made of its gradient.
    """

    def build(self, variables: Any) -> None:
        """Makes the state."""
        super().build(variables)
        reference = self.add_variable_from_reference
        self._changes = [reference(v, "change") for v in variables]

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Takes a step; see `keras.optimizers.Optimizer.apply`."""
        grads = [tf.convert_to_tensor(gradient) for gradient in grads]
        if not self.built:
            with tf.init_scope():
                self.build(trainable_variables)
        weights = self._trainable_variables
        changes = self._changes
        norms = tf.sqrt(dot(grads, grads) * dot(changes, changes))
        # A change goes against u.
        cosine = -tf.math.divide_no_nan(dot(grads, changes), norms)
        rate = self._learning_rate
        rate.assign(rate * (1.0 + STRENGTH * cosine))
        before = [tf.identity(v.value) for v in weights]
        super().apply(grads, trainable_variables)
        for change, weight, old in zip(changes, weights, before, strict=True):
            change.assign(weight - old)


def with_hypergradient(
    optimizer: keras.optimizers.Optimizer,
) -> keras.optimizers.Optimizer:
    """Returns the same optimizer, adapting its own learning rate."""
    kind = type(optimizer)
    mixed: Any = type(f"Hypergradient{kind.__name__}", (Hypergradient, kind), {})
    return mixed.from_config(optimizer.get_config())


def hypergradient(run: Run) -> Setup:
    """The task's optimizer with hypergradient descent (Baydin et al. 2018)."""
    return Setup(with_hypergradient(run.task.optimizer(run.learning_rate)))
