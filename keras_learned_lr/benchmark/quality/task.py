"""What a test task is."""

import dataclasses
import functools
import zlib
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np

Part = tuple[np.ndarray, np.ndarray]


class NotOnThisMachine(Exception):
    """A task's data is not installed; says what to install."""


class Data(NamedTuple):
    """Examples in three parts, the same for every seed.

    Attributes:
        train: `(x, y)`, arrays with one entry an example.
        validation: What baselines are tuned on and the controller looks at.
        test: What is scored, and looked at for nothing else.
    """

    train: Part
    validation: Part
    test: Part

    @property
    def fingerprint(self) -> str:
        """A checksum, so that runs on other data are never compared."""
        crc = 0
        for x, y in self:
            for array in (x, y):
                crc = zlib.crc32(np.ascontiguousarray(array).tobytes(), crc)
        return f"{crc:08x}"


@dataclasses.dataclass(frozen=True)
class Task:
    """A model, its data and how it is trained.

    Attributes:
        name: What results call it.
        load: Returns the data; raises `NotOnThisMachine` where there is none.
        build: Returns a model, not compiled, whose initializers have no seeds: the
            run seeds them.
        loss: A Keras loss, averaged over the examples.
        optimizer: Returns the optimizer for a learning rate or a schedule.
        learning_rate: The reference r: about the best peak of a cosine schedule, known
            to the benchmark only.
        steps: Training steps of a run.
        batch_size: Examples a step.
        accuracy: Whether there is one.
        steps_per_execution: See `Model.compile`; more than 1 only where a run would
            take too long.
    """

    name: str
    load: Callable[[], Data]
    build: Callable[[], keras.Model]
    loss: str | keras.losses.Loss
    optimizer: Callable[..., keras.optimizers.Optimizer]
    learning_rate: float
    steps: int
    batch_size: int
    accuracy: bool = False
    steps_per_execution: int = 1

    @functools.cached_property
    def data(self) -> Data:
        """The data, loaded once."""
        return self.load()


def split(
    x: np.ndarray, y: np.ndarray, validation: int, test: int, seed: int = 0
) -> Data:
    """Returns the examples in random order, the last `validation` + `test` held out.

    Args:
        x: Inputs, one entry an example.
        y: Targets, likewise.
        validation: How many examples to validate on.
        test: How many to test on.
        seed: Seeds the order.
    """
    order = np.random.default_rng(seed).permutation(len(x))
    x, y = x[order], y[order]
    first, second = len(x) - validation - test, len(x) - test
    return Data(
        (x[:first], y[:first]),
        (x[first:second], y[first:second]),
        (x[second:], y[second:]),
    )
