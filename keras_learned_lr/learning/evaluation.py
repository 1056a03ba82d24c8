"""How good a controller is on tasks of the engine, against tuned cosine schedules."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_learned_lr.control.actions import AnchoredScaleFactor
from keras_learned_lr.learning.environment import scores
from keras_learned_lr.learning.tasks.sampler import TaskBatch, TaskSampler
from keras_learned_lr.learning.tasks.split import TaskTemplate
from keras_learned_lr.learning.trainee_state import TraineesState
from keras_learned_lr.observation.spec import ObservationSpec

# Decades between the initial learning rates and the template's, for a controller ...
OFFSETS = (-3.0, -2.0, -1.2, -0.4, 0.4, 1.2, 2.0, 3.0)
# ... and for the grid of cosine schedules. As many, so that one graph serves both.
GRID = (-1.75, -1.25, -0.75, -0.25, 0.25, 0.75, 1.25, 1.75)
# A run that is worse than this multiple of the tuned cosine's loss, or diverged, counts
# as this.
WORST_RATIO = 10.0

# What draws the grid; it sees nothing and decides nothing.
COSINE = AnchoredScaleFactor(envelope="cosine", range_decades=6.0)
COSINE_SPEC = ObservationSpec(("log_level",))

Act = Callable[[tf.Tensor, list[tf.Tensor]], tuple[tf.Tensor, list[tf.Tensor]]]


class Exam(NamedTuple):
    """Tasks of one template and horizon, with the best cosine's result on each.

    Attributes:
        name: Template and horizon.
        draw: Returns the trainees, always the same, from given offsets.
        best_cosine: The lowest loss of the cosine grid, float `[tasks]`.
        tuned_cosine: The loss of that cosine which does best on the examples that a
            controller is shown, `[tasks]`: what a search would have chosen.
        cosine: The losses of the grid, `[tasks, len(GRID)]`.
    """

    name: str
    draw: Callable[..., TaskBatch]
    best_cosine: np.ndarray
    tuned_cosine: np.ndarray
    cosine: np.ndarray


@dataclasses.dataclass(frozen=True)
class Result:
    """A controller's marks.

    Attributes:
        ratio: Geometric mean over tasks and initial learning rates within 100× of the
            template's of the final loss over the best cosine's.
        tuned_ratio: The same over the loss of the cosine that a search would have
            chosen.
        far_ratio: The same for those 1000× off.
        lost: Share of all runs that diverged or ended at `WORST_RATIO` or above.
        by_exam: `ratio` of each exam.
        by_offset: The geometric mean of each initial learning rate.
    """

    ratio: float
    tuned_ratio: float
    far_ratio: float
    lost: float
    by_exam: dict[str, float]
    by_offset: dict[str, float]


def set_exams(
    sampler: TaskSampler,
    templates: Sequence[TaskTemplate],
    horizons: Sequence[int],
    tasks: int,
    seed: int,
) -> list[Exam]:
    """Draws the tasks and runs the cosine grid on them.

    Args:
        sampler: Draws the tasks that a controller is marked on.
        templates: Which tasks.
        horizons: Training steps; every template gets an exam of each.
        tasks: Tasks in an exam.
        seed: Decides which they are.
    """
    cosines = sampler.watching(COSINE_SPEC, COSINE)
    exams = []
    for index, template in enumerate(templates):
        for horizon in horizons:

            def draw(
                offsets: Sequence[float],
                sampler: TaskSampler = sampler,
                template: TaskTemplate = template,
                horizon: int = horizon,
                index: int = index,
            ) -> TaskBatch:
                rng = np.random.default_rng([seed, index, horizon])
                spread = np.tile(np.asarray(offsets), (tasks, 1))
                return sampler.draw(template, tasks, spread, horizon, rng)

            batch = draw(GRID, cosines)
            state = _train_at_level(batch)
            shown = batch.measure(state, batch.members).numpy()
            losses, shown = (
                np.where(np.isfinite(found), found, np.inf).reshape(tasks, len(GRID))
                for found in (scores(batch, state), shown)
            )
            shown = np.where(np.isfinite(losses), shown, np.inf)
            tuned = losses[np.arange(tasks), shown.argmin(1)]
            name = f"{template.name} T={horizon}"
            exams.append(Exam(name, draw, losses.min(1), tuned, losses))
    return exams


def run_level(batch: TaskBatch) -> np.ndarray:
    """Trains from the initial level to the end, which stays, under the envelope.

    Returns:
        The final losses `[batch]`.
    """
    return scores(batch, _train_at_level(batch))


def _train_at_level(batch: TaskBatch) -> TraineesState:
    trainees, members = batch.trainees, batch.members
    state, _ = trainees.begin(members)
    stay = tf.zeros([len(batch.task)])
    return trainees.advance(members, state, stay, members.horizon)[0]


def run_controller(
    batch: TaskBatch,
    act: Act,
    state: list[tf.Tensor],
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Trains under a controller.

    Args:
        batch: The trainees.
        act: Observations `[batch, features]` and recurrent state in, actions `[batch]`
            and state out.
        state: The recurrent state before the first decision.

    Returns:
        The final losses `[batch]`, and the observations of each decision.
    """
    trainees, members = batch.trainees, batch.members
    now, look = trainees.begin(members)
    horizon, step = int(members.horizon), 0
    seen = []
    while step < horizon:
        seen.append(look.observation.numpy())
        action, state = act(look.observation, state)
        due = min(trainees.form.schedule.next_step(step, horizon), horizon)
        now, look = trainees.advance(
            members, now, action, tf.constant(due - step, tf.int64)
        )
        step = due
    return scores(batch, now), seen


def greedy_act(controller: Any) -> Act:
    """Returns how a controller acts, as a tf.function; see `run_controller`."""
    return tf.function(
        lambda observation, state: controller.act(observation, state)[:2],
        autograph=False,
    )


def examine(
    exams: Sequence[Exam], act: Act, initial_state: Callable[[int], list[tf.Tensor]]
) -> Result:
    """Marks a controller.

    Args:
        exams: What `set_exams` returned.
        act: See `run_controller`.
        initial_state: Returns the recurrent state for a batch size.
    """
    ratios = []
    for exam in exams:
        batch = exam.draw(OFFSETS)
        losses, _ = run_controller(batch, act, initial_state(len(batch.task)))
        ratios.append(ratios_to_best(exam, losses))
    return mark(exams, ratios)


def ratios_to_best(exam: Exam, losses: np.ndarray) -> np.ndarray:
    """Returns final losses over the best cosine's, `[tasks, len(OFFSETS)]`."""
    ratio = losses.reshape(-1, len(OFFSETS)) / exam.best_cosine[:, np.newaxis]
    # Where no cosine came to an end there is no telling how much better it is.
    kept = np.clip(ratio, 1.0 / WORST_RATIO, WORST_RATIO)
    return np.where(np.isfinite(ratio), kept, WORST_RATIO)


def mark(exams: Sequence[Exam], ratios: Sequence[np.ndarray]) -> Result:
    """Summarises the ratios of each exam."""
    offsets = np.array(OFFSETS)
    near = np.abs(offsets) <= 2.0
    every = np.concatenate(ratios)
    ratio = _geometric_mean(every[:, near])
    lead = np.concatenate([exam.tuned_cosine / exam.best_cosine for exam in exams])
    lead = np.where(np.isfinite(lead), lead, 1.0)
    return Result(
        ratio=ratio,
        tuned_ratio=ratio / _geometric_mean(lead),
        far_ratio=_geometric_mean(every[:, ~near]),
        lost=float((every >= WORST_RATIO).mean()),
        by_exam={
            exam.name: _geometric_mean(found[:, near])
            for exam, found in zip(exams, ratios, strict=True)
        },
        by_offset={
            f"{offset:+g}": _geometric_mean(every[:, i])
            for i, offset in enumerate(OFFSETS)
        },
    )


def open_loop(exams: Sequence[Exam], act: Act, initial_state: Any) -> Result:
    """Marks a controller that sees, at each decision, what is seen on average there.

    It cannot tell one run from another: what it does is the schedule that the
    controller follows on the average observation.
    """
    batches = [exam.draw(OFFSETS) for exam in exams]
    seen = [
        run_controller(batch, act, initial_state(len(batch.task)))[1]
        for batch in batches
    ]
    longest = max(map(len, seen))
    averages = [
        np.mean([s[k].mean(0) for s in seen if k < len(s)], axis=0)
        for k in range(longest)
    ]
    ratios = []
    for exam, batch in zip(exams, batches, strict=True):
        decision = iter(averages)

        def blind(
            observation: tf.Tensor, state: list[tf.Tensor], decision: Any = decision
        ) -> Any:
            average = tf.constant(next(decision), tf.float32)
            return act(tf.zeros_like(observation) + average, state)

        losses, _ = run_controller(batch, blind, initial_state(len(batch.task)))
        ratios.append(ratios_to_best(exam, losses))
    return mark(exams, ratios)


def _geometric_mean(ratios: np.ndarray) -> float:
    return float(np.exp(np.log(ratios).mean()))
