"""The loss of one training step, caught where it is computed."""

import threading
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_learned_lr.observation.tensors import first_replica


def run_and_catch_loss(
    model: keras.Model, train_step: Callable, data: Any
) -> tuple[Any, tf.Tensor]:
    """Runs a training step; returns its logs and the loss of this batch.

    `logs["loss"]` is the epoch's running mean, so the loss is caught where the step
    computes it. A custom step that never calls `compute_loss` leaves only the logs.
    """
    if not first_replica():
        return train_step(data), tf.zeros(())
    caught: list[tf.Tensor] = []
    thread = threading.get_ident()
    compute_loss = model.compute_loss
    own = model.__dict__.get("compute_loss")

    def catching_compute_loss(*args: Any, **kwargs: Any) -> tf.Tensor:
        loss = compute_loss(*args, **kwargs)
        # Each replica is traced in a thread of its own.
        if threading.get_ident() == thread:
            caught.append(loss)
        return loss

    model.compute_loss = catching_compute_loss
    try:
        logs = train_step(data)
    finally:
        del model.__dict__["compute_loss"]
        if own is not None:
            model.compute_loss = own
    if caught and _usable_here(caught[-1]):
        # Keras divides a replica's loss by the number of replicas.
        loss = caught[-1] * tf.distribute.get_strategy().num_replicas_in_sync
    else:
        loss = _logged_loss(logs)
    return logs, tf.reshape(tf.cast(loss, tf.float32), [])


def _usable_here(tensor: tf.Tensor) -> bool:
    # A step may compute its loss inside a tf.function of its own.
    if tf.inside_function():
        return getattr(tensor, "graph", None) is tf.compat.v1.get_default_graph()
    return True


def _logged_loss(logs: Any) -> tf.Tensor:
    if isinstance(logs, dict):
        for name in ["loss", *(key for key in logs if key.endswith("loss"))]:
            if name in logs:
                return logs[name]
    raise ValueError(
        "The controller finds no loss in this model's `train_step`: it neither calls "
        f"`self.compute_loss` nor returns a 'loss'. Received logs: {logs}"
    )
