"""Meta-training: collect, learn, evaluate, checkpoint, and go on where it stopped."""

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_learned_lr.files import discard, finish_folder, replace_text
from keras_learned_lr.learning.collect import collect_episode
from keras_learned_lr.learning.evaluation import examine, greedy_act, set_exams
from keras_learned_lr.learning.imitation import Imitation
from keras_learned_lr.learning.learner import ControllerLearner
from keras_learned_lr.learning.meta_config import MetaTrainConfig
from keras_learned_lr.learning.run_folder import (
    BEST,
    CHOICES,
    CONFIG,
    LOG,
    NOTED,
    STATE,
    checkpoints,
    last_checkpoint,
    read_log,
    trained,
)
from keras_learned_lr.learning.task_stream import (
    TaskStream,
    make_environment,
    make_sampler,
)
from keras_learned_lr.learning.tasks.sampler import PRIVILEGED, TaskSampler

# `TaskSampler`'s `fewest_rows` and `most_wrong`, for the tasks that runs are marked on.
EXAM_ROWS, EXAM_WRONG = 256, 0.25
# Settings that a run may change when it goes on.
CHANGEABLE = ("rounds", "evaluate_every", "checkpoint_every")


@dataclasses.dataclass
class Progress:
    """How far a run is; what a checkpoint holds besides the learner.

    Attributes:
        round: Rounds done.
        trainee_steps: Training steps of all trainees together.
        best_round: The round of the lowest validation ratio, -1 before the first.
        best_ratio: That ratio.
        seconds: Time in collecting, learning and evaluating.
    """

    round: int = 0
    trainee_steps: int = 0
    best_round: int = -1
    best_ratio: float = float("inf")
    seconds: dict[str, float] = dataclasses.field(
        default_factory=lambda: {"collect": 0.0, "learn": 0.0, "evaluate": 0.0}
    )


class MetaTraining:
    """A meta-training run in a folder.

    The folder holds the config, a log of one JSON line a round, TensorBoard events, the
    last checkpoint, and in `best` the learner with the lowest validation ratio so far.
    Everything a round draws depends on the seed and the round's number alone, so a run
    that was killed goes on from its checkpoint to the same weights.

    Args:
        config: The run's settings.
        folder: Where it lives; made if it is not there.
        resume: Whether to go on with the run that the folder holds.
        start: A checkpoint of another run, whose weights this one begins with.

    Raises:
        ValueError: If the folder holds a run and `resume` is False, none and it is
            True, one with other settings, or one that has more rounds behind it; or if
            there is no checkpoint of such a controller at `start`.
    """

    def __init__(
        self,
        config: MetaTrainConfig,
        folder: str | Path,
        resume: bool = False,
        start: str | Path | None = None,
    ) -> None:
        self.config = config
        self.folder = Path(folder)
        self._check_folder(resume)
        batch = config.tasks * config.group
        self.learner = ControllerLearner(self._learner_config(), batch)
        sampler = make_sampler(config)
        # Lift and envelope are for the finished controller only, so it is marked on
        # trainees of its own; and exams are the same whatever it learns from.
        self.exam_sampler = TaskSampler(
            sampler.spec, config.finished_form(), config.shown, EXAM_ROWS, EXAM_WRONG
        )
        self.progress = Progress()
        self._stream = TaskStream(config, sampler)
        self._environment = make_environment(config, self._stream)
        policy = self.learner.collect_policy
        self._act = tf.function(policy.action, autograph=False)
        self._imitation = Imitation(
            self.learner,
            rounds=config.imitation_rounds,
            learning_rate=config.imitation_learning_rate,
            steps=config.imitation_steps,
            kept=config.imitation_batches,
            deviation=config.imitation_deviation,
            resolution=config.imitation_resolution,
            decay=config.imitation_decay,
        )
        self._greedy = self.learner.greedy()
        self._greedy_act = greedy_act(self._greedy)
        self._exams: list[Any] | None = None
        if (checkpoint := last_checkpoint(self.folder)) is not None:
            self._restore(checkpoint)
        elif start is not None:
            self.learner.begin_with(ControllerLearner.load(start))
        if self.progress.round > config.rounds:
            raise ValueError(
                f"The run in {self.folder} has {self.progress.round} rounds behind it. "
                f"Received: rounds={config.rounds}"
            )
        # Only now: what raises leaves a folder that can be used.
        self._claim_folder()
        if checkpoint is None and start is not None:
            self._save()  # a run that is killed before its first has these weights
        self._trim_log()
        self._board = tf.summary.create_file_writer(str(self.folder / "tensorboard"))

    def run(self, on_round: Callable[[dict[str, Any]], None] | None = None) -> Progress:
        """Runs the rounds that are left.

        Args:
            on_round: Called with the log's record after each round.
        """
        while self.progress.round < self.config.rounds:
            record = self._round()
            self._log(record)
            number = self.progress.round
            last = number == self.config.rounds
            if number % self.config.checkpoint_every == 0 or last:
                self._save()
            if on_round is not None:
                on_round(record)
        return self.progress

    def _round(self) -> dict[str, Any]:
        config, progress = self.config, self.progress
        started = time.perf_counter()
        self._stream.seed([config.seed, progress.round])
        rng = np.random.default_rng([config.seed, progress.round, 1])
        imitates = progress.round < config.imitation_rounds
        if imitates:
            self._imitation.begin_round(progress.round)
        names, finals, earned, steps = [], [], [], 0
        for _ in range(config.templates_per_round):
            if imitates:
                final, searched = self._imitation.collect(
                    self._environment, self._act, rng
                )
                steps += searched
            else:
                final = collect_episode(self._environment, self.learner, self._act)
            finals.append(final)
            earned.append(self._environment.returns)
            batch = self._environment.batch
            assert batch is not None
            names.append(batch.template.name)
            steps += int(batch.members.horizon) * len(batch.task)
        collected = time.perf_counter()
        if imitates:
            losses = {"imitation_cost": self._imitation.learn(rng)}
            if progress.round + 1 == config.imitation_rounds:
                self._imitation.end()
        else:
            losses = self.learner.train() or {}
            # One number for each of a hundred million steps' episodes would fill the
            # checkpoints.
            self.learner.history.returns.clear()
        learned = time.perf_counter()
        progress.round += 1
        progress.trainee_steps += steps
        seconds = {"collect": collected - started, "learn": learned - collected}
        record: dict[str, Any] = {
            "round": progress.round,
            "trainee_steps": progress.trainee_steps,
            "mean_return": float(np.mean(earned)),
            "diverged": float(np.mean(~np.isfinite(np.concatenate(finals)))),
            "templates": names,
            "seconds": seconds,
            **losses,
        }
        last = progress.round == config.rounds
        if progress.round in config.averaged:
            self._note_weights()
        if last and config.averaged:
            self._average_weights()
        if progress.round % config.evaluate_every == 0 or last:
            record["validation"] = dataclasses.asdict(self.evaluate())
            self._keep_if_best(record["validation"]["ratio"])
            seconds["evaluate"] = time.perf_counter() - learned
        for name, spent in seconds.items():
            progress.seconds[name] += spent
        return record

    def evaluate(self) -> Any:
        """Marks the greedy controller on the validation tasks; see `examine`."""
        return examine(self.exams, self._greedy_act, self._greedy.initial_state)

    @property
    def exams(self) -> list[Any]:
        """The validation tasks, with their cosine grids; made at the first use."""
        if self._exams is None:
            config = self.config
            self._exams = set_exams(
                self.exam_sampler,
                config.templates("validation"),
                config.evaluation_horizons,
                config.evaluation_tasks,
                seed=config.seed + 1_000_003,
            )
        return self._exams

    def export_best(self) -> Path:
        """Exports the best learner so far into `controller`, with its model card.

        Returns:
            The folder written; see `ControllerLearner.export`.

        Raises:
            ValueError: If none was evaluated yet.
        """
        best = ControllerLearner.load(self.folder / BEST)
        best.config = dataclasses.replace(
            best.config, action_form=self.config.finished_form()
        )
        return best.export(self.folder / "controller", **trained(self.folder / BEST))

    # The folder.

    def _learner_config(self) -> Any:
        """Returns the learner's settings with room for a whole round."""
        config = self.config
        longest = 0
        for horizon in range(config.shortest_horizon, config.longest_horizon + 1):
            step = count = 0
            while step < horizon:
                step = config.learner.action_form.schedule.next_step(step, horizon)
                count += 1
            longest = max(longest, count)
        needed = (longest + 1) * config.templates_per_round
        if config.learner.privileged not in (0, PRIVILEGED):
            raise ValueError(
                f"`privileged` must be 0 or {PRIVILEGED}, what the environment tells a "
                f"critic. Received: {config.learner.privileged}"
            )
        return dataclasses.replace(
            config.learner,
            capacity=needed,
            episodes_per_update=config.tasks
            * config.group
            * config.templates_per_round,
        )

    def _check_folder(self, resume: bool) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"A run needs a folder. Received a file: {self.folder}")
        file = self.folder / CONFIG
        if file.exists() != resume:
            raise ValueError(
                f"There is no run in {self.folder} to go on with."
                if resume
                else f"{self.folder} holds a run already. Go on with it (`--resume`), "
                "or choose another folder."
            )
        if not resume:
            return
        # What was added since the run was started, it did not have.
        read = json.loads(file.read_text(encoding="utf-8"))
        saved = MetaTrainConfig.from_config(read).to_config()
        # A mean of weights, at the end of a run, is no place to go on from.
        fixed = ("rounds",) if self.config.averaged else ()
        different = [
            key
            for key, value in self.config.to_config().items()
            if saved[key] != value and (key not in CHANGEABLE or key in fixed)
        ]
        if different:
            raise ValueError(
                f"The run in {self.folder} has another {', '.join(different)}. "
                "Resume it with the config it was started with."
            )

    def _claim_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        own = self.config.to_config()
        replace_text(self.folder / CONFIG, json.dumps(own, indent=1))

    def _save(self) -> None:
        """Writes a checkpoint beside the last, which goes when it is whole."""
        unfinished = self._write("checkpoint", dataclasses.asdict(self.progress))
        if self.progress.round < self.config.imitation_rounds:
            self._imitation.save(unfinished / CHOICES)
        target = self.folder / f"checkpoint-{self.progress.round}"
        finish_folder(unfinished, target)
        for other in checkpoints(self.folder):
            if other != target:
                discard(other)

    def _write(self, name: str, state: dict[str, Any]) -> Path:
        """Writes learner and state into `name.new`, to be renamed when whole."""
        unfinished = self.folder / f"{name}.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        self.learner.save(unfinished)
        (unfinished / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
        return unfinished

    def _restore(self, checkpoint: Path) -> None:
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        self.progress = Progress(**state)
        self.learner.restore(checkpoint)
        if (checkpoint / CHOICES).exists():
            self._imitation.restore(checkpoint / CHOICES)

    def _note_weights(self) -> None:
        finish_folder(
            self._write(NOTED, dataclasses.asdict(self.progress)),
            self.folder / f"{NOTED}-{self.progress.round}",
        )

    def _average_weights(self) -> None:
        """Gives the learner the mean of the weights noted on the way.

        Which smooths out what the last updates happened to do (Izmailov et al. 2018,
        "Averaging weights leads to wider optima").
        """
        noted = [self.folder / f"{NOTED}-{number}" for number in self.config.averaged]
        self.learner.begin_with(*map(ControllerLearner.load, noted))

    def _keep_if_best(self, ratio: float) -> None:
        progress = self.progress
        if not ratio < progress.best_ratio:
            return
        progress.best_round, progress.best_ratio = progress.round, ratio
        unfinished = self._write(BEST, dataclasses.asdict(progress))
        finish_folder(unfinished, self.folder / BEST)

    def _trim_log(self) -> None:
        """Takes out of the log what came after the checkpoint: it is done again."""
        if not (self.folder / LOG).exists():
            return
        kept = read_log(self.folder, self.progress.round)
        lines = [json.dumps(record) + "\n" for record in kept]
        replace_text(self.folder / LOG, "".join(lines))

    def _log(self, record: dict[str, Any]) -> None:
        with (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        with self._board.as_default(step=record["round"]):
            for name in (
                "mean_return",
                "diverged",
                "imitation_cost",
                "policy_loss",
                "value_loss",
            ):
                if name in record:
                    tf.summary.scalar(name, record[name])
            if "validation" in record:
                marks = record["validation"]
                for name in ("ratio", "far_ratio", "lost"):
                    tf.summary.scalar(f"validation/{name}", marks[name])
        self._board.flush()
