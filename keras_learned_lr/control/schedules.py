"""When a controller decides: host-side schedules that travel with the action form."""

import dataclasses
import math
from typing import ClassVar

from keras_learned_lr.control.config import Configurable


@dataclasses.dataclass(frozen=True)
class EverySteps(Configurable):
    """A decision every fixed number of training steps (the published form).

    Attributes:
        steps: Training steps between two decisions, at least 1.
    """

    kind: ClassVar[str] = "schedule"
    needs_horizon: ClassVar[bool] = False
    steps: int = 20

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"`steps` must be at least 1. Received: {self.steps}")

    def next_step(self, step: int, horizon: int) -> int:
        """Returns the step at which the decision after the one at `step` is due."""
        return step + self.steps


@dataclasses.dataclass(frozen=True)
class PerRun(Configurable):
    """A fixed number of evenly spaced decisions, however long the run.

    Attributes:
        decisions: Decisions in a whole run, the first before step 1.
    """

    kind: ClassVar[str] = "schedule"
    needs_horizon: ClassVar[bool] = True
    decisions: int = 20

    def __post_init__(self) -> None:
        if self.decisions < 1:
            raise ValueError(
                f"`decisions` must be at least 1. Received: {self.decisions}"
            )

    def next_step(self, step: int, horizon: int) -> int:
        """Returns the step at which the decision after the one at `step` is due."""
        done = step * self.decisions // horizon
        return max(step + 1, -(-(done + 1) * horizon // self.decisions))


@dataclasses.dataclass(frozen=True)
class Geometric(Configurable):
    """Decisions dense at the start of a run and sparse later.

    The window grows with the steps already taken, `growth * step`, within
    `[minimum, max(10, largest_share * horizon)]`. The scale of the learning rate is
    found in the first few percent of a run, where a decision is cheap to correct.

    Attributes:
        growth: Window length over steps already taken.
        minimum: Shortest window, in steps.
        largest_share: Longest window, as a share of the run.
    """

    kind: ClassVar[str] = "schedule"
    needs_horizon: ClassVar[bool] = True
    growth: float = 0.15
    minimum: int = 2
    largest_share: float = 0.04

    def __post_init__(self) -> None:
        if self.growth < 0 or self.minimum < 1 or not 0 < self.largest_share <= 1:
            raise ValueError(
                "`growth` must not be negative, `minimum` at least 1 and "
                f"`largest_share` in (0, 1]. Received: {self}"
            )

    def next_step(self, step: int, horizon: int) -> int:
        """Returns the step at which the decision after the one at `step` is due."""
        longest = max(10, int(self.largest_share * horizon))
        return step + min(max(round(self.growth * step), self.minimum), longest)


@dataclasses.dataclass(frozen=True)
class GeometricPerRun(Configurable):
    """A fixed number of decisions, dense at the start of a run and sparse later.

    Decision k of N falls at the share `(exp(ak/N) - 1) / (exp(a) - 1)` of the run,
    where a is `density`: each window is longer than the one before by the same factor.
    So a short run and a long one are met with the same decisions at the same progress,
    as far as a short one has that many steps.

    Attributes:
        decisions: Decisions in a whole run, the first before step 1.
        density: Log of how much longer the last window is than the first, about.
    """

    kind: ClassVar[str] = "schedule"
    needs_horizon: ClassVar[bool] = True
    decisions: int = 24
    density: float = 4.0

    def __post_init__(self) -> None:
        if self.decisions < 1 or not self.density > 0:
            raise ValueError(
                "`decisions` must be at least 1 and `density` positive. Received: "
                f"{self}"
            )

    def next_step(self, step: int, horizon: int) -> int:
        """Returns the step at which the decision after the one at `step` is due."""
        whole = math.expm1(self.density)
        for index in range(1, self.decisions):
            share = math.expm1(self.density * index / self.decisions) / whole
            due = round(share * horizon)
            if due > step:
                return due
        return max(horizon, step + 1)


Schedule = EverySteps | PerRun | Geometric | GeometricPerRun
