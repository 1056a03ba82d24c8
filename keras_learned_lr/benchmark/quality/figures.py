"""Pictures of the results."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from keras_learned_lr.benchmark.quality.methods import METHODS
from keras_learned_lr.benchmark.quality.protocol import Protocol
from keras_learned_lr.benchmark.quality.run import EVALUATIONS
from keras_learned_lr.benchmark.quality.scores import Entry, Record, records_of
from keras_learned_lr.benchmark.quality.statistics import LARGEST_FACTOR

COLUMNS = 4


def draw(protocol: Protocol, report: dict[str, Any], folder: str | Path) -> list[Path]:
    """Saves every picture that there are runs for.

    Args:
        protocol: The plan and its results, dry.
        report: What `score` returned for them.
        folder: Where to.

    Returns:
        The files written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "initial_learning_rates": initial_learning_rates(report),
        "time_to_target": time_to_target(report),
        "learning_rates": over_steps(protocol, "learning rate", _rates),
        "losses": over_steps(protocol, "validation loss", _losses),
    }
    written = []
    for name, figure in figures.items():
        if figure is not None:
            written.append(folder / f"{name}.png")
            figure.savefig(written[-1], dpi=120)
    return written


def initial_learning_rates(report: dict[str, Any]) -> Figure | None:
    """Draws the final loss against the initial learning rate.

    Methods that need no learning rate are horizontal lines.
    """
    if not report["by_start"]:
        return None
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, found in report["by_start"].items():
        starts = sorted(found, key=float)
        x = [10.0 ** float(start) for start in starts]
        ratios = [found[s]["ratio"] for s in starts]
        # The controller on top: its controls may lie where it does.
        order = 4 if name == "learned" else 3
        (line,) = axes.plot(x, ratios, marker="o", label=name, zorder=order)
        ends = [found[s]["interval"] for s in starts]
        if all(ends):
            low, high = zip(*ends, strict=True)
            axes.fill_between(x, low, high, color=line.get_color(), alpha=0.2)
    for name, method in METHODS.items():
        one_run = report["scores"].get(f"{name}, 1 run")
        if method.default is not None and one_run is not None:
            color = f"C{len(axes.lines)}"  # the next one
            axes.axhline(one_run["ratio"], ls="--", lw=1, color=color, label=name)
    axes.axhline(1.0, color="black", lw=1)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="initial learning rate over the reference",
        ylabel="final test loss over the tuned cosine's",
    )
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def time_to_target(report: dict[str, Any]) -> Figure | None:
    """Draws the performance profile: how often within a factor of the fastest."""
    if not report["profile"]:
        return None
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    factors = np.linspace(1.0, LARGEST_FACTOR, 200)
    for label, found in report["profile"].items():
        taken = np.array([np.inf if f is None else f for f in found["factors"]])
        share = np.mean(taken[:, np.newaxis] <= factors, axis=0)
        axes.step(factors, share, where="post", label=label)
    axes.set(
        xlabel="steps to the tuned cosine's loss, over the fastest method's",
        ylabel="share of tasks",
        ylim=(0.0, 1.05),
    )
    axes.legend(fontsize=7)
    return figure


# The steps and values of a run.
Line = tuple[np.ndarray, np.ndarray]


def over_steps(
    protocol: Protocol, what: str, line: Callable[[Record], Line]
) -> Figure | None:
    """Draws something over the steps of the first scored seed, one panel a task.

    Shown are the controller's run from every initial learning rate and the tuned
    cosine's.

    Args:
        protocol: The plan and its results, dry.
        what: Name of the axis.
        line: Returns the steps and values of a run.
    """
    panels = {}
    for task in protocol.tasks:
        lines = {}
        tuned = records_of(protocol, task, Entry(METHODS["cosine"]))
        if tuned is not None:
            lines["tuned cosine"] = tuned[0][0]
        if METHODS["learned"] in protocol.plan.chosen:
            starts = protocol.plan.sweep
            learned = records_of(protocol, task, Entry(METHODS["learned"], starts))
            for start, run in zip(starts, learned[0] if learned else (), strict=False):
                lines[f"learned from 10^{start:g}"] = run
        if lines:
            panels[task.name] = lines
    if not panels:
        return None
    high = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(4 * COLUMNS, 3 * high), layout="constrained")
    grid = figure.subplots(high, COLUMNS, squeeze=False).ravel()
    for axes, (name, lines) in zip(grid, panels.items(), strict=False):
        for label, run in lines.items():
            black = {"color": "black"} if label == "tuned cosine" else {}
            axes.plot(*line(run), label=label, lw=1, **black)
        axes.set(yscale="log", title=name, xlabel="training step", ylabel=what)
    for axes in grid[len(panels) :]:
        axes.remove()
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def _losses(run: Record) -> Line:
    losses = np.array([np.nan if v is None else v for v in run["curve"]], float)
    return _steps(run)[: len(losses)], losses


def _rates(run: Record) -> Line:
    made = run.get("decisions")
    if made is None:
        rates = np.array([np.nan if v is None else v for v in run["rates"]], float)
        # It ends at 0, which has no logarithm.
        rates[rates <= 0.0] = np.nan
        return _steps(run)[: len(rates)], rates
    return np.array(made["step"]), np.array(made["learning_rate"])


def _steps(run: Record) -> np.ndarray:
    return (np.arange(EVALUATIONS) + 1) * (run["steps"] // EVALUATIONS)
