"""From finished runs to scores, all by the best tuned cosine of the same seed."""

import dataclasses
from typing import Any

import numpy as np

from keras_learned_lr.benchmark.quality import statistics
from keras_learned_lr.benchmark.quality.methods import METHODS
from keras_learned_lr.benchmark.quality.methods.method import Method
from keras_learned_lr.benchmark.quality.protocol import GRID, Protocol
from keras_learned_lr.benchmark.quality.run import EVALUATIONS
from keras_learned_lr.benchmark.quality.task import Task

Record = dict[str, Any]

# "Any initial learning rate within 100 times of the right one".
NEAR = 2.0
# The loss to reach is the tuned cosine's final one with a little room: at the value
# itself, a rival as good would miss it half of the time.
TARGET_ROOM = 1.01


@dataclasses.dataclass(frozen=True)
class Entry:
    """A method with a budget, or from certain initial learning rates.

    Attributes:
        method: The method.
        starts: log10 multipliers of the reference it starts from; None for the tuned.
        large: Whether it was tuned over the large grid.
    """

    method: Method
    starts: tuple[float, ...] | None = None
    large: bool = False

    @property
    def label(self) -> str:
        """What tables call it."""
        if self.starts is None:
            return f"{self.method.name}, best of {20 if self.large else len(GRID)}"
        if self.starts == (0.0,):
            return f"{self.method.name}, 1 run"
        if min(map(abs, self.starts)) > NEAR:
            return f"{self.method.name}, 1000x off"
        return f"{self.method.name}, any within 100x"


def entries(protocol: Protocol) -> list[Entry]:
    """Returns everything that gets a score, in the order of the tables."""
    found = []
    for method in protocol.plan.chosen:
        if protocol.has_grid(method):
            found.append(Entry(method))
            if protocol.has_large(method):
                found.append(Entry(method, large=True))
        found.append(Entry(method, (0.0,)))
        if method.swept:
            sweep = protocol.plan.sweep
            near = tuple(s for s in sweep if abs(s) <= NEAR)
            far = tuple(s for s in sweep if abs(s) > NEAR)
            found += [Entry(method, starts) for starts in (near, far) if starts]
    # A sweep of the right guess alone is the one run.
    return list({entry.label: entry for entry in found}.values())


def records_of(
    protocol: Protocol, task: Task, entry: Entry
) -> list[list[Record]] | None:
    """Returns an entry's runs, a list of starts for each seed; None if any misses."""
    rows = []
    for seed in protocol.seeds:
        row = []
        if entry.starts is None:
            best = protocol.tuned(task, entry.method, entry.large)
            if best is None:
                return None
            row.append(
                protocol.record(
                    *(task, entry.method, seed),
                    best["log_multiplier"],
                    best["settings"],
                )
            )
        else:
            row += [
                protocol.record(task, entry.method, seed, start)
                for start in entry.starts
            ]
        if any(record is None for record in row):
            return None
        rows.append(row)
    return rows  # type: ignore[return-value]


def score(protocol: Protocol) -> dict[str, Any]:
    """Scores what is in the results.

    Args:
        protocol: The plan and its results; a dry one makes no run.

    Returns:
        A JSON-ready dict. `tasks`, `seeds`, `skipped` (reasons by task) and `tuning`
        (what was chosen for each task and method); `scores` by entry: `ratio` (the
        interquartile mean of final test loss over that of the best tuned cosine on
        the same seed), `interval`, `wins`, `ties`, `losses`, `diverged`, `runs`,
        `worst_task`, `accuracy_points` (against the same cosine, the worst task),
        `tasks` (how many have all runs; scores are over these) and `by_task`;
        `by_start`: `ratio` and `interval` by method and log10 multiplier; `profile`
        by entry, see `performance_profiles`.
    """
    cosine = Entry(METHODS["cosine"])
    references = {
        task.name: found
        for task in protocol.tasks
        if (found := records_of(protocol, task, cosine)) is not None
    }
    scores, times = {}, {}
    for entry in entries(protocol):
        runs = {
            task.name: found
            for task in protocol.tasks
            if task.name in references
            and (found := records_of(protocol, task, entry)) is not None
        }
        if not runs:
            continue
        scores[entry.label] = _scored(runs, references)
        # Only where all tasks are there can areas be compared.
        if len(runs) == len(references) and entry.starts in (None, (0.0,)):
            times[entry.label] = np.array(
                [_time(rows, references[name]) for name, rows in runs.items()]
            )
    return {
        "tasks": [task.name for task in protocol.tasks],
        "seeds": list(protocol.seeds),
        "steps": protocol.plan.steps,
        "controller": protocol.checksum,
        "skipped": protocol.skipped,
        "tuning": _tuning(protocol),
        "scores": scores,
        "by_start": _by_start(protocol, references),
        "profile": statistics.performance_profiles(times) if times else {},
    }


def _ratios(rows: list[list[Record]], references: list[list[Record]]) -> np.ndarray:
    return np.array(
        [
            [statistics.ratio(_loss(run), _loss(reference)) for run in row]
            for row, (reference,) in zip(rows, references, strict=True)
        ]
    )


def _scored(
    runs: dict[str, list[list[Record]]], references: dict[str, list[list[Record]]]
) -> dict[str, Any]:
    tables = {name: _ratios(rows, references[name]) for name, rows in runs.items()}
    pooled = np.concatenate([table.ravel() for table in tables.values()])
    wins, ties, losses = statistics.wins_ties_losses(pooled)
    by_task = {}
    for name, table in tables.items():
        by_task[name] = _summary([table])
        accuracy, tuned = _accuracy(runs[name]), _accuracy(references[name])
        if accuracy is not None and tuned is not None:
            by_task[name]["accuracy"] = accuracy
            by_task[name]["accuracy_points"] = 100.0 * (accuracy - tuned)
    points = [t["accuracy_points"] for t in by_task.values() if "accuracy_points" in t]
    flat = [run for rows in runs.values() for row in rows for run in row]
    return {
        **_summary(list(tables.values())),
        "wins": wins,
        "ties": ties,
        "losses": losses,
        "diverged": sum(run["diverged"] for run in flat),
        "runs": len(flat),
        "tasks": len(runs),
        "worst_task": max(by_task, key=lambda name: by_task[name]["ratio"]),
        "accuracy_points": min(points) if points else None,
        "by_task": by_task,
    }


def _summary(tables: list[np.ndarray]) -> dict[str, Any]:
    pooled = np.concatenate([table.ravel() for table in tables])
    return {
        "ratio": float(statistics.interquartile_mean(pooled)),
        "interval": statistics.stratified_interval(tables),
    }


def _by_start(
    protocol: Protocol, references: dict[str, list[list[Record]]]
) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for method in protocol.plan.chosen:
        for start in protocol.starts(method) if method.swept else ():
            tables = []
            for task in protocol.tasks:
                rows = records_of(protocol, task, Entry(method, (start,)))
                if rows is not None and task.name in references:
                    tables.append(_ratios(rows, references[task.name]))
            # A mean over fewer tasks is no neighbour of one over all.
            if len(tables) == len(references):
                found.setdefault(method.name, {})[f"{start:g}"] = _summary(tables)
    return found


def _tuning(protocol: Protocol) -> dict[str, dict[str, Any]]:
    kept = ("log_multiplier", "settings", "validation_loss", "runs", "extended")
    tuning: dict[str, dict[str, Any]] = {}
    for task in protocol.tasks:
        for entry in entries(protocol):
            if entry.starts is None:
                best = protocol.tuned(task, entry.method, entry.large)
                if best is not None:
                    chosen = {name: best[name] for name in kept}
                    tuning.setdefault(task.name, {})[entry.label] = chosen
    return tuning


def _time(rows: list[list[Record]], references: list[list[Record]]) -> float:
    """Returns the median over seeds of the steps to the tuned cosine's loss."""
    taken = []
    for (run,), (reference,) in zip(rows, references, strict=True):
        loss = reference["validation_loss"]
        target = None if loss is None else TARGET_ROOM * loss
        distance = run["steps"] // EVALUATIONS
        taken.append(statistics.steps_to_target(run["curve"], distance, target))
    # Not the mean of two where their number is even: one may be inf.
    return float(np.sort(taken)[len(taken) // 2])


def _accuracy(rows: list[list[Record]]) -> float | None:
    seen = [run["accuracy"] for row in rows for run in row]
    return None if None in seen else float(np.mean(seen))


def _loss(record: Record) -> float | None:
    return None if record["diverged"] else record["test_loss"]
