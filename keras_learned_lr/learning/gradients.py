"""Losses and gradients of a batch of trainees on a batch of examples each."""

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_learned_lr.learning.batched_layers import LARGEST_ONE_HOT, MERGED
from keras_learned_lr.learning.batched_model import (
    BatchedModel,
    Layout,
    training_option,
)

# "batched": all trainees through each layer at once. "compiled": the same, but all
# steps of a window through XLA in a few shards. "looped": one trainee after the other
# with Keras's own layers, which needs the least memory.
WAYS = ("batched", "compiled", "looped")
# Layers of which XLA was measured to take 1.4 to 3 times as many steps a second. It is
# slower for convolutions, and where `tf.vectorized_map` stands in for a rule its
# graph takes half a minute to compile.
_COMPILED = (
    *MERGED,
    keras.layers.Dense,
    keras.layers.Embedding,
    keras.layers.GRU,
    keras.layers.InputLayer,
    keras.layers.LayerNormalization,
    keras.layers.MultiHeadAttention,
)


class Gradients(NamedTuple):
    """What one step of a batch of trainees computes.

    Attributes:
        loss: `[batch]`, of the batch before the update.
        gradients: One `[batch, *shape]` for each trainable variable.
        non_trainable: New values of the non-trainable variables.
    """

    loss: tf.Tensor
    gradients: list[tf.Tensor]
    non_trainable: list[tf.Tensor]


def batch_loss(
    loss: keras.losses.Loss, targets: tf.Tensor, outputs: tf.Tensor
) -> tf.Tensor:
    """Returns the mean loss of each trainee's examples, `[batch]`.

    Args:
        loss: Computes a loss for each example alone.
        targets: `[batch, examples, ...]`.
        outputs: `[batch, examples, ...]`.
    """
    batch, examples = outputs.shape[:2]
    targets = tf.reshape(targets, [batch * examples, *targets.shape[2:]])
    flat = tf.reshape(outputs, [batch * examples, *outputs.shape[2:]])
    # Cast as `Loss.__call__` does.
    targets = keras.ops.convert_to_tensor(targets, dtype=loss.dtype)
    losses = loss.call(targets, keras.ops.convert_to_tensor(flat, dtype=loss.dtype))
    return tf.reduce_mean(tf.reshape(losses, [batch, -1]), axis=1)


class LossAndGradients:
    """Computes losses and gradients in the way that suits the model.

    Args:
        model: The template's model.
        batched: The same, called for many trainees.
        layout: Of the model's trainable variables.
        loss: The loss.
        way: One of `WAYS`, or "auto".
    """

    def __init__(
        self,
        model: keras.Model,
        batched: BatchedModel,
        layout: Layout,
        loss: keras.losses.Loss,
        way: str,
    ) -> None:
        self._model = model
        self._batched = batched
        self._layout = layout
        self._loss = loss
        self.way = _choose_way(model, batched) if way == "auto" else way

    def __call__(
        self,
        parameters: tf.Tensor,
        non_trainable: tuple[tf.Tensor, ...],
        x: tf.Tensor,
        y: tf.Tensor,
    ) -> Gradients:
        """Computes them.

        Args:
            parameters: `[batch, parameters]`.
            non_trainable: Values of the non-trainable variables, `[batch, ...]`.
            x: Inputs, `[batch, examples, ...]`.
            y: Targets, `[batch, examples, ...]`.
        """
        weights = self._layout.split(parameters)
        if self.way == "looped":
            return self._looped(weights, non_trainable, x, y)
        return self._batched_step(weights, non_trainable, x, y)

    def _batched_step(
        self,
        weights: list[tf.Tensor],
        non_trainable: tuple[tf.Tensor, ...],
        x: tf.Tensor,
        y: tf.Tensor,
    ) -> Gradients:
        with tf.GradientTape() as tape:
            tape.watch(weights)
            called = self._batched(weights, non_trainable, x, training=True)
            loss = batch_loss(self._loss, y, called.outputs) + called.penalty
        # No trainee's loss depends on another's weights: one sum serves all.
        gradients = tape.gradient(
            loss, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        return Gradients(
            loss,
            # Where a layer was vectorised the batch is not known any more.
            [
                tf.ensure_shape(tf.convert_to_tensor(g), w.shape)
                for g, w in zip(gradients, weights, strict=True)
            ],
            called.non_trainable,
        )

    def _looped(
        self,
        weights: list[tf.Tensor],
        non_trainable: tuple[tf.Tensor, ...],
        x: tf.Tensor,
        y: tf.Tensor,
    ) -> Gradients:
        options = training_option(self._model, True)

        def one_trainee(one: Any) -> Any:
            own, other, x, y = one
            with tf.GradientTape() as tape:
                tape.watch(own)
                outputs, new, losses = self._model.stateless_call(
                    own, other, x, **options, return_losses=True
                )
                outputs = keras.tree.flatten(outputs)[0]
                loss = batch_loss(self._loss, y[tf.newaxis], outputs[tf.newaxis])[0]
                loss = tf.add_n([loss, *losses])
            gradients = tape.gradient(
                loss, own, unconnected_gradients=tf.UnconnectedGradients.ZERO
            )
            return loss, [tf.convert_to_tensor(g) for g in gradients], new

        arguments = (weights, list(non_trainable), x, y)
        signature = (
            tf.TensorSpec([], weights[0].dtype),
            [tf.TensorSpec(w.shape[1:], w.dtype) for w in weights],
            [tf.TensorSpec(v.shape[1:], v.dtype) for v in non_trainable],
        )
        loss, gradients, new = tf.map_fn(
            one_trainee, arguments, fn_output_signature=signature
        )
        return Gradients(loss, gradients, new)


def _choose_way(model: keras.Model, batched: BatchedModel) -> str:
    if not batched.walked:
        return "batched"
    for layer in model._flatten_layers(include_self=False, recursive=False):
        # XLA would draw other random numbers than `fit` does.
        drops = getattr(layer, "dropout", 0) or getattr(layer, "recurrent_dropout", 0)
        large = isinstance(layer, keras.layers.Embedding) and (
            layer.input_dim > LARGEST_ONE_HOT
        )
        if type(layer) not in _COMPILED or drops or large:
            return "batched"
    return "compiled"
