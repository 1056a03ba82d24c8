"""Controllers in `fit`, on eight tasks that are in no set: to choose by, not to score.

    python benchmarks/fits.py default meta_training/default/checkpoint-150

Each controller, the name of one that ships or a folder (that of a learner's checkpoint
too), starts from a hundredth, one and a hundred times a task's learning rate; its test
loss is divided by that of the best of five cosine schedules with warm-up, half a decade
apart, chosen on the validation data. Prints one JSON line a task; one seed. A learner
is shown as many validation examples as it was trained with, any other as many as the
callback shows by default.
"""

import json
import sys
import warnings
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import layers, optimizers
from sklearn import datasets

from keras_learned_lr import LearnedLearningRate
from keras_learned_lr.benchmark.quality.methods.schedules import cosine_schedule
from keras_learned_lr.callback import VALIDATION_SIZE
from keras_learned_lr.learning import ControllerLearner

CLASSES = "sparse_categorical_crossentropy"
# Fits are made of few, so that Python takes less of them.
STEPS_PER_EXECUTION = 5
EPOCHS = 5

random = np.random.default_rng(0)


def split(x, y, validation, test):
    """Returns the examples in random order as training, validation and test parts."""
    order = random.permutation(len(x))
    x, y = x[order], y[order]
    cuts = [len(x) - validation - test, len(x) - test]
    return list(zip(np.split(x, cuts), np.split(y, cuts), strict=True))


def standard(x):
    """Returns columns of mean 0 and deviation 1."""
    return ((x - x.mean(0)) / (x.std(0) + 1e-9)).astype("float32")


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


def lstm():
    """Returns an LSTM that reads an image line by line."""
    return keras.Sequential(
        [keras.Input((8, 8)), layers.LSTM(32), layers.Dense(10, "softmax")]
    )


def make_tasks():
    """Returns data, model, loss, optimizer, learning rate, batch size and steps."""
    found = datasets.load_digits()
    images = (found.images / 16.0).astype("float32")[..., np.newaxis]
    digits = split(images, found.target, 200, 400)
    found = datasets.load_breast_cancer()
    malignant = found.target[:, np.newaxis].astype("float32")
    cancer = split(standard(found.data), malignant, 100, 150)
    x = random.uniform(-1, 1, (6000, 10)).astype("float32")
    y = np.sin(3 * x[:, 0] * x[:, 1]) + 2 * x[:, 2] ** 2 + x[:, 3] + 0.5 * x[:, 4]
    y = y + 0.1 * random.normal(size=6000)
    curved = split(x, y[:, np.newaxis].astype("float32"), 500, 1000)
    turn, arm = random.uniform(0, 3 * np.pi, 6000), random.integers(0, 2, 6000)
    arms = turn[:, np.newaxis] * np.stack(
        [np.cos(turn + np.pi * arm), np.sin(turn + np.pi * arm)], axis=1
    )
    noise = 0.05 * random.normal(size=(6000, 2)).astype("float32")
    spiral = split(arms.astype("float32") / 5 + noise, arm, 500, 1000)
    weights = random.normal(size=(20, 6))
    x = random.normal(size=(8000, 20)).astype("float32")
    votes = split(x, np.argmax(np.tanh(x @ weights) ** 2, axis=1), 500, 1000)
    lines = [(x[..., 0], y) for x, y in digits]

    def momentum(rate):
        return optimizers.SGD(rate, momentum=0.9)

    def nesterov(rate):
        return optimizers.SGD(rate, momentum=0.9, nesterov=True)

    def decayed(rate):
        return optimizers.AdamW(rate, weight_decay=1e-2)

    dense, square = perceptron, (8, 8, 1)
    sure = "softmax"
    binary, adam = "binary_crossentropy", optimizers.Adam
    return {
        "digits_cnn": (digits, convolutions, CLASSES, adam, 1e-3, 32, 600),
        "digits_lstm": (lines, lstm, CLASSES, optimizers.RMSprop, 3e-3, 32, 600),
        "digits_dense": (
            *(digits, dense(square, (64, 64), "relu", 10, sure)),
            *(CLASSES, nesterov, 3e-2, 32, 400),
        ),
        "cancer": (
            *(cancer, dense((30,), (32,), "relu", 1, "sigmoid")),
            *(binary, optimizers.SGD, 1e-1, 32, 300),
        ),
        "curved": (
            *(curved, dense((10,), (64, 64), "silu", 1), "mse", adam, 3e-3, 64, 1000),
        ),
        "spiral": (
            *(spiral, dense((2,), (48, 48), "tanh", 2, sure)),
            *(CLASSES, decayed, 1e-2, 64, 800),
        ),
        "votes_normalised": (
            *(votes, dense((20,), (96, 96), "relu", 6, sure, normalise=True)),
            *(CLASSES, momentum, 3e-2, 64, 1000),
        ),
        "votes_long": (
            *(votes, dense((20,), (64,), "gelu", 6, sure)),
            *(CLASSES, adam, 3e-3, 64, 3000),
        ),
    }


def losses(task, rate, callbacks=()):
    """Trains once; returns the validation loss and the test loss."""
    (train, validation, test), build, loss, optimizer, _, batch_size, steps = task
    keras.utils.set_random_seed(1)
    model = build()
    model.compile(
        optimizer(rate),
        loss,
        steps_per_execution=STEPS_PER_EXECUTION,
        jit_compile=False,
    )
    batches = tf.data.Dataset.from_tensor_slices(train).shuffle(len(train[0]), seed=1)
    model.fit(
        batches.repeat().batch(batch_size),
        steps_per_epoch=steps // EPOCHS,
        epochs=EPOCHS,
        verbose=0,
        callbacks=list(callbacks),
    )
    return [
        model.evaluate(*part, batch_size=500, verbose=0) for part in (validation, test)
    ]


def as_controller(named):
    """Returns what the callback takes, and how many examples to show."""
    if not (Path(named) / "learner.json").exists():
        return named, VALIDATION_SIZE
    config = json.loads((Path(named).parent / "config.json").read_text())
    return ControllerLearner.load(named).greedy(), config["shown"]


def main(names):
    """Compares the controllers of these names."""
    warnings.simplefilter("ignore")
    controllers = {name: as_controller(name) for name in names}
    for name, task in make_tasks().items():
        reference, steps = task[4], task[6]
        rates = reference * 10.0 ** np.linspace(-1, 1, 5)
        tried = [losses(task, cosine_schedule(rate, steps, 0.05)) for rate in rates]
        best = int(np.nanargmin([validation for validation, _ in tried]))
        row = {"task": name, "rate": rates[best], "cosine": tried[best][1]}
        for controller, (found, shown) in controllers.items():
            row[controller] = []
            for multiple in (0.01, 1, 100):
                callback = LearnedLearningRate(
                    found, validation_data=task[0][1], validation_size=shown
                )
                final = losses(task, multiple * reference, [callback])[1]
                row[controller].append(final / row["cosine"])
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
