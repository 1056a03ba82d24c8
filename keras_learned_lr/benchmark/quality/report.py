"""Scores as tables."""

from typing import Any

HEADINGS = (
    "method",
    "ratio",
    "95 % interval",
    "wins/ties/losses",
    "diverged",
    "worst task",
    "accuracy, worst",
    "time to target",
)


def rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Returns the main table, cells as text, under `HEADINGS`.

    Args:
        report: What `score` returned.
    """
    table: list[tuple[str, ...]] = []
    for label, found in report["scores"].items():
        worst = found["worst_task"]
        points = found["accuracy_points"]
        profile = report["profile"].get(label)
        # Not over the same tasks as the rest: say so.
        partial = len(report["tasks"]) - found["tasks"]
        table.append(
            (
                label + (f" ({partial} tasks missing)" if partial else ""),
                f"{found['ratio']:.3f}",
                _interval(found["interval"]),
                f"{found['wins']}/{found['ties']}/{found['losses']}",
                f"{found['diverged']} of {found['runs']}",
                f"{worst} {found['by_task'][worst]['ratio']:.3f}",
                "" if points is None else f"{points:+.1f}",
                "" if profile is None else f"{profile['score']:.2f}",
            )
        )
    return table


def markdown(report: dict[str, Any]) -> str:
    """Returns all tables as a page of Markdown.

    Args:
        report: What `score` returned.
    """
    parts = ["# Quality benchmark\n", _table(HEADINGS, rows(report))]
    by_start = report["by_start"]
    if by_start:
        starts = sorted({s for found in by_start.values() for s in found}, key=float)
        body: list[tuple[str, ...]] = [
            (name, *(_ratio(found.get(start)) for start in starts))
            for name, found in by_start.items()
        ]
        headings = ("ratio from", *(f"10^{start}" for start in starts))
        parts.append(_table(headings, body))
    scores = report["scores"]
    for label in scores:
        if label.startswith("learned,") or label == "cosine, 1 run":
            parts.append(f"## {label}\n\n" + _by_task(scores[label]))
    extended = [
        f"{task}: {label}, {found['runs']} runs, at 10^{found['log_multiplier']:g}"
        for task, labels in report["tuning"].items()
        for label, found in labels.items()
        if found["extended"]
    ]
    if extended:
        parts.append("Grids that had to grow:\n\n- " + "\n- ".join(extended) + "\n")
    if report["skipped"]:
        lines = [f"{task} {reason}" for task, reason in report["skipped"].items()]
        parts.append("Skipped:\n\n- " + "\n- ".join(lines) + "\n")
    return "\n".join(parts)


def _by_task(found: dict[str, Any]) -> str:
    body: list[tuple[str, ...]] = [
        (
            name,
            f"{one['ratio']:.3f}",
            _interval(one["interval"]),
            f"{one['accuracy']:.1%}" if "accuracy" in one else "",
            f"{one['accuracy_points']:+.1f}" if "accuracy" in one else "",
        )
        for name, one in found["by_task"].items()
    ]
    headings = ("task", "ratio", "95 % interval", "accuracy", "points")
    return _table(headings, body)


def _table(headings: tuple[str, ...], body: list[tuple[str, ...]]) -> str:
    lines = [headings, ("---",) * len(headings), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _interval(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f"{ends[0]:.3f}–{ends[1]:.3f}"


def _ratio(found: dict[str, Any] | None) -> str:
    return "" if found is None else f"{found['ratio']:.3f}"
