"""What a controller is: something that maps observations to actions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import tensorflow as tf

from keras_learned_lr.control.actions import ActionForm
from keras_learned_lr.observation.spec import ObservationSpec


class PolicyOutput(NamedTuple):
    """What a controller answers.

    Attributes:
        action: float32 `[batch]`, unclipped.
        state: The controller's recurrent state after this decision, a list of float32
            `[batch, ...]` tensors; empty where it has none.
        info: What a learner needs beside the action to train on it; else empty.
        failure: Why there is no answer (the action is NaN then), or None.
    """

    action: tf.Tensor
    state: list[tf.Tensor]
    info: Any = ()
    failure: str | None = None


class ServingError(RuntimeError):
    """A served controller could not be reached, or answered what it must not.

    Args:
        message: What was asked, what came back, and what to do.
        retriable: Whether the same request may succeed a moment later.
        gone: Whether the server said that it does not have the model or the version.
    """

    def __init__(
        self, message: str, retriable: bool = False, gone: bool = False
    ) -> None:
        super().__init__(message)
        self.retriable = retriable
        self.gone = gone


@runtime_checkable
class Controller(Protocol):
    """Maps observations to actions; may carry a recurrent state.

    Attributes:
        observation_spec: What it must be shown.
        action_form: What its actions mean, and when it decides.
    """

    observation_spec: ObservationSpec
    action_form: ActionForm

    def initial_state(self, batch_size: int) -> list[tf.Tensor]:
        """Returns the recurrent state before the first decision."""

    def act(self, observation: tf.Tensor, state: list[tf.Tensor]) -> PolicyOutput:
        """Answers observations of shape `[batch, features]`; works inside a graph."""


@runtime_checkable
class RemoteController(Controller, Protocol):
    """A controller behind a server: its `act` does not work inside a graph.

    `act` raises `ServingError` where there is no answer.
    """

    def connect(self) -> None:
        """Reads again what is served, for a run that is about to begin."""


class Decision(NamedTuple):
    """One decision as a learner sees it, on the host.

    Attributes:
        observation: float32 `[features]`, finite.
        action: The sampled action, unclipped.
        info: `PolicyOutput.info` without the batch dimension, NumPy arrays.
        loss: Validation loss now (training loss where there is no validation data),
            which tells what the previous action earned.
        first_loss: The same loss at the first decision at which it was known.
        finite: Whether every loss since the previous decision was finite.
    """

    observation: np.ndarray
    action: float
    info: Any
    loss: float
    first_loss: float
    finite: bool


@runtime_checkable
class LearningController(Controller, Protocol):
    """A controller that learns from the run it steers."""

    def begin_episode(self) -> None:
        """Starts an episode: one training run of a trainee."""

    def record(self, decision: Decision) -> float | None:
        """Takes a decision; returns the previous one's reward, None at the first."""

    def end_episode(self, decision: Decision | None) -> float | None:
        """Closes the episode with a last look whose action is never applied.

        `decision` is None where the run broke off; the last open action is dropped
        then. Returns the reward of the last action, or None.
        """


@runtime_checkable
class Resumable(LearningController, Protocol):
    """One whose learning goes on after an interruption, in mid-episode too."""

    def save(self, path: Path) -> None:
        """Writes everything that learning goes on from into a folder."""

    def restore(self, path: Path) -> None:
        """Goes on from what `save` wrote."""


@runtime_checkable
class Exportable(Controller, Protocol):
    """A controller that can be written as a SavedModel."""

    variables: Sequence[tf.Variable]
