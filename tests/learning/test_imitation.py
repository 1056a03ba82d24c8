import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from keras_learned_lr.control.actions import Width
from keras_learned_lr.learning import (
    ControllerLearner,
    LearnerConfig,
    MetaTraining,
    make_environment,
    read_config,
)
from keras_learned_lr.learning.environment import scores
from keras_learned_lr.learning.imitation import (
    LEVELS,
    Choices,
    Imitation,
    build_costs,
    cost_of,
    rows_of,
    search,
)
from keras_learned_lr.learning.tasks.sampler import TaskSampler

TINY = read_config(Path(__file__).with_name("tiny.toml"))


class Unmoved:
    """In place of a generator: the levels that are tried stay where they are."""

    def uniform(self, low, high, size):
        return np.zeros(size)


# As wide as it takes to reach any level with one action.
WIDE = dataclasses.replace(TINY.learner.action_form, width=Width(4.0, 4.0))


LEVELS_TRIED = np.linspace(-2.1, 2.1, 8)


def draw(offsets, horizon):
    """Two tasks of eight trainees, so many decades off."""
    sampler = TaskSampler(TINY.learner.observation_spec, WIDE)
    (template,) = TINY.templates("training")
    offsets = np.broadcast_to(offsets, (2, 8))
    return sampler.draw(template, 2, offsets, horizon, np.random.default_rng(3))


def advance(batch, state, decades, steps):
    action = tf.constant(np.broadcast_to(decades, 16) / 4.0, tf.float32)
    steps = tf.constant(steps, tf.int64)
    return batch.trainees.advance(batch.members, state, action, steps)[0]


def losses_at(offsets, horizon):
    """The same tasks from other learning rates, without a search."""
    batch = draw(offsets, horizon)
    state, _ = batch.trainees.begin(batch.members)
    return scores(batch, advance(batch, state, 0.0, horizon)).reshape(2, 8)


def test_a_search_finds_what_each_level_costs_a_task():
    batch = draw(LEVELS_TRIED, horizon=30)
    costs = search(batch, Unmoved(), resolution=0.01)
    coarse = losses_at(LEVELS_TRIED, horizon=30)
    best = LEVELS_TRIED[np.nanargmin(coarse, axis=1)]
    near = best[:, np.newaxis] + 0.45 * np.linspace(-1.0, 1.0, 8)
    fine = losses_at(near, horizon=30)
    assert (fine.min(1) < coarse.min(1)).all()  # it was worth a closer look
    for cost, *found in zip(costs, coarse, fine, near, strict=True):
        lowest = found[1].min()
        wanted = [np.log(np.minimum(loss / lowest, 10.0)) for loss in found[:2]]
        assert np.ptp(wanted[0]) > 0.3  # the level matters
        for level, row in zip((LEVELS_TRIED, found[2]), wanted, strict=True):
            # Linear between the levels tried, looked at between those that are kept.
            atol = 0.1 * np.abs(np.diff(wanted[0])).max()
            np.testing.assert_allclose(np.interp(level, LEVELS, cost), row, atol=atol)
        assert cost.min() < 0.05 and (cost >= 0).all()
        # What was not tried is worse than the nearest that was.
        assert cost[0] > wanted[0][0] and cost[-1] > wanted[0][-1]


def test_costs_are_linear_between_levels():
    costs = np.abs(LEVELS - 1.5)[np.newaxis]
    for decades in (-3.98, 0.0, 0.04, 1.5, 3.7):
        found = cost_of(tf.constant([[10.0**decades]], tf.float32), tf.constant(costs))
        assert float(found[0, 0]) == pytest.approx(abs(decades - 1.5), abs=1e-3)
    # Beyond the last, what the last one costs.
    last = cost_of(tf.constant([[1e9]]), tf.constant(costs))
    assert float(last[0, 0]) == pytest.approx(2.5, abs=0.01)


def kinds_of_tasks(decisions, tells):
    """2000 runs on two kinds of task: one wants a level of a tenth, one of ten times.

    `tells` are the decisions at which the second feature tells which it is.
    """
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 2, 2000)
    level = 10.0 ** rng.uniform(-1.5, 1.5, (2000, decisions))
    told = np.zeros((2000, decisions))
    told[:, tells] = 2.0 * kinds[:, np.newaxis] - 1.0
    observation = np.stack([np.log10(level), told], -1)
    costs = np.abs(LEVELS - np.array([[-1.0], [1.0]]))
    progress = np.tile([10, 1000], (2000, decisions, 1))
    ones = np.ones((2000, decisions))
    columns = (observation, level, ones, progress, 0 * ones, ones)
    return Choices(
        *(column.astype("float32") for column in columns),
        kinds.astype("int32"),
        costs.astype("float32"),
    )


def imitate(learner, steps, kept=1, decay=0.0):
    return Imitation(
        learner,
        rounds=2,
        learning_rate=1e-2,
        steps=steps,
        kept=kept,
        deviation=0.25,
        resolution=0.01,
        decay=decay,
    )


def taught(config, choices, steps):
    learner = ControllerLearner(config)
    imitation = imitate(learner, steps)
    imitation._kept.append(choices)
    # An action of at most 2 decades reaches nearly every goal from these levels.
    imitation.learn(np.random.default_rng(1))
    imitation.begin_round(1)
    return learner.greedy(), imitation.learn(np.random.default_rng(2))


def test_an_actor_learns_to_choose_the_cheapest_level():
    config = LearnerConfig(observation=("log_level", "progress"), hidden=(16,))
    choices = kinds_of_tasks(decisions=1, tells=[0])
    held = cost_of(
        tf.constant(choices.level), tf.gather(tf.constant(choices.costs), choices.task)
    )
    assert float(tf.reduce_mean(held)) > 0.9
    greedy, cost = taught(config, choices, 400)
    assert cost < 0.3
    low, high = greedy.act(tf.constant([[0.0, -1.0], [0.0, 1.0]]), [])[0].numpy()
    assert low < -0.3 and high > 0.3


def test_a_recurrent_actor_learns_from_what_it_saw_before():
    config = LearnerConfig(
        observation=("log_level", "progress"),
        network="lstm",
        hidden=(16,),
        lstm_size=8,
    )
    # It is told at the first of three decisions what the other two should be.
    greedy, cost = taught(config, kinds_of_tasks(decisions=3, tells=[0]), 300)
    assert cost < 0.3
    state = greedy.initial_state(2)
    state = greedy.act(tf.constant([[0.0, -1.0], [0.0, 1.0]]), state)[1]
    for _ in range(2):
        action, state = greedy.act(tf.zeros((2, 2)), state)[:2]
        low, high = action.numpy()
        assert low < -0.3 and high > 0.3


def test_where_the_weights_go_back_no_level_is_chosen_that_is_not_set():
    learner = ControllerLearner(
        LearnerConfig(observation=("log_level", "progress"), hidden=(16,))
    )
    choices = kinds_of_tasks(decisions=2, tells=[0, 1])
    retreats = np.tile(np.array([0, 2], np.float32), (2000, 1))
    # What a level costs is how high it is.
    rising = np.tile(LEVELS, (2, 1))
    choices = choices._replace(retreats=retreats, costs=rising)
    found = build_costs(learner)(rows_of(choices, np.arange(2000))).numpy()
    free = build_costs(learner)(
        rows_of(choices._replace(retreats=0 * retreats), np.arange(2000))
    ).numpy()
    np.testing.assert_array_equal(found[:, 0], free[:, 0])
    retreat = np.log10(0.5 * choices.level[:, 1])
    np.testing.assert_allclose(found[:, 1], np.minimum(free[:, 1], retreat), atol=1e-5)
    assert (found[:, 1] < free[:, 1] - 0.01).any()


def test_what_came_after_a_run_was_lost_is_not_learned_from():
    choices = kinds_of_tasks(decisions=3, tells=[0, 1, 2])
    spoilt = choices.observation.copy()
    spoilt[:, 1:] *= -1.0  # says the opposite of what is right
    counts = np.tile(np.array([1, 0, 0], np.float32), (2000, 1))
    config = LearnerConfig(observation=("log_level", "progress"), hidden=(16,))
    _, cost = taught(
        config, choices._replace(observation=spoilt, counts=counts), steps=300
    )
    assert cost < 0.3


def test_runs_of_different_lengths_are_learned_from_together():
    learner = ControllerLearner(
        LearnerConfig(observation=("log_level", "progress"), hidden=(16,))
    )
    imitation = imitate(learner, steps=20, kept=2)
    imitation._kept.append(kinds_of_tasks(decisions=1, tells=[0]))
    imitation._kept.append(kinds_of_tasks(decisions=3, tells=[0, 1, 2]))
    assert np.isfinite(imitation.learn(np.random.default_rng(0)))
    assert all(np.isfinite(v.numpy()).all() for v in learner.parts.actor.variables)


def test_weights_decay_and_biases_do_not():
    learner = ControllerLearner(
        LearnerConfig(observation=("log_level", "progress"), hidden=(16,))
    )
    imitation = imitate(learner, steps=3, decay=2.0)
    choices = kinds_of_tasks(decisions=1, tells=[0])
    # Nothing to choose between, and so no gradients.
    imitation._kept.append(choices._replace(costs=np.zeros_like(choices.costs)))
    variables = learner.parts.actor.trainable_variables
    for variable in variables:
        variable.assign_add(tf.ones_like(variable))
    before = [variable.numpy() for variable in variables]
    imitation.learn(np.random.default_rng(0))
    assert {variable.shape.rank for variable in variables} == {1, 2}
    for variable, was in zip(variables, before, strict=True):
        left = (1.0 - 1e-2 * 2.0) ** 3 if was.ndim > 1 else 1.0
        np.testing.assert_allclose(variable.numpy(), left * was, rtol=1e-5)


def test_runs_that_diverge_are_learned_from_once_they_are_back():
    config = dataclasses.replace(TINY, training=("sums_sgd",), decades=9.0, tasks=1)
    learner = ControllerLearner(config.learner, config.group)
    environment = make_environment(config)
    imitation = imitate(learner, steps=1)
    act = tf.function(learner.collect_policy.action, autograph=False)
    finals, steps = imitation.collect(environment, act, np.random.default_rng(0))
    (choices,) = imitation._kept
    assert np.isnan(finals).any() and np.isfinite(finals).any()
    assert np.isfinite(choices.observation).all()
    assert choices.counts.all()
    assert len(choices.level) == config.group
    assert (np.diff(choices.progress[0, :, 0]) > 0).all()
    # Of the searches.
    assert steps == 2 * choices.progress[0, 0, 1] * config.group


@pytest.mark.parametrize("name", ["imitation_rounds", "imitation_decay"])
def test_a_number_of_rounds_and_a_decay_are_not_negative(name):
    with pytest.raises(ValueError, match=f"{name}.*-1"):
        dataclasses.replace(TINY, **{name: -1})
    with pytest.raises(ValueError, match="imitation_deviation.*0.0"):
        dataclasses.replace(TINY, imitation_deviation=0.0)
    with pytest.raises(ValueError, match="imitation_resolution.*0.0"):
        dataclasses.replace(TINY, imitation_resolution=0.0)


def test_differences_below_the_resolution_count_less(tmp_path):
    tried = np.abs(LEVELS) < 1.5
    costs = []
    for resolution in (1e-3, 1e3):
        config = dataclasses.replace(TINY, rounds=1, imitation_resolution=resolution)
        run = MetaTraining(config, tmp_path / f"{resolution}")
        run.run()
        costs.append(run._imitation._kept[0].costs[:, tried])
    assert costs[0].max() > 0.1
    assert costs[1].max() < 0.01


def test_rewards_follow_with_the_exploration_of_a_beginner(tmp_path):
    run = MetaTraining(dataclasses.replace(TINY, rounds=3), tmp_path)
    run.run()
    assert float(run.learner.parts.deviation) == TINY.learner.initial_deviation
    rate = float(run.learner.parts.optimizer.learning_rate)
    assert rate == pytest.approx(TINY.learner.learning_rate)


def test_rewards_begin_with_an_adam_that_knows_nothing_of_the_imitation(tmp_path):
    config = dataclasses.replace(TINY, rounds=2, imitation_rounds=2)
    run = MetaTraining(config, tmp_path)
    run.run()
    assert not any(v.numpy().any() for v in run.learner.parts.optimizer.variables)
