"""Variables and tensors that the probe's parts share."""

from typing import Any

import keras
import tensorflow as tf


def replica_variable(
    value: Any, dtype: tf.DType | None = None, shape: Any = None
) -> tf.Variable:
    """Returns a variable that training steps may write, on each replica its own.

    Args:
        value: Its first value.
        dtype: Its dtype, if not that of the value.
        shape: Its shape, where later values may differ from the first in size.
    """
    # On several replicas each notes its own; the first one is what is measured.
    return tf.Variable(
        value,
        trainable=False,
        dtype=dtype,
        shape=shape,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )


def first_replica() -> bool:
    """Returns whether this is traced for the first replica, or for the only one."""
    context = tf.distribute.get_replica_context()
    return context is None or tf.get_static_value(context.replica_id_in_sync_group) == 0


def as_float(value: Any) -> tf.Tensor:
    """Returns a tensor, a Keras or a TensorFlow variable as float32 tensor."""
    return tf.cast(keras.ops.convert_to_tensor(value), tf.float32)


def flat_leaves(structure: Any) -> list:
    """Returns the leaves of a structure; an optional input may be None and is none."""
    return [leaf for leaf in keras.tree.flatten(structure) if leaf is not None]
