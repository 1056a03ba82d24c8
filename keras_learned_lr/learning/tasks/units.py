"""Regressions whose targets are in units of their own, and not around 0.

A price may be some 10^4, and a new model says 0. With an optimizer whose steps
are as long as the learning rate, whatever the gradient, next to nothing is learned
until the outputs have come that far: from the loss it looks like a plateau, and what
ends it is a learning rate that is decades above the usual one.
"""

import numpy as np

from keras_learned_lr.learning.tasks.task_family import (
    PLENTY,
    Data,
    family,
    noisy,
    pad_features,
    standardise,
)

# Decades of a unit, and how far from 0 the mean is, in deviations.
UNIT = (0.0, 4.0)
OFFSET = (0.5, 4.0)


def _in_units(rng: np.random.Generator, values: np.ndarray) -> np.ndarray:
    """Returns noisy targets in a drawn unit, around a drawn mean."""
    y = noisy(rng, values, 0.4) + rng.uniform(*OFFSET)
    return (10.0 ** rng.uniform(*UNIT) * y).astype("float32")


@family(shape=(16,), outputs=1, target="number", examples=PLENTY)
def prices(rng: np.random.Generator) -> Data:
    """Draws what is worth a product of several things, skewed as prices are."""
    x = rng.normal(size=(PLENTY, int(rng.integers(4, 17))))
    of_each = rng.normal(size=x.shape[1]) * rng.integers(0, 2, x.shape[1])
    of_each = of_each + np.eye(x.shape[1])[0]
    worth = x @ of_each + rng.normal() * np.maximum(x[:, 0], x[:, 1])
    skewed = np.exp(rng.uniform(0.2, 0.7) * standardise(worth))
    return Data(pad_features(x, 16), _in_units(rng, skewed))


@family(shape=(16,), outputs=1, target="number", examples=PLENTY)
def readings(rng: np.random.Generator) -> Data:
    """Draws what an instrument reads: a bounded response, in its units."""
    x = rng.normal(size=(PLENTY, int(rng.integers(3, 13))))
    hidden = np.tanh(x @ rng.normal(size=(x.shape[1], 8)) / np.sqrt(x.shape[1]))
    return Data(pad_features(x, 16), _in_units(rng, hidden @ rng.normal(size=8)))


@family(shape=(8,), outputs=1, target="number")
def fares(rng: np.random.Generator) -> Data:
    """Draws what rides between two places cost: by the way, and more at some hours."""
    x = rng.uniform(size=(1536, 5))
    way = np.abs(x[:, 0] - x[:, 2]) + np.abs(x[:, 1] - x[:, 3])
    busy = np.cos(2 * np.pi * (x[:, 4] - rng.random())) > rng.uniform(0.0, 0.6)
    cost = way * (1.0 + rng.uniform(0.2, 1.0) * busy)
    return Data(pad_features(x, 8), _in_units(rng, cost))
