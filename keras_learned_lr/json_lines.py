"""Files of one JSON object a line, to which a run adds what it has finished."""

import json
import os
from pathlib import Path
from typing import Any


def read(path: str | Path | None) -> list[dict[str, Any]]:
    """Returns what a file holds; nothing where there is none.

    A line that a kill has cut off is read over: what it was about is made again.
    """
    if path is None or not Path(path).is_file():
        return []
    found = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def append(path: str | Path | None, record: dict[str, Any]) -> None:
    """Adds a line to a file, which is made if need be; does nothing without a path.

    It is written at once: several processes may append to one file, and a kill leaves
    whole lines and at most one that is cut off.
    """
    if path is None:
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(record, allow_nan=False) + "\n"
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            line = "\n" + line
        os.write(file, line.encode())
    finally:
        os.close(file)
