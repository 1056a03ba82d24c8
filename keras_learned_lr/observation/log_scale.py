"""Logarithms that are defined for every loss."""

import tensorflow as tf

# Below this share of the first loss, the symmetric logarithm turns linear.
LOSS_RESOLUTION = 1e-3
SMALL = 1e-12


def symmetric_log(value: tf.Tensor, reference: tf.Tensor) -> tf.Tensor:
    """Returns a logarithm of `value / |reference|` that is defined for every value.

    `asinh(x / 2r)` equals `log(x / r)` far above the resolution r and is linear around
    0, so that losses at or below 0 (likelihoods, penalties) have a place too and the
    difference of two such logarithms is their log ratio.
    """
    unit = LOSS_RESOLUTION * tf.maximum(tf.abs(reference), SMALL)
    return tf.asinh(value / (2.0 * unit))


def log_ratio(value: tf.Tensor, other: tf.Tensor, reference: tf.Tensor) -> tf.Tensor:
    """Returns the difference of two values' symmetric logarithms."""
    return symmetric_log(value, reference) - symmetric_log(other, reference)


def log10(value: tf.Tensor) -> tf.Tensor:
    """Returns the logarithm to base 10; a value at or below 0 counts as tiny."""
    return tf.math.log(tf.maximum(value, SMALL)) / tf.math.log(10.0)
