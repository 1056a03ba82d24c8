"""Optimizers whose step depends on all weights and gradients at once."""

from typing import Any

import keras
import tensorflow as tf


class GlobalOptimizer(keras.optimizers.Optimizer):
    """Lets a subclass look at everything before single weights are updated.

    Args:
        learning_rate: A factor on the step size that the method finds, or a schedule
            of it.
        decay: Decoupled weight decay, before the learning rate.
        **options: See `keras.optimizers.Optimizer`.
    """

    def __init__(
        self, learning_rate: Any = 1.0, decay: float = 0.0, **options: Any
    ) -> None:
        super().__init__(learning_rate=learning_rate, **options)
        self.decay = decay

    def scalar(self, value: float) -> keras.Variable:
        """Returns a new scalar of the optimizer's state."""
        return self.add_variable((), initializer=keras.initializers.Constant(value))

    def like(self, variables: list[keras.Variable], name: str) -> list[keras.Variable]:
        """Returns one new variable of zeros for each of `variables`."""
        return [self.add_variable_from_reference(v, name) for v in variables]

    def look(self, gradients: list[tf.Tensor], weights: list[keras.Variable]) -> None:
        """Brings the state up to date, before `update_step` moves the weights."""
        raise NotImplementedError

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Takes a step; see `keras.optimizers.Optimizer.apply`."""
        # Embeddings have sparse gradients.
        grads = [tf.convert_to_tensor(gradient) for gradient in grads]
        if not self.built:
            with tf.init_scope():
                self.build(trainable_variables)
        self.look(grads, self._trainable_variables)
        super().apply(grads, trainable_variables)


def dot(left: list[tf.Tensor], right: list[tf.Tensor]) -> tf.Tensor:
    """Returns the inner product of two lists of tensors."""
    return tf.add_n([tf.reduce_sum(a * b) for a, b in zip(left, right, strict=True)])


def absolute_sum(tensors: list[tf.Tensor]) -> tf.Tensor:
    """Returns the 1-norm of a list of tensors."""
    return tf.add_n([tf.reduce_sum(tf.abs(tensor)) for tensor in tensors])


def decay_of(optimizer: keras.optimizers.Optimizer) -> float:
    """Returns the decoupled weight decay of a task's optimizer."""
    return optimizer.weight_decay or 0.0
