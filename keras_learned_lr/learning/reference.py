"""One trainee at a time, with Keras's own model and optimizer: slow and plain.

The batched trainees are held to this in the tests.
"""

from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_learned_lr.learning.optimizers import Settings, check_kind


class ReferenceRun(NamedTuple):
    """What a plain training run went through.

    Attributes:
        losses: The loss of each step's batch, `[steps]`.
        weights: The model's weights after the last step, NumPy arrays.
    """

    losses: np.ndarray
    weights: list[np.ndarray]


def keras_optimizer(
    kind: str, settings: Settings, member: int = 0, learning_rate: float = 1e-3
) -> keras.optimizers.Optimizer:
    """Returns Keras's optimizer with the settings of one member of a batch.

    Args:
        kind: The optimizer, a key of `RULES`.
        settings: The batch's settings.
        member: Which trainee's to take.
        learning_rate: What it is compiled with.

    Raises:
        ValueError: If the kind is unknown.
    """
    check_kind(kind)
    values = {
        name: None if column is None else float(column[member])
        for name, column in settings._asdict().items()
    }

    def build(make: Any, *names: str, **options: Any) -> keras.optimizers.Optimizer:
        options |= {name: values[name] for name in (*names, "weight_decay")}
        return make(learning_rate=learning_rate, **options)

    optimizers = keras.optimizers
    if kind in ("adam", "adamw"):
        make = optimizers.Adam if kind == "adam" else optimizers.AdamW
        return build(make, "beta_1", "beta_2", "epsilon")
    if kind == "lion":
        return build(optimizers.Lion, "beta_1", "beta_2")
    if kind == "rmsprop":
        return build(optimizers.RMSprop, "rho", "epsilon")
    if kind == "adagrad":
        return build(optimizers.Adagrad, "initial_accumulator_value", "epsilon")
    if kind == "sgd":
        return build(optimizers.SGD)
    return build(optimizers.SGD, "momentum", nesterov=kind == "nesterov")


def train(
    model: keras.Model,
    x: Any,
    y: Any,
    order: np.ndarray,
    learning_rates: np.ndarray,
) -> ReferenceRun:
    """Trains a compiled model eagerly, one batch after the other.

    Args:
        model: Compiled and built.
        x: Inputs, `[examples, ...]`.
        y: Targets, `[examples, ...]`.
        order: Which examples make each step's batch, int `[steps, batch_size]`.
        learning_rates: The learning rate of each step, `[steps]`.
    """
    losses = []
    for rows, rate in zip(order, learning_rates, strict=True):
        batch, target = tf.gather(x, rows), tf.gather(y, rows)
        model.optimizer.learning_rate = float(rate)
        with tf.GradientTape() as tape:
            outputs = model(batch, training=True)
            loss = model.compute_loss(x=batch, y=target, y_pred=outputs)
        weights = model.trainable_variables
        gradients = tape.gradient(loss, [weight.value for weight in weights])
        # Keras squares the slices of an Embedding's gradient before it sums those of
        # the same row; as a dense tensor they are summed first.
        gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
        model.optimizer.apply(gradients, weights)
        losses.append(float(loss))
    weights = [keras.ops.convert_to_numpy(v) for v in model.variables]
    return ReferenceRun(np.array(losses), weights)
