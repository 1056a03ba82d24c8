"""A tiny training run under a controller, to see it work and to see what it sees."""

import time
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_learned_lr.callback import LearnedLearningRate
from keras_learned_lr.control.controller import Controller

EXAMPLES, FEATURES, CLASSES, BATCH_SIZE = 512, 8, 4, 32
EPOCHS = 4


class Rehearsal(NamedTuple):
    """What came of a run.

    Attributes:
        observations: float32 `[decisions, features]`, in order.
        decisions: `LearnedLearningRate.decisions`.
        losses: Training loss of each epoch.
        seconds: How long it took.
    """

    observations: np.ndarray
    decisions: dict[str, Any]
    losses: list[float]
    seconds: float


def rehearse(
    controller: Controller | str,
    *,
    epochs: int = EPOCHS,
    seed: int = 0,
    callbacks: tuple[keras.callbacks.Callback, ...] = (),
) -> Rehearsal:
    """Trains a small classifier on made-up data, its learning rate set by a controller.

    Global random state is neither read nor changed; the same seed gives the same run.

    Args:
        controller: Whatever `LearnedLearningRate` takes.
        epochs: Passes over the data, 16 steps each.
        seed: Seeds the data and the weights.
        callbacks: More callbacks for `fit`, after the controller's.
    """
    model, (x, y) = made_up_trainee(seed)
    split = EXAMPLES // 4 * 3
    rate = LearnedLearningRate(controller, validation_data=(x[split:], y[split:]))
    begun = time.perf_counter()
    history = model.fit(
        x,
        y,
        batch_size=BATCH_SIZE,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=[rate, *callbacks],
    )
    seen = rate.decisions["observation"].values()
    return Rehearsal(
        np.stack(list(seen), axis=-1).astype("float32"),
        rate.decisions,
        history.history["loss"],
        time.perf_counter() - begun,
    )


def made_up_trainee(
    seed: int = 0,
) -> tuple[keras.Model, tuple[np.ndarray, np.ndarray]]:
    """Returns a small compiled classifier, and made-up data for it.

    Args:
        seed: Seeds the data and the weights.

    Returns:
        The model, and x, float32 `[examples, features]`, with y, int64 `[examples]`.
    """
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(EXAMPLES, FEATURES)).astype("float32")
    y = np.argmax(x @ rng.normal(size=(FEATURES, CLASSES)), axis=1)
    model = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dense(
                16, "relu", kernel_initializer=keras.initializers.GlorotUniform(seed)
            ),
            keras.layers.Dense(
                CLASSES,
                "softmax",
                kernel_initializer=keras.initializers.GlorotUniform(seed + 1),
            ),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    return model, (x, y)
