"""What is measured in one window, before anything is scaled for a network."""

from typing import NamedTuple

import tensorflow as tf


class Statistics(NamedTuple):
    """Measurements of the window that ends now.

    Every field is a float32 scalar, or `[batch]` for many trainees at once. What no
    selected feature needs is not measured and stays 0.

    Attributes:
        step: Training steps taken in this run, t.
        horizon: Training steps of the whole run, T.
        window_steps: Training steps since the last decision; 0 before step 1.
        learning_rate: The learning rate of the last training step.
        level: The same before the envelope.
        default_learning_rate: What the optimizer was compiled with.
        training_loss: Mean of the window's training losses.
        training_loss_deviation: Their standard deviation.
        training_loss_highest: The largest of them.
        training_loss_earliest: The first of them.
        training_loss_latest: The last of them.
        validation_loss: Loss on the validation subset now; `training_loss` where there
            is no validation data.
        finite: 1 if every loss of the window was finite, else 0.
        weight_norm: Euclidean norm of all trainable weights now.
        update_norm: Norm of their change over the window.
        update_cosine: Cosine between this window's change and the previous one's.
        output_variance_before: Variance over the first validation examples of the
            model's outputs with the weights that the window began with, averaged over
            output units; over examples of the window's last batch where there is no
            validation data.
        output_variance_after: The same with the weights of now.
        output_variance_difference: The same for the difference of the two outputs.
        input_mean: Mean of the inputs of the window's last batch.
        input_variance: Variance of all its elements.
        layer_mean: Mean of the designated layer's weights.
        layer_variance: Variance of the designated layer's weights.
    """

    step: tf.Tensor
    horizon: tf.Tensor
    window_steps: tf.Tensor
    learning_rate: tf.Tensor
    level: tf.Tensor
    default_learning_rate: tf.Tensor
    training_loss: tf.Tensor
    training_loss_deviation: tf.Tensor
    training_loss_highest: tf.Tensor
    training_loss_earliest: tf.Tensor
    training_loss_latest: tf.Tensor
    validation_loss: tf.Tensor
    finite: tf.Tensor
    weight_norm: tf.Tensor
    update_norm: tf.Tensor
    update_cosine: tf.Tensor
    output_variance_before: tf.Tensor
    output_variance_after: tf.Tensor
    output_variance_difference: tf.Tensor
    input_mean: tf.Tensor
    input_variance: tf.Tensor
    layer_mean: tf.Tensor
    layer_variance: tf.Tensor


def unmeasured(shape: tuple[int, ...] | tf.TensorShape = ()) -> Statistics:
    """Returns statistics of which nothing is measured yet: zeros.

    Args:
        shape: Of the trainees: () or `(batch,)`.
    """
    return Statistics._make(tf.zeros(shape) for _ in Statistics._fields)
