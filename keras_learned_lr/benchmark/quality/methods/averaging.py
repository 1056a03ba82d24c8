"""Evaluates a model at averaged weights, which training does not see."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

# Batches from which batch normalisation learns the statistics of averaged weights.
BATCHES = 30


class EvaluateAveraged(keras.callbacks.Callback):
    """Puts averaged weights in when an evaluation begins and takes them out after it.

    Moving statistics of batch normalisation belong to other weights then, so they are
    taken anew from training data, as the authors of Schedule-Free ask for.

    Args:
        averaged: Returns the averaged trainable weights, in the model's order.
        x: Training inputs.
        batch_size: Of the batches that are shown to batch normalisation.
    """

    def __init__(
        self,
        averaged: Callable[[], list[tf.Tensor]],
        x: np.ndarray,
        batch_size: int,
    ) -> None:
        super().__init__()
        self._averaged = averaged
        self._x, self._batch_size = x, batch_size
        self._look = tf.function(
            lambda batch: self.model(batch, training=True), autograph=False
        )

    def on_test_begin(self, logs: dict | None = None) -> None:
        """Puts the averaged weights in."""
        model = self.model
        self._kept = [v.numpy() for v in model.weights]
        for variable, value in zip(
            model.trainable_variables, self._averaged(), strict=True
        ):
            variable.assign(value)
        if any(isinstance(la, keras.layers.BatchNormalization) for la in model.layers):
            for start in range(0, BATCHES * self._batch_size, self._batch_size):
                self._look(tf.constant(self._x[start : start + self._batch_size]))

    def on_test_end(self, logs: dict | None = None) -> None:
        """Puts the weights that train back."""
        for variable, value in zip(self.model.weights, self._kept, strict=True):
            variable.assign(value)
