"""A learner on disk: a TensorFlow checkpoint for tensors, JSON for the rest."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from keras_learned_lr.files import replace_text
from keras_learned_lr.learning.config import LearnerConfig

if TYPE_CHECKING:
    from keras_learned_lr.learning.learner import ControllerLearner

VERSION = 1
INDEX = "learner.json"
# Settings that weights depend on.
WEIGHTS = (
    "algorithm",
    "network",
    "observation",
    "averages",
    "privileged",
    "hidden",
    "lstm_size",
)
# Those that the checkpoint's tensors depend on; the others may change.
SHAPES = (*WEIGHTS, "capacity")


def save(learner: "ControllerLearner", folder: Path) -> None:
    """Writes the learner; the index is replaced last, and only then the old removed."""
    folder.mkdir(parents=True, exist_ok=True)
    old = _read(folder)["tensors"] if (folder / INDEX).exists() else None
    serial = int(old.rpartition("-")[2]) + 1 if old else 0
    prefix = f"tensors-{serial}"
    _checkpoint(learner).write(str(folder / prefix))
    state = {
        "version": VERSION,
        "tensors": prefix,
        "config": learner.config.to_config(),
        "batch_size": learner.batch_size,
        "seen": learner.seen,
        "open_returns": learner.open_returns.tolist(),
        "returns": learner.history.returns,
        "updates": learner.history.updates,
        "episode": learner.recorder.to_config(),
    }
    replace_text(folder / INDEX, json.dumps(state, indent=1))
    for tensors in folder.glob("tensors-*"):
        if tensors.name.partition(".")[0] != prefix:
            tensors.unlink()


def differences(
    one: LearnerConfig, other: LearnerConfig, names: tuple[str, ...] = SHAPES
) -> list[str]:
    """Returns the settings by which the tensors of two learners differ.

    Args:
        one: A learner's settings.
        other: Another's.
        names: `SHAPES`, or `WEIGHTS` where the buffer does not matter.
    """
    return [name for name in names if getattr(one, name) != getattr(other, name)]


def restore(learner: "ControllerLearner", folder: Path) -> None:
    """Puts the learner where `save` left it."""
    state = _read(folder)
    different = differences(LearnerConfig.from_config(state["config"]), learner.config)
    if state["batch_size"] != learner.batch_size:
        different.append("batch_size")
    if different:
        raise ValueError(
            f"{folder} was saved by a learner with another {', '.join(different)}. "
            "Build the learner with the settings it was saved with, or use "
            "`ControllerLearner.load(path)`."
        )
    status = _checkpoint(learner).read(str(folder / state["tensors"]))
    status.assert_consumed()
    learner.seen = state["seen"]
    learner.open_returns = np.array(state["open_returns"])
    learner.history.returns = state["returns"]
    learner.history.updates = state["updates"]
    # The optimizer does not count its learning rate among its variables.
    learner.anneal()
    info_spec = learner.collect_policy.info_spec
    learner.recorder.restore(state["episode"], info_spec)


def read_settings(folder: Path) -> tuple[LearnerConfig, int]:
    """Returns the config and batch size of the learner saved in `folder`."""
    state = _read(folder)
    return LearnerConfig.from_config(state["config"]), state["batch_size"]


def _read(folder: Path) -> dict[str, Any]:
    try:
        state = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"No learner is saved in {folder}: no {INDEX}") from None
    if state.get("version") != VERSION:
        raise ValueError(
            f"{folder} was saved in format {state.get('version')!r}; this "
            f"keras_learned_lr reads format {VERSION}."
        )
    return state


def _checkpoint(learner: "ControllerLearner") -> tf.train.Checkpoint:
    parts = learner.parts
    return tf.train.Checkpoint(
        actor=list(parts.actor.variables),
        critic=list(parts.critic.variables),
        optimizer=list(parts.optimizer.variables),
        train_step=parts.train_step,
        buffer=list(learner.buffer.variables()),
        finished=learner.finished,
        generator=learner.generator,
    )
