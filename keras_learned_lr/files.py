"""Files and folders that a kill leaves whole: either the old or the new."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: Path, ending: str = "new") -> Iterator[BinaryIO]:
    """Opens a file beside the old one and renames it: a kill leaves one of the two.

    Args:
        path: The file to replace; it need not be there.
        ending: Of the unfinished file's name. One of its own for each process where
            several may be writing the same file.

    Yields:
        The unfinished file, which takes its name after the block.
    """
    unfinished = path.with_name(f"{path.name}.{ending}")
    with unfinished.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def replace_text(path: Path, text: str) -> None:
    """Writes a file in place of the old one: a kill leaves one of the two."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


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
