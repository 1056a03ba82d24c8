"""Pictures of what a controller did."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_learned_lr.callback import LearnedLearningRate


def plot_decisions(
    callback: "LearnedLearningRate", path: str | Path | None = None
) -> Any:
    """Draws the learning rate and the loss of a run over its steps.

    Args:
        callback: A callback after (or during) a `fit`.
        path: Where to save the picture; its ending names the format.

    Returns:
        The matplotlib figure.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the callback has made no decision yet.
    """
    decisions = callback.decisions
    if not len(decisions["step"]):
        raise ValueError(
            "The callback has made no decision yet. Pass it to `model.fit` first."
        )
    return plot_runs({"learned": decisions}, path)


def plot_runs(runs: dict[str, dict[str, Any]], path: str | Path | None = None) -> Any:
    """Draws learning rate and loss of several runs, one line each.

    Args:
        runs: For each label, arrays `step`, `learning_rate` and `loss`.
        path: Where to save the picture, or None.

    Returns:
        The matplotlib figure.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "Plots need matplotlib. Install it with "
            '`pip install "keras_learned_lr[cli]"`.'
        ) from error
    figure = Figure(figsize=(7, 6), layout="constrained")
    rate_axes, loss_axes = figure.subplots(2, 1, sharex=True)
    for label, run in runs.items():
        rate_axes.plot(run["step"], run["learning_rate"], label=label, marker=".")
        loss_axes.plot(run["step"], run["loss"], label=label, marker=".")
    rate_axes.set(yscale="log", ylabel="learning rate")
    loss_axes.set(yscale="log", ylabel="loss", xlabel="training step")
    if len(runs) > 1:
        figure.legend(
            *rate_axes.get_legend_handles_labels(), loc="outside upper center", ncols=2
        )
    if path is not None:
        figure.savefig(path, dpi=120)
    return figure
