"""What lies in the folder of a meta-training run."""

import json
from pathlib import Path
from typing import Any

from keras_learned_lr import json_lines

CONFIG, LOG, STATE, BEST = "config.json", "log.jsonl", "state.json", "best"
CHOICES, NOTED = "choices.npz", "noted"


def checkpoints(folder: Path) -> list[Path]:
    """Returns the checkpoints in the folder of a run, the latest last."""
    found = folder.glob("checkpoint-[0-9]*")
    whole = (path for path in found if path.suffix == "")
    return sorted(whole, key=lambda path: int(path.name.split("-")[1]))


def last_checkpoint(folder: Path) -> Path | None:
    """Returns the latest checkpoint in the folder of a run, None before the first."""
    return next(reversed(checkpoints(folder)), None)


def read_log(folder: Path, until: int) -> list[dict[str, Any]]:
    """Returns the log of a run's rounds.

    Args:
        folder: The run's.
        until: The last round to return.
    """
    records = json_lines.read(folder / LOG)
    return [record for record in records if record["round"] <= until]


def trained(checkpoint: str | Path) -> dict[str, Any]:
    """Returns what a run tells of a checkpoint's training, for a model card.

    Args:
        checkpoint: A folder `RUN/checkpoint-N`, or `RUN/best`, beside the run's config
            and log.

    Returns:
        `tasks`, the templates that were trained on until then; `steps`: rounds, trainee
        steps and minutes; `seeds`; and `scores`, the marks of that round with the lift
        and the envelope that they were given with, None where it was not marked.
        Nothing where no run is around the checkpoint.
    """
    checkpoint = Path(checkpoint).resolve()
    state, config = checkpoint / STATE, checkpoint.parent / CONFIG
    if not (state.is_file() and config.is_file()):
        return {}
    progress = json.loads(state.read_text("utf-8"))
    settings = json.loads(config.read_text("utf-8"))
    # `best` of runs from before had minutes.
    seconds = sum(progress.get("seconds", {}).values())
    log = read_log(checkpoint.parent, progress["round"])
    last = log[-1] if log else {}
    scores = None
    if last.get("round") == progress["round"] and "validation" in last:
        finished = {key: settings.get(key) for key in ("lift", "envelope")}
        scores = {"validation": last["validation"], "finished": finished}
    return {
        "tasks": sorted({name for record in log for name in record["templates"]}),
        "steps": {
            "rounds": progress["round"],
            "trainee_steps": progress["trainee_steps"],
            "minutes": round(progress.get("minutes", seconds / 60), 1),
        },
        "seeds": [settings["seed"]],
        "scores": scores,
    }
