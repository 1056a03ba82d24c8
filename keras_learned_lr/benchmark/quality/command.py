"""What `keras-learned-lr benchmark quality` does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from keras_learned_lr.benchmark.quality import protocol as protocols
from keras_learned_lr.benchmark.quality.methods import METHODS
from keras_learned_lr.benchmark.quality.protocol import Plan, Protocol
from keras_learned_lr.benchmark.quality.report import markdown
from keras_learned_lr.benchmark.quality.results import Results
from keras_learned_lr.benchmark.quality.scores import score
from keras_learned_lr.benchmark.quality.tasks import TASKS
from keras_learned_lr.control.saved_model import shipped_controllers


def make_plan(
    tasks: tuple[str, ...] | None = None,
    methods: tuple[str, ...] | None = None,
    seeds: int | None = None,
    quick: bool = False,
    controller: str | None = None,
    steps: int | None = None,
    grids: bool = True,
) -> Plan:
    """Returns the plan for what a user asked for; None is the default of each.

    Args:
        tasks: Names, keys of `TASKS`.
        methods: Names, keys of `METHODS`.
        seeds: How many to score on.
        quick: Whether the defaults are those of a run of minutes.
        controller: The name of a shipped controller or a folder; by default the
            shipped one, where there is one.
        steps: Cuts every run to so many steps.
        grids: Whether rivals are tuned over a grid besides their one run.

    Raises:
        ValueError: If a name is unknown.
    """
    if controller is None and "default" in shipped_controllers():
        controller = "default"
    return Plan(
        tasks=tasks or (protocols.QUICK_TASKS if quick else tuple(TASKS)),
        methods=methods or (protocols.QUICK_METHODS if quick else tuple(METHODS)),
        seeds=seeds or (protocols.QUICK_SEEDS if quick else protocols.SEEDS),
        sweep=protocols.QUICK_SWEEP if quick else protocols.SWEEP,
        controller=controller,
        steps=steps,
        large=not quick,
        grids=grids,
    )


def run(
    plan: Plan,
    results: str | Path | None = None,
    folder: str | Path | None = None,
    report_only: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Makes the runs that are missing and scores them.

    Args:
        plan: What to run.
        results: A JSON-lines file of runs to go on from, or None.
        folder: Where to write `report.json`, `report.md` and the pictures, or None.
        report_only: Whether to make no run.
        say: Told what happens, a line at a time.

    Returns:
        What `score` returns.

    Raises:
        ValueError: If the results or the controller cannot be read, or no task is on
            this machine.
    """
    kept = Results(results)
    begun = Protocol(plan, kept, lambda record: say(_line(record)), dry=report_only)
    for task, reason in begun.skipped.items():
        say(f"Skipped: {task} {reason}")
    if not begun.tasks:
        raise ValueError("The data of no task is on this machine.")
    if not report_only:
        begun.run()
    dry = Protocol(plan, kept, dry=True)
    report = score(dry)
    if folder is not None:
        from keras_learned_lr.benchmark.quality.figures import draw

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(report, indent=1, allow_nan=False)
        (folder / "report.json").write_text(text + "\n", encoding="utf-8")
        (folder / "report.md").write_text(markdown(report), encoding="utf-8")
        draw(dry, report, folder)
    return report


def _line(record: dict[str, Any]) -> str:
    lost = "diverged" if record["diverged"] else f"test loss {record['test_loss']:.4g}"
    return (
        f"{record['task']}: {record['method']} seed {record['seed']} from "
        f"10^{record['log_multiplier']:g}: {lost}, {record['seconds']:.1f} s"
    )
