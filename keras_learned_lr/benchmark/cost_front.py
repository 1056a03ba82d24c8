"""Cost against quality: how many decisions, and how much each one looks at."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_learned_lr import json_lines
from keras_learned_lr.benchmark.decision_cost import time_decision
from keras_learned_lr.benchmark.quality.protocol import checksum
from keras_learned_lr.benchmark.workloads import WORKLOADS
from keras_learned_lr.callback import VALIDATION_SIZE
from keras_learned_lr.control.controller import Controller
from keras_learned_lr.controllers import as_controller
from keras_learned_lr.learning.evaluation import examine, greedy_act, set_exams
from keras_learned_lr.learning.tasks.sampler import TaskSampler
from keras_learned_lr.learning.tasks.split import choose_templates

# Tasks of validation families, of which none trains a controller or scores one.
TEMPLATES = (
    *("rings_nesterov", "rings_adam", "phases_adamw", "phases_sgd", "digits_adam"),
    *("digits_nesterov", "majority_rmsprop", "text_adam", "friends_adagrad"),
)
HORIZONS, TASKS, SEED = (100, 400), 8, 77


class Setting(NamedTuple):
    """What a run may spend on being watched.

    Attributes:
        decisions: In a whole run.
        validation_size: Validation examples looked at in each.
    """

    decisions: int
    validation_size: int


DEFAULT = Setting(32, VALIDATION_SIZE)
SETTINGS = (
    *(Setting(32, size) for size in (128, 256, 64, 32)),
    *(Setting(count, 128) for count in (24, 16, 12, 48)),
)
# The length of the fit whose share decisions are told as.
COST_STEPS = 2_000


def run(
    results: str | Path,
    settings: tuple[Setting, ...] = SETTINGS,
    measure: bool = True,
    templates: Sequence[str] = TEMPLATES,
) -> list[dict[str, Any]]:
    """Measures what is not in the results yet, and returns the points.

    The shipped controller is marked on validation tasks as in meta-training, with
    another number of decisions and with other numbers of examples shown to it.

    Args:
        results: A JSON-lines file that keeps every mark and every time.
        settings: What to compare.
        measure: False leaves it at what the results hold.
        templates: Names of validation templates.

    Returns:
        A dict for each setting that there are results of: `decisions`,
        `validation_size`; `cost`, the share of a fit of 2000 steps that its decisions
        take, the mean over the models of `benchmark overhead`; `ratio`, `far_ratio`
        and `lost`, see `learning.evaluation.Result`; `worst`, the highest ratio of an
        exam; `error`, the standard error over the exams of the logarithm of `ratio`
        over that of the default setting; `on_front`, whether no other setting is both
        cheaper and better.

    Raises:
        ValueError: If there are no results of the default setting.
    """
    path = Path(results)
    # Marks and times of another controller are another front.
    controller = checksum("default")
    records = json_lines.read(path)
    known = [r for r in records if r.get("controller") == controller]
    if measure:
        for record in _measured(controller, settings, known, templates):
            known.append(record)
            json_lines.append(path, record)
    return points(known, settings)


def points(records: list[dict], settings: tuple[Setting, ...]) -> list[dict]:
    """Returns the points that the records hold, see `run`."""
    marks = {_setting(r): r for r in records if "ratio" in r}
    if DEFAULT not in marks:
        raise ValueError(
            f"There are no marks of the default setting to compare with: {DEFAULT}. "
            "Run without `--report-only`."
        )
    own = marks[DEFAULT]["by_exam"]
    made: list[dict] = []
    for setting in settings:
        if setting not in marks:
            continue
        found = marks[setting]
        logs = [np.log(found["by_exam"][exam] / own[exam]) for exam in own]
        shares = [
            setting.decisions * r["total"] / (COST_STEPS * r["step"])
            for r in records
            if "total" in r and r["validation_size"] == setting.validation_size
        ]
        made.append(
            {
                **setting._asdict(),
                "cost": float(np.mean(shares)),
                **{name: found[name] for name in ("ratio", "far_ratio", "lost")},
                "worst": max(found["by_exam"].values()),
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
            [p["ratio"] * p["error"] for p in own],
            fmt="o",
            label=f"{size} validation examples",
        )
    for p in made:
        at = (100 * p["cost"], p["ratio"])
        name = f"{p['decisions']}"
        axes.annotate(name, at, textcoords="offset points", xytext=(5, 4), fontsize=8)
    front = sorted((p["cost"], p["ratio"]) for p in made if p["on_front"])
    axes.plot([100 * c for c, _ in front], [r for _, r in front], "k--", lw=0.8)
    axes.set(
        xlabel=f"cost of the decisions, % of a fit of {COST_STEPS} steps",
        ylabel="final loss over the best cosine's",
    )
    axes.legend()
    figure.savefig(path, dpi=120)


def _setting(record: dict) -> Setting:
    return Setting(*(record[name] for name in Setting._fields))


def _measured(
    identity: str | None,
    settings: Sequence[Setting],
    known: list[dict],
    templates: Sequence[str],
) -> Iterator[dict[str, Any]]:
    """Yields the records not known yet; `identity` is the controller's checksum."""
    timed = {(r["validation_size"], r["model"]) for r in known if "model" in r}
    for size in dict.fromkeys(setting.validation_size for setting in settings):
        for name, workload in WORKLOADS.items():
            if (size, name) not in timed:
                parts = time_decision(workload, jit_compile=False, validation_size=size)
                taken = {part: parts[part] for part in ("total", "step")}
                of = {"controller": identity, "validation_size": size, "model": name}
                yield of | taken
    marked = {_setting(r) for r in known if "ratio" in r}
    missing = [setting for setting in settings if setting not in marked]
    if not missing:
        return
    controller = as_controller("default")
    act = greedy_act(controller)
    chosen = choose_templates("validation", templates)
    samplers = [_sampler(controller, setting) for setting in missing]
    exams = set_exams(samplers[0], chosen, HORIZONS, TASKS, SEED)
    for setting, sampler in zip(missing, samplers, strict=True):
        # The same tasks, drawn by the setting's own sampler.
        own = [
            exam._replace(draw=functools.partial(exam.draw, sampler=sampler))
            for exam in exams
        ]
        found = examine(own, act, controller.initial_state)
        marks = dataclasses.asdict(found)
        yield {"controller": identity, **setting._asdict(), **marks}


def _sampler(controller: Controller, setting: Setting) -> TaskSampler:
    form = controller.action_form
    schedule: Any = form.schedule  # a fixed number of decisions a run
    schedule = dataclasses.replace(schedule, decisions=setting.decisions)
    return TaskSampler(
        controller.observation_spec,
        dataclasses.replace(form, schedule=schedule),
        setting.validation_size,
    )
