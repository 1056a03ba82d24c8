"""The controller, and the controls that tell what its feedback is worth."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_learned_lr.benchmark.quality.methods.method import Run, Setup
from keras_learned_lr.callback import LearnedLearningRate
from keras_learned_lr.control.actions import ENVELOPES
from keras_learned_lr.control.controller import Controller, PolicyOutput

# What a schedule knows too: these and their running averages stay as they are.
CLOCK = frozenset({"progress", "log_horizon", "log_window", "first_decision"})
# The replayed schedule is averaged at so many points of the run.
POINTS = 100


class Averages(NamedTuple):
    """What a controller saw and did on the tuning seed, over all tasks.

    Attributes:
        observation: Mean of each feature, by name.
        log_level: Mean log10(level / default) in each hundredth of the run.
    """

    observation: dict[str, float]
    log_level: np.ndarray


def learned(run: Run) -> Setup:
    """The controller, as a user runs it."""
    return _controlled(run, run.controller)


def untrained(run: Run) -> Setup:
    """A controller of the same observations and actions that never learned."""
    return _controlled(run, untrained_twin(run.controller))


def open_loop(run: Run) -> Setup:
    """The controller with every observation but the clock frozen to its average."""
    return _controlled(run, Blind(run.controller, run.averages.observation))


def replayed(run: Run) -> Setup:
    """The average schedule that the controller drew from this initial guess."""
    form = run.controller.action_form
    schedule = Replayed(
        run.learning_rate, run.steps, run.averages.log_level, form.envelope
    )
    return Setup(run.task.optimizer(schedule))


def _controlled(run: Run, controller: Controller) -> Setup:
    callback = LearnedLearningRate(controller, validation_data=run.task.data.validation)
    return Setup(run.task.optimizer(run.learning_rate), (callback,))


@functools.cache
def untrained_twin(controller: Controller) -> Controller:
    """Returns a fresh greedy controller with the same observations and actions."""
    from keras_learned_lr.learning import ControllerLearner, LearnerConfig

    config = LearnerConfig(
        observation=tuple(controller.observation_spec.names),
        action_form=controller.action_form,
    )
    return ControllerLearner(config, 1).greedy()


class Blind:
    """A controller that is shown averages in place of what happens.

    Args:
        controller: What answers.
        averages: Mean of each feature, by name.

    Attributes:
        observation_spec: That of the controller.
        action_form: Likewise.
    """

    def __init__(self, controller: Controller, averages: dict[str, float]) -> None:
        self.observation_spec = controller.observation_spec
        self.action_form = controller.action_form
        self._controller = controller
        names = self.observation_spec.names
        # "name@decay" is the running average of a feature.
        self._kept = tf.constant([name.partition("@")[0] in CLOCK for name in names])
        self._averages = tf.constant([averages[name] for name in names])

    def initial_state(self, batch_size: int) -> list[tf.Tensor]:
        """Returns the controller's own."""
        return self._controller.initial_state(batch_size)

    def act(self, observation: tf.Tensor, state: list[tf.Tensor]) -> PolicyOutput:
        """Answers the averages, whatever it is shown."""
        shown = tf.where(self._kept, observation, self._averages)
        return self._controller.act(shown, state)


class Replayed(keras.optimizers.schedules.LearningRateSchedule):
    """Learning rate = default × average level × envelope.

    Args:
        default: The learning rate that the run is compiled with.
        steps: Training steps of the run.
        log_level: log10(level / default), one entry for each equal part of the run.
        envelope: The envelope of the controller's action form.
    """

    def __init__(
        self, default: float, steps: int, log_level: np.ndarray, envelope: str
    ) -> None:
        self.default, self.steps = default, steps
        self.log_level, self.envelope = np.asarray(log_level, "float32"), envelope

    def __call__(self, step: Any) -> Any:
        """Returns the learning rate at `step`, counted from 0."""
        progress = ops.minimum(ops.cast(step, "float32") / self.steps, 1.0)
        last = len(self.log_level) - 1
        part = ops.minimum(ops.cast(progress * len(self.log_level), "int32"), last)
        level = 10.0 ** ops.take(self.log_level, part)
        return self.default * level * ENVELOPES[self.envelope](progress)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments."""
        return {
            "default": self.default,
            "steps": self.steps,
            "log_level": self.log_level.tolist(),
            "envelope": self.envelope,
        }


def average(records: Sequence[dict[str, Any]], envelope: str) -> Averages:
    """Averages what a controller saw and did.

    Args:
        records: Its runs, with `decisions`, `observation`, `learning_rate` and `steps`.
        envelope: The envelope of its action form.
    """
    names = records[0]["observation"]
    observation = {
        name: float(np.mean([record["observation"][name] for record in records]))
        for name in names
    }
    middles = (np.arange(POINTS) + 0.5) / POINTS
    levels = []
    for record in records:
        made = record["decisions"]
        progress = np.array(made["step"]) / record["steps"]
        shape = ENVELOPES[envelope](tf.constant(progress, tf.float32)).numpy()
        rates = np.array(made["learning_rate"]) / record["learning_rate"]
        level = np.log10(rates / shape)
        # A decision holds until the next.
        levels.append(level[np.searchsorted(progress, middles, "right") - 1])
    return Averages(observation, np.mean(levels, axis=0))
