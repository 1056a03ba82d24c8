"""Cost against quality: how many decisions, and how much each one looks at."""

import copy
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_learned_lr.benchmark.decision_cost import time_decision
from keras_learned_lr.benchmark.workloads import WORKLOADS
from keras_learned_lr.callback import PROBE_SIZE, VALIDATION_SIZE, LearnedLearningRate
from keras_learned_lr.control.schedules import GeometricPerRun
from keras_learned_lr.controllers import as_controller
from keras_learned_lr.learning.optimizers import make_settings
from keras_learned_lr.learning.reference import keras_optimizer
from keras_learned_lr.learning.tasks.sampler import Rows
from keras_learned_lr.learning.tasks.split import read_split

# Tasks on which designs are chosen; none of them trains a controller or scores one.
TASKS = ("rings_adam", "digits_nesterov", "phases_adamw")
STEPS = 400
SEEDS = 2
# Initial learning rate over the task's own.
STARTS = (0.01, 1.0, 10.0)


class Setting(NamedTuple):
    """What a run may spend on being watched.

    Attributes:
        decisions: In a whole run.
        validation_size: See `LearnedLearningRate`.
        probe_size: See `LearnedLearningRate`.
    """

    decisions: int
    validation_size: int
    probe_size: int


DEFAULT = Setting(24, VALIDATION_SIZE, PROBE_SIZE)
# Those around the default first.
SETTINGS = (
    *(Setting(24, size, PROBE_SIZE) for size in (256, 128, 32)),
    *(Setting(count, 256, PROBE_SIZE) for count in (16, 8, 48)),
    *(Setting(24, 256, size) for size in (8, 128)),
    *(Setting(count, 128, PROBE_SIZE) for count in (16, 8, 48)),
    *(Setting(count, 32, PROBE_SIZE) for count in (16, 8, 48)),
)
# The length of the fit whose share decisions are told as.
COST_STEPS = 2_000


def run(
    results: str | Path,
    settings: tuple[Setting, ...] = SETTINGS,
    measure: bool = True,
) -> list[dict[str, Any]]:
    """Measures what is not in the results yet, and returns the points.

    Args:
        results: A JSON-lines file that keeps every fit and every time.
        settings: What to compare.
        measure: False leaves it at what the results hold.

    Returns:
        A dict for each setting that there are results of: `decisions`,
        `validation_size`, `probe_size`; `cost`, the share of a fit of 2000 steps that
        its decisions take, the mean over the models of `benchmark overhead`; `ratio`,
        its final test loss over that of the default setting on the same task, seed and
        initial learning rate, the geometric mean; `error`, the standard error of the
        ratio's logarithm; `on_front`, whether no other setting is both cheaper and
        better.

    Raises:
        ValueError: If there are no results of the default setting.
    """
    path = Path(results)
    lines = path.read_text().splitlines() if path.is_file() else []
    known = [json.loads(line) for line in lines]
    if measure:
        path.parent.mkdir(parents=True, exist_ok=True)
        for setting in settings:
            for record in _measured(setting, known):
                known.append(record)
                with path.open("a") as file:
                    file.write(json.dumps(record) + "\n")
    return points(known, settings)


def points(records: list[dict], settings: tuple[Setting, ...]) -> list[dict]:
    """Returns the points that the records hold, see `run`."""
    if not any("loss" in r and _setting(r) == DEFAULT for r in records):
        raise ValueError(
            f"There are no fits of the default setting to compare with: {DEFAULT}. "
            "Run without `--report-only`."
        )
    losses = {
        (*_setting(r), r["task"], r["start"], r["seed"]): r["loss"]
        for r in records
        if "loss" in r
    }
    made: list[dict] = []
    for setting in settings:
        logs = [
            np.log(loss / losses[*DEFAULT, *key[3:]])
            for key, loss in losses.items()
            if key[:3] == setting
        ]
        if not logs:
            continue
        shares = [
            setting.decisions * r["total"] / (COST_STEPS * r["step"])
            for r in records
            if "total" in r and _setting(r)[1:] == setting[1:]
        ]
        made.append(
            {
                **setting._asdict(),
                "cost": float(np.mean(shares)),
                "ratio": float(np.exp(np.mean(logs))),
                "error": float(np.std(logs) / np.sqrt(len(logs))),
            }
        )
    for point in made:
        point["on_front"] = not any(
            other["cost"] < point["cost"] and other["ratio"] < point["ratio"]
            for other in made
        )
    return made


def draw(made: list[dict], path: str | Path) -> None:
    """Saves a picture of the points and their front."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for size in sorted({p["validation_size"] for p in made}):
        own = [p for p in made if p["validation_size"] == size]
        axes.errorbar(
            [100 * p["cost"] for p in own],
            [p["ratio"] for p in own],
            [p["error"] for p in own],
            fmt="o",
            label=f"{size} validation examples",
        )
    for p in made:
        name = f"{p['decisions']}"
        if p["probe_size"] != PROBE_SIZE:
            name += f", probe {p['probe_size']}"
        at = (100 * p["cost"], p["ratio"])
        axes.annotate(name, at, textcoords="offset points", xytext=(5, 4), fontsize=8)
    front = sorted((p["cost"], p["ratio"]) for p in made if p["on_front"])
    axes.plot([100 * c for c, _ in front], [r for _, r in front], "k--", lw=0.8)
    axes.set(
        xlabel=f"cost of the decisions, % of a fit of {COST_STEPS} steps",
        ylabel="final test loss over the default's",
    )
    axes.legend()
    figure.savefig(path, dpi=120)


def _setting(record: dict) -> Setting:
    return Setting(*(record[name] for name in Setting._fields))


def _measured(setting: Setting, known: list[dict]) -> Iterator[dict[str, Any]]:
    """Yields the records of a setting that are not known."""
    done = {
        (r.get("task") or r.get("model"))
        for r in known
        if _setting(r) == setting or ("model" in r and _setting(r)[1:] == setting[1:])
    }
    for name, workload in WORKLOADS.items():
        if name not in done:
            parts = time_decision(
                workload,
                jit_compile=False,
                validation_size=setting.validation_size,
                probe_size=setting.probe_size,
            )
            taken = {part: parts[part] for part in ("total", "step")}
            yield {**setting._asdict(), "model": name, **taken}
    for name in TASKS:
        if name not in done:
            # All of a task or nothing: a task that is known is complete.
            yield from list(_fits(setting, name))


def _fits(setting: Setting, name: str) -> Iterator[dict[str, Any]]:
    """Fits a task from every start and seed."""
    template = read_split()[f"validation/{name}"]
    x, y = template.source.draw(np.random.default_rng(0))
    rows = Rows.of(template.source)
    held = rows.train + rows.validation
    model = template.make_model()
    settings = make_settings(template.optimizer, 1)
    model.compile(
        keras_optimizer(template.optimizer, settings, 0, template.learning_rate),
        template.make_loss(),
        jit_compile=False,
    )
    controller = copy.copy(as_controller("default"))
    # The shipped controller's schedule, with another number of decisions.
    schedule = GeometricPerRun(setting.decisions)
    controller.action_form = dataclasses.replace(
        controller.action_form, schedule=schedule
    )
    rate = LearnedLearningRate(
        controller,
        validation_data=(x[rows.train : held], y[rows.train : held]),
        validation_size=setting.validation_size,
        probe_size=setting.probe_size,
    )
    for start in STARTS:
        for seed in range(SEEDS):
            random = np.random.default_rng(seed)
            _restart(model, random, start * template.learning_rate)
            count = STEPS * template.batch_size
            epochs = -(-count // rows.train)
            order = np.concatenate(
                [random.permutation(rows.train) for _ in range(epochs)]
            )[:count]
            model.fit(
                x[order],
                y[order],
                batch_size=template.batch_size,
                shuffle=False,
                verbose=0,
                callbacks=[rate],
            )
            loss = model.evaluate(x[held:], y[held:], verbose=0)
            named = {"task": name, "start": start, "seed": seed, "loss": loss}
            yield {**setting._asdict(), **named}


def _restart(
    model: keras.Model, random: np.random.Generator, learning_rate: float
) -> None:
    """Puts a model and its optimizer back to a beginning, without a new graph."""
    for variable in model.trainable_variables:
        if len(variable.shape) > 1:
            deviation = 1.0 / np.sqrt(np.prod(variable.shape[:-1]))
            variable.assign(random.normal(0.0, deviation, variable.shape))
        else:
            variable.assign(np.zeros(variable.shape))
    for variable in model.optimizer.variables:
        variable.assign(np.zeros(variable.shape))
    model.optimizer.learning_rate = learning_rate
