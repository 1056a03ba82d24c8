"""Finished runs, one JSON line each, in a file that survives a kill."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from keras_learned_lr import json_lines

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
        self._path = path
        self._records: dict[str, dict[str, Any]] = {}
        for record in json_lines.read(path):
            self._take(record)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._records.values())

    def __len__(self) -> int:
        return len(self._records)

    def get(self, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
        """Returns the record of a run, or None if it is still to be made."""
        return self._records.get(_key(wanted))

    def add(self, record: dict[str, Any]) -> None:
        """Keeps a record; see `json_lines.append`."""
        self._records[_key(record)] = record
        json_lines.append(self._path, record)

    def _take(self, record: Any) -> None:
        try:
            self._records[_key(record)] = record
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{self._path} holds something else than runs of this benchmark. "
                f"Received: {str(record)[:80]!r}. Choose another file."
            ) from error


def _key(record: Mapping[str, Any]) -> str:
    return json.dumps([record[name] for name in KEY], sort_keys=True)
