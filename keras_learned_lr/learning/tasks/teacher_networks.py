"""Teacher networks: regression and yes-or-no targets made by a random network."""

import numpy as np

from keras_learned_lr.learning.tasks.task_family import (
    PLENTY,
    Data,
    draw_noise,
    family,
    noisy,
    pad_features,
    standardise,
)


def _teach(rng: np.random.Generator, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    features = int(rng.integers(4, 25))
    width = int(rng.integers(4, 33))
    x = rng.normal(size=(PLENTY, features))
    hidden = x
    for _ in range(int(rng.integers(1, 3))):
        weights = rng.normal(size=(hidden.shape[1], width))
        gain = rng.uniform(0.7, 2.0) / np.sqrt(hidden.shape[1])
        hidden = np.tanh(gain * hidden @ weights + 0.3 * rng.normal(size=width))
    return x, hidden @ rng.normal(size=(width, outputs))


@family(shape=(24,), outputs=4, target="number", examples=PLENTY)
def teacher_networks(rng: np.random.Generator) -> Data:
    """Draws four numbers that a tanh network computes, with noise."""
    x, y = _teach(rng, 4)
    return Data(pad_features(x, 24), noisy(rng, y, 0.5))


@family(shape=(24,), outputs=1, target="binary", examples=PLENTY)
def teacher_choices(rng: np.random.Generator) -> Data:
    """Draws the sign of a tanh network's output, noisy around 0."""
    x, y = _teach(rng, 1)
    y = standardise(y) + draw_noise(rng, 0.6) * rng.normal(size=y.shape)
    return Data(pad_features(x, 24), (y > 0).astype("float32"))
