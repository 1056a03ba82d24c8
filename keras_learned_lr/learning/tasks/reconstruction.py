"""Reconstruction: the target is the input, and the model has a bottleneck."""

import numpy as np

from keras_learned_lr.learning.tasks.task_family import (
    PLENTY,
    Data,
    draw_noise,
    family,
    pad_features,
    standardise,
)


@family(shape=(32,), outputs=32, target="number", examples=PLENTY, scaled=False)
def reconstruction(rng: np.random.Generator) -> Data:
    """Draws points near a curved surface of 2 to 8 dimensions."""
    inside = int(rng.integers(2, 9))
    hidden = np.tanh(rng.normal(size=(PLENTY, inside)) @ rng.normal(size=(inside, 16)))
    x = hidden @ rng.normal(size=(16, 32))
    x += draw_noise(rng, 0.5) * x.std() * rng.normal(size=x.shape)
    x = pad_features(x, 32)
    return Data(x, standardise(x))
