"""The commands under `benchmark`, each of which prints a table or JSON."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from keras_learned_lr.cli.apps import (
    AsJson,
    benchmark_app,
    console,
    one_line_errors,
    silence_retracing,
)


@benchmark_app.command("serving")
def benchmark_serving(
    controller: Annotated[
        str | None, typer.Option(help="Name or folder; by default an untrained one.")
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=1, help="How long many trainings share the server.")
    ] = 120.0,
    fits: Annotated[int, typer.Option(min=0, help="Processes that train.")] = 8,
    clients: Annotated[int, typer.Option(min=0, help="Clients beside them.")] = 56,
    as_json: AsJson = False,
) -> None:
    """Decide locally, over REST and over gRPC; then many trainings on one server."""
    from keras_learned_lr.benchmark import serving

    with one_line_errors():
        report = serving.run(controller, seconds, fits, clients)
    if as_json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        print(f"{name.replace('_', ' ')}: {value}")


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
    as_json: AsJson = False,
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


@benchmark_app.command("meta-training")
def benchmark_meta_training(
    seeds: Annotated[
        int, typer.Option(min=1, help="How many seeds, counting from 0.")
    ] = 3,
    config: Annotated[
        str, typer.Option(help="A TOML file, or the name of one that ships.")
    ] = "small",
    folder: Annotated[Path, typer.Option(help="Where the runs live.")] = Path(
        "runs/meta_training"
    ),
    results: Annotated[
        Path | None,
        typer.Option(help="JSON-lines file of marks; seeds in it are kept."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare short meta-trainings with tuned cosine schedules and two controls."""
    silence_retracing()
    from keras_learned_lr.benchmark import meta_training

    with one_line_errors():
        report = meta_training.run(seeds, config, folder, results)
    if as_json:
        print(json.dumps(report))
        return
    table = Table(title="Final loss over that of the best of 8 cosine schedules")
    for heading in ("seed", "minutes", "trained", "open loop", "untrained", "lost"):
        table.add_column(heading, justify="right")
    for row in report["seeds"]:
        table.add_row(
            str(row["seed"]),
            f"{row['minutes']:.1f}",
            *(f"{row[name]['ratio']:.3f}" for name in ("trained", "open_loop")),
            f"{row['untrained']['ratio']:.3f}",
            f"{row['trained']['lost']:.1%}",
        )
    console.print(table)


@benchmark_app.command("envelopes")
def benchmark_envelopes(
    tasks: Annotated[
        list[str] | None, typer.Argument(help="Training tasks; all by default.")
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="JSON-lines file; tasks in it are kept.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare envelopes, each at its best constant level, on training tasks."""
    silence_retracing()
    from keras_learned_lr.benchmark import envelopes

    with one_line_errors():
        rows = envelopes.run(tasks or (), results=results)
    if as_json:
        print(json.dumps(rows))
        return
    table = Table(title="Best level's final loss over that under the cosine")
    names = list(rows[0]["ratios"])
    for heading in ("task", "steps", *names):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row["template"],
            str(row["horizon"]),
            *(f"{row['ratios'][name]:.3f}" for name in names),
        )
    console.print(table)


@benchmark_app.command("quality")
def benchmark_quality(
    tasks: Annotated[
        str | None, typer.Option(help="Names, with commas between; all by default.")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Likewise; cosine, the measure, is always run.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Seeds to score on; 5 by default.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few tasks, methods and seeds: minutes.")
    ] = False,
    controller: Annotated[
        str | None, typer.Option(help="A shipped controller's name, or a folder.")
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="JSON-lines file of runs; those in it are kept.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Folder for the tables and pictures.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Cut every run, to try things out.")
    ] = None,
    grids: Annotated[
        bool,
        typer.Option("--grids/--no-grids", help="Whether rivals are tuned, too."),
    ] = True,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Train nothing, report what is there.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare a controller with tuned schedules on test tasks."""
    from keras_learned_lr.benchmark.quality import command
    from keras_learned_lr.benchmark.quality.report import HEADINGS, rows

    told = Console(stderr=True)
    with one_line_errors():
        plan = command.make_plan(
            _names(tasks), _names(methods), seeds, quick, controller, steps, grids
        )
        made = command.run(
            plan, results, report, report_only, lambda line: told.print(line)
        )
    if as_json:
        print(json.dumps(made))
        return
    table = Table(title="Final test loss over the best tuned cosine's")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for row in rows(made):
        table.add_row(*row)
    console.print(table)


def _names(joined: str | None) -> tuple[str, ...] | None:
    return None if joined is None else tuple(joined.split(","))


@benchmark_app.command("overhead")
def benchmark_overhead(
    rounds: Annotated[
        int, typer.Option(min=1, help="How often, with new models, 2000 steps are run.")
    ] = 2,
    quick: Annotated[
        bool, typer.Option("--quick", help="Leave out the fits of 10 000 steps.")
    ] = False,
    xla: Annotated[
        bool,
        typer.Option("--xla", help="Compile the models, which takes far longer here."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure what the callback costs, against fit without it."""
    from keras_learned_lr.benchmark import overhead

    report = overhead.run(rounds, quick, xla)
    if as_json:
        print(json.dumps(report))
        return
    table = Table(title="fit with the callback over fit without")
    for heading in ("fit", "time", "±", "processor time"):
        table.add_column(heading, justify="right")
    for name, processor in report["processor"].items():
        table.add_row(
            name.replace("_", " "),
            f"{report[name] - 1:+.2%}",
            f"{report['errors'][name]:.2%}",
            f"{processor - 1:+.2%}",
        )
    console.print(table)
    for name, parts in report["decision_ms"].items():
        shares = ", ".join(f"{part} {taken:.2f}" for part, taken in parts.items())
        console.print(f"Milliseconds of a decision, {name}: {shares}.")
    facts = ("step_ms", "tap", "counts", "memory", "first_fit_seconds")
    for name in (*facts, "import_seconds"):
        console.print(f"{name.replace('_', ' ')}: {report[name]}")


@benchmark_app.command("cost-front")
def benchmark_cost_front(
    results: Annotated[
        Path, typer.Option(help="JSON-lines file of fits; those in it are kept.")
    ] = Path("benchmarks/cost_front.jsonl"),
    picture: Annotated[
        Path | None, typer.Option(help="Draw the points and their front here.")
    ] = None,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Train nothing, report what is there.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Weigh cost against quality: how many decisions, how large the subsets."""
    from keras_learned_lr.benchmark import cost_front

    with one_line_errors():
        made = cost_front.run(results, measure=not report_only)
    if picture is not None:
        cost_front.draw(made, picture)
    if as_json:
        print(json.dumps(made))
        return
    table = Table(title="Cost at 2000 steps, and loss over the best cosine's")
    headings = ("decisions", "validation_size")
    for heading in (*headings, "cost", "loss", "lost", "worst", "on the front"):
        table.add_column(heading.replace("_", " "), justify="right")
    for point in made:
        table.add_row(
            *(str(point[heading]) for heading in headings),
            f"{point['cost']:.2%}",
            f"{point['ratio']:.3f} ± {point['error']:.3f}",
            f"{point['lost']:.1%}",
            f"{point['worst']:.2f}",
            "yes" if point["on_front"] else "",
        )
    console.print(table)


@benchmark_app.command("throughput")
def benchmark_throughput(
    seconds: Annotated[
        float, typer.Option(min=0.1, help="What to spend on measuring.")
    ] = 120.0,
    rounds: Annotated[
        int, typer.Option(min=1, help="In how many turns; medians are reported.")
    ] = 5,
    as_json: AsJson = False,
) -> None:
    """Compare the training steps a second of the batched trainees with those of fit."""
    from keras_learned_lr.benchmark import throughput

    report = throughput.run(seconds, rounds)
    if as_json:
        print(json.dumps(report))
        return
    table = Table(title="Training steps per second")
    headings = ("fit", "fit_20", "trainees")
    for heading in ("model", *headings, "trainees / fit", "seconds to build"):
        table.add_column(heading.replace("_", " "), justify="right")
    for name, steps in report["steps"].items():
        table.add_row(
            name.replace("_", " "),
            *(f"{steps[heading]:.0f}" for heading in headings),
            f"{steps['trainees'] / steps['fit']:.1f}",
            f"{report['build_seconds'][name]:.1f}",
        )
    console.print(table)
    console.print(
        f"The large CNN reaches {report['cnn_bound_share']:.0%} of what its "
        f"convolutions allow. Features cost {report['features_overhead']:.0%} of the "
        f"MLP's time. {report['memory']['trainees']} MLPs hold "
        f"{report['memory']['state_bytes'] / 1e6:.1f} MB."
    )
