"""Action forms: how a controller's number becomes a learning rate.

Every place that sets a learning rate (the callback, the meta-training environment, a
client of a served controller) calls the one `ActionForm.step`. All tensors are float32
scalars, or `[batch]` for many trainees at once.
"""

import dataclasses
import math
from typing import ClassVar, NamedTuple

import tensorflow as tf

from keras_learned_lr.control.config import Configurable
from keras_learned_lr.control.schedules import EverySteps, Geometric, Schedule

# The last step of an annealed run still moves the weights; a learning rate is never 0.
ENVELOPE_FLOOR = 1e-3
# Beyond these a float32 may turn 0 or infinite on the way to a learning rate.
SMALLEST, LARGEST = 1e-30, 1e30
# Share of a run that its weights are averaged over, at most.
LONGEST_AVERAGE = 0.3
# Shares of a run in which the trapezoids come down.
COOLDOWN, LONG_COOLDOWN = 0.2, 0.3
# A level under which a run collapsed is left for this share of it, or a lower one.
RETREAT = 0.5
# What bounds the next level, in ascending order: the old one, or `RETREAT` times that.
HOLD, COME_DOWN = 1.0, 2.0


class ActionState(NamedTuple):
    """Where the learning rate of a run stands.

    Attributes:
        level: The most recent learning rate before the envelope.
        default: The learning rate that the optimizer was compiled with.
        low: Smallest level.
        high: Largest level.
        floor: Smallest learning rate after the envelope; 0 where the user set none.
        good: The last level under which every loss was finite.
    """

    level: tf.Tensor
    default: tf.Tensor
    low: tf.Tensor
    high: tf.Tensor
    floor: tf.Tensor
    good: tf.Tensor


@dataclasses.dataclass(frozen=True)
class Width(Configurable):
    """How far one action may move the learning rate at each point of the run.

    `final + (initial - final) * exp(-progress / decay)` decades: wide enough at the
    start to rescue a hopeless default, narrow later, where a jump only does harm.

    Attributes:
        initial: Decades that an action of 1 moves the level before step 1.
        final: Decades towards the end of the run.
        decay: Share of the run in which the difference falls to 1/e.
    """

    kind: ClassVar[str] = "width"
    initial: float = 2.0
    final: float = 0.1
    decay: float = 0.05

    def __post_init__(self) -> None:
        settings = (self.initial, self.final, self.decay)
        if not all(0 < setting < math.inf for setting in settings):
            raise ValueError(
                "`initial`, `final` and `decay` must be positive and finite. "
                f"Received: {self}"
            )

    def at(self, progress: tf.Tensor) -> tf.Tensor:
        """Returns the width in decades at `progress` in [0, 1]."""
        return self.final + (self.initial - self.final) * tf.exp(-progress / self.decay)


def _above_floor(share: tf.Tensor) -> tf.Tensor:
    return ENVELOPE_FLOOR + (1.0 - ENVELOPE_FLOOR) * share


def constant_envelope(progress: tf.Tensor) -> tf.Tensor:
    """Returns 1 everywhere: no annealing."""
    return tf.ones_like(progress)


def cosine_envelope(progress: tf.Tensor) -> tf.Tensor:
    """Returns half a cosine from 1 to its floor (Loshchilov & Hutter 2017, eq. 5)."""
    return _above_floor(0.5 * (1.0 + tf.cos(math.pi * progress)))


def linear_envelope(progress: tf.Tensor) -> tf.Tensor:
    """Returns a line from 1 to its floor (Defazio et al. 2023; Bergsma et al. 2025)."""
    return _above_floor(1.0 - progress)


def trapezoid_envelope(progress: tf.Tensor) -> tf.Tensor:
    """Returns 1, and over the last fifth of the run a line from there to the floor.

    Stable, then decay (Hu et al. 2024, section 4; Hägele et al. 2024). Unlike under a
    cosine, the level means the same all along until the end.
    """
    return _trapezoid(progress, COOLDOWN)


def long_trapezoid_envelope(progress: tf.Tensor) -> tf.Tensor:
    """Returns the same, but the line takes three tenths of the run."""
    return _trapezoid(progress, LONG_COOLDOWN)


def _trapezoid(progress: tf.Tensor, cooldown: float) -> tf.Tensor:
    return _above_floor(tf.minimum((1.0 - progress) / cooldown, 1.0))


ENVELOPES = {
    "constant": constant_envelope,
    "cosine": cosine_envelope,
    "linear": linear_envelope,
    "trapezoid": trapezoid_envelope,
    "long_trapezoid": long_trapezoid_envelope,
}


@dataclasses.dataclass(frozen=True)
class ActionForm(Configurable):
    """Base of all forms: clamps, holds and the envelope are the same for each.

    Attributes:
        schedule: When the controller decides.
        range_decades: The level stays within `default * 10**±range_decades`, unless
            the user gives bounds.
        envelope: Annealing on top of the level, a key of `ENVELOPES`.
        average: Share of a run over which its weights are averaged towards the end:
            what lies so far back weighs 1/e of what is latest. The run ends with a step
            along the line to the average; see `WeightAverage`. 0 averages nothing.
    """

    kind: ClassVar[str] = "action form"
    schedule: Schedule = Geometric()
    range_decades: float = 4.0
    envelope: str = "constant"
    average: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.range_decades < math.inf:
            raise ValueError(
                "`range_decades` must be positive and finite. Received: "
                f"{self.range_decades}"
            )
        if self.envelope not in ENVELOPES:
            raise ValueError(
                f"Unknown envelope: {self.envelope!r}. Known: {sorted(ENVELOPES)}"
            )
        if not 0 <= self.average <= LONGEST_AVERAGE:
            raise ValueError(
                f"`average` must be 0, or a share of the run of at most "
                f"{LONGEST_AVERAGE}. Received: {self.average!r}"
            )

    @property
    def needs_horizon(self) -> bool:
        """Whether the form plans for a run of known length."""
        annealed = self.envelope != "constant" or self.average > 0
        return annealed or self.schedule.needs_horizon

    def initial_state(
        self,
        default: float | tf.Tensor,
        minimum: float | None = None,
        maximum: float | None = None,
    ) -> ActionState:
        """Returns the state of a run that starts at its default learning rate.

        Args:
            default: The learning rate that the optimizer was compiled with, scalar or
                `[batch]`.
            minimum: The user's smallest learning rate, or None.
            maximum: The user's largest learning rate, or None.
        """
        default = tf.convert_to_tensor(default, tf.float32)
        decades = min(self.range_decades, math.log10(LARGEST))
        low = tf.maximum(default * 10.0**-decades, SMALLEST)
        high = tf.minimum(default * 10.0**decades, LARGEST)
        floor = tf.zeros_like(default)
        if minimum is not None:
            minimum = tf.constant(max(minimum, SMALLEST), tf.float32)
            low = floor = tf.fill(tf.shape(default), minimum)
            # The user's bound holds even where it is outside the default's range.
            high = tf.maximum(low, high)
        if maximum is not None:
            maximum = tf.constant(min(maximum, LARGEST), tf.float32)
            high = tf.fill(tf.shape(default), maximum)
            low = tf.minimum(low, high)
        level = tf.clip_by_value(default, low, high)
        return ActionState(level, default, low, high, floor, good=level)

    def settle(
        self,
        state: ActionState,
        finite: tf.Tensor,
        collapsed: tf.Tensor | bool = False,
    ) -> ActionState:
        """Closes the window that ran at the state's level.

        Args:
            state: Where the learning rate stands.
            finite: bool, whether the window did no harm that lasts: every loss was
                finite, or the weights go back to where it began.
            collapsed: bool, the latter; then the level is not known to be good.

        Returns:
            The state, its level taken back to the last good one if it did.
        """
        level = tf.where(finite, state.level, state.good)
        return state._replace(level=level, good=tf.where(collapsed, state.good, level))

    def step(
        self,
        state: ActionState,
        action: tf.Tensor,
        step: tf.Tensor,
        horizon: tf.Tensor,
        retreat: tf.Tensor | float = 0.0,
    ) -> tuple[ActionState, tf.Tensor]:
        """Applies one action.

        Args:
            state: Where the learning rate stands.
            action: The controller's number, meant for [-1, 1]. What lies outside is
                clipped; what is not finite leaves the level where it is.
            step: Training steps taken so far, t.
            horizon: Training steps of the whole run, T.
            retreat: `HOLD` where the new level is at most the old one, whatever the
                action, `COME_DOWN` where it is at most `RETREAT` times the old one, as
                where the weights go back to where the window that ran at it began,
                else 0.

        Returns:
            The new state, and the learning rate for the next training step.
        """
        clipped = tf.clip_by_value(action, -1.0, 1.0)
        moved = self._move(state, clipped, progress_of(step, horizon))
        known = tf.math.is_finite(action) & ~tf.math.is_nan(moved)
        level = tf.where(known, moved, state.level)
        comes_down = retreat >= COME_DOWN
        most = tf.where(comes_down, RETREAT * state.level, state.level)
        level = tf.where(retreat >= HOLD, tf.minimum(level, most), level)
        level = tf.clip_by_value(level, state.low, state.high)
        # What is held after the next window must not be what ruined this one.
        good = tf.where(comes_down, tf.minimum(state.good, level), state.good)
        state = state._replace(level=level, good=good)
        return state, self.learning_rate(state, step, horizon)

    def learning_rate(
        self, state: ActionState, step: tf.Tensor, horizon: tf.Tensor
    ) -> tf.Tensor:
        """Returns the learning rate at `step`: the level under the envelope."""
        shape = ENVELOPES[self.envelope](progress_of(step, horizon))
        return tf.maximum(state.level * shape, tf.minimum(state.floor, state.level))

    def _move(
        self, state: ActionState, action: tf.Tensor, progress: tf.Tensor
    ) -> tf.Tensor:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class ScaleFactor(ActionForm):
    """New learning rate = most recent learning rate × factor: the published form.

    The factor is `10 ** (action * width)`, so that an action of 0 keeps the learning
    rate and equal and opposite actions undo each other.

    Attributes:
        width: How far an action of ±1 moves the learning rate.
        lift: Decades that every decision adds to that, whatever the action. A level
            that is too low shows in nothing, one that is too high in every loss, so a
            controller does better to come down again than to wait below.
    """

    schedule: Schedule = EverySteps(20)
    width: Width = Width(initial=0.3, final=0.3)
    lift: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not abs(self.lift) <= 1.0:
            raise ValueError(
                f"`lift` must be within 1 decade of 0. Received: {self.lift!r}"
            )

    @property
    def needs_horizon(self) -> bool:
        """Whether the form plans for a run of known length."""
        return super().needs_horizon or self.width.initial != self.width.final

    def _move(
        self, state: ActionState, action: tf.Tensor, progress: tf.Tensor
    ) -> tf.Tensor:
        return state.level * 10.0 ** (action * self.width.at(progress) + self.lift)


@dataclasses.dataclass(frozen=True)
class AnchoredScaleFactor(ScaleFactor):
    """The same factor on a level, with annealing built in.

    Learning rate = level × envelope(t / T). The controller finds and holds the level;
    it need not learn to anneal.
    """

    schedule: Schedule = Geometric()
    envelope: str = "cosine"
    width: Width = Width()


@dataclasses.dataclass(frozen=True)
class LogLearningRate(ActionForm):
    """The action is the logarithm of the learning rate over the default.

    The published system weighs and rejects this form: it does not depend on where the
    learning rate was. It is here for comparison.
    """

    schedule: Schedule = EverySteps(20)

    def _move(
        self, state: ActionState, action: tf.Tensor, progress: tf.Tensor
    ) -> tf.Tensor:
        return state.default * 10.0 ** (action * self.range_decades)


@dataclasses.dataclass(frozen=True)
class DirectLearningRate(ActionForm):
    """The action is the learning rate itself: -1 is the smallest, 1 is `largest`.

    The published system weighs and rejects this form. It is here for comparison.

    Attributes:
        largest: Learning rate over default at an action of 1.
    """

    schedule: Schedule = EverySteps(20)
    largest: float = 10.0

    def _move(
        self, state: ActionState, action: tf.Tensor, progress: tf.Tensor
    ) -> tf.Tensor:
        return state.default * self.largest * 0.5 * (action + 1.0)


def changed(
    form: ActionForm,
    lift: float | None = None,
    envelope: str | None = None,
    average: float | None = None,
) -> ActionForm:
    """Returns a form like another, but for how runs are finished under it.

    Args:
        form: The other one.
        lift: Decades that every decision adds, `ScaleFactor.lift`; None leaves them as
            they are.
        envelope: A key of `ENVELOPES`; None leaves it as it is.
        average: See `ActionForm.average`; None leaves it as it is.

    Raises:
        ValueError: If the form has no factor to lift, `lift` or `average` is out of
            bounds, or the envelope is unknown.
    """
    if envelope is not None:
        form = dataclasses.replace(form, envelope=envelope)
    if average is not None:
        form = dataclasses.replace(form, average=average)
    if lift is None:
        return form
    if not isinstance(form, ScaleFactor):
        raise ValueError(
            "Only a factor can be lifted: leave the lift out, or choose another form. "
            f"Received: {form}"
        )
    return dataclasses.replace(form, lift=lift)


def progress_of(step: tf.Tensor, horizon: tf.Tensor) -> tf.Tensor:
    """Returns t / T as float32, within [0, 1]."""
    # float64 for the division alone: float32 cannot tell steps apart beyond 2**24.
    ratio = tf.cast(step, tf.float64) / tf.cast(horizon, tf.float64)
    return tf.cast(tf.clip_by_value(ratio, 0.0, 1.0), tf.float32)
