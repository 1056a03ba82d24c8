"""Version folders as TensorFlow Serving reads them: `<base>/<name>/<integer>/`."""

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path

# The model's name on a server where nobody chooses another.
MODEL_NAME = "learned_lr"


def versions_in(folder: Path) -> list[int]:
    """Returns the versions of a model, in order; `folder` may not exist."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if _is_version(path))


def latest_version(path: Path) -> Path:
    """Returns the folder that a server given `path` would serve.

    Args:
        path: A SavedModel, the folder with its versions, or the one above it that was
            passed to `learner.export`.

    Returns:
        The latest version; `path` itself where it holds none.
    """
    if (path / "saved_model.pb").is_file():
        return path
    for folder in (path, path / MODEL_NAME):
        versions = versions_in(folder)
        if versions:
            return folder / str(versions[-1])
    return path


def write_version(folder: Path, write: Callable[[Path, int], None]) -> Path:
    """Writes the next version beside the others and renames it into place.

    Args:
        folder: Where the versions are, or will be.
        write: Called with the folder to fill, which does not exist yet, and the
            version's number.

    Returns:
        The version's folder. A server sees it whole or not at all.

    Raises:
        ValueError: If `folder` is a file or itself a SavedModel.
    """
    if (folder / "saved_model.pb").is_file() or folder.is_file():
        raise ValueError(
            "Versions go into a folder of their own. Received: "
            f"{str(folder)!r}, which is a SavedModel or a file. Choose a new folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        version = max(versions_in(folder), default=0) + 1
        # Servers skip names that are no integers.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as parent:
            written = Path(parent) / str(version)
            write(written, version)
            # Another export may have taken the number meanwhile.
            with contextlib.suppress(OSError):
                return written.rename(folder / str(version))
            if version not in versions_in(folder):
                raise OSError(f"{str(folder / str(version))!r} cannot be written.")


def _is_version(path: Path) -> bool:
    # `isdecimal` alone would take the digits of other scripts too.
    return path.name.isascii() and path.name.isdecimal() and path.is_dir()
