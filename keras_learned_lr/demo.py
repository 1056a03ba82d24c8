"""The whole way in a few minutes: train a controller, export it, use it frozen."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_learned_lr.callback import LearnedLearningRate
from keras_learned_lr.control.actions import AnchoredScaleFactor, Width
from keras_learned_lr.control.schedules import PerRun
from keras_learned_lr.datasets import Images, digits, fashion_mnist
from keras_learned_lr.learning import ControllerLearner, LearnerConfig
from keras_learned_lr.learning.in_fit import FitEpisode, learn_in_fit
from keras_learned_lr.plotting import plot_runs

EPISODES = 250
LEARNER = LearnerConfig(
    # Narrower than the default: a few hundred fits teach no more than they visit.
    # The same number of decisions however long the run, so that one of 300 steps shows
    # the controller what it learned to read in runs of 80.
    action_form=AnchoredScaleFactor(
        schedule=PerRun(20),
        width=Width(initial=1.0, final=0.1, decay=0.15),
        range_decades=3.0,
    ),
    episodes_per_update=10,
    minibatches=2,
    annealing_updates=40,
)
# From hopelessly small to just too large for the model it learns on.
LEARNING_RATES = (1e-5, 1e-1)
GOOD_LEARNING_RATE = 3e-3
TOO_SMALL = 100.0


class Comparison(NamedTuple):
    """One row of the demo's table: a fresh model on data the controller never saw.

    Attributes:
        method: "constant" or "learned".
        learning_rate: What the optimizer was compiled with.
        loss: Test loss after the run.
        accuracy: Test accuracy after the run, in [0, 1].
        steps: Training steps at which `rates` and `losses` were taken.
        rates: Learning rate at each of them.
        losses: Validation loss at each of them.
    """

    method: str
    learning_rate: float
    loss: float
    accuracy: float
    steps: np.ndarray
    rates: np.ndarray
    losses: np.ndarray


def train_controller(
    episodes: int = EPISODES,
    seed: int = 0,
    on_episode: Callable[[FitEpisode], None] | None = None,
    config: LearnerConfig = LEARNER,
) -> tuple[ControllerLearner, list[FitEpisode]]:
    """Trains a controller on short fits of a small model on the digits 0 to 4.

    Args:
        episodes: How many fits it learns from.
        seed: Seeds everything.
        on_episode: Called after each fit.
        config: What learns; its own seed is not used.

    Returns:
        The learner, and what each episode earned.
    """
    data = digits(labels=(0, 1, 2, 3, 4))
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input(data.train[0].shape[1:]),
            keras.layers.Conv2D(8, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(data.classes, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", steps_per_execution=4)
    learner = ControllerLearner(dataclasses.replace(config, seed=seed))
    done = []
    # One stream for all fits: building a pipeline takes longer than eighty steps.
    batches = tf.data.Dataset.from_tensor_slices(data.train).cache()
    batches = batches.shuffle(len(data.train[0])).repeat().batch(32)
    for episode in learn_in_fit(
        learner,
        model,
        x=batches,
        steps_per_epoch=80,
        shuffle=False,  # the stream is
        validation_data=data.validation,
        episodes=episodes,
        learning_rates=LEARNING_RATES,
        seed=seed,
    ):
        done.append(episode)
        if on_episode is not None:
            on_episode(episode)
    return learner, done


def unseen_images() -> Images:
    """Returns images that `train_controller` does not use."""
    return fashion_mnist() or digits(labels=(5, 6, 7, 8, 9))


def compare(controller: str | Path, data: Images, seed: int = 0) -> list[Comparison]:
    """Trains a fresh convolutional model with and without the frozen controller.

    Args:
        controller: The folder of an exported controller.
        data: The images to train on.
        seed: Seeds initial weights and batch order; the same for every run.
    """
    rows = []
    for learning_rate in (GOOD_LEARNING_RATE, GOOD_LEARNING_RATE / TOO_SMALL):
        for method in ("constant", "learned"):
            keras.utils.set_random_seed(seed)
            model = _convolutional(data)
            model.compile(
                keras.optimizers.Adam(learning_rate),
                "sparse_categorical_crossentropy",
                metrics=["accuracy"],
            )
            callback: keras.callbacks.Callback
            if method == "learned":
                callback = LearnedLearningRate(
                    controller, validation_data=data.validation
                )
            else:
                callback = _LossEveryTenSteps(data.validation)
            # About 300 steps, whatever the size of the data.
            steps = -(-len(data.train[0]) // 64)
            model.fit(
                *data.train,
                batch_size=64,
                epochs=max(1, round(300 / steps)),
                verbose=0,
                callbacks=[callback],
            )
            loss, accuracy = model.evaluate(*data.test, verbose=0)
            made = callback.decisions
            rows.append(
                Comparison(
                    method,
                    learning_rate,
                    loss,
                    accuracy,
                    np.asarray(made["step"]),
                    np.asarray(made["learning_rate"]),
                    np.asarray(made["loss"]),
                )
            )
    return rows


def draw(rows: list[Comparison], path: str | Path) -> None:
    """Saves a picture of learning rate and validation loss over steps."""
    plot_runs(
        {
            f"{row.method}, from {row.learning_rate:g}": {
                "step": row.steps,
                "learning_rate": row.rates,
                "loss": row.losses,
            }
            for row in rows
        },
        path,
    )


def _convolutional(data: Images) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input(data.train[0].shape[1:]),
            keras.layers.Conv2D(8, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.1),
            keras.layers.Dense(data.classes, activation="softmax"),
        ]
    )


class _LossEveryTenSteps(keras.callbacks.Callback):
    """Looks at the validation loss of a run that no controller watches."""

    def __init__(self, validation: tuple[np.ndarray, np.ndarray]) -> None:
        super().__init__()
        self._validation = tuple(part[:256] for part in validation)
        self._step = 0
        self.decisions: dict[str, list[float]] = {
            "step": [],
            "learning_rate": [],
            "loss": [],
        }

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        if self._step % 10 == 0:
            x, y = self._validation
            predicted = self.model(x, training=False)
            loss = keras.losses.sparse_categorical_crossentropy(y, predicted)
            rate = keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
            self.decisions["step"].append(self._step)
            self.decisions["learning_rate"].append(float(rate))
            self.decisions["loss"].append(float(keras.ops.mean(loss)))
        self._step += 1
