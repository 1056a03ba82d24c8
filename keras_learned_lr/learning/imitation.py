"""Imitation: learning where the level belongs from a search, before any reward.

A reward tells how a whole run went, and little of any one decision. A search tells
more: the same task trained at several levels that never change shows what each of them
costs. So a controller first learns to choose, from what it sees on runs that it steers
itself, the level of the least expected cost (imitation on one's own states: DAgger,
Ross et al. 2011; a cost for each choice in place of an expert's choice: AggreVaTe, Ross
& Bagnell 2014). What the search cannot tell, how to begin and what comes too late, is
left to the reward.
"""

from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow as tf

from keras_learned_lr.control.actions import ActionForm
from keras_learned_lr.learning import _tf_agents as tfa
from keras_learned_lr.learning.agents import make_adam
from keras_learned_lr.learning.collect import steer
from keras_learned_lr.learning.environment import TraineesEnvironment
from keras_learned_lr.learning.evaluation import run_level
from keras_learned_lr.learning.learner import ControllerLearner
from keras_learned_lr.learning.tasks.sampler import TaskBatch
from keras_learned_lr.learning.trainee_state import TraineesState

# Levels that are tried, in decades around the template's learning rate, and how far
# they are moved together from task to task.
TRIED = np.linspace(-2.1, 2.1, 8)
SHIFT = 0.3
# How far around the best of those the search goes on: between two levels so far apart
# the edge beyond which runs diverge could be anywhere, and the straight line between
# them would make the levels below it look costly.
CLOSER = 0.45
SEARCHES = 2
# A level under which runs diverge costs as much as one that ends with this multiple of
# the lowest loss.
WORST_RATIO = 10.0
# Where no level was tried, costs rise by so much (log loss) a decade: least below,
# where a run is slow but safe.
SLOPE_BELOW, SLOPE_ABOVE = 0.5, 1.0
# The levels, in decades, for which costs are kept.
LEVELS = np.linspace(-4.0, 4.0, 81, dtype="float32")

RUNS_A_STEP = 64

# In a file, the names of the optimizer's variables begin with it.
OPTIMIZER = "optimizer_"


class Choices(NamedTuple):
    """Decisions of one batch of trainees; float32 arrays, one row a run.

    Attributes:
        observation: `[runs, decisions, features + privileged]`.
        level: Before the decision, over the template's learning rate, `[runs,
            decisions]`.
        default: The default learning rate, over the same, `[runs, decisions]`.
        progress: Training steps taken and of the whole run, `[runs, decisions, 2]`.
        retreats: See `TraineesState.retreats`, `[runs, decisions]`.
        counts: 1 for a decision to learn from, 0 for what came after a run was lost
            and for what fills the rows of short runs, `[runs, decisions]`.
        task: int32, the row of `costs`, `[runs]`.
        costs: What each of `LEVELS` costs a task, log loss over the lowest found,
            `[tasks, levels]`.
    """

    observation: np.ndarray
    level: np.ndarray
    default: np.ndarray
    progress: np.ndarray
    retreats: np.ndarray
    counts: np.ndarray
    task: np.ndarray
    costs: np.ndarray


class Imitation:
    """Teaches a learner's actor what searches found.

    With an Adam of its own: the squares of its gradients are small, and what learns
    from rewards would begin with steps that are far too large if it took them over.

    Args:
        learner: What learns.
        rounds: In how many rounds exploration and learning rate come down.
        learning_rate: Of that Adam in the first round; a tenth of it in the last.
        steps: Gradient steps a round.
        kept: Batches whose decisions are learned from, the latest ones.
        deviation: Standard deviation of the actions in the first round.
        resolution: See `search`.
        decay: Of weights, see `make_adam`.
    """

    def __init__(
        self,
        learner: ControllerLearner,
        *,
        rounds: int,
        learning_rate: float,
        steps: int,
        kept: int,
        deviation: float,
        resolution: float,
        decay: float,
    ) -> None:
        self._learner = learner
        self._rounds = rounds
        self._learning_rate = learning_rate
        self._steps = steps
        self._deviation = deviation
        self._resolution = resolution
        self._kept: deque[Choices] = deque(maxlen=kept)
        actor = learner.parts.actor
        self._optimizer = make_adam(learning_rate, actor.trainable_variables, decay)
        self._train = build_step(learner, self._optimizer)

    def begin_round(self, index: int) -> None:
        """Sets exploration and learning rate to where round `index` has them."""
        left = 1.0 - index / self._rounds
        self._learner.parts.deviation.assign(self._deviation * left)
        rate = self._learning_rate * 0.1 ** (1.0 - left)
        self._optimizer.learning_rate.assign(rate)

    def collect(
        self,
        environment: TraineesEnvironment,
        act: Callable[[Any, Any], Any],
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, int]:
        """Steers the trainees of one episode and searches their tasks.

        Args:
            environment: Draws the trainees.
            act: The action of the learner's collect policy, as a tf.function.
            rng: Moves the levels that are tried.

        Returns:
            The loss on the scoring rows at the end, `[batch]`, NaN where diverged, and
            the training steps that the searches took.
        """
        rows: list[tuple[np.ndarray, ...]] = []

        def keep(now: Any, stood: TraineesState, _: Any, __: Any) -> None:
            batch = environment.batch
            assert batch is not None
            reference = batch.template.learning_rate
            progress = np.array([int(stood.step), int(batch.members.horizon)])
            rows.append(
                (
                    now.observation,
                    stood.action.level.numpy() / reference,
                    stood.action.default.numpy() / reference,
                    np.tile(progress.astype("float32"), (len(batch.task), 1)),
                    stood.retreats.numpy(),
                    (stood.alive | stood.collapsed).numpy().astype("float32"),
                )
            )

        final = steer(environment, self._learner.collect_policy, act, keep)
        batch = environment.batch
        assert batch is not None
        columns = [np.stack(column, axis=1) for column in zip(*rows, strict=True)]
        task = batch.task.astype("int32")
        costs = search(batch, rng, self._resolution)
        self._kept.append(Choices._make([*columns, task, costs]))
        return final, SEARCHES * int(batch.members.horizon) * len(batch.task)

    def learn(self, rng: np.random.Generator) -> float:
        """Trains the actor on the decisions that are kept.

        Args:
            rng: Draws the examples.

        Returns:
            The mean cost of the levels that it chose, log loss over the best.
        """
        joined = join(self._kept)
        found = []
        for _ in range(self._steps):
            chosen = rng.integers(0, len(joined.task), RUNS_A_STEP)
            found.append(self._train(rows_of(joined, chosen)))
        return float(tf.reduce_mean(found))

    def end(self) -> None:
        """Puts the learner's schedules where they start."""
        self._kept.clear()
        self._learner.anneal()

    def save(self, file: Path) -> None:
        """Writes the decisions that are kept, and where the learning stands."""
        arrays = {
            f"{index}_{name}": array
            for index, choices in enumerate(self._kept)
            for name, array in choices._asdict().items()
        }
        for index, variable in enumerate(self._optimizer.variables):
            arrays[f"{OPTIMIZER}{index}"] = variable.numpy()
        np.savez(file, **arrays)

    def restore(self, file: Path) -> None:
        """Reads what `save` wrote."""
        self._kept.clear()
        self._kept.extend(read_choices(file))
        with np.load(file) as arrays:
            for index, variable in enumerate(self._optimizer.variables):
                variable.assign(arrays[f"{OPTIMIZER}{index}"])


def search(batch: TaskBatch, rng: np.random.Generator, resolution: float) -> np.ndarray:
    """Trains the tasks of a batch at constant levels.

    Args:
        batch: Its tasks are searched, each by as many trainees as it has in the batch.
        rng: Moves the levels.
        resolution: Share of the loss at the lowest level tried, where hardly anything
            is learned, below which differences stop to count in full: ratios of
            losses near 0 would outweigh all else where there is next to no noise.

    Returns:
        The cost of each of `LEVELS`, log loss over the lowest found, float32
        `[tasks, levels]`: linear between the levels tried.
    """
    tasks = len(np.unique(batch.task))
    places = np.linspace(0, 1, len(batch.task) // tasks)
    tried = np.interp(places, np.linspace(0, 1, len(TRIED)), TRIED)
    first = tried + rng.uniform(-SHIFT, SHIFT, (tasks, 1))
    found = _try(batch, first)
    best = np.take_along_axis(first, found.argmin(1)[:, np.newaxis], 1)
    closer = best + CLOSER * (2.0 * places - 1.0)
    levels = np.concatenate([first, closer], 1)
    losses = np.concatenate([found, _try(batch, closer)], 1)
    order = np.argsort(levels, 1)
    levels, losses = (np.take_along_axis(x, order, 1) for x in (levels, losses))
    rows = zip(levels, losses, strict=True)
    return np.stack([_costs(*row, resolution) for row in rows])


def _try(batch: TaskBatch, levels: np.ndarray) -> np.ndarray:
    """Returns the final losses at constant levels `[tasks, group]`, inf if diverged."""
    rates = batch.template.learning_rate * 10.0 ** levels.reshape(-1)
    rate = tf.constant(rates, tf.float32)
    members = batch.members._replace(default_learning_rate=rate, learning_rate=rate)
    losses = run_level(batch._replace(members=members)).reshape(levels.shape)
    return np.where(np.isfinite(losses), losses, np.inf)


def _costs(levels: np.ndarray, losses: np.ndarray, resolution: float) -> np.ndarray:
    if np.isinf(losses).all():
        return np.zeros(len(LEVELS), np.float32)  # nothing to choose between
    losses = losses + resolution * losses[np.isfinite(losses)][0]
    costs = np.log(np.minimum(losses / losses.min(), WORST_RATIO))
    below, above = levels[0] - LEVELS, LEVELS - levels[-1]
    return (
        np.interp(LEVELS, levels, costs)
        + SLOPE_BELOW * np.maximum(below, 0.0)
        + SLOPE_ABOVE * np.maximum(above, 0.0)
    ).astype("float32")


def join(batches: Iterable[Choices]) -> Choices:
    """Returns the choices of several batches as of one, the tasks counted through."""
    kept = list(batches)
    offsets = np.cumsum([0, *(len(c.costs) for c in kept)])
    tasks = [c.task + at for c, at in zip(kept, offsets, strict=False)]
    longest = max(c.level.shape[1] for c in kept)

    def joined(name: str, mode: Literal["edge", "constant"]) -> np.ndarray:
        return np.concatenate([_padded(getattr(c, name), longest, mode) for c in kept])

    return Choices(
        # What is repeated has a weight of 0, but a level of 0 would have no logarithm.
        observation=joined("observation", "edge"),
        level=joined("level", "edge"),
        default=joined("default", "edge"),
        progress=joined("progress", "edge"),
        retreats=joined("retreats", "edge"),
        counts=joined("counts", "constant"),
        task=np.concatenate(tasks),
        costs=np.concatenate([c.costs for c in kept]),
    )


def rows_of(choices: Choices, chosen: np.ndarray) -> Choices:
    """Returns the chosen runs alone, each with a row of costs of its own."""
    *columns, task, costs = choices
    own = np.arange(len(chosen), dtype="int32")
    rows = [column[chosen] for column in columns]
    return Choices._make([*rows, own, costs[task[chosen]]])


def read_choices(file: Path) -> list[Choices]:
    """Returns the batches that a run's checkpoint holds, the oldest first."""
    with np.load(file) as arrays:
        names = [name for name in arrays.files if not name.startswith(OPTIMIZER)]
        return [
            Choices(*(arrays[f"{index}_{name}"] for name in Choices._fields))
            for index in range(len(names) // len(Choices._fields))
        ]


def _padded(
    column: np.ndarray, decisions: int, mode: Literal["edge", "constant"]
) -> np.ndarray:
    missing = [(0, 0), (0, decisions - column.shape[1]), (0, 0)]
    return np.pad(column, missing[: column.ndim], mode)


def build_costs(learner: ControllerLearner) -> Callable[[Choices], tf.Tensor]:
    """Builds what tells the costs of the levels that an actor chooses on whole runs.

    Args:
        learner: Whose actor it is.

    Returns:
        A function of what `rows_of` returns, as tensors; it returns costs `[runs,
        decisions]`.
    """
    form, actor = learner.action_form, learner.parts.actor

    def costs_of(runs: Choices) -> tf.Tensor:
        # From a state of zeros, as in the middle of an episode no state is reset.
        middle = tf.fill(tf.shape(runs.level), tfa.time_step.StepType.MID)
        memory = actor.get_initial_state(tf.shape(runs.level)[0])
        action = actor(runs.observation, middle, memory)[0].loc
        return cost_of(_chosen_level(form, action, runs), runs.costs)

    return costs_of


def build_step(
    learner: ControllerLearner, optimizer: Any
) -> Callable[[Choices], tf.Tensor]:
    """Builds the tf.function of one gradient step.

    Args:
        learner: Whose actor is trained.
        optimizer: What trains it, built.

    Returns:
        A function of what `rows_of` returns; it returns their mean cost.
    """
    actor, costs_of = learner.parts.actor, build_costs(learner)
    limit = learner.config.gradient_clipping

    # Runs have as many decisions as their horizon allows: no trace for each number.
    @tf.function(autograph=False, reduce_retracing=True)
    def step(runs: Choices) -> tf.Tensor:
        with tf.GradientTape() as tape:
            cost = tf.reduce_sum(runs.counts * costs_of(runs))
            cost /= tf.maximum(tf.reduce_sum(runs.counts), 1.0)
        gradients = tape.gradient(cost, actor.trainable_variables)
        if limit is not None:
            gradients, _ = tf.clip_by_global_norm(gradients, limit)
        pairs = zip(gradients, actor.trainable_variables, strict=True)
        optimizer.apply_gradients(pairs)
        return cost

    return step


def _chosen_level(form: ActionForm, action: tf.Tensor, runs: Choices) -> tf.Tensor:
    state = form.initial_state(runs.default)._replace(level=runs.level)
    step, horizon = runs.progress[..., 0], runs.progress[..., 1]
    return form.step(state, action, step, horizon, runs.retreats)[0].level


def cost_of(level: tf.Tensor, costs: tf.Tensor) -> tf.Tensor:
    """Returns what levels cost, linear between `LEVELS`.

    Args:
        level: Over the template's learning rate, `[runs, decisions]`.
        costs: Of `LEVELS`, `[runs, levels]`.
    """
    apart = float(LEVELS[1] - LEVELS[0])
    place = (tf.math.log(level) / tf.math.log(10.0) - float(LEVELS[0])) / apart
    place = tf.clip_by_value(place, 0.0, len(LEVELS) - 1.001)
    below = tf.floor(place)
    index = tf.cast(below, tf.int32)
    left = tf.gather(costs, index, batch_dims=1)
    right = tf.gather(costs, index + 1, batch_dims=1)
    return left + (place - below) * (right - left)
