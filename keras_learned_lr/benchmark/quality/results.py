"""Finished runs, one JSON line each, in a file that survives a kill."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# What tells one run from another; all else in a record is what came of it.
KEY = (
    "task",
    "data",
    "method",
    "controller",
    "seed",
    "log_multiplier",
    "settings",
    "steps",
    "reference",
)


class Results:
    """Records by what was run, in memory and in a file.

    Args:
        path: A JSON-lines file to go on from and to append to, or None.

    Raises:
        ValueError: If the file holds something else.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self._path = Path(path) if path else None
        self._records: dict[str, dict[str, Any]] = {}
        if self._path is not None and self._path.is_file():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                self._read(line)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._records.values())

    def __len__(self) -> int:
        return len(self._records)

    def get(self, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
        """Returns the record of a run, or None if it is still to be made."""
        return self._records.get(_key(wanted))

    def add(self, record: dict[str, Any]) -> None:
        """Keeps a record.

        The line is written at once: several processes may append to one file, and a
        kill leaves whole lines and at most one that is cut off, which is read over.
        """
        self._records[_key(record)] = record
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(record, allow_nan=False) + "\n"
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
        file = os.open(self._path, flags, 0o644)
        try:
            size = os.fstat(file).st_size
            if size and os.pread(file, 1, size - 1) != b"\n":
                line = "\n" + line
            os.write(file, line.encode())
        finally:
            os.close(file)

    def _read(self, line: str) -> None:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            return  # cut off by a kill: the run is made again
        try:
            self._records[_key(record)] = record
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{self._path} holds something else than runs of this benchmark. "
                f"Received: {line[:80]!r}. Choose another file."
            ) from error


def _key(record: Mapping[str, Any]) -> str:
    return json.dumps([record[name] for name in KEY], sort_keys=True)
