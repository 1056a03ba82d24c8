"""Runs under a controller whose levels are moved at random, and what came of them."""

import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import tensorflow as tf

from keras_learned_lr.control.config import Configurable
from keras_learned_lr.control.controller import Exportable
from keras_learned_lr.control.refined import (
    CONSTANT_KNOTS,
    FEATURE_WEIGHTS,
    FEATURES,
    QUANTITIES,
    Refined,
    Scales,
)
from keras_learned_lr.files import replacing
from keras_learned_lr.learning.evaluation import greedy_act, run_controller
from keras_learned_lr.learning.meta_config import (
    check_draws,
    check_not_negative,
    check_positive,
    check_share,
)
from keras_learned_lr.learning.tasks.sampler import (
    TaskBatch,
    TaskSampler,
    draw_horizon,
)
from keras_learned_lr.learning.tasks.split import TaskTemplate
from keras_learned_lr.learning.tasks.task_family import PLENTY

# Wrong labels, at most, where there are plenty of rows.
CLEAN = 0.03
# Of a feature's deviation, lest one that hardly moves is divided by nothing.
LEAST_DEVIATION = 1e-3


@dataclasses.dataclass(frozen=True)
class TrialSettings(Configurable):
    """What is tried, and on which tasks.

    Attributes:
        tasks: Tasks in a batch, each with an initial learning rate of its own.
        group: Trainees of each task, which differ in how they are moved alone; every
            second one is moved the opposite way of another.
        decades: Initial learning rates lie within ± these decades of the template's.
        shortest_horizon: Training steps of the shortest runs.
        longest_horizon: Of the longest; horizons are log-uniform between the two.
        longest_seldom: Of the longest on templates that are tried seldom; see
            `RefineConfig`.
        shown: Validation examples that the controller sees, at most.
        plentiful: Share of the batches whose tasks have all their rows and hardly any
            wrong labels, as most data that people train on.
        fewest_rows: Of the other batches; see `TaskSampler`.
        most_wrong: Likewise.
        spread: The constant is moved by as many decades at each of its knots, uniform
            between ± this.
    """

    kind: ClassVar[str] = "trials"
    tasks: int = 8
    group: int = 16
    decades: float = 2.3
    shortest_horizon: int = 250
    longest_horizon: int = 1600
    longest_seldom: int = 700
    shown: int = 128
    plentiful: float = 0.6
    fewest_rows: int = 512
    most_wrong: float = 0.15
    spread: float = 0.12

    def __post_init__(self) -> None:
        if self.tasks < 1 or self.group < 2 or self.group % 2:
            raise ValueError(
                "`tasks` must be positive and `group` even: what a move is worth shows "
                f"beside its opposite on the same task. Received: {self}"
            )
        if min(self.shown, self.fewest_rows, self.shortest_horizon) < 1:
            raise ValueError(
                "`shown`, `fewest_rows` and `shortest_horizon` must be at least 1. "
                f"Received: {self.shown}, {self.fewest_rows}, {self.shortest_horizon}"
            )
        check_share(self, "plentiful")
        check_draws(self)
        if not self.shortest_horizon <= self.longest_seldom <= self.longest_horizon:
            raise ValueError(
                "`longest_seldom` must lie between the shortest and the longest "
                f"horizon. Received: {self.longest_seldom}"
            )
        check_positive(self, "spread")
        check_not_negative(self, "decades")


class Trials(NamedTuple):
    """What a batch of runs shows.

    Attributes:
        seen: float32 `[decisions, tasks, QUANTITIES]`, the mean over a task's trainees
            of `Refined.quantities`: that of one alone would depend on how it was moved.
        moved: float32 `[tasks, group, knots]`, decades a decision at `CONSTANT_KNOTS`.
        loss: float32 `[tasks, group]`, the final loss on rows that were neither trained
            on nor shown to the controller; NaN where a run diverged.
        steps: Training steps of all runs together.
        seconds: What they took.
    """

    seen: np.ndarray
    moved: np.ndarray
    loss: np.ndarray
    steps: np.ndarray
    seconds: np.ndarray

    def save(self, path: Path) -> None:
        """Writes them into a file, which a kill leaves whole or absent."""
        # Another process may be making the same one.
        with replacing(path, f"{os.getpid()}.new") as file:
            np.savez_compressed(file, **self._asdict())

    @classmethod
    def load(cls, path: Path) -> "Trials":
        """Reads what `save` wrote."""
        with np.load(path) as found:
            return cls(**found)


class TrialRunner:
    """Trains batches under a controller, the levels of each trainee moved at random.

    What is moved is the constant of its correction, at a few knots, and not each
    decision: what one decision is worth is lost in what the ones after it make of it
    (exploration that is correlated in time: Rückstieß et al. 2008, "State-dependent
    exploration for policy gradient methods"). The controller sees what comes of it,
    its own last actions too.

    Args:
        controller: What is refined.
        settings: How many are tried on which tasks, and how far they are moved.
    """

    def __init__(self, controller: Exportable, settings: TrialSettings) -> None:
        self._controller = controller
        self._settings = settings
        self._some = TaskSampler(
            controller.observation_spec,
            controller.action_form,
            settings.shown,
            settings.fewest_rows,
            settings.most_wrong,
        )
        self._all = self._some.drawing(PLENTY, CLEAN)
        self._refined: Refined | None = None

    def scales(
        self, templates: Sequence[TaskTemplate], seeds: Sequence[Sequence[int]]
    ) -> Scales:
        """Returns what features are like under the controller as it is.

        Args:
            templates: On which tasks; a batch of each.
            seeds: Of each batch.
        """
        names = self._controller.observation_spec.names
        columns = [names.index(name) for name in FEATURES]
        act = greedy_act(self._controller)
        found = []
        for template, seed in zip(templates, seeds, strict=True):
            rng = np.random.default_rng(seed)
            batch = self._draw(template, self._settings.longest_horizon, rng)
            state = self._controller.initial_state(len(batch.task))
            _, seen = run_controller(batch, act, state)
            found.append(np.array(seen)[..., columns].reshape(-1, len(columns)))
        features = np.concatenate(found)
        deviation = features.std(0) + LEAST_DEVIATION
        return Scales(tuple(features.mean(0).tolist()), tuple(deviation.tolist()))

    def begin(self, scales: Scales) -> None:
        """Tells what features are like, before the first `run`."""
        trainees = self._settings.tasks * self._settings.group
        self._refined = Refined(
            self._controller, np.zeros((trainees, QUANTITIES)), scales
        )
        # Once for all batches: to trace a controller takes as long as many runs.
        self._act = greedy_act(self._refined)

    def run(
        self,
        template: TaskTemplate,
        weights: np.ndarray,
        seed: Sequence[int],
        seldom: bool = False,
    ) -> Trials:
        """Runs one batch.

        Args:
            template: Which tasks.
            weights: Of the correction around which trainees are moved, `[QUANTITIES]`.
            seed: Draws everything.
            seldom: Whether the template is one that is tried seldom.
        """
        assert self._refined is not None, "call `begin` first"
        began = time.monotonic()
        settings = self._settings
        longest = settings.longest_seldom if seldom else settings.longest_horizon
        rng = np.random.default_rng(seed)
        batch = self._draw(template, longest, rng)
        shape = (settings.tasks, settings.group // 2, len(CONSTANT_KNOTS))
        half = rng.uniform(-settings.spread, settings.spread, shape)
        moved = np.concatenate([half, -half], 1).astype("float32")
        each = np.tile(weights, (len(batch.task), 1))
        each[:, FEATURE_WEIGHTS:] += moved.reshape(-1, shape[-1])
        self._refined.assign(each)
        state = self._refined.initial_state(len(each))
        loss, seen = run_controller(batch, self._act, state)
        told = self._refined.quantities(tf.constant(np.array(seen))).numpy()
        grouped = told.reshape(len(seen), settings.tasks, settings.group, QUANTITIES)
        return Trials(
            seen=grouped.mean(2),
            moved=moved,
            loss=loss.reshape(moved.shape[:2]),
            steps=np.asarray(int(batch.members.horizon) * len(each)),
            seconds=np.asarray(time.monotonic() - began),
        )

    def _draw(
        self, template: TaskTemplate, longest: int, rng: np.random.Generator
    ) -> TaskBatch:
        settings = self._settings
        horizon = draw_horizon(settings.shortest_horizon, longest, rng)
        sampler = self._all if rng.random() < settings.plentiful else self._some
        start = rng.uniform(-settings.decades, settings.decades, (settings.tasks, 1))
        offsets = np.tile(start, (1, settings.group))
        return sampler.draw(template, settings.tasks, offsets, horizon, rng)
