"""Images whose classes are textures: stripes of a direction and a width."""

import numpy as np

from keras_learned_lr.learning.tasks.task_family import PLENTY, Data, family

SIDE, CLASSES = 8, 8


@family((SIDE, SIDE, 1), CLASSES, "class", PLENTY, scaled=False)
def stripes(rng: np.random.Generator) -> Data:
    """Draws stripes at any place and of any contrast, which are not told apart by."""
    classes = int(rng.integers(3, CLASSES + 1))
    angle = np.pi * (np.arange(classes) + rng.uniform(0, 0.5, classes)) / classes
    width = rng.uniform(2.5, 6.0, classes)
    labels = rng.integers(0, classes, PLENTY)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    turned = angle[labels] + 0.1 * rng.normal(size=PLENTY)
    across = (
        np.cos(turned)[:, np.newaxis, np.newaxis] * rows
        + np.sin(turned)[:, np.newaxis, np.newaxis] * columns
    )
    phase, contrast = rng.uniform(0, 2 * np.pi, PLENTY), rng.uniform(0.3, 1, PLENTY)
    x = np.sin(
        2 * np.pi * across / width[labels][:, np.newaxis, np.newaxis]
        + phase[:, np.newaxis, np.newaxis]
    )
    x *= contrast[:, np.newaxis, np.newaxis]
    x += rng.uniform(0.2, 0.8) * rng.normal(size=x.shape)
    return Data(x[..., np.newaxis].astype("float32"), labels.astype("int32"))
