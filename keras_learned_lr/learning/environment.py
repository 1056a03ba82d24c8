"""Many trainees as one batched environment of TF-Agents."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_learned_lr.learning import _tf_agents as tfa
from keras_learned_lr.learning.rewards import Reward
from keras_learned_lr.learning.tasks.sampler import PRIVILEGED, TaskBatch
from keras_learned_lr.learning.trainee_state import TraineesState

BASELINES = ("none", "group")


class TraineesEnvironment(tfa.py_environment.PyEnvironment):
    """Steps a batch of trainees from decision to decision.

    An episode is one training run. All trainees of a batch have the same horizon, so
    their episodes begin and end together; the next reset draws other trainees.

    Args:
        draw: Returns the trainees of the next episode, always as many.
        reward: What an action earns.
        batch_size: Number of trainees.
        features: Length of the controller's observation.
        privileged: Whether observations end with what only a critic may see.
        baseline: "group" takes from the last reward what the other trainees of the same
            task earned on average over their episode, so that what is left tells how
            well this one did and not how easy its task is. "none" leaves it.

    Raises:
        ValueError: If the baseline is unknown.
    """

    def __init__(
        self,
        draw: Callable[[], TaskBatch],
        reward: Reward,
        batch_size: int,
        features: int,
        privileged: bool = False,
        baseline: str = "none",
    ) -> None:
        super().__init__(handle_auto_reset=True)
        if baseline not in BASELINES:
            raise ValueError(
                f"`baseline` must be one of {BASELINES}. Received: {baseline!r}"
            )
        self._draw = draw
        self._reward = reward
        self._batch_size = batch_size
        self._privileged = privileged
        self._baseline = baseline
        size = features + PRIVILEGED * privileged
        self._observation_spec = tfa.array_spec.ArraySpec(
            (size,), np.float32, "observation"
        )
        self._action_spec = tfa.array_spec.BoundedArraySpec(
            (), np.float32, -1.0, 1.0, "action"
        )
        self._batch: TaskBatch | None = None
        self._state: TraineesState | None = None

    @property
    def batched(self) -> bool:
        """True."""
        return True

    @property
    def batch_size(self) -> int:
        """Number of trainees."""
        return self._batch_size

    @property
    def batch(self) -> TaskBatch | None:
        """The trainees of this episode, or None before the first."""
        return self._batch

    @property
    def returns(self) -> np.ndarray:
        """What each trainee earned so far, before any baseline, `[batch]`."""
        return self._returns

    @property
    def state(self) -> TraineesState | None:
        """Where they stand."""
        return self._state

    def observation_spec(self) -> Any:
        """Returns the spec of one trainee's observation."""
        return self._observation_spec

    def action_spec(self) -> Any:
        """Returns the spec of one trainee's action; what lies outside is clipped."""
        return self._action_spec

    def _reset(self) -> Any:
        self._batch = batch = self._draw()
        self._state, look = batch.trainees.begin(batch.members)
        self._first = self._loss = _loss(look)
        self._returns = np.zeros(self._batch_size, np.float32)
        return tfa.time_step.restart(self._observed(look), self._batch_size)

    def _step(self, action: np.ndarray) -> Any:
        assert self._batch is not None and self._state is not None
        trainees, members = self._batch.trainees, self._batch.members
        horizon = int(members.horizon)
        step = int(self._state.step)
        due = trainees.form.schedule.next_step(step, horizon)
        due = min(due, horizon)
        self._state, look = trainees.advance(
            members,
            self._state,
            tf.constant(action, tf.float32),
            tf.constant(due - step, tf.int64),
        )
        over = due == horizon
        loss = self.score() if over else _loss(look)
        reward = self._reward(self._first, self._loss, loss).numpy()
        self._loss = loss
        self._returns += reward
        observation = self._observed(look)
        if not over:
            # TF-Agents would leave the discount without a batch dimension.
            return tfa.time_step.transition(
                observation, reward, np.ones_like(self._returns)
            )
        if self._baseline == "group":
            reward = reward - _of_the_others(self._returns, self._batch.task)
        return tfa.time_step.termination(observation, reward.astype(np.float32))

    def score(self) -> np.ndarray:
        """Returns the loss on the scoring rows now, float32 `[batch]`; NaN if diverged.

        Raises:
            RuntimeError: Before the first reset.
        """
        if self._batch is None or self._state is None:
            raise RuntimeError("There are no trainees yet: call `reset` first.")
        return scores(self._batch, self._state)

    def _observed(self, look: Any) -> np.ndarray:
        observation = look.observation.numpy()
        if self._privileged:
            assert self._batch is not None
            observation = np.concatenate([observation, self._batch.privileged], 1)
        return observation


def scores(batch: TaskBatch, state: TraineesState) -> np.ndarray:
    """Returns the loss on the scoring rows, float32 `[batch]`; NaN where diverged."""
    members = batch.members._replace(validation=batch.scoring)
    loss = batch.measure(state, members).numpy()
    return np.where(state.alive.numpy(), loss, np.nan)


def _loss(look: Any) -> np.ndarray:
    return look.statistics.validation_loss.numpy()


def _of_the_others(returns: np.ndarray, task: np.ndarray) -> np.ndarray:
    """Returns the mean return of the other trainees of each one's task."""
    same = task[:, np.newaxis] == task
    np.fill_diagonal(same, False)
    return (same @ returns) / np.maximum(same.sum(1), 1)
