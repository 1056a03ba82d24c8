"""Runs a function of many trainees on a few of them at a time."""

import math
import os
from collections.abc import Callable
from typing import Any

import tensorflow as tf

# A shard whose weights and slots stay in a core's cache was measured to be the fastest.
SHARD_BYTES = 1_000_000
# XLA mostly keeps to one core a call; more shards than cores even out who waits.
SHARDS_A_CORE = 2
# Without XLA, so many at once of the trainees of which one alone overflows a cache.
LARGE_TRAINEES = 8


class InShards:
    """A function of a batch of trainees, called for parts of them at the same time.

    Args:
        function: `(shared, own) -> results`. Of `own` and of the results, every tensor
            that is not a scalar has the trainees along its first axis, and none of
            them depends on another's.
        compiled: Whether XLA compiles it; else a single shard is no call of its own.
            Values that its graph needs while it is built
            (begins of slices, shapes) must then be Python's, or it is compiled again
            for each.
    """

    def __init__(
        self, function: Callable[[Any, Any], Any], compiled: bool = True
    ) -> None:
        self._plain = None if compiled else function
        self._function = tf.function(function, autograph=False, jit_compile=compiled)

    @property
    def traces(self) -> int:
        """How often a graph was built."""
        return self._function.experimental_get_tracing_count()

    def __call__(self, shared: Any, own: Any, shards: int) -> Any:
        """Calls it.

        Args:
            shared: What every trainee needs.
            own: What is each trainee's own, and scalars.
            shards: In how many calls; divides the number of trainees.

        Returns:
            What the function returns for all trainees.
        """
        if shards == 1 and self._plain is not None:
            return self._plain(shared, own)
        split = [_split(leaf, shards) for leaf in tf.nest.flatten(own)]
        results = [
            self._function(shared, tf.nest.pack_sequence_as(own, leaves))
            for leaves in zip(*split, strict=True)
        ]
        return tf.nest.map_structure(_join, *results)


def number_of_shards(trainees: int, bytes_each: int) -> int:
    """Returns in how many calls to run so many trainees.

    Args:
        trainees: How many there are.
        bytes_each: Weights and optimizer slots of one.
    """
    wanted = max(
        SHARDS_A_CORE * (os.cpu_count() or 1), trainees * bytes_each / SHARD_BYTES
    )
    return _nearest_divisor(trainees, wanted)


def number_of_plain_shards(trainees: int, bytes_each: int) -> int:
    """Returns the same for calls that XLA does not compile.

    Args:
        trainees: How many there are.
        bytes_each: The largest output of a layer for one of them.
    """
    if bytes_each <= SHARD_BYTES:
        return 1
    return _nearest_divisor(trainees, LARGE_TRAINEES)


def _nearest_divisor(number: int, wanted: float) -> int:
    divisors = [n for n in range(1, number + 1) if number % n == 0]
    return min(divisors, key=lambda n: abs(math.log(n / wanted)))


def _split(leaf: tf.Tensor | None, shards: int) -> list[tf.Tensor | None]:
    if leaf is None or not leaf.shape.rank:
        return [leaf] * shards
    return tf.split(leaf, shards)


def _join(*parts: tf.Tensor) -> tf.Tensor:
    return tf.concat(parts, axis=0) if parts[0].shape.rank else parts[0]
