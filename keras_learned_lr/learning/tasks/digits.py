"""Images: scikit-learn's 8×8 handwritten digits, 0-4 apart from 5-9."""

import functools

import numpy as np

from keras_learned_lr.datasets import digit_images
from keras_learned_lr.learning.tasks.task_family import Data, family

EXAMPLES = 896


_load = functools.cache(digit_images)


def _augmented(rng: np.random.Generator, labels: tuple[int, ...]) -> Data:
    """Draws all images of some of the labels, turned, mirrored and with noise."""
    images, targets = _load(labels)
    order = rng.permutation(len(images))[:EXAMPLES]
    x = np.rot90(images[order], int(rng.integers(4)), axes=(1, 2))
    if rng.random() < 0.5:
        x = x[:, :, ::-1]
    if rng.random() < 0.3:
        x = 1.0 - x
    x = x + rng.uniform(0, 0.3) * rng.normal(size=x.shape)
    names = rng.permutation(len(labels))[targets[order]]
    return Data(x.astype("float32"), names.astype("int32"))


@family(shape=(8, 8, 1), outputs=5, target="class", examples=EXAMPLES)
def low_digits(rng: np.random.Generator) -> Data:
    """Draws the digits 0 to 4."""
    return _augmented(rng, (0, 1, 2, 3, 4))


@family(shape=(8, 8, 1), outputs=5, target="class", examples=EXAMPLES)
def high_digits(rng: np.random.Generator) -> Data:
    """Draws the digits 5 to 9."""
    return _augmented(rng, (5, 6, 7, 8, 9))
