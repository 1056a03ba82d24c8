"""Decisions of one training run in, TF-Agents frames out."""

from typing import Any

import numpy as np
import tensorflow as tf

from keras_learned_lr.control.controller import Decision
from keras_learned_lr.learning import _tf_agents as tfa
from keras_learned_lr.learning.rewards import Reward

Trajectory = tfa.trajectory.Trajectory
FIRST, MIDDLE, LAST = (
    np.int32(getattr(tfa.time_step.StepType, name)) for name in ("FIRST", "MID", "LAST")
)


class EpisodeRecorder:
    """Turns the decisions of one run into frames (observation, action, reward).

    A frame is closed when the next decision tells what its action earned.

    Args:
        reward: What an action earns.

    Attributes:
        open: The decision whose reward is not known yet, or None.
    """

    def __init__(self, reward: Reward) -> None:
        self._reward = reward
        self.open: Decision | None = None
        self._recording = False
        self._first = True
        self._known_loss = float("nan")

    def begin(self) -> None:
        """Starts an episode."""
        self.open = None
        self._recording = True
        self._first = True
        self._known_loss = float("nan")

    def abandon(self) -> None:
        """Drops the open decision; what follows until `begin` is ignored."""
        self.open = None
        self._recording = False

    def look(self, decision: Decision, final: bool = False) -> Any:
        """Takes a decision, or a last look.

        Args:
            decision: What the controller saw and did.
            final: Whether its action will never be applied.

        Returns:
            The frame that it closes, without batch dimension, or None. A decision that
            is not finite closes the last frame of the run with the worst reward.
        """
        if not self._recording:
            return None
        broken = self._is_broken(decision)
        opened, self.open = self.open, None if broken or final else decision
        self._recording = self.open is not None
        if opened is None:
            self._remember(decision)
            return None
        earned = self._earned(decision, broken)
        self._remember(decision)
        over = broken or final
        frame = Trajectory(
            step_type=FIRST if self._first else MIDDLE,
            observation=np.asarray(opened.observation, np.float32),
            action=np.float32(opened.action),
            policy_info=opened.info,
            next_step_type=LAST if over else MIDDLE,
            reward=np.float32(earned),
            discount=np.float32(not over),
        )
        self._first = False
        return frame

    def open_frame(self) -> Any:
        """Returns the open decision as a frame without a reward yet, or None."""
        if self.open is None:
            return None
        return Trajectory(
            step_type=FIRST if self._first else MIDDLE,
            observation=np.asarray(self.open.observation, np.float32),
            action=np.float32(self.open.action),
            policy_info=self.open.info,
            next_step_type=MIDDLE,
            reward=np.float32(0),
            discount=np.float32(1),
        )

    def _is_broken(self, decision: Decision) -> bool:
        # Without validation data no loss is known before step 1; that is no divergence.
        lost = np.isfinite(self._known_loss) and not np.isfinite(decision.loss)
        leaves = [decision.observation, decision.action, *_leaves(decision.info)]
        return (
            not decision.finite
            or bool(lost)
            or bool(np.isinf(decision.loss))
            or not all(np.all(np.isfinite(leaf)) for leaf in leaves)
        )

    def _earned(self, decision: Decision, broken: bool) -> float:
        loss = float("inf") if broken else decision.loss
        if not broken and np.isnan(loss):
            return 0.0  # nothing known yet
        previous = self._known_loss
        if np.isnan(previous):
            previous = decision.first_loss
        return float(self._reward(decision.first_loss, previous, loss))

    def _remember(self, decision: Decision) -> None:
        if np.isfinite(decision.loss):
            self._known_loss = float(decision.loss)

    def to_config(self) -> dict[str, Any]:
        """Returns where the episode stands, JSON-ready."""
        opened = None
        if self.open is not None:
            leaves = [np.asarray(leaf).tolist() for leaf in _leaves(self.open.info)]
            observation = np.asarray(self.open.observation).tolist()
            opened = self.open._replace(
                observation=observation, action=float(self.open.action), info=leaves
            )._asdict()
            opened["loss"] = float(opened["loss"])
            opened["first_loss"] = float(opened["first_loss"])
            opened["finite"] = bool(opened["finite"])
        return {
            "open": opened,
            "recording": self._recording,
            "first": self._first,
            "known_loss": self._known_loss,
        }

    def restore(self, config: dict[str, Any], info_spec: Any) -> None:
        """Goes back to where `to_config` was called."""
        self._recording = config["recording"]
        self._first = config["first"]
        self._known_loss = config["known_loss"]
        self.open = None
        if config["open"] is not None:
            opened = Decision(**config["open"])
            leaves = [np.asarray(leaf, np.float32) for leaf in opened.info]
            self.open = opened._replace(
                observation=np.asarray(opened.observation, np.float32),
                info=tf.nest.pack_sequence_as(info_spec, leaves),
            )


def _leaves(info: Any) -> list[Any]:
    return tf.nest.flatten(info)
