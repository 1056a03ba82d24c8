"""Plateau tasks: nothing is learned for a while, and then all at once."""

import numpy as np

from keras_learned_lr.learning.tasks.task_family import (
    PLENTY,
    Data,
    family,
    noisy,
    pad_features,
)


@family(shape=(16,), outputs=1, target="number", examples=PLENTY)
def waves(rng: np.random.Generator) -> Data:
    """Draws a sum of a few sine waves over random directions."""
    features = int(rng.integers(2, 9))
    x = rng.normal(size=(PLENTY, features))
    y = np.zeros(PLENTY)
    for _ in range(int(rng.integers(1, 4))):
        direction = rng.normal(size=features)
        direction *= rng.uniform(1.0, 4.0) / np.linalg.norm(direction)
        y += rng.normal() * np.sin(x @ direction + rng.uniform(0, 2 * np.pi))
    return Data(pad_features(x, 16), noisy(rng, y, 0.4))


@family(shape=(16,), outputs=1, target="number", examples=PLENTY)
def products(rng: np.random.Generator) -> Data:
    """Draws the product of two or three inputs, of which no one tells a thing alone."""
    x = rng.normal(size=(PLENTY, int(rng.integers(4, 17))))
    y = np.tanh(np.prod(x[:, : int(rng.integers(2, 4))], axis=1))
    return Data(pad_features(x, 16), noisy(rng, y, 0.4))


@family(shape=(16,), outputs=1, target="number", examples=PLENTY)
def ratios(rng: np.random.Generator) -> Data:
    """Draws the angle of a point whose coordinates are products of inputs.

    Steep where both are small, nearly flat elsewhere.
    """
    x = rng.uniform(size=(PLENTY, int(rng.integers(4, 17))))
    a, b, c = rng.uniform(0.5, 2.0, size=3)
    upper = a * x[:, 0] * x[:, 1] - b * rng.uniform(0.1, 0.4)
    lower = rng.uniform(0.02, 0.3) + c * x[:, 2] * x[:, 3]
    return Data(pad_features(x, 16), noisy(rng, np.arctan(upper / lower), 0.5))


@family(shape=(4,), outputs=2, target="class", examples=PLENTY, scaled=False)
def checkers(rng: np.random.Generator) -> Data:
    """Draws the colours of a checkerboard's squares, 3 to 5 along each of two axes.

    A small network can take a whole run to see that there is anything but chance.
    """
    x = rng.uniform(0, int(rng.integers(3, 6)), size=(PLENTY, 2))
    colour = np.floor(x).sum(1) % 2
    angle = rng.uniform(0, np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return Data(pad_features(x @ turn, 4), colour.astype("int32"))


@family(shape=(4,), outputs=4, target="class", examples=PLENTY, scaled=False)
def arms(rng: np.random.Generator) -> Data:
    """Draws classes that are the arms of a spiral, two to four, wound into each other.

    What is learned first is next to nothing; then one turn after the other.
    """
    count, turns = int(rng.integers(2, 5)), rng.uniform(0.4, 1.4)
    arm = rng.integers(0, count, size=PLENTY)
    # More of them outside, where an arm is longer.
    along = np.sqrt(rng.uniform(0.01, 1.0, size=PLENTY))
    angle = 2 * np.pi * (turns * along + arm / count + rng.uniform())
    x = along[:, np.newaxis] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    x += rng.uniform(0.01, 0.06) * rng.normal(size=x.shape)
    return Data(pad_features(x, 4), arm.astype("int32"))


@family(shape=(8,), outputs=2, target="class", examples=PLENTY, scaled=False)
def signs(rng: np.random.Generator) -> Data:
    """Draws the sign of the product of two or three inputs among others."""
    x = rng.normal(size=(PLENTY, int(rng.integers(3, 9))))
    label = np.prod(x[:, : int(rng.integers(2, 4))], axis=1) > 0
    return Data(pad_features(x, 8), label.astype("int32"))


@family(shape=(16,), outputs=4, target="class")
def rings(rng: np.random.Generator) -> Data:
    """Draws classes that are shells around the origin, in 2 to 8 dimensions."""
    features = int(rng.integers(2, 9))
    classes = int(rng.integers(2, 5))
    labels = rng.integers(0, classes, size=1536)
    x = rng.normal(size=(1536, features))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    x *= (1 + labels + rng.uniform(0.1, 0.4) * rng.normal(size=1536))[:, np.newaxis]
    return Data(pad_features(x, 16), labels.astype("int32"))
