"""What the callback saves beside Keras's `BackupAndRestore`, and finds again."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, NamedTuple, Self

import keras
import numpy as np

from keras_learned_lr.control.controller import Resumable
from keras_learned_lr.control.record import Record
from keras_learned_lr.control_loop import ControlLoop
from keras_learned_lr.files import discard, finish_folder
from keras_learned_lr.keras_backup import has_weights, mend

VERSION = 1
FOLDER = "learned_learning_rate"


class Saved(NamedTuple):
    """A state on disk.

    Attributes:
        path: Its folder.
        iterations: The optimizer's count of updates when it was saved.
        epoch: The epoch that comes next.
    """

    path: Path
    iterations: int
    epoch: int

    @property
    def state(self) -> Path:
        """Where the run stands, as JSON."""
        return self.path / "state.json"

    @property
    def tensors(self) -> Path:
        """The prefix of the checkpoint that the control loop writes."""
        return self.path / "tensors"

    @property
    def learner(self) -> Path:
        """The folder that a learner writes."""
        return self.path / "learner"


@dataclasses.dataclass
class Progress:
    """Where a run stands, apart from tensors.

    Attributes:
        identity: What must be the same for a run to go on from it, JSON-ready.
        first_epoch: The epoch that the run began with.
        step: Training steps taken.
        steps_per_epoch: Training steps of an epoch; None while it is unknown.
        due: The step at which the next decision is due.
        defaults: What the optimizers were compiled with.
        records: The decisions so far.
        rewards: What they earned so far.
        broken: Whether a decision failed, so that no more are made.
        told: What the user has been warned of.
    """

    identity: dict[str, Any]
    first_epoch: int
    step: int
    steps_per_epoch: int | None
    due: int
    defaults: list[float]
    records: list[Record]
    rewards: list[float]
    broken: bool
    told: list[str]

    def check(self, identity: dict[str, Any]) -> None:
        """Checks that a run of this identity can go on from here.

        Raises:
            ValueError: If it cannot.
        """
        # As JSON has it: no tuples.
        own = json.loads(json.dumps(identity))
        different = [key for key in own if own[key] != self.identity.get(key)]
        if different:
            raise ValueError(f"it was saved by a run with another {different[0]}")

    def to_config(self) -> dict[str, Any]:
        """Returns it JSON-ready."""
        records = [
            record._replace(observation=record.observation.tolist(), info=())._asdict()
            for record in self.records
        ]
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return fields | {"records": records}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Builds what `to_config` described; the records' `info` is gone."""
        records = []
        for fields in config["records"]:
            observation = np.asarray(fields["observation"], np.float32)
            record = Record(**fields | {"observation": observation, "info": ()})
            records.append(record)
        return cls(**config | {"records": records})


def make_backup(folder: str | Path, learner: Any) -> "Backup":
    """Returns the backup of a run in a folder that the user named.

    Args:
        folder: What the user passed.
        learner: What learns from the run, or None.

    Raises:
        TypeError: If the folder is no path.
        ValueError: If it is not local, or the learner cannot be saved.
    """
    if not isinstance(folder, str | Path):
        raise TypeError(f"`backup_dir` must be a path. Received: {folder!r}")
    if not str(folder) or "://" in str(folder):
        raise ValueError(
            f"`backup_dir` must be a local folder. Received: {str(folder)!r}"
        )
    if learner is not None and not isinstance(learner, Resumable):
        raise ValueError(
            "With `backup_dir`, a controller that learns needs `save(path)` and "
            f"`restore(path)`. Received: {learner!r}"
        )
    return Backup(Path(folder))


class Backup:
    """The states of a run after its last two epochs, in a folder of their own.

    A state is written under another name and renamed when it is whole. It is keyed to
    the optimizer's iterations, so that the one is taken that belongs to the weights
    which `BackupAndRestore` has put back. Two are kept because a kill may come after a
    state is written and before the weights that belong to it are.

    Args:
        folder: Where to keep them, in a subfolder; best that of `BackupAndRestore`.
    """

    def __init__(self, folder: Path) -> None:
        self._keras_folder = folder
        self._folder = folder / FOLDER
        self._last: Saved | None = None

    @property
    def states(self) -> list[Saved]:
        """The states that are there, in the order of their training steps."""
        found = []
        for path in self._folder.glob("*-*"):
            if match := re.fullmatch(r"(\d+)-(\d+)", path.name):
                found.append(Saved(path, int(match[1]), int(match[2])))
        return sorted(found, key=lambda saved: (saved.epoch, saved.iterations))

    def mend(self) -> list[str]:
        """Puts Keras's backup in the same folder right; returns what to tell."""
        states = self.states
        return mend(self._keras_folder, states[-1].epoch if states else None)

    def mend_epoch(self, model: keras.Model) -> str | None:
        """Puts the epoch right where Keras's metadata are older than its weights.

        Args:
            model: With the weights and the epoch that Keras has restored.

        Returns:
            What to tell, or None where nothing was wrong.
        """
        told = model._initial_epoch
        if told is None and not has_weights(self._keras_folder):
            return None  # Keras has restored nothing.
        saved, _ = self.find(model, told or 0)
        if saved is None or saved.iterations != _iterations(model):
            return None
        if saved.epoch == (told or 0):
            return None
        model._initial_epoch = saved.epoch
        return (
            "Keras was interrupted between its weights and its metadata, which say "
            f"that {told or 0} epochs are done. By the weights it is {saved.epoch}, "
            "and there the run goes on."
        )

    def find(self, model: keras.Model, epoch: int) -> tuple[Saved | None, str | None]:
        """Returns the state that a run can go on from, and what to tell of it.

        Args:
            model: With the weights that Keras has restored.
            epoch: The epoch that comes next.

        Returns:
            The state of the optimizer's iterations and this epoch; else that of these
            iterations; else, where the weights are from the middle of the epoch, the
            state at its beginning; else None. And a warning, or None where all is well.
        """
        iterations = _iterations(model)
        states = self.states
        of_iterations = [s for s in states if s.iterations == iterations]
        for saved in of_iterations:
            if saved.epoch == epoch:
                return saved, None
        if of_iterations and iterations:
            return of_iterations[-1], (
                "Keras was interrupted between its weights, which are those after "
                f"{of_iterations[-1].epoch} epochs, and its metadata, which say "
                f"{epoch}: an epoch is trained once more. List LearnedLearningRate "
                "after BackupAndRestore, and it puts this right."
            )
        of_epoch = [s for s in states if s.epoch == epoch and s.iterations < iterations]
        if of_epoch:
            return of_epoch[-1], (
                f"The restored weights are of iteration {iterations}, in mid-epoch, "
                f"and the controller's state of {of_epoch[-1].iterations}, at its "
                "beginning. Decisions will differ from those of a run without the "
                'interruption. Use `BackupAndRestore(save_freq="epoch")`.'
            )
        return None, self._why_not(states, iterations, epoch)

    def _why_not(self, states: list[Saved], iterations: int, epoch: int) -> str | None:
        if states:
            there = ", ".join(f"{s.iterations} (epoch {s.epoch})" for s in states)
            return (
                f"No state in {self._folder} belongs to iteration {iterations} and "
                f"epoch {epoch}; there are those of {there}. The controller starts "
                "anew. To go on with that run, let BackupAndRestore restore its "
                "weights; to train from the start, delete both backups."
            )
        if iterations and has_weights(self._keras_folder):
            return (
                f"In {self._keras_folder} there is a backup of Keras's and none of "
                "LearnedLearningRate's. The controller starts anew, from the learning "
                "rate that was restored; pass `default_learning_rate` to start from "
                "another."
            )
        return None

    def save(
        self,
        model: keras.Model,
        epoch: int,
        progress: Progress,
        loop: ControlLoop,
        learner: Resumable | None,
    ) -> None:
        """Writes a state; only those of the epoch before are kept beside it.

        Args:
            model: What is trained.
            epoch: The epoch that comes next.
            progress: Where the run stands.
            loop: What steers it.
            learner: What learns from it, or None.
        """
        iterations = _iterations(model)
        saved = Saved(self._folder / f"{iterations}-{epoch}", iterations, epoch)
        if self._last == saved:
            return
        unfinished = saved._replace(path=self._folder / "unfinished")
        discard(unfinished.path)
        unfinished.path.mkdir(parents=True)
        loop.save(unfinished.tensors)
        if learner is not None:
            learner.save(unfinished.learner)
        text = json.dumps({"version": VERSION, "progress": progress.to_config()})
        unfinished.state.write_text(text, encoding="utf-8")
        finish_folder(unfinished.path, saved.path)
        # By epochs: data of unknown length may leave two states of one, since Keras
        # counts an iteration in the step that finds no more.
        for other in self.states:
            if other.epoch not in (epoch - 1, epoch):
                discard(other.path)
        self._last = saved

    def newest(self, model: keras.Model) -> Saved | None:
        """Returns the last state, where Keras has restored other weights, or None."""
        states = self.states
        return states[-1] if states and _iterations(model) else None

    def read(self, saved: Saved) -> Progress:
        """Reads a state.

        Raises:
            ValueError: If it is of another version.
        """
        told = json.loads(saved.state.read_text(encoding="utf-8"))
        if told["version"] != VERSION:
            raise ValueError(
                f"it was saved in format {told['version']!r}; this keras_learned_lr "
                f"reads format {VERSION}"
            )
        return Progress.from_config(told["progress"])

    def go_on_from(self, saved: Saved | None) -> None:
        """Notes which state the run goes on from, so that it is kept for now."""
        self._last = saved

    def delete(self) -> None:
        """Deletes all states: the run is finished."""
        self._last = None
        discard(self._folder)


def _iterations(model: keras.Model) -> int:
    return int(keras.ops.convert_to_numpy(model.optimizer.iterations))
