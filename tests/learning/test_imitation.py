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
    cost_of,
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


def check(costs, batch, state):
    """The costs found are those of the runs that ended in this state."""
    losses = scores(batch, state).reshape(2, 8)
    wanted = np.log(np.minimum(losses / losses.min(1, keepdims=True), 10.0))
    assert np.ptp(wanted) > 0.3  # the level matters
    for cost, row in zip(costs, wanted, strict=True):
        found = np.interp(LEVELS_TRIED, LEVELS, cost)
        # Linear between the levels tried, looked at between those that are kept.
        np.testing.assert_allclose(found, row, atol=0.1 * np.abs(np.diff(row)).max())
        assert cost.min() < 0.05 and (cost >= 0).all()
        # What was not tried is worse than the nearest that was.
        assert cost[0] > row[0] and cost[-1] > row[-1]


def test_a_search_finds_what_each_level_costs_a_task():
    # The same tasks from the same learning rates, without a search.
    batch = draw(LEVELS_TRIED, horizon=30)
    state, _ = batch.trainees.begin(batch.members)
    check(search(batch, Unmoved()), batch, advance(batch, state, 0.0, 30))


def test_costs_are_linear_between_levels():
    costs = np.abs(LEVELS - 1.5)[np.newaxis]
    for decades in (-3.98, 0.0, 0.04, 1.5, 3.7):
        found = cost_of(tf.constant([10.0**decades], tf.float32), tf.constant(costs))
        assert float(found[0]) == pytest.approx(abs(decades - 1.5), abs=1e-3)
    # Beyond the last, what the last one costs.
    assert float(cost_of(tf.constant([1e9]), tf.constant(costs))[0]) == pytest.approx(
        2.5, abs=0.01
    )


def test_an_actor_learns_to_choose_the_cheapest_level():
    config = LearnerConfig(observation=("log_level", "progress"), hidden=(16,))
    learner = ControllerLearner(config)
    imitation = Imitation(learner, rounds=1, steps=400, kept=1)
    rng = np.random.default_rng(0)
    # Two kinds of task, which the second feature tells apart: one wants a level of a
    # tenth, the other of ten times the template's learning rate.
    kinds = rng.integers(0, 2, 2000)
    level = 10.0 ** rng.uniform(-1.5, 1.5, 2000)
    observation = np.stack([np.log10(level), 2.0 * kinds - 1.0], 1)
    costs = np.abs(LEVELS - np.array([[-1.0], [1.0]]))
    columns = (observation, level, np.ones(2000), np.tile([10, 1000], (2000, 1)))
    floats = [column.astype("float32") for column in columns]
    imitation._kept.append(
        Choices(*floats, kinds.astype("int32"), costs.astype("float32"))
    )
    learner.parts.optimizer.learning_rate.assign(1e-2)
    costs_held = tf.gather(tf.constant(costs, tf.float32), kinds)
    held = cost_of(tf.constant(floats[1]), costs_held)
    assert float(tf.reduce_mean(held)) > 0.9
    imitation.learn(rng)
    # An action of at most 2 decades reaches nearly every goal from these levels.
    assert imitation.learn(rng) < 0.3
    action = learner.greedy().act(tf.constant([[0.0, -1.0], [0.0, 1.0]]), [])[0]
    low, high = action.numpy()
    assert low < -0.3 and high > 0.3


def test_runs_that_diverge_are_learned_from_once_they_are_back():
    config = dataclasses.replace(TINY, training=("sums_sgd",), decades=9.0, tasks=1)
    learner = ControllerLearner(config.learner, config.group)
    environment = make_environment(config)
    imitation = Imitation(learner, rounds=1, steps=1, kept=1)
    act = tf.function(learner.collect_policy.action, autograph=False)
    finals, steps = imitation.collect(environment, act, np.random.default_rng(0))
    (choices,) = imitation._kept
    assert np.isnan(finals).any() and np.isfinite(finals).any()
    assert np.isfinite(choices.observation).all()
    decisions = len(np.unique(choices.progress[:, 0]))
    assert len(choices.level) == decisions * config.group
    # Of the searches.
    assert steps == choices.progress[0, 1] * config.group


def test_a_recurrent_controller_cannot_imitate():
    recurrent = dataclasses.replace(TINY.learner, network="lstm")
    with pytest.raises(ValueError, match="cannot imitate.*'lstm'"):
        dataclasses.replace(TINY, learner=recurrent)
    with pytest.raises(ValueError, match="imitation_rounds.*-1"):
        dataclasses.replace(TINY, imitation_rounds=-1)


def test_rewards_follow_with_the_exploration_of_a_beginner(tmp_path):
    run = MetaTraining(dataclasses.replace(TINY, rounds=3), tmp_path)
    run.run()
    assert float(run.learner.parts.deviation) == TINY.learner.initial_deviation
    rate = float(run.learner.parts.optimizer.learning_rate)
    assert rate == pytest.approx(TINY.learner.learning_rate)
