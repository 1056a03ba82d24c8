"""Gaussian mixtures: classes of one to three overlapping clouds."""

import numpy as np

from keras_learned_lr.learning.tasks.task_family import (
    PLENTY,
    Data,
    family,
    pad_features,
)


@family(shape=(32,), outputs=10, target="class", examples=PLENTY)
def gaussian_mixtures(rng: np.random.Generator) -> Data:
    """Draws 2 to 10 classes in 4 to 32 dimensions, more or less far apart."""
    features = int(rng.integers(4, 33))
    classes = int(rng.integers(2, 11))
    clouds = int(rng.integers(1, 4))
    distance = rng.uniform(1.2, 3.5)
    centres = rng.normal(size=(classes, clouds, features))
    centres *= distance / np.sqrt(features) ** 0.5
    spread = np.exp(rng.normal(scale=0.3, size=(classes, clouds, features)))
    labels = rng.integers(0, classes, size=PLENTY)
    cloud = rng.integers(0, clouds, size=PLENTY)
    noise = rng.normal(size=(PLENTY, features))
    inputs = centres[labels, cloud] + spread[labels, cloud] * noise
    return Data(pad_features(inputs, 32), labels.astype("int32"))
