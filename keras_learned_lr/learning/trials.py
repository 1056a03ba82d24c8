"""Runs under a controller whose levels are moved at random, and what came of them."""

import dataclasses
import os
import time
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import tensorflow as tf

from keras_learned_lr.control.actions import progress_of
from keras_learned_lr.control.config import Configurable
from keras_learned_lr.control.refined import Refined, refinable
from keras_learned_lr.files import replacing
from keras_learned_lr.learning.evaluation import greedy_act, run_controller
from keras_learned_lr.learning.meta_config import (
    check_draws,
    check_not_negative,
    check_positive,
)
from keras_learned_lr.learning.tasks.sampler import TaskSampler, draw_horizon
from keras_learned_lr.learning.tasks.split import TaskTemplate


@dataclasses.dataclass(frozen=True)
class TrialSettings(Configurable):
    """What is tried, and on which tasks.

    Attributes:
        tasks: Tasks in a batch, each with an initial learning rate of its own.
        group: Trainees of each task, which differ in how they are moved alone.
        decades: Initial learning rates lie within ± these decades of the template's.
        shortest_horizon: Training steps of the shortest runs.
        longest_horizon: Of the longest; horizons are log-uniform between the two.
        shown: Validation examples that the controller sees, at most.
        fewest_rows: See `TaskSampler`.
        most_wrong: See `TaskSampler`.
        phases: Shares of a run at which another phase begins.
        spread: Every decision of a phase is moved by as many decades, uniform between
            ± this.
    """

    kind: ClassVar[str] = "trials"
    tasks: int = 8
    group: int = 16
    decades: float = 2.0
    shortest_horizon: int = 250
    longest_horizon: int = 1200
    shown: int = 128
    fewest_rows: int = 512
    most_wrong: float = 0.15
    phases: tuple[float, ...] = (0.15, 0.4, 0.7)
    spread: float = 0.12

    def __post_init__(self) -> None:
        object.__setattr__(self, "phases", tuple(self.phases))
        if self.tasks < 1 or self.group < 2:
            raise ValueError(
                "`tasks` must be positive and `group` at least 2: what a move is "
                f"worth shows beside others of the same task. Received: {self}"
            )
        bounds = (0.0, *self.phases, 1.0)
        if any(b <= a for a, b in zip(bounds[:-1], bounds[1:], strict=True)):
            raise ValueError(
                "`phases` must ascend between 0 and 1, exclusive. Received: "
                f"{self.phases}"
            )
        if min(self.shown, self.fewest_rows, self.shortest_horizon) < 1:
            raise ValueError(
                "`shown`, `fewest_rows` and `shortest_horizon` must be at least 1. "
                f"Received: {self.shown}, {self.fewest_rows}, {self.shortest_horizon}"
            )
        check_draws(self)
        check_positive(self, "spread")
        check_not_negative(self, "decades")


class Trials(NamedTuple):
    """What a batch of runs shows.

    Attributes:
        seen: float32 `[decisions, tasks, features]`, the mean over a task's trainees
            of what the controller saw (see `refinable`): that of one alone would
            depend on how it was moved.
        phase: int `[decisions]`, which phase they were in.
        moved: float32 `[tasks, group, phases]`, decades a decision.
        loss: float32 `[tasks, group]`, the final loss on rows that were neither trained
            on nor shown to the controller; NaN where a run diverged.
        steps: Training steps of all runs together.
        seconds: What they took.
    """

    seen: np.ndarray
    phase: np.ndarray
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
    """Trains batches under a controller, each phase of each run moved at random.

    A phase, and not a decision, is moved, as what one decision is worth is lost in what
    the ones after it make of it (exploration that is correlated in time: Rückstieß et
    al. 2008, "State-dependent exploration for policy gradient methods").

    Args:
        controller: What decides.
        settings: How many are tried on which tasks, and how far they are moved.
    """

    def __init__(self, controller: Refined, settings: TrialSettings) -> None:
        self._controller = controller
        self._settings = settings
        self._sampler = TaskSampler(
            controller.observation_spec,
            controller.action_form,
            settings.shown,
            settings.fewest_rows,
            settings.most_wrong,
        )
        # Once for all batches: to trace a controller takes as long as many runs.
        self._act = greedy_act(controller)

    def run(self, template: TaskTemplate, rng: np.random.Generator) -> Trials:
        """Runs one batch.

        Args:
            template: Which tasks.
            rng: Draws everything.
        """
        began = time.monotonic()
        settings, controller = self._settings, self._controller
        horizon = draw_horizon(settings.shortest_horizon, settings.longest_horizon, rng)
        start = rng.uniform(-settings.decades, settings.decades, (settings.tasks, 1))
        offsets = np.tile(start, (1, settings.group))
        shape = (settings.tasks, settings.group, len(settings.phases) + 1)
        moved = rng.uniform(-settings.spread, settings.spread, shape).astype("float32")
        batch = self._sampler.draw(template, settings.tasks, offsets, horizon, rng)
        each = moved.reshape(-1, shape[-1])
        phases = []

        def move(step: int) -> tf.Tensor:
            phases.append(sum(step / horizon >= begins for begins in settings.phases))
            progress = progress_of(tf.constant(step), tf.constant(horizon))
            return tf.constant(each[:, phases[-1]]) / controller.width.at(progress)

        state = controller.initial_state(len(each))
        loss, seen = run_controller(batch, self._act, state, move)
        names = controller.observation_spec.names
        columns = [names.index(name) for name in refinable(names)]
        shown = np.array(seen)[..., columns]
        return Trials(
            seen=shown.reshape(len(seen), *shape[:2], -1).mean(2),
            phase=np.array(phases),
            moved=moved,
            loss=loss.reshape(shape[:2]),
            steps=np.asarray(horizon * len(each)),
            seconds=np.asarray(time.monotonic() - began),
        )
