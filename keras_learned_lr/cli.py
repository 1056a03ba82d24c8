"""The command line, `keras-learned-lr`."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

# TensorFlow's start-up notices would drown what the commands print.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

try:
    import typer
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table
except ImportError as error:
    sys.exit(
        f"keras-learned-lr needs {error.name}. Install it with "
        '`pip install "keras_learned_lr[cli]"`.'
    )

app = typer.Typer(
    help="A small neural network that sets the learning rate of a Keras model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
benchmark_app = typer.Typer(
    help="Measure whether it is any good.", no_args_is_help=True
)
app.add_typer(benchmark_app, name="benchmark")
console = Console()


@app.command()
def demo(
    output: Annotated[
        Path, typer.Option(help="Folder for the controller and the picture.")
    ] = Path("learned_lr_demo"),
    episodes: Annotated[
        int | None, typer.Option(min=1, help="Fits that the controller learns from.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seeds everything.")] = 0,
) -> None:
    """Train a controller on real images, export it, and use it on unseen data."""
    from keras_learned_lr import demo as steps

    episodes = episodes or steps.EPISODES
    console.print(
        f"Training a controller: {episodes} short fits on the digits 0 to 4, each "
        "from a random learning rate."
    )
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} fits"),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        task = progress.add_task("mean reward …", total=episodes)
        rewards: list[float] = []

        def on_episode(episode: steps.FitEpisode) -> None:
            rewards.append(episode.reward)
            recent = rewards[-40:]
            mean = sum(recent) / len(recent)
            progress.update(task, advance=1, description=f"mean reward {mean:5.2f}")

        learner, _ = steps.train_controller(episodes, seed, on_episode)
    fifth = max(1, episodes // 5)
    console.print(
        f"Mean reward a fit: {sum(rewards[:fifth]) / fifth:.2f} over the first fifth, "
        f"{sum(rewards[-fifth:]) / fifth:.2f} over the last."
    )
    controller = learner.export(output / "controller")
    console.print(f"Exported to {controller}. Loading it frozen.")
    data = steps.unseen_images()
    rows = steps.compare(controller, data, seed)
    table = Table(
        title=f"A fresh convolutional model on {data.name}, never seen before"
    )
    for heading in ("initial learning rate", "method", "test loss", "test accuracy"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            f"{row.learning_rate:g}",
            row.method,
            f"{row.loss:.3f}",
            f"{row.accuracy:.1%}",
        )
    console.print(table)
    picture = output / "learning_rates.png"
    steps.draw(rows, picture)
    console.print(f"Learning rate and loss over steps: {picture}")


@benchmark_app.command("learning")
def benchmark_learning(
    seeds: Annotated[
        int, typer.Option(min=1, help="How many seeds, counting from 0.")
    ] = 5,
    episodes: Annotated[
        int | None, typer.Option(min=5, help="Fits of each training.")
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(help="JSON-lines file of trainings; those in it are kept."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare the demo's training with a control whose gradients are cut."""
    from keras_learned_lr.benchmark import learning
    from keras_learned_lr.demo import EPISODES

    report = learning.run(seeds, episodes or EPISODES, results)
    if as_json:
        print(json.dumps(report))
        return
    table = Table(title=f"Mean reward a fit, {report['episodes']} fits")
    headings = list(report["seeds"][0])
    for heading in headings:
        table.add_column(heading.replace("_", " "), justify="right")
    for row in report["seeds"]:
        table.add_row(*(f"{row[heading]:.3g}" for heading in headings))
    console.print(table)
    console.print(f"Learned on {report['learned']} of {len(report['seeds'])} seeds.")


def main() -> None:
    """Runs the command line."""
    app()
