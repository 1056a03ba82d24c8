"""Images whose classes are textures: stripes of a direction and a width."""

import numpy as np

from keras_learned_lr.learning.tasks.task_family import PLENTY, Data, draw_noise, family

SIDE, CLASSES = 8, 8


@family((SIDE, SIDE, 1), CLASSES, "class", PLENTY, scaled=False)
def stripes(rng: np.random.Generator) -> Data:
    """Draws stripes at any place and of any contrast: these tell nothing."""
    classes = int(rng.integers(3, CLASSES + 1))
    angle = np.pi * (np.arange(classes) + rng.uniform(0, 0.5, classes)) / classes
    width = rng.uniform(2.5, 6.0, classes)
    each = (PLENTY, 1, 1)  # one number an image
    labels = rng.integers(0, classes, each)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    turned = angle[labels] + 0.1 * rng.normal(size=each)
    across = np.cos(turned) * rows + np.sin(turned) * columns
    phase, contrast = rng.uniform(0, 2 * np.pi, each), rng.uniform(0.3, 1, each)
    x = contrast * np.sin(2 * np.pi * across / width[labels] + phase)
    x += draw_noise(rng, 0.8) * rng.normal(size=x.shape)
    return Data(x[..., np.newaxis].astype("float32"), labels.ravel().astype("int32"))
