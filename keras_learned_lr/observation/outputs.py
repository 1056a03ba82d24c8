"""How far a model's outputs for the same examples move in a window."""

from typing import Any

import keras
import tensorflow as tf

from keras_learned_lr.observation.tensors import as_float

# Output units looked at, evenly spread over a model's outputs.
UNITS_KEPT = 256


def output_units(outputs: Any, examples: int) -> tf.Tensor:
    """Returns the output units that are looked at, float32 `[examples, units]`.

    Args:
        outputs: What the model returned: a tensor or a structure of some, of so many
            examples each.
        examples: How many.
    """
    flat = [
        tf.reshape(as_float(leaf), [examples, -1])
        for leaf in keras.tree.flatten(outputs)
    ]
    units = tf.concat(flat, axis=1)
    stride = 1 + (tf.shape(units)[1] - 1) // UNITS_KEPT
    # A stride that is not known yet leaves not even the rank.
    return tf.ensure_shape(units[:, ::stride], [examples, None])


def measure_outputs(before: tf.Tensor, after: tf.Tensor) -> dict[str, tf.Tensor]:
    """Measures `output_units` of a window's start and of its end, as `Statistics` do.

    Args:
        before: `[examples, units]`, or `[batch, examples, units]` for many trainees.
        after: The same at the end.
    """
    return {
        "output_variance_before": _variance(before),
        "output_variance_after": _variance(after),
        "output_variance_difference": _variance(after - before),
    }


def _variance(units: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.math.reduce_variance(units, axis=-2), axis=-1)
