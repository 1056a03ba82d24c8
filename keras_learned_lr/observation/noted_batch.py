"""A batch of each window, and the model's outputs for it before and after."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_learned_lr.observation.layers import fixed_batch_size
from keras_learned_lr.observation.outputs import measure_outputs, output_units
from keras_learned_lr.observation.tensors import (
    as_float,
    flat_leaves,
    replica_variable,
)


class NotedBatch:
    """A batch of training inputs and the outputs that a model has for it.

    Args:
        model: The model that is trained on it.
        x: A batch of its inputs: structure, dtypes and shapes of what is kept.
        size: Examples to look at, at most; a model that is built for batches of one
            size gets just that many.
        weights: Variables that the outputs depend on and training changes; None to
            leave the outputs out.

    Raises:
        ValueError: If the shapes vary and the model is compiled with XLA.
    """

    def __init__(
        self,
        model: keras.Model,
        x: Any,
        size: int,
        weights: Sequence[keras.Variable] | None,
    ) -> None:
        self._model = model
        varies = any(None in leaf.shape[1:] for leaf in flat_leaves(x))
        if varies and model.jit_compile:
            raise ValueError(
                "XLA cannot keep examples whose shape varies from batch to batch. "
                "Compile with `jit_compile=False` for these features."
            )
        known = [leaf.shape[0] for leaf in flat_leaves(x)]
        smallest = min([size, *(batch for batch in known if batch is not None)])
        self._size = fixed_batch_size(model) or smallest
        self._x = _map(self._variable_like, x)
        self._weights = None if weights is None else list(weights)
        self._units: Any = self._compute_units
        if not model.run_eagerly:
            # Of its own, so that the model's call is traced once for both weights.
            self._units = tf.function(self._compute_units, autograph=False)
        self._check(x)

    @property
    def variables(self) -> list[tf.Variable]:
        """What is kept: the inputs."""
        return keras.tree.flatten(self._x)

    def note(self, x: Any) -> None:
        """Keeps a batch in place of the one before it."""

        def keep(variable: tf.Variable, leaf: tf.Tensor) -> None:
            # The whole batch costs nothing: the variable shares its memory. XLA would
            # copy it, and lets no variable change its shape.
            leaf = self._first(leaf) if self._model.jit_compile else leaf
            variable.assign(_fitted(leaf, variable.shape))

        _map(keep, self._x, x)

    def measure(self, before: Sequence[tf.Tensor]) -> dict[str, tf.Tensor]:
        """Measures the inputs, and the outputs of before and of now.

        Args:
            before: What the weights were when the window began.
        """
        x = _map(lambda leaf: self._first(leaf.read_value()), self._x)
        numeric = [
            tf.reshape(as_float(leaf), [-1])
            for leaf in flat_leaves(x)
            if leaf.dtype.is_floating or leaf.dtype.is_integer
        ]
        measured = {}
        if numeric:
            mean, variance = tf.nn.moments(tf.concat(numeric, axis=0), axes=[0])
            measured = {"input_mean": mean, "input_variance": variance}
        if self._weights is not None:
            now = [tf.convert_to_tensor(v.value) for v in self._weights]
            old, new = self._units(x, list(before)), self._units(x, now)
            # Between one example and itself nothing varies but rounding.
            several = tf.shape(flat_leaves(self._x)[0])[0] > 1
            measured |= {
                name: tf.where(several, variance, 0.0)
                for name, variance in measure_outputs(old, new).items()
            }
        return measured

    def _check(self, x: Any) -> None:
        """Calls the model, so that one which cannot be called is known at once."""
        if self._weights is None:
            return
        if self._model.run_eagerly:
            values = [tf.convert_to_tensor(v.value) for v in self._weights]
            self._units(_map(self._first, x), values)
            return
        # Only traced; where shapes vary, the variables do not have a real one yet.
        self._units.get_concrete_function(
            _map(self._spec_like, x),
            [tf.TensorSpec(v.shape, v.dtype) for v in self._weights],
        )

    def _spec_like(self, leaf: tf.Tensor) -> tf.TensorSpec:
        return tf.TensorSpec([self._size, *leaf.shape[1:]], leaf.dtype)

    def _variable_like(self, leaf: tf.Tensor) -> tf.Variable:
        shape = [self._size, *leaf.shape[1:]]
        # Sequences may differ in length from batch to batch.
        start = tf.zeros([1 if size is None else size for size in shape], leaf.dtype)
        if not self._model.jit_compile:
            shape[0] = None
        return replica_variable(start, shape=shape)

    def _first(self, leaf: tf.Tensor) -> tf.Tensor:
        # A ragged last batch may be smaller: its examples are repeated.
        index = tf.range(self._size) % tf.shape(leaf)[0]
        return tf.gather(leaf, index)

    def _compute_units(self, x: Any, values: list[tf.Tensor]) -> tf.Tensor:
        """Returns the model's outputs, float32 `[examples, units]`."""
        mapping = list(zip(self._weights or [], values, strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            return output_units(self._model(x, training=False), self._size)


def _map(function: Callable, *structures: Any) -> Any:
    return keras.tree.map_structure(
        lambda *leaves: None if leaves[0] is None else function(*leaves), *structures
    )


def _fitted(leaf: tf.Tensor, shape: tf.TensorShape) -> tf.Tensor:
    """Cuts or fills examples: a later `fit` may bring longer ones, or shorter."""
    for axis, size in enumerate(shape[1:], start=1):
        if size is not None and leaf.shape[axis] != size:
            leaf = leaf[(slice(None),) * axis + (slice(size),)]
            missing = [[0, 0] for _ in shape]
            missing[axis][1] = size - tf.shape(leaf)[axis]
            leaf = tf.pad(leaf, missing)
    return leaf
