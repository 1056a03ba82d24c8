"""The controller that learns: collect policy, replay buffer, training, greedy twin."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.util import deprecation

from keras_learned_lr.control.actions import ActionForm
from keras_learned_lr.control.controller import Decision, PolicyOutput
from keras_learned_lr.control.versions import MODEL_NAME
from keras_learned_lr.learning import _tf_agents as tfa
from keras_learned_lr.learning import checkpoints, sequences
from keras_learned_lr.learning.agents import build_agent
from keras_learned_lr.learning.config import LearnerConfig
from keras_learned_lr.learning.episodes import FIRST, LAST, EpisodeRecorder
from keras_learned_lr.learning.policies import (
    CollectPolicy,
    PolicyController,
    time_steps,
)
from keras_learned_lr.learning.updates import build_update
from keras_learned_lr.observation.spec import ObservationSpec


@dataclasses.dataclass
class History:
    """What a learner has been through.

    Attributes:
        returns: Sum of rewards of each finished episode, in the order they were
            learned from; brought up to date at every update.
        updates: Losses and counts of each update, by name.
    """

    returns: list[float] = dataclasses.field(default_factory=list)
    updates: list[dict[str, float]] = dataclasses.field(default_factory=list)


class ControllerLearner:
    """A controller that learns from the runs it steers (a `LearningController`).

    One run at a time goes through `begin_episode`, `record` and `end_episode`; many at
    once go through TF-Agents drivers, with `collect_policy` to act and `add` as the
    observer. An update is made from the replay buffer, which is then cleared: both
    algorithms learn only from what their present policy did.

    Args:
        config: What learns, and how.
        batch_size: Trainees that act at once.

    Raises:
        ValueError: If the batch is not positive, or the settings do not go with it.

    Attributes:
        config: The same.
        batch_size: The same.
        parts: The TF-Agents agent and its networks.
        collect_policy: A `TFPolicy` that samples unclipped actions, for drivers.
        buffer: The TF-Agents replay buffer.
        history: Returns and losses so far.
        observe: `add` as a tf.function.
    """

    def __init__(
        self, config: LearnerConfig | None = None, batch_size: int = 1
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be positive. Received: {batch_size}")
        self.config = config = config or LearnerConfig()
        if config.network == "lstm" and config.train_every and batch_size > 1:
            raise ValueError(
                "An LSTM is trained in mid-episode on one trainee at a time only. "
                "Leave `train_every` None, or take an MLP. Received: "
                f"train_every={config.train_every}, batch_size={batch_size}"
            )
        self.batch_size = batch_size
        self.parts = build_agent(config)
        self.generator = tf.random.Generator.from_seed(config.seed)
        self._learning = tf.Variable(True, trainable=False, name="learning")
        self.collect_policy = CollectPolicy(
            self.parts.agent.collect_policy, self.generator, self._learning
        )
        self.buffer = tfa.tf_uniform_replay_buffer.TFUniformReplayBuffer(
            self.parts.agent.collect_data_spec, batch_size, config.capacity
        )
        self.history = History()
        self.recorder = EpisodeRecorder(config.reward)
        self.finished = tf.Variable(0, dtype=tf.int64, trainable=False)
        # Frames at the start of the buffer that were learned from already.
        self.seen = 0
        self.open_returns = np.zeros(batch_size)
        self._update = build_update(config, self.parts, self.generator)
        self.observe = tf.function(self.add, autograph=False)

    @property
    def observation_spec(self) -> ObservationSpec:
        """What the controller must be shown."""
        return self.config.observation_spec

    @property
    def action_form(self) -> ActionForm:
        """What its actions mean, and when it decides."""
        return self.config.action_form

    @property
    def learning(self) -> bool:
        """Whether it explores and records; else it acts greedily and records nothing.

        May be set at any time, also after `act` was traced into a graph.
        """
        return bool(self._learning.numpy())

    @learning.setter
    def learning(self, value: bool) -> None:
        self._learning.assign(bool(value))

    def initial_state(self, batch_size: int) -> list[tf.Tensor]:
        """Returns the recurrent state before the first decision, zeros."""
        state = self.collect_policy.get_initial_state(batch_size)
        return tf.nest.flatten(state)

    @tf.autograph.experimental.do_not_convert
    def act(self, observation: tf.Tensor, state: list[tf.Tensor]) -> PolicyOutput:
        """Samples actions for observations `[batch, features + privileged]`.

        Works inside a graph. Actions are unclipped, float32 `[batch]`. `info` holds the
        parameters of the distribution they come from and the critic's prediction (PPO),
        or nothing.
        """
        spec = self.collect_policy.policy_state_spec
        nested = tf.nest.pack_sequence_as(spec, list(state))
        step = self.collect_policy.action(time_steps(observation), nested)
        return PolicyOutput(step.action, tf.nest.flatten(step.state), step.info)

    def begin_episode(self) -> None:
        """Starts an episode: one training run of a trainee.

        Raises:
            RuntimeError: If the learner was built for several trainees at once, or with
                a critic that knows more than a run can tell.
        """
        if self.batch_size != 1:
            raise RuntimeError(
                "Runs are recorded one by one with batch_size=1 only; several at once "
                f"go through `add`. Received: batch_size={self.batch_size}"
            )
        if self.config.privileged:
            raise RuntimeError(
                "Inside `fit` nothing is known that the controller does not see. Build "
                "the learner with `privileged=0`. Received: "
                f"privileged={self.config.privileged}"
            )
        self.recorder.begin()

    def record(self, decision: Decision) -> float | None:
        """Takes a decision; returns the reward of the previous one, None at the first.

        A decision that is not finite ends the episode: the previous action gets the
        worst reward, and later decisions of the run are ignored. Trains if that is due.
        """
        return self._look(decision, final=False)

    def end_episode(self, decision: Decision | None) -> float | None:
        """Closes the episode with a last look whose action is never applied.

        Args:
            decision: The last look, or None where the run broke off; the last open
                action is dropped then.

        Returns:
            The reward of the last action, or None.
        """
        reward = None if decision is None else self._look(decision, final=True)
        self.recorder.abandon()
        return reward

    def _look(self, decision: Decision, final: bool) -> float | None:
        if not self.learning:
            return None
        frame = self.recorder.look(decision, final)
        if frame is None:
            return None
        self.observe(tf.nest.map_structure(lambda leaf: tf.constant(leaf)[None], frame))
        self.train_if_due()
        return float(frame.reward)

    @tf.autograph.experimental.do_not_convert
    def add(self, trajectory: Any) -> tf.Tensor:
        """Puts frames `[batch_size, ...]` into the buffer; an observer for drivers.

        Works inside a graph, so it does not train: call `train_if_due` afterwards.

        Returns:
            How many finished episodes are in the buffer, int64.

        Raises:
            InvalidArgumentError: If a frame is not finite.
        """
        for leaf in tf.nest.flatten(trajectory):
            if leaf.dtype.is_floating:
                tf.debugging.assert_all_finite(leaf, "A frame to learn from")
        self.buffer.add_batch(trajectory)
        ended = trajectory.next_step_type == LAST
        return self.finished.assign_add(tf.reduce_sum(tf.cast(ended, tf.int64)))

    def train_if_due(self) -> dict[str, float] | None:
        """Trains if enough episodes or decisions are in the buffer, or it is full."""
        frames = int(self.buffer.num_frames()) // self.batch_size
        every = self.config.train_every
        due = (
            int(self.finished) >= self.config.episodes_per_update
            or (every is not None and frames - self.seen >= every)
            or frames >= self.config.capacity
        )
        return self.train() if due else None

    def train(self) -> dict[str, float] | None:
        """Makes one update from everything in the buffer, and clears it.

        Returns:
            The losses and counts that also go into `history`; None where nothing in
            the buffer could be learned from.
        """
        if int(self.buffer.num_frames()) == 0:
            return None
        with deprecation.silence():  # the other way builds a dataset every time
            gathered = self.buffer.gather_all()
        frames = tf.nest.map_structure(lambda leaf: leaf.numpy(), gathered)
        pieces, kept = [], None
        for index in range(self.batch_size):
            row = tf.nest.map_structure(lambda leaf, i=index: leaf[i], frames)
            self._note_returns(index, row)
            for at, piece in enumerate(found := sequences.split(row)):
                seen = self.seen if at == 0 else 0
                if at == len(found) - 1 and not sequences.is_complete(piece):
                    piece, kept = self._still_open(piece)
                if self._is_usable(piece):
                    pieces.append(sequences.weigh(piece, seen))
        pieces = [(piece, weights) for piece, weights in pieces if weights.any()]
        self._clear(kept)
        if not pieces:
            warnings.warn(
                f"Nothing in the {self.config.capacity} frames of the buffer could be "
                "learned from. An episode that is longer needs a larger `capacity`.",
                stacklevel=2,
            )
            return None
        return self._train_on(pieces)

    def _train_on(self, pieces: list[tuple[Any, np.ndarray]]) -> dict[str, float]:
        rows = sequences.pad(
            pieces,
            shortest=(self.config.train_every or 0) + 1,
            multiple=self.config.minibatches,
        )
        losses = self._update(
            tf.nest.map_structure(tf.constant, rows.experience),
            tf.constant(rows.weights),
        )
        record = {name: float(value) for name, value in losses.items()}
        record["episodes"] = sum(sequences.is_complete(piece) for piece, _ in pieces)
        record["decisions"] = int(np.count_nonzero(rows.weights))
        self.history.updates.append(record)
        self.anneal()
        return record

    def anneal(self) -> None:
        """Sets exploration and learning rate to where the updates so far put them."""
        done = len(self.history.updates)
        self.parts.deviation.assign(self.config.deviation_at(done))
        self.parts.optimizer.learning_rate.assign(self.config.learning_rate_at(done))

    def _is_usable(self, piece: Any) -> bool:
        # REINFORCE needs to know how it ended; an LSTM, what was before.
        config = self.config
        if config.algorithm == "reinforce" and not sequences.is_complete(piece):
            return False
        return config.network != "lstm" or piece.step_type[0] == FIRST

    def _still_open(self, piece: Any) -> tuple[Any, Any]:
        """Returns a piece with the open decision behind it, and what to keep."""
        opened = self.recorder.open_frame()
        if opened is None:
            return piece, None
        following = tf.nest.map_structure(lambda leaf: np.asarray(leaf)[None], opened)
        longer = tf.nest.map_structure(
            lambda *leaves: np.concatenate(leaves), piece, following
        )
        # The state of an LSTM comes from the whole episode so far.
        keep = self.config.network == "lstm" and self.config.train_every is not None
        fits = len(piece.reward) < self.config.capacity
        return longer, piece if keep and fits else None

    def _clear(self, kept: Any) -> None:
        self.buffer.clear()
        self.finished.assign(0)
        self.seen = 0
        if kept is not None:
            self.seen = len(kept.reward)
            for at in range(self.seen):
                self.observe(
                    tf.nest.map_structure(lambda leaf, t=at: leaf[t : t + 1], kept)
                )

    def _note_returns(self, index: int, row: Any) -> None:
        new = slice(self.seen, None)
        for kind, following, reward in zip(
            row.step_type[new], row.next_step_type[new], row.reward[new], strict=True
        ):
            if kind == FIRST:
                self.open_returns[index] = 0.0
            if kind != LAST:
                self.open_returns[index] += reward
                if following == LAST:
                    self.history.returns.append(float(self.open_returns[index]))

    def greedy(self) -> PolicyController:
        """Returns the controller that takes the mean action.

        It shares its variables with the learner, and so goes on learning with it.
        """
        return PolicyController(
            self.parts.agent.policy,
            observation_spec=self.observation_spec,
            action_form=self.action_form,
            privileged=self.config.privileged,
        )

    def export(
        self,
        path: str | Path,
        *,
        name: str = MODEL_NAME,
        observations: np.ndarray | None = None,
        **facts: Any,
    ) -> Path:
        """Writes the greedy controller as the next version of a served model.

        Args:
            path: The base folder; the export goes into `path/name/<version>`.
            name: The model's name on a server.
            observations: float32 `[decisions, features]`, of one run, for the warm-up
                requests; by default those of a tiny training run that the controller
                steers.
            **facts: `tasks`, `steps`, `seeds` and `scores` for the model card; what is
                not given is told as far as the learner knows it.

        Returns:
            The version's folder, a SavedModel; see `export_version`.
        """
        from keras_learned_lr.control.export import can_warm_up, export_version

        greedy = self.greedy()
        if observations is None and can_warm_up():
            from keras_learned_lr.rehearsal import rehearse

            observations = rehearse(greedy).observations
        # Scores of the runs it learned from, for want of better ones.
        returns = self.history.returns[-100:]
        known = {
            "steps": {
                "episodes": len(self.history.returns),
                "updates": len(self.history.updates),
            },
            "seeds": [self.config.seed],
            "scores": {"mean_return": float(np.mean(returns))} if returns else None,
        }
        return export_version(greedy, Path(path) / name, observations, known | facts)

    def save(self, path: str | Path) -> None:
        """Writes everything that learning goes on from into the folder `path`.

        A kill in the middle leaves what was saved before.
        """
        checkpoints.save(self, Path(path))

    def restore(self, path: str | Path) -> None:
        """Goes on from what `save` wrote, to the same numbers.

        Raises:
            ValueError: If nothing is saved there, or it was saved by a learner of
                another shape.
        """
        checkpoints.restore(self, Path(path))

    def begin_with(self, *others: "ControllerLearner") -> None:
        """Takes over the weights of another learner, and nothing else of it.

        Args:
            *others: The learner; the mean of their weights, where there are several.

        Raises:
            ValueError: If it is a learner of another shape.
        """
        for other in others:
            different = checkpoints.differences(
                other.config, self.config, checkpoints.WEIGHTS
            )
            if different:
                raise ValueError(
                    "The weights to begin with are of a learner with another "
                    f"{', '.join(different)}. Take the settings that it has."
                )
        for part in ("actor", "critic"):
            mine = getattr(self.parts, part).variables
            theirs = [getattr(other.parts, part).variables for other in others]
            for variable, *values in zip(mine, *theirs, strict=True):
                variable.assign(sum(value.numpy() for value in values) / len(values))

    @classmethod
    def load(cls, path: str | Path) -> "ControllerLearner":
        """Builds the learner that `save` wrote, with its own settings."""
        learner = cls(*checkpoints.read_settings(Path(path)))
        learner.restore(path)
        return learner
