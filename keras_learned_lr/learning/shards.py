"""Runs a function of many trainees through XLA, a few of them at a time."""

import math
import os
from collections.abc import Callable
from typing import Any

import tensorflow as tf

# A shard whose weights and slots stay in a core's cache was measured to be the fastest.
SHARD_BYTES = 1_000_000
# XLA mostly keeps to one core a call; more shards than cores even out who waits.
SHARDS_A_CORE = 2


class InShards:
    """A function of a batch of trainees, compiled for a part of them.

    Args:
        function: `(shared, own) -> results`. Of `own` and of the results, every tensor
            that is not a scalar has the trainees along its first axis, and none of
            them depends on another's. Values that its graph needs while it is built
            (begins of slices, shapes) must be Python's, or XLA compiles it again for
            each.
    """

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        self._function = tf.function(function, autograph=False, jit_compile=True)

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
    divisors = [n for n in range(1, trainees + 1) if trainees % n == 0]
    return min(divisors, key=lambda n: abs(math.log(n / wanted)))


def _split(leaf: tf.Tensor | None, shards: int) -> list[tf.Tensor | None]:
    if leaf is None or not leaf.shape.rank:
        return [leaf] * shards
    return tf.split(leaf, shards)


def _join(*parts: tf.Tensor) -> tf.Tensor:
    return tf.concat(parts, axis=0) if parts[0].shape.rank else parts[0]
