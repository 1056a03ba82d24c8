"""Which runs are made: tune on one seed, score on others."""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keras_learned_lr.benchmark.quality.methods import METHODS
from keras_learned_lr.benchmark.quality.methods.learned import Averages, average
from keras_learned_lr.benchmark.quality.methods.method import Method, Run
from keras_learned_lr.benchmark.quality.results import Results
from keras_learned_lr.benchmark.quality.run import steps_of, train
from keras_learned_lr.benchmark.quality.task import NotOnThisMachine, Task
from keras_learned_lr.benchmark.quality.tasks import TASKS
from keras_learned_lr.control.model_card import FILE as CARD
from keras_learned_lr.control.saved_model import load_controller

# log10 of the learning rate over the reference.
GRID = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)
# With the grid above and each variant of the method: 20 runs.
LARGE_GRID = (-2.5, *GRID, 2.0)
SWEEP = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
SPACING = 0.5
# A grid whose best lies on its edge grows, at most to here.
FURTHEST = 5.0
TUNING_SEED = 0
SEEDS = 5

QUICK_TASKS = ("fashion_mlp", "letters_cnn", "chaos_lstm", "diabetes_mlp")
QUICK_METHODS = ("cosine", "constant", "learned")
QUICK_SEEDS = 2
QUICK_SWEEP = (-2.0, 0.0, 2.0)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        tasks: Names, keys of `TASKS`.
        methods: Names, keys of `METHODS`; "cosine" is always run, as the measure.
        seeds: How many seeds to score on, counting from 1; 0 is the tuning seed.
        sweep: Initial learning rates that swept methods start from, log10 of the
            multiple of the reference.
        controller: The name of a shipped controller or a folder; None leaves out the
            methods that need one.
        steps: Cuts every run to so many steps, to try things out.
        large: Whether cosine is also tuned over its large grid.
        grids: Whether rivals are tuned over a grid besides their one run; cosine
            always is.
    """

    tasks: tuple[str, ...] = tuple(TASKS)
    methods: tuple[str, ...] = tuple(METHODS)
    seeds: int = SEEDS
    sweep: tuple[float, ...] = SWEEP
    controller: str | None = None
    steps: int | None = None
    large: bool = True
    grids: bool = True

    def __post_init__(self) -> None:
        _check_names("tasks", self.tasks, TASKS)
        _check_names("methods", self.methods, METHODS)
        if self.seeds < 1:
            raise ValueError(f"`seeds` must be positive. Received: {self.seeds}")

    @property
    def chosen(self) -> list[Method]:
        """The methods that can be run, cosine first."""
        return [
            method
            for name, method in METHODS.items()
            if (name in self.methods or name == "cosine")
            and (self.controller is not None or not method.needs_controller)
        ]


class Protocol:
    """Makes the runs of a plan that are not in its results yet.

    Args:
        plan: What to run.
        results: What is finished already; every run is added when it is.
        on_run: Called with each record that was made just now.
        dry: Makes no run: what is not in the results is left out.
    """

    def __init__(
        self,
        plan: Plan,
        results: Results,
        on_run: Callable[[dict[str, Any]], None] | None = None,
        dry: bool = False,
    ) -> None:
        self.plan = plan
        self.results = results
        self._on_run = on_run
        self._dry = dry

    @functools.cached_property
    def tasks(self) -> list[Task]:
        """The tasks whose data is on this machine."""
        return [TASKS[name] for name in self.plan.tasks if name not in self.skipped]

    @functools.cached_property
    def skipped(self) -> dict[str, str]:
        """Why tasks are left out, by name."""
        reasons = {}
        for name in self.plan.tasks:
            try:
                TASKS[name].data  # noqa: B018  loads it
            except NotOnThisMachine as error:
                reasons[name] = str(error)
        return reasons

    def run(self) -> None:
        """Makes every run of the plan.

        Raises:
            ValueError: If there is no such controller.
        """
        self.checksum  # noqa: B018  loads it, before hours of runs that need none
        for task in self.tasks:
            for method in self.plan.chosen:
                if method.needs_controller:
                    continue
                if self.has_grid(method):
                    self.tuned(task, method)
                    if self.has_large(method):
                        self.tuned(task, method, large=True)
                self._score(task, method)
        # The averages that controls need are taken over all tasks.
        for method in self.plan.chosen:
            if method.needs_controller:
                for task in self.tasks:
                    self._score(task, method)

    def _score(self, task: Task, method: Method) -> None:
        for seed in self.seeds:
            for log_multiplier in self.starts(method):
                self.record(task, method, seed, log_multiplier)
            if self.has_grid(method):
                for large in (False, True)[: 1 + self.has_large(method)]:
                    best = self.tuned(task, method, large)
                    if best is not None:
                        self.record(
                            *(task, method, seed),
                            best["log_multiplier"],
                            best["settings"],
                        )

    @property
    def seeds(self) -> range:
        """The seeds that are scored."""
        return range(TUNING_SEED + 1, TUNING_SEED + 1 + self.plan.seeds)

    def has_grid(self, method: Method) -> bool:
        """Whether a method is tuned."""
        return method.tuned and (self.plan.grids or method.name == "cosine")

    def has_large(self, method: Method) -> bool:
        """Whether a method is tuned over the large grid too."""
        return bool(method.variants) and self.plan.large

    def starts(self, method: Method) -> tuple[float, ...]:
        """Returns the initial learning rates of a method's untuned runs."""
        return self.plan.sweep if method.swept else (0.0,)

    def tuned(
        self, task: Task, method: Method, large: bool = False
    ) -> dict[str, Any] | None:
        """Returns the best run of a grid on the tuning seed, by validation loss.

        A grid whose best run lies on its edge is extended until it does not, or every
        run there diverges.

        Args:
            task: What is trained.
            method: What is tuned.
            large: Whether to take the large grid, with the method's variants.

        Returns:
            The record with `runs`, how many were compared, and `extended`, whether
            that is more than planned; None where the results hold no whole grid.
        """
        variants: Sequence[Mapping[str, Any]] = [{}]
        if large:
            variants = [{}, *method.variants]
        grid = sorted(LARGE_GRID if large else GRID)
        planned = len(grid) * len(variants)
        while True:
            records = [
                self.record(task, method, TUNING_SEED, at, settings)
                for at in grid
                for settings in variants
            ]
            whole = [record for record in records if record is not None]
            if len(whole) < len(records):
                return None
            best = min(whole, key=_validation_loss)
            at = best["log_multiplier"]
            if math.isinf(_validation_loss(best)) or abs(at) >= FURTHEST:
                break
            if at == grid[0]:
                grid.insert(0, at - SPACING)
            elif at == grid[-1]:
                grid.append(at + SPACING)
            else:
                break
        return {**best, "runs": len(records), "extended": len(records) > planned}

    def record(
        self,
        task: Task,
        method: Method,
        seed: int,
        log_multiplier: float,
        settings: Mapping[str, Any] | None = None,
    ) -> dict[str, Any] | None:
        """Returns the record of a run, made now if it is not there; dry, None."""
        settings = dict(settings or {})
        if method.needs_averages:
            # Averages over other tasks are another method.
            settings["averaged_over"] = sorted(task.name for task in self.tasks)
        reference = task.learning_rate if method.default is None else method.default
        wanted: dict[str, Any] = {
            "task": task.name,
            "data": task.data.fingerprint,
            "method": method.name,
            "controller": self.checksum if method.needs_controller else None,
            "seed": seed,
            "log_multiplier": log_multiplier,
            "settings": settings,
            "steps": steps_of(task, self.plan.steps),
            "reference": reference,
        }
        found = self.results.get(wanted)
        if found is not None or self._dry:
            return found
        learning_rate = reference * 10.0**log_multiplier
        run = Run(
            task,
            learning_rate,
            wanted["steps"],
            settings,
            self.controller if method.needs_controller else None,
            self._averages(log_multiplier) if method.needs_averages else None,
        )
        made = {**wanted, "learning_rate": learning_rate, **train(method, run, seed)}
        self.results.add(made)
        if self._on_run is not None:
            self._on_run(made)
        return made

    @functools.cached_property
    def controller(self) -> Any:
        """The controller of the plan."""
        assert self.plan.controller is not None
        return load_controller(self.plan.controller)

    @functools.cached_property
    def checksum(self) -> str | None:
        """What tells the controller from others; None without one."""
        return None if self.plan.controller is None else checksum(self.plan.controller)

    @functools.cache  # noqa: B019  lives as long as the benchmark
    def _averages(self, log_multiplier: float) -> Averages:
        """Averages what the controller did from one initial guess, over all tasks."""
        records = [
            self.record(task, METHODS["learned"], TUNING_SEED, log_multiplier)
            for task in self.tasks
        ]
        found = [record for record in records if record is not None]
        return average(found, self.controller.action_form.envelope)


def checksum(controller: str) -> str:
    """Returns the first 12 hex digits of the SHA-256 of a controller's files."""
    digest = hashlib.sha256()
    for path in sorted(load_controller(controller).path.rglob("*")):
        # The fingerprint holds a random number of each export, the card what is said.
        if path.is_file() and path.name not in ("fingerprint.pb", CARD):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _validation_loss(record: Mapping[str, Any]) -> float:
    return math.inf if record["diverged"] else record["validation_loss"]


def _check_names(what: str, names: Sequence[str], known: Mapping[str, Any]) -> None:
    unknown = sorted(set(names) - set(known))
    if unknown or not names:
        raise ValueError(
            f"Unknown {what}. Received: {', '.join(unknown) or 'none'}. "
            f"Known: {', '.join(known)}"
        )
