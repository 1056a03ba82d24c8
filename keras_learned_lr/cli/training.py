"""Commands that train a controller: `demo`, `train` and `refine`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from keras_learned_lr.cli.apps import app, console, one_line_errors, silence_retracing
from keras_learned_lr.cli.members import Average, Controllers, Envelope, Lift, join

Threads = Annotated[int, typer.Option(min=0, help="Cores to compute on; 0 for all.")]


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


@app.command()
def train(
    config: Annotated[
        str,
        typer.Argument(
            help="A TOML file, or one that ships: small, default or memory."
        ),
    ],
    to: Annotated[
        Path | None, typer.Option(help="Folder of the run. [default: runs/CONFIG]")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the folder.")
    ] = False,
    start: Annotated[
        Path | None,
        typer.Option("--from", help="Checkpoint of a run whose weights to begin with."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="In place of the config's two seeds.")
    ] = None,
    threads: Threads = 0,
) -> None:
    """Meta-train a controller on many small tasks at once."""
    _compute_on(threads)
    silence_retracing()
    from keras_learned_lr.learning import MetaTraining, read_config

    folder = to or Path("runs") / Path(config).stem
    with one_line_errors():
        chosen = read_config(config)
        if seed is not None:
            chosen = chosen.with_seed(seed)
        run = MetaTraining(chosen, folder, resume, start)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} rounds"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(
            "starting …", total=chosen.rounds, completed=run.progress.round
        )

        def on_round(record: dict[str, Any]) -> None:
            mean = record["mean_return"]
            progress.update(task, advance=1, description=f"mean return {mean:5.2f}")
            if "validation" in record:
                console.print(_validation_line(record))

        run.run(on_round)
    controller = run.export_best()
    done = run.progress
    total = sum(done.seconds.values())
    shares = ", ".join(f"{k} {v / total:.0%}" for k, v in done.seconds.items())
    console.print(
        f"{done.trainee_steps / 1e6:.1f} million trainee steps in {total / 60:.1f} "
        f"minutes: {shares}."
    )
    console.print(
        f"Best on the validation tasks: {done.best_ratio:.3f} of the best cosine, "
        f"after round {done.best_round}. Exported to {controller}"
    )


@app.command()
def refine(
    controllers: Controllers,
    to: Annotated[Path, typer.Option(help="Folder of the refinement.")],
    lift: Lift = None,
    envelope: Envelope = None,
    average: Average = None,
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file of a RefineConfig. [default: its defaults]"),
    ] = None,
    passes: Annotated[
        int | None,
        typer.Option(min=1, help="In place of the config's; more go on with a run."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="In place of the config's.")
    ] = None,
    threads: Threads = 0,
) -> None:
    """Move a controller's levels to where whole runs end lower; goes on if begun."""
    _compute_on(threads)
    silence_retracing()
    from keras_learned_lr.control.export import can_warm_up, export_version
    from keras_learned_lr.control.model_card import refined_facts
    from keras_learned_lr.control.versions import MODEL_NAME, latest_version
    from keras_learned_lr.learning.refining import (
        RefineConfig,
        Refining,
        read_refine_config,
    )
    from keras_learned_lr.rehearsal import rehearse

    with one_line_errors(OSError):
        source, facts = join(controllers, lift, envelope, average)
        chosen = RefineConfig() if config is None else read_refine_config(config)
        if passes is not None:
            chosen = dataclasses.replace(chosen, passes=passes)
        if seed is not None:
            chosen = dataclasses.replace(chosen, seed=seed)
        run = Refining(source, to, chosen)
    columns = (
        TextColumn("trials …"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} batches"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=run.batches)
        learned = run.run(lambda done: progress.update(task, completed=done))
        progress.update(task, completed=run.batches)
    base = to / "controller" / MODEL_NAME
    if not learned and base.is_dir():
        console.print(
            f"Nothing is left to try. Exported before to {latest_version(base)}"
        )
        return
    refined = run.refined
    told = refined_facts(facts, run.facts(), run.templates)
    with one_line_errors(OSError):
        observations = rehearse(refined).observations if can_warm_up() else None
        written = export_version(refined, base, observations, told)
    console.print(f"Exported to {written}")


def _compute_on(threads: int) -> None:
    """Limits the cores, before anything computes: TensorFlow refuses it later.

    The same weights again need the same threads.
    """
    if threads:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)


def _validation_line(record: dict[str, Any]) -> str:
    marks = record["validation"]
    return (
        f"Round {record['round']}: loss over the best cosine's {marks['ratio']:.3f}, "
        f"from learning rates 1000 times off {marks['far_ratio']:.3f}, "
        f"{marks['lost']:.1%} of the runs lost."
    )
