"""Sequences of symbols: what was said some steps ago, parity, majority."""

import numpy as np

from keras_learned_lr.learning.tasks.task_family import Data, family

LENGTH, SYMBOLS = 10, 6


def _one_hot(symbols: np.ndarray) -> np.ndarray:
    return np.eye(SYMBOLS, dtype="float32")[symbols]


@family((LENGTH, SYMBOLS), SYMBOLS, "class", scaled=False)
def copying(rng: np.random.Generator) -> Data:
    """Draws symbols of which the one some places back is asked for."""
    back = int(rng.integers(1, 5))
    used = int(rng.integers(3, SYMBOLS + 1))
    symbols = rng.integers(0, used, size=(1536, LENGTH))
    return Data(_one_hot(symbols), symbols[:, -1 - back].astype("int32"))


@family((LENGTH, SYMBOLS), SYMBOLS, "class", scaled=False)
def parity(rng: np.random.Generator) -> Data:
    """Draws bits in the last few places whose sum modulo 2 is asked for."""
    places = int(rng.integers(2, 5))
    symbols = rng.integers(0, 2, size=(1536, LENGTH))
    sums = symbols[:, -places:].sum(1) % 2
    return Data(_one_hot(symbols), sums.astype("int32"))


@family((LENGTH, SYMBOLS), SYMBOLS, "class", scaled=False)
def majority(rng: np.random.Generator) -> Data:
    """Draws symbols of which the most frequent, or the first such, is asked for."""
    used = int(rng.integers(2, SYMBOLS + 1))
    symbols = rng.integers(0, used, size=(1536, LENGTH))
    counts = _one_hot(symbols).sum(1)
    return Data(_one_hot(symbols), counts.argmax(1).astype("int32"))
