"""The tasks of `fits.py`: small data, models and optimizers that are in no set."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers, optimizers
from sklearn import datasets

from keras_learned_lr.datasets import digit_images

ALL_DIGITS = tuple(range(10))
CLASSES, BINARY = "sparse_categorical_crossentropy", "binary_crossentropy"


class FitTask(NamedTuple):
    """A small run of `fit`.

    Attributes:
        data: Training, validation and test examples, each inputs and targets.
        build: Returns a new model.
        loss: What `compile` takes.
        optimizer: Returns an optimizer of a learning rate.
        rate: The usual learning rate.
        batch_size: Examples a training step.
        steps: Training steps.
    """

    data: list[tuple[Any, Any]]
    build: Callable[[], keras.Model]
    loss: str
    optimizer: Callable[[float], keras.optimizers.Optimizer]
    rate: float
    batch_size: int
    steps: int


def make_tasks():
    """Returns all tasks by name."""
    return _plain() | _others() | _normalised() | _in_units()


def split(random, x, y, validation, test):
    """Returns the examples in random order as training, validation and test parts."""
    order = random.permutation(len(x))
    x, y = x[order], y[order]
    cuts = [len(x) - validation - test, len(x) - test]
    return list(zip(np.split(x, cuts), np.split(y, cuts), strict=True))


def standard(x):
    """Returns columns of mean 0 and deviation 1."""
    return ((x - x.mean(0)) / (x.std(0) + 1e-9)).astype("float32")


# Optimizers.


def momentum(rate):
    """Returns SGD with momentum."""
    return optimizers.SGD(rate, momentum=0.9)


def nesterov(rate):
    """Returns SGD with Nesterov's momentum."""
    return optimizers.SGD(rate, momentum=0.9, nesterov=True)


def decayed(rate):
    """Returns AdamW."""
    return optimizers.AdamW(rate, weight_decay=1e-2)


# Models.


def perceptron(shape, units, activation, outputs, last=None, normalise=False):
    """Returns what builds a dense network."""

    def build():
        stack = [keras.Input(shape), layers.Flatten()]
        for size in units:
            stack.append(layers.Dense(size, activation))
            if normalise:
                stack.append(layers.BatchNormalization())
        return keras.Sequential([*stack, layers.Dense(outputs, last)])

    return build


def convolutions():
    """Returns a small convolutional network with dropout."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, activation="relu"),
            layers.Conv2D(32, 3, activation="relu"),
            layers.Flatten(),
            layers.Dropout(0.3),
            layers.Dense(10, "softmax"),
        ]
    )


def normalised(layer):
    """Returns a layer, batch normalisation of its outputs and a ReLU."""
    return [layer, layers.BatchNormalization(), layers.ReLU()]


def normalised_convolutions():
    """Returns a small convolutional network with batch normalisation."""
    stack = [keras.Input((8, 8, 1))]
    for filters in (12, 24):
        stack += normalised(layers.Conv2D(filters, 3, padding="same"))
    return keras.Sequential([*stack, layers.Flatten(), layers.Dense(10, "softmax")])


def residual():
    """Returns a convolutional network of two residual blocks."""
    image = keras.Input((16, 16, 1))
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(image)
    for _ in range(2):
        y = layers.ReLU()(layers.BatchNormalization()(x))
        y = layers.Conv2D(8, 3, padding="same", use_bias=False)(y)
        y = layers.ReLU()(layers.BatchNormalization()(y))
        x = x + layers.Conv2D(8, 3, padding="same", use_bias=False)(y)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(4, "softmax")(x))


def convolutions_1d():
    """Returns a convolutional network over a signal."""
    stack = [keras.Input((64, 1))]
    for filters in (16, 32):
        stack += normalised(layers.Conv1D(filters, 5, strides=2))
    return keras.Sequential(
        [*stack, layers.GlobalAveragePooling1D(), layers.Dense(4, "softmax")]
    )


def lstm():
    """Returns an LSTM that reads an image line by line."""
    return keras.Sequential(
        [keras.Input((8, 8)), layers.LSTM(32), layers.Dense(10, "softmax")]
    )


def gru():
    """Returns a GRU that ends with a number."""
    return keras.Sequential([keras.Input((20, 2)), layers.GRU(32), layers.Dense(1)])


def attention():
    """Returns one block of a transformer that sees what came before."""
    text = keras.Input((16,), dtype="int32")
    x = layers.Embedding(12, 32)(text) + layers.Embedding(16, 32)(keras.ops.arange(16))
    seen = layers.LayerNormalization()(x)
    x = x + layers.MultiHeadAttention(2, 16)(seen, seen, use_causal_mask=True)
    seen = layers.LayerNormalization()(x)
    x = x + layers.Dense(32)(layers.Dense(64, "gelu")(seen))
    x = layers.LayerNormalization()(x)
    return keras.Model(text, layers.Dense(12, "softmax")(x))


def autoencoder():
    """Returns a dense network with a bottleneck."""
    return keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(64, "relu"),
            layers.Dense(12),
            layers.Dense(64, "relu"),
            layers.Dense(64),
        ]
    )


def pairs():
    """Returns a network over the embeddings of two symbols."""
    return keras.Sequential(
        [
            keras.Input((2,), dtype="int32"),
            layers.Embedding(11, 16),
            layers.Flatten(),
            layers.Dense(64, "relu"),
            layers.Dense(11, "softmax"),
        ]
    )


def layer_normalised():
    """Returns a dense network with layer normalisation."""
    stack = [keras.Input((10,))]
    for _ in range(2):
        stack += [
            layers.Dense(48),
            layers.LayerNormalization(),
            layers.Activation("gelu"),
        ]
    return keras.Sequential([*stack, layers.Dense(1, "sigmoid")])


# Data.


def sums(random, count=6000, length=20):
    """Returns sequences of numbers, two of which are marked, and the sum of these."""
    values = random.uniform(-1, 1, (count, length))
    marks, half = np.zeros((count, length)), length // 2
    for start in (0, half):
        marks[np.arange(count), start + random.integers(0, half, count)] = 1.0
    y = (values * marks).sum(1, keepdims=True) + 0.1 * random.normal(size=(count, 1))
    x = np.stack([values, marks], axis=-1)
    return x.astype("float32"), y.astype("float32")


def chain(random, count=8000, length=16, symbols=12):
    """Returns texts in which two symbols tell the next, and what comes next."""
    follow = random.dirichlet(np.full(symbols, 0.15), (symbols, symbols)).cumsum(-1)
    text = random.integers(0, symbols, (count, 2))
    for _ in range(length - 1):
        odds = follow[text[:, -2], text[:, -1]]
        drawn = (random.random((count, 1)) > odds).sum(1).clip(0, symbols - 1)
        text = np.concatenate([text, drawn[:, np.newaxis]], axis=1)
    return text[:, :length].astype("int32"), text[:, 1 : length + 1].astype("int32")


def chirps(random, count=6000, length=64):
    """Returns noisy waves, round or square, whose pitch rises or falls."""
    label, t = random.integers(0, 4, count), np.linspace(0, 1, length)
    start, slope = random.uniform(4, 8, (count, 1)), random.uniform(3, 8, (count, 1))
    sign = np.where(label % 2, 1.0, -1.0)[:, np.newaxis]
    phase = start * t + sign * slope * t**2 / 2 + random.random((count, 1))
    wave = np.sin(2 * np.pi * phase)
    wave = np.where((label >= 2)[:, np.newaxis], np.sign(wave), wave)
    wave = wave + 0.5 * random.normal(size=wave.shape)
    return wave[..., np.newaxis].astype("float32"), label


def shapes(random, count=5000, size=16):
    """Returns noisy images of a disc, a square, a diamond or a cross."""
    label, place = random.integers(0, 4, count), np.arange(size)
    across, down = random.uniform(5, size - 5, (2, count, 1, 1))
    r = random.uniform(2.5, 5, (count, 1, 1))
    x, y = abs(place[np.newaxis] - across), abs(place[:, np.newaxis] - down)
    square = np.maximum(x, y) < 0.9 * r
    cross = (np.minimum(x, y) < r / 3) & square
    forms = [x**2 + y**2 < r**2, square, x + y < 1.25 * r, cross]
    image = np.choose(label[:, np.newaxis, np.newaxis], forms)
    image = image * random.uniform(0.5, 1.5, (count, 1, 1))
    image = image + 0.4 * random.normal(size=image.shape)
    return image[..., np.newaxis].astype("float32"), label


def remainders(random, count=8000, symbols=11):
    """Returns pairs of symbols, and what is left of their sum after a division.

    One in ten is wrong: ratios of losses that end at 0 say nothing.
    """
    pair = random.integers(0, symbols, (count, 2))
    wrong = random.random(count) < 0.1
    label = np.where(wrong, random.integers(0, symbols, count), pair.sum(1) % symbols)
    return pair.astype("int32"), label


# Tasks.


def _plain():
    """Returns eight tasks, one of them with batch normalisation."""
    random = np.random.default_rng(0)
    digits = split(random, *digit_images(ALL_DIGITS), 200, 400)
    found = datasets.load_breast_cancer()
    malignant = found.target[:, np.newaxis].astype("float32")
    cancer = split(random, standard(found.data), malignant, 100, 150)
    x = random.uniform(-1, 1, (6000, 10)).astype("float32")
    y = np.sin(3 * x[:, 0] * x[:, 1]) + 2 * x[:, 2] ** 2 + x[:, 3] + 0.5 * x[:, 4]
    y = y + 0.1 * random.normal(size=6000)
    curved = split(random, x, y[:, np.newaxis].astype("float32"), 500, 1000)
    turn, arm = random.uniform(0, 3 * np.pi, 6000), random.integers(0, 2, 6000)
    arms = turn[:, np.newaxis] * np.stack(
        [np.cos(turn + np.pi * arm), np.sin(turn + np.pi * arm)], axis=1
    )
    noise = 0.05 * random.normal(size=(6000, 2)).astype("float32")
    spiral = split(random, arms.astype("float32") / 5 + noise, arm, 500, 1000)
    weights = random.normal(size=(20, 6))
    x = random.normal(size=(8000, 20)).astype("float32")
    votes = split(random, x, np.argmax(np.tanh(x @ weights) ** 2, axis=1), 500, 1000)
    lines = [(x[..., 0], y) for x, y in digits]

    dense, square = perceptron, (8, 8, 1)
    sure = "softmax"
    adam = optimizers.Adam
    return {
        "digits_cnn": FitTask(digits, convolutions, CLASSES, adam, 1e-3, 32, 600),
        "digits_lstm": FitTask(lines, lstm, CLASSES, optimizers.RMSprop, 3e-3, 32, 600),
        "digits_dense": FitTask(
            digits,
            dense(square, (64, 64), "relu", 10, sure),
            CLASSES,
            nesterov,
            3e-2,
            32,
            400,
        ),
        "cancer": FitTask(
            cancer,
            dense((30,), (32,), "relu", 1, "sigmoid"),
            BINARY,
            optimizers.SGD,
            1e-1,
            32,
            300,
        ),
        "curved": FitTask(
            curved,
            dense((10,), (64, 64), "silu", 1),
            "mse",
            adam,
            3e-3,
            64,
            1000,
        ),
        "spiral": FitTask(
            spiral,
            dense((2,), (48, 48), "tanh", 2, sure),
            CLASSES,
            decayed,
            1e-2,
            64,
            800,
        ),
        "votes_normalised": FitTask(
            votes,
            dense((20,), (96, 96), "relu", 6, sure, normalise=True),
            CLASSES,
            momentum,
            3e-2,
            64,
            1000,
        ),
        "votes_long": FitTask(
            votes,
            dense((20,), (64,), "gelu", 6, sure),
            CLASSES,
            adam,
            3e-3,
            64,
            3000,
        ),
    }


def _others():
    """Returns seven without batch normalisation."""
    random = np.random.default_rng(1)
    added = split(random, *sums(random), 500, 1000)
    text = split(random, *chain(random), 500, 1000)
    pixels = digit_images(ALL_DIGITS)[0].reshape(-1, 64)
    images = split(random, pixels, pixels, 200, 400)
    x, y = datasets.make_hastie_10_2(8000, random_state=1)
    positive = (y[:, np.newaxis] > 0).astype("float32")
    hastie = split(random, x.astype("float32"), positive, 500, 1000)
    x, t = datasets.make_swiss_roll(6000, noise=0.5, random_state=1)
    roll = split(random, standard(x), standard(t[:, np.newaxis]), 500, 1000)
    counts, topics = datasets.make_multilabel_classification(
        n_samples=8000, n_features=40, n_classes=8, n_labels=3, random_state=1
    )
    counts, topics = np.log1p(counts).astype("float32"), topics.astype("float32")
    labels = split(random, counts, topics, 500, 1000)
    # After all others, whose data stay what they were.
    summed = split(random, *remainders(random), 500, 1000)
    adam, dense = optimizers.Adam, perceptron
    return {
        "sums_gru": FitTask(added, gru, "mse", adam, 1e-2, 32, 1000),
        "chain_attention": FitTask(text, attention, CLASSES, decayed, 3e-3, 32, 800),
        "digits_autoencoder": FitTask(
            images,
            autoencoder,
            "mse",
            optimizers.Adagrad,
            3e-1,
            32,
            800,
        ),
        "hastie": FitTask(
            hastie, layer_normalised, BINARY, optimizers.SGD, 1e-1, 32, 800
        ),
        "roll": FitTask(
            roll,
            dense((3,), (48, 48), "tanh", 1),
            "mse",
            optimizers.RMSprop,
            1e-2,
            32,
            1200,
        ),
        "topics": FitTask(
            labels,
            dense((40,), (64,), "relu", 8, "sigmoid"),
            BINARY,
            adam,
            1e-2,
            32,
            500,
        ),
        "remainders": FitTask(summed, pairs, CLASSES, adam, 1e-2, 64, 600),
    }


def _normalised():
    """Returns eight with batch normalisation."""
    random = np.random.default_rng(2)
    digits = split(random, *digit_images(ALL_DIGITS), 200, 400)
    drawn = split(random, *shapes(random), 500, 1000)
    waves = split(random, *chirps(random), 500, 1000)
    added = split(random, *sums(random), 500, 1000)
    adam, dense = optimizers.Adam, perceptron((20, 2), (64, 64), "gelu", 1, None, True)
    return {
        "digits_normalised": FitTask(
            digits,
            normalised_convolutions,
            CLASSES,
            adam,
            1e-2,
            32,
            400,
        ),
        "shapes_300": FitTask(drawn, residual, CLASSES, nesterov, 1e-1, 32, 300),
        "shapes_900": FitTask(drawn, residual, CLASSES, nesterov, 1e-1, 32, 900),
        "shapes_adam": FitTask(drawn, residual, CLASSES, adam, 1e-2, 32, 1500),
        "chirps": FitTask(waves, convolutions_1d, CLASSES, momentum, 3e-2, 32, 500),
        "chirps_adamw": FitTask(
            waves, convolutions_1d, CLASSES, decayed, 1e-2, 32, 900
        ),
        "chirps_sgd": FitTask(
            waves, convolutions_1d, CLASSES, optimizers.SGD, 3e-1, 32, 600
        ),
        "sums_rmsprop": FitTask(added, dense, "mse", optimizers.RMSprop, 3e-3, 32, 800),
    }


def _in_units():
    """Returns three regressions whose targets are as they were measured.

    Their rates suit the unit. A user would begin at about a hundredth of them, which is
    the lowest start in `fits.py`.
    """
    random = np.random.default_rng(3)
    x = random.normal(size=(6000, 12)).astype("float32")
    worth = 0.3 * x[:, 0] + 0.2 * x[:, 1] * x[:, 2] + 0.1 * np.abs(x[:, 3])
    price = 3e5 * np.exp(worth + 0.1 * random.normal(size=6000))
    houses = split(random, x, price[:, np.newaxis].astype("float32"), 500, 1000)
    x, ohms = datasets.make_friedman2(6000, noise=50.0, random_state=3)
    ohms = ohms[:, np.newaxis].astype("float32")
    impedance = split(random, standard(x), ohms, 500, 1000)
    x = random.normal(size=(1200, 7)).astype("float32")
    miles = 24 - 6 * x[:, 0] + 2 * x[:, 1] ** 2 + 1.5 * x[:, 2] * x[:, 3]
    miles = (miles + 2 * random.normal(size=1200))[:, np.newaxis].astype("float32")
    mileage = split(random, x, miles, 150, 250)
    adam, dense = optimizers.Adam, perceptron
    return {
        "houses": FitTask(
            houses, dense((12,), (64, 64), "relu", 1), "mse", adam, 1.0, 64, 1200
        ),
        "impedance": FitTask(
            impedance,
            dense((4,), (48, 48), "relu", 1),
            "mse",
            optimizers.RMSprop,
            1e-1,
            32,
            800,
        ),
        "mileage": FitTask(
            mileage, dense((7,), (64, 64), "relu", 1), "mae", adam, 3e-2, 32, 400
        ),
    }
