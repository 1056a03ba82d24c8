"""A batch of each window, with the model's outputs before and after."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_learned_lr.observation.layers import fixed_batch_size
from keras_learned_lr.observation.tensors import as_float, replica_variable

# Output units looked at, evenly spread over a model's outputs.
UNITS_KEPT = 256


class NotedBatch:
    """A batch of training inputs and the outputs that the model had for it.

    Args:
        model: The model that is trained on it.
        x: A batch of its inputs: structure, dtypes and shapes of what is kept.
        size: Examples to keep, at most; a model that is built for batches of one size
            gets just that many.
        outputs: Whether to keep the outputs too.

    Raises:
        ValueError: If the shapes vary and the model is compiled with XLA.
    """

    def __init__(self, model: keras.Model, x: Any, size: int, outputs: bool) -> None:
        self._model = model
        varies = any(None in leaf.shape[1:] for leaf in _leaves(x))
        if varies and model.jit_compile:
            raise ValueError(
                "XLA cannot keep examples whose shape varies from batch to batch. "
                "Compile with `jit_compile=False` for these features."
            )
        known = [leaf.shape[0] for leaf in _leaves(x)]
        smallest = min([size, *(batch for batch in known if batch is not None)])
        self._size = fixed_batch_size(model) or smallest
        self._x = _map(self._variable_like, x)
        self._outputs = None
        if outputs:
            # Calling the model now tells XLA the shape. The placeholder of an input
            # whose shape varies may be too short for the model.
            start = (
                tf.zeros([self._size, 1]) if varies else tf.zeros_like(self._units())
            )
            self._outputs = replica_variable(start, shape=[self._size, None])

    @property
    def variables(self) -> list[tf.Variable]:
        """What is kept: the inputs, and the outputs behind them."""
        outputs = [] if self._outputs is None else [self._outputs]
        return [*keras.tree.flatten(self._x), *outputs]

    def note(self, x: Any) -> None:
        """Keeps the first examples of `x` and the model's outputs for them."""

        def keep(variable: tf.Variable, leaf: tf.Tensor) -> None:
            # A ragged last batch may be smaller: its examples are repeated.
            index = tf.range(self._size) % tf.shape(leaf)[0]
            variable.assign(tf.gather(leaf, index))

        _map(keep, self._x, x)
        if self._outputs is not None:
            self._outputs.assign(self._units())

    def measure(self) -> dict[str, tf.Tensor]:
        """Measures the kept inputs, and the outputs of before and of now."""
        numeric = [
            tf.reshape(as_float(leaf), [-1])
            for leaf in _leaves(self._x)
            if leaf.dtype.is_floating or leaf.dtype.is_integer
        ]
        measured = {}
        if numeric:
            mean, variance = tf.nn.moments(tf.concat(numeric, axis=0), axes=[0])
            measured = {"input_mean": mean, "input_variance": variance}
        if self._outputs is not None:
            before, after = self._outputs.read_value(), self._units()
            measured |= {
                "output_variance_before": _variance(before),
                "output_variance_after": _variance(after),
                "output_variance_difference": _variance(after - before),
            }
        return measured

    def _variable_like(self, leaf: tf.Tensor) -> tf.Variable:
        # Sequences may differ in length from batch to batch.
        shape = [self._size, *leaf.shape[1:]]
        start = tf.zeros([1 if size is None else size for size in shape], leaf.dtype)
        return replica_variable(start, shape=shape)

    def _units(self) -> tf.Tensor:
        """Returns the model's outputs now, float32 `[examples, units]`."""
        x = _map(lambda leaf: leaf.read_value(), self._x)
        with keras.StatelessScope():
            outputs = self._model(x, training=False)
        flat = [
            tf.reshape(as_float(leaf), [self._size, -1])
            for leaf in keras.tree.flatten(outputs)
        ]
        units = tf.concat(flat, axis=1)
        stride = 1 + (tf.shape(units)[1] - 1) // UNITS_KEPT
        return units[:, ::stride]


def _leaves(x: Any) -> list:
    # An optional input may be None.
    return [leaf for leaf in keras.tree.flatten(x) if leaf is not None]


def _map(function: Callable, *structures: Any) -> Any:
    return keras.tree.map_structure(
        lambda *leaves: None if leaves[0] is None else function(*leaves), *structures
    )


def _variance(units: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.math.reduce_variance(units, axis=0))
