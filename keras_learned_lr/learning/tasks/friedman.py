"""Friedman's regression functions: the loss stays on a plateau, then drops.

Friedman (1991), Multivariate adaptive regression splines, section 4.
"""

import numpy as np

from keras_learned_lr.learning.tasks.task_family import (
    PLENTY,
    Data,
    family,
    noisy,
    pad_features,
)


@family(shape=(16,), outputs=1, target="number", examples=PLENTY)
def friedman_sums(rng: np.random.Generator) -> Data:
    """Draws his first function: a product in a sine, a square and two lines."""
    x = rng.uniform(size=(PLENTY, int(rng.integers(5, 17))))
    a, b, c, d = rng.uniform(0.5, 1.5, size=4) * (10, 20, 10, 5)
    y = a * np.sin(np.pi * x[:, 0] * x[:, 1]) + b * (x[:, 2] - 0.5) ** 2
    y += c * x[:, 3] + d * x[:, 4]
    return Data(pad_features(x, 16), noisy(rng, y, 0.5))


@family(shape=(16,), outputs=1, target="number", examples=PLENTY)
def friedman_circuits(rng: np.random.Generator) -> Data:
    """Draws his second function: the impedance of a circuit."""
    x = rng.uniform(size=(PLENTY, int(rng.integers(4, 17))))
    r, w, l_, c = x[:, 0], 0.2 + 5 * x[:, 1], x[:, 2], 1 + 10 * x[:, 3]
    y = np.sqrt(r**2 + (w * l_ - 1 / (w * c)) ** 2)
    return Data(pad_features(x, 16), noisy(rng, y, 0.5))


@family(shape=(16,), outputs=1, target="number")
def friedman_phases(rng: np.random.Generator) -> Data:
    """Draws his third function: the phase of a circuit, an arc tangent."""
    x = rng.uniform(size=(1536, int(rng.integers(4, 17))))
    r, w, l_, c = 0.1 + x[:, 0], 0.2 + 5 * x[:, 1], x[:, 2], 1 + 10 * x[:, 3]
    y = np.arctan((w * l_ - 1 / (w * c)) / r)
    return Data(pad_features(x, 16), noisy(rng, y, 0.5))
