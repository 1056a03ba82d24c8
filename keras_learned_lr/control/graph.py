"""Functions and variables of a graph that is called at every decision."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf


class Traced:
    """A function that is traced at its first call, for arguments of one kind.

    A `tf.function` looks for its trace at every call, which takes a good part of the
    time that a decision takes.

    Args:
        function: Of tensors.
    """

    def __init__(self, function: Callable) -> None:
        self._function = tf.function(function, autograph=False)
        self._concrete: Any = None

    @property
    def traces(self) -> int:
        """How often a graph was built."""
        return self._function.experimental_get_tracing_count()

    def __call__(self, *arguments: Any) -> Any:
        """Calls it."""
        return self.concrete(*arguments)(*arguments)

    def concrete(self, *arguments: Any) -> Any:
        """Returns the concrete function."""
        if self._concrete is None:
            self._concrete = self._function.get_concrete_function(*arguments)
        return self._concrete


class Packed:
    """A NamedTuple of float32 tensors in one variable, read and written as a whole.

    Args:
        values: The NamedTuple to begin with.
    """

    def __init__(self, values: Any) -> None:
        self._kind = type(values)
        self._shapes = [value.shape for value in values]
        self.variable = tf.Variable(_joined(values), trainable=False)

    def read(self) -> Any:
        """Returns the NamedTuple."""
        sizes = [shape.num_elements() for shape in self._shapes]
        parts = tf.split(self.variable.read_value(), sizes)
        return self._kind(*map(tf.reshape, parts, self._shapes))

    def assign(self, values: Any) -> None:
        """Takes the place of what was there."""
        self.variable.assign(_joined(values))


def _joined(values: Any) -> tf.Tensor:
    return tf.concat([tf.reshape(value, [-1]) for value in values], axis=0)
