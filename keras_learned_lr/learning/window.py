"""Measures a window's Statistics for a batch of trainees, as the probe does for one."""

from typing import NamedTuple

import tensorflow as tf

from keras_learned_lr.observation.outputs import UNITS_KEPT
from keras_learned_lr.observation.window_losses import LOSSES_KEPT, place_of


def no_losses(batch_size: int) -> tf.Tensor:
    """Returns the memory of a window without losses, float32 `[kept, batch]`."""
    return tf.zeros([LOSSES_KEPT, batch_size])


def note_losses(kept: tf.Tensor, step: tf.Tensor, losses: tf.Tensor) -> tf.Tensor:
    """Notes the losses of a step.

    Args:
        kept: float32 `[kept, batch]`.
        step: Training steps taken before it, int64.
        losses: `[batch]`.
    """
    losses = tf.cast(losses, tf.float32)[tf.newaxis]
    return tf.tensor_scatter_nd_update(kept, [[place_of(step)]], losses)


class WeightMeasures(NamedTuple):
    """Measures of the weights, float32 `[batch]`, and what the next window needs.

    Attributes:
        statistics: Fields of `Statistics` by name.
        update: The window's change of the weights, `[batch, parameters]`.
    """

    statistics: dict[str, tf.Tensor]
    update: tf.Tensor


def measure_weights(
    now: tf.Tensor, before: tf.Tensor, previous_update: tf.Tensor | None
) -> WeightMeasures:
    """Measures how far the weights moved.

    Args:
        now: `[batch, parameters]`.
        before: The same at the window's start.
        previous_update: float32 `[batch, parameters]`, the window before's change;
            None leaves the cosine out.
    """
    now, before = tf.cast(now, tf.float32), tf.cast(before, tf.float32)
    update = now - before
    norm = tf.norm(update, axis=1)
    statistics = {"weight_norm": tf.norm(now, axis=1), "update_norm": norm}
    if previous_update is not None:
        product = tf.reduce_sum(update * previous_update, axis=1)
        norms = norm * tf.norm(previous_update, axis=1)
        statistics["update_cosine"] = tf.math.divide_no_nan(product, norms)
    return WeightMeasures(statistics, update)


def measure_layer(weights: tf.Tensor, mask: tf.Tensor | None) -> dict[str, tf.Tensor]:
    """Measures the designated layer's weights.

    Args:
        weights: `[batch, weights]`.
        mask: The same shape, 1 where a weight is part of the trainee, or None.
    """
    weights = tf.cast(weights, tf.float32)
    mask = tf.ones_like(weights) if mask is None else tf.cast(mask, tf.float32)
    count = tf.reduce_sum(mask, axis=1)
    mean = tf.reduce_sum(weights * mask, axis=1) / count
    spread = tf.square(weights - mean[:, tf.newaxis]) * mask
    return {
        "layer_mean": mean,
        "layer_variance": tf.reduce_sum(spread, axis=1) / count,
    }


def measure_inputs(x: tf.Tensor) -> dict[str, tf.Tensor]:
    """Measures the noted batch, `[batch, examples, ...]`."""
    flat = tf.reshape(tf.cast(x, tf.float32), [x.shape[0], -1])
    mean, variance = tf.nn.moments(flat, axes=[1])
    return {"input_mean": mean, "input_variance": variance}


def output_units(outputs: tf.Tensor) -> tf.Tensor:
    """Returns the output units looked at, float32 `[batch, examples, units]`."""
    units = tf.reshape(tf.cast(outputs, tf.float32), [*outputs.shape[:2], -1])
    stride = 1 + (units.shape[2] - 1) // UNITS_KEPT
    return units[:, :, ::stride]
