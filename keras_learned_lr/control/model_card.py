"""The model card of an exported controller: where it comes from, and checksums."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_learned_lr._version import __version__

FILE = "model_card.json"
FACTS = ("tasks", "steps", "seeds", "scores")


def write_card(
    folder: Path, description: str, version: int, facts: dict[str, Any]
) -> None:
    """Writes `model_card.json` into an export.

    Args:
        folder: The SavedModel, complete.
        description: What the controller says about itself, JSON.
        version: The number that it is served as.
        facts: Of `tasks`, `steps`, `seeds` and `scores` what is known of its training,
            JSON-ready; what is missing is written as null.

    Raises:
        ValueError: If `facts` holds something else.
    """
    unknown = sorted(set(facts) - set(FACTS))
    if unknown:
        raise ValueError(f"A model card tells {FACTS}. Received: {unknown}")
    files = checksums(folder)
    lines = "".join(f"{digest}  {name}\n" for name, digest in files.items())
    card = {
        "version": version,
        "made_with": f"keras_learned_lr {__version__}",
        "trained": {fact: facts.get(fact) for fact in FACTS},
        "controller": json.loads(description),
        "files": files,
        "sha256": hashlib.sha256(lines.encode()).hexdigest(),
    }
    (folder / FILE).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def joined_facts(members: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns what the card of a committee tells of its members' training.

    Args:
        members: What their cards tell; the facts of a single one stay as they are.
    """
    if len(members) == 1:
        return members[0]

    def each(fact: str) -> list[Any]:
        return [facts.get(fact) for facts in members]

    tasks = [task for told in each("tasks") for task in told or ()]
    return {
        "tasks": list(dict.fromkeys(tasks)) or None,
        "steps": {"members": each("steps")},
        "seeds": {"members": each("seeds")},
        "scores": {"members": each("scores")},
    }


def refined_facts(
    facts: dict[str, Any], refinement: dict[str, Any], tasks: Sequence[str]
) -> dict[str, Any]:
    """Returns what the card of a refined controller tells.

    Args:
        facts: What the card of the controller that was refined tells.
        refinement: What it took, JSON-ready.
        tasks: What it was tried on.
    """
    scores = facts.get("scores")
    return facts | {
        "tasks": list(dict.fromkeys([*(facts.get("tasks") or ()), *tasks])),
        "steps": {"refined": facts.get("steps"), "refinement": refinement},
        "scores": scores and {"before_the_refinement": scores},
    }


def read_card(folder: Path) -> dict[str, Any] | None:
    """Returns the card of an export, or None where it has none.

    Raises:
        ValueError: If it cannot be read.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(card["files"], dict) and isinstance(card["trained"], dict):
            return card
        reason = "its `files` or `trained` is not an object"
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
    raise ValueError(
        f"The model card {str(path)!r} cannot be read ({reason}). Export again."
    )


def check_files(folder: Path) -> None:
    """Checks the files of an export against its card, if it has one.

    Raises:
        ValueError: If a file is missing, is new or was changed.
    """
    card = read_card(folder)
    if card is None:
        return
    found, told = checksums(folder), card["files"]
    changed = sorted(k for k in {*found, *told} if found.get(k) != told.get(k))
    if changed:
        raise ValueError(
            f"The controller at {str(folder)!r} is not what its model card says. "
            f"Changed, missing or new: {', '.join(changed)}. Export it again, or "
            f"delete {FILE} if you changed it yourself."
        )


def checksums(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file of an export but its card, by path."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(
            path.read_bytes()
        ).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / FILE
    }
