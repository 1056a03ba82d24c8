"""Tables of measurements that come with scikit-learn."""

import functools

import numpy as np

from keras_learned_lr.learning.tasks.task_family import (
    Data,
    family,
    pad_features,
    standardise,
)


@functools.cache
def _load(name: str) -> tuple[np.ndarray, np.ndarray]:
    from sklearn import datasets

    return getattr(datasets, f"load_{name}")(return_X_y=True)


def _some_columns(rng: np.random.Generator, x: np.ndarray, features: int) -> np.ndarray:
    kept = rng.permutation(x.shape[1])[: int(rng.integers(5, x.shape[1] + 1))]
    return pad_features(x[:, kept], features)


@family(shape=(30,), outputs=1, target="binary", examples=569)
def breast_cancer(rng: np.random.Generator) -> Data:
    """Draws 5 to 30 of the measurements of 569 tumours; malignant or not."""
    x, y = _load("breast_cancer")
    order = rng.permutation(569)
    targets = y[order, np.newaxis].astype("float32")
    return Data(_some_columns(rng, x[order], 30), targets)


@family(shape=(10,), outputs=1, target="number", examples=442)
def diabetes(rng: np.random.Generator) -> Data:
    """Draws 5 to 10 of the measurements of 442 patients; progression in a year."""
    x, y = _load("diabetes")
    order = rng.permutation(442)
    return Data(_some_columns(rng, x[order], 10), standardise(y[order]))
