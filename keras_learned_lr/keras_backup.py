"""The files of Keras's `BackupAndRestore`, and what a kill in their middle leaves.

Keras 3.15 copies the last weights and metadata (with `double_checkpoint=True`), then
writes the new weights, then the new metadata, in place. On the next start it takes the
copies if the weights cannot be opened, and stops if the metadata cannot be read.
"""

import json
import os
from pathlib import Path

import h5py

from keras_learned_lr.files import replace_text

WEIGHTS = "latest.weights.h5"
METADATA = "training_metadata.json"


def has_weights(folder: Path) -> bool:
    """Returns whether there are weights that Keras restores."""
    return (folder / WEIGHTS).exists()


def mend(folder: Path, epoch: int | None) -> list[str]:
    """Puts right what would keep Keras from restoring.

    Args:
        folder: That of `BackupAndRestore`; may be missing.
        epoch: The epoch after the last state that was saved beside it, if there is one.

    Returns:
        What was found, and what was done about it; nothing if all is well.
    """
    weights, metadata = folder / WEIGHTS, folder / METADATA
    told = []
    if metadata.exists() and not _is_whole(metadata):
        # The weights were complete before it was begun.
        if epoch is None:
            os.remove(metadata)
        else:
            replace_text(metadata, json.dumps({"epoch": epoch, "batch": 0}))
        told.append(
            f"Keras was interrupted while it wrote {metadata}. It now says that epoch "
            f"{epoch or 0} comes next."
        )
    if metadata.exists() and not weights.exists():
        told.append(
            f"Keras's backup in {folder} has no weights, as after an interruption "
            "while it was deleted, but says how many epochs are done: these are not "
            "trained again. Delete the folder to train from the start."
        )
    if weights.exists() and not _opens(weights):
        told += _tell_of_torn_weights(folder)
    return told


def _tell_of_torn_weights(folder: Path) -> list[str]:
    weights, metadata = folder / WEIGHTS, folder / METADATA
    torn = f"Keras was interrupted while it wrote {weights}"
    if weights.with_name(f"{WEIGHTS}.bkp").exists():
        return [f"{torn}. It goes back to the weights before these."]
    if metadata.exists():
        return [
            f"{torn}, and there is no copy of the weights before these. Delete the "
            "folder to train from the start; `double_checkpoint=True` keeps a copy."
        ]
    os.replace(weights, weights.with_name(f"{WEIGHTS}.torn"))
    return [f"{torn}, its first backup. The run starts from the beginning."]


def _is_whole(metadata: Path) -> bool:
    try:
        return isinstance(json.loads(metadata.read_text())["epoch"], int)
    except (ValueError, KeyError, TypeError):
        return False


def _opens(weights: Path) -> bool:
    try:
        with h5py.File(weights, "r"):
            return True
    except OSError:
        return False
