"""Files and folders that a kill leaves whole: either the old or the new."""

import os
import shutil
from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Writes a file beside the old one and renames it: a kill leaves one of the two."""
    unfinished = path.with_name(f"{path.name}.new")
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def finish_folder(unfinished: Path, path: Path) -> None:
    """Gives a folder that is written its name; a folder of that name goes.

    A kill leaves the old one, none, or the new one, and never one half written.
    """
    for file in unfinished.rglob("*"):
        if file.is_file():
            _reach_disk(file)
    discard(path)
    os.rename(unfinished, path)


def discard(path: Path) -> None:
    """Deletes a folder, if it is there; a kill leaves nothing under its name."""
    discarded = path.with_name(f"{path.name}.old")
    shutil.rmtree(discarded, ignore_errors=True)
    if path.exists():
        os.rename(path, discarded)
        shutil.rmtree(discarded)


def _reach_disk(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
