"""Sequences of symbols: what was said some steps ago, parity, majority."""

import numpy as np

from keras_learned_lr.learning.tasks.task_family import (
    PLENTY,
    Data,
    draw_noise,
    family,
    one_hot,
    standardise,
)

LENGTH, SYMBOLS = 10, 6


@family((LENGTH, SYMBOLS), SYMBOLS, "class", PLENTY, scaled=False)
def copying(rng: np.random.Generator) -> Data:
    """Draws symbols of which the one some places back is asked for."""
    back = int(rng.integers(1, 5))
    used = int(rng.integers(3, SYMBOLS + 1))
    symbols = rng.integers(0, used, size=(PLENTY, LENGTH))
    return Data(one_hot(symbols, SYMBOLS), symbols[:, -1 - back].astype("int32"))


@family((LENGTH, SYMBOLS), SYMBOLS, "class", PLENTY, scaled=False)
def parity(rng: np.random.Generator) -> Data:
    """Draws bits in the last few places whose sum modulo 2 is asked for."""
    places = int(rng.integers(2, 5))
    symbols = rng.integers(0, 2, size=(PLENTY, LENGTH))
    sums = symbols[:, -places:].sum(1) % 2
    return Data(one_hot(symbols, SYMBOLS), sums.astype("int32"))


@family((LENGTH, SYMBOLS), SYMBOLS, "class", scaled=False)
def majority(rng: np.random.Generator) -> Data:
    """Draws symbols of which the most frequent, or the first such, is asked for."""
    used = int(rng.integers(2, SYMBOLS + 1))
    symbols = rng.integers(0, used, size=(1536, LENGTH))
    counts = one_hot(symbols, SYMBOLS).sum(1)
    return Data(one_hot(symbols, SYMBOLS), counts.argmax(1).astype("int32"))


@family((LENGTH, 2), 2, "number", PLENTY)
def oscillators(rng: np.random.Generator) -> Data:
    """Draws two coupled swings that are disturbed all the time; where they go next."""
    angle, damping = rng.uniform(0.2, 1.5, size=2), rng.uniform(0.85, 0.99)
    cos, sin = np.cos(angle), np.sin(angle)
    disturbance = draw_noise(rng, 0.3)
    state = rng.normal(size=(PLENTY, 2, 2))
    seen = []
    for _ in range(LENGTH + 1):
        x, v = state[..., 0], state[..., 1]
        x, v = cos * x + sin * v, cos * v - sin * x
        x = x + 0.2 * np.tanh(2 * x[:, ::-1])  # each is pulled by the other
        state = damping * np.stack([x, v], -1)
        state = state + disturbance * rng.normal(size=state.shape)
        seen.append(state[..., 0])
    series = np.stack(seen, axis=1)
    series /= series.std()
    return Data(series[:, :LENGTH].astype("float32"), standardise(series[:, LENGTH]))
