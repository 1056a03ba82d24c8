"""Learning inside `model.fit`: one short training run after another."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_learned_lr.callback import LearnedLearningRate
from keras_learned_lr.learning.learner import ControllerLearner


class FitEpisode(NamedTuple):
    """One training run that a controller learned from.

    Attributes:
        number: Counts from 0.
        learning_rate: The default learning rate it started from.
        reward: Sum of the rewards of its decisions.
        loss: Validation loss at its last decision.
    """

    number: int
    learning_rate: float
    reward: float
    loss: float


def learn_in_fit(
    learner: ControllerLearner,
    model: keras.Model,
    *,
    validation_data: Any,
    episodes: int,
    learning_rates: tuple[float, float] = (1e-5, 1e-1),
    seed: int = 0,
    **fit_options: Any,
) -> Iterator[FitEpisode]:
    """Trains a controller on many short fits of one model.

    Every episode starts from fresh weights, a fresh optimizer and a default learning
    rate drawn log-uniformly from a range, so that the controller has to read the
    dynamics and cannot learn one learning rate by heart.

    Args:
        learner: What learns.
        model: The compiled model. Its weights are drawn anew for every episode.
        validation_data: What the reward is computed on.
        episodes: How many fits.
        learning_rates: Lowest and highest default learning rate.
        seed: Seeds weights, batch order and learning rates.
        **fit_options: Arguments of `model.fit`: `x`, `y`, `epochs`, ...

    Yields:
        A `FitEpisode` after each fit.

    Raises:
        ValueError: If the range of learning rates is empty or not positive.
    """
    low, high = learning_rates
    if not 0 < low <= high:
        raise ValueError(
            "`learning_rates` must be a positive range, lowest first. Received: "
            f"{learning_rates}"
        )
    # Once, not for each fit: it throws away every kernel that TensorFlow has made.
    keras.utils.set_random_seed(seed)
    random = np.random.default_rng(seed)
    renew = _renewer(model)
    callback = LearnedLearningRate(learner, validation_data=validation_data)
    for number in range(episodes):
        learning_rate = float(np.exp(random.uniform(np.log(low), np.log(high))))
        renew(learning_rate)
        with warnings.catch_warnings():
            # Exploration ruins many a run, and weights go back.
            warnings.filterwarnings("ignore", "LearnedLearningRate: The loss")
            model.fit(**fit_options, verbose=0, callbacks=[callback])
        decisions = callback.decisions
        reward = float(np.nansum(decisions["reward"]))
        yield FitEpisode(number, learning_rate, reward, float(decisions["loss"][-1]))


def _renewer(model: keras.Model) -> Callable[[float], None]:
    """Returns a function that puts the model back to before its first step."""
    optimizer = model.optimizer
    optimizer.build(model.trainable_variables)
    start = [keras.ops.convert_to_numpy(v) for v in optimizer.variables]

    def renew(learning_rate: float) -> None:
        # A clone draws its initial weights anew; the model itself stays, and with it
        # every graph that was traced for it.
        model.set_weights(keras.models.clone_model(model).get_weights())
        for variable, value in zip(optimizer.variables, start, strict=True):
            variable.assign(value)
        optimizer.learning_rate = learning_rate

    return renew
