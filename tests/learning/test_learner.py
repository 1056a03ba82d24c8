"""From decisions to frames, and from frames to updates."""

import math
import random

import numpy as np
import pytest
import runs
import tensorflow as tf
import toys

from keras_learned_lr.control.controller import (
    Controller,
    Exportable,
    LearningController,
)
from keras_learned_lr.learning import ControllerLearner, NegativeValidationLoss


def test_is_what_the_protocols_ask_for():
    learner = ControllerLearner(runs.small())
    assert isinstance(learner, LearningController)
    assert isinstance(learner.greedy(), Controller)
    assert isinstance(learner.greedy(), Exportable)


def test_rewards_stand_beside_the_actions_that_earned_them():
    config = runs.small(reward=NegativeValidationLoss(), episodes_per_update=9)
    learner = ControllerLearner(config)
    learner.begin_episode()
    looked, rewards = [], []
    for at, loss in enumerate([2.0, 1.5, 1.0, 0.5]):
        decision, _ = runs.decide(learner, [at, -at], [], loss, first_loss=2.0)
        looked.append(decision)
        last = at == 3
        rewards.append((learner.end_episode if last else learner.record)(decision))
    assert rewards == [None, -0.75, -0.5, -0.25]
    got = runs.frames(learner)
    np.testing.assert_array_equal(got.reward[0], [-0.75, -0.5, -0.25])
    np.testing.assert_array_equal(got.observation[0], [[0, 0], [1, -1], [2, -2]])
    np.testing.assert_array_equal(got.action[0], [d.action for d in looked[:3]])
    np.testing.assert_array_equal(got.step_type[0], [0, 1, 1])
    np.testing.assert_array_equal(got.next_step_type[0], [1, 1, 2])
    np.testing.assert_array_equal(got.discount[0], [1, 1, 0])
    values = [d.info["value_prediction"] for d in looked[:3]]
    np.testing.assert_array_equal(got.policy_info["value_prediction"][0], values)


@pytest.mark.parametrize(
    "broken",
    [
        {"finite": False},
        {"loss": math.nan},
        {"loss": math.inf},
        {"observation": np.array([math.nan, 0], np.float32)},
        {"action": math.nan},
    ],
    ids=str,
)
def test_a_decision_that_is_not_finite_ends_the_episode(broken):
    learner = ControllerLearner(runs.small(episodes_per_update=9))
    learner.begin_episode()
    first, _ = runs.decide(learner, [0, 0], [], 1.0)
    second, _ = runs.decide(learner, [1, 1], [], 0.8)
    assert learner.record(first) is None
    learner.record(second)
    worst = float(learner.config.reward(1.0, 0.8, math.inf))
    assert learner.record(second._replace(**broken)) == pytest.approx(worst)
    assert learner.record(second) is None
    assert learner.end_episode(second) is None
    got = runs.frames(learner)
    assert got.reward.shape == (1, 2)
    assert got.reward[0, 1] == pytest.approx(worst)
    assert (got.next_step_type[0, 1], got.discount[0, 1]) == (2, 0)
    for leaf in tf.nest.flatten(got):
        assert np.all(np.isfinite(leaf))
    learner.begin_episode()
    assert learner.record(first) is None
    assert learner.record(second) is not None


def test_a_run_that_begins_broken_teaches_nothing():
    learner = ControllerLearner(runs.small())
    learner.begin_episode()
    decision, _ = runs.decide(learner, [0, 0], [], 1.0, finite=False)
    assert learner.record(decision) is None
    assert learner.record(decision._replace(finite=True)) is None
    assert int(learner.buffer.num_frames()) == 0


def test_a_loss_unknown_before_step_1_is_not_divergence():
    learner = ControllerLearner(runs.small(episodes_per_update=9))
    learner.begin_episode()
    known = {"loss": 2.0, "first_loss": 2.0}
    unknown, _ = runs.decide(learner, [0, 0], [], math.nan, first_loss=math.nan)
    assert learner.record(unknown) is None
    assert learner.record(unknown._replace(**known)) == 0.0
    assert learner.record(unknown._replace(**{**known, "loss": 1.0})) > 0.5


def test_nothing_that_is_not_finite_gets_in_through_add():
    learner = ControllerLearner(runs.small(episodes_per_update=9))
    runs.episode(learner, 0, 1)
    frame = tf.nest.map_structure(lambda leaf: leaf[:, 0], learner.buffer.gather_all())
    with pytest.raises(tf.errors.InvalidArgumentError, match="frame to learn from"):
        learner.add(frame.replace(reward=tf.constant([math.nan])))
    assert int(learner.buffer.num_frames()) == 1


def test_trains_at_the_end_of_so_many_episodes_and_clears_the_buffer():
    learner = ControllerLearner(runs.small(episodes_per_update=2))
    start = runs.weights(learner)
    runs.episode(learner, 0)
    assert not learner.history.updates
    runs.episode(learner, 1)
    (update,) = learner.history.updates
    assert (update["episodes"], update["decisions"]) == (2, 8)
    assert len(learner.history.returns) == 2
    assert int(learner.buffer.num_frames()) == 0
    assert any(
        (a != b).any() for a, b in zip(start, runs.weights(learner), strict=True)
    )
    assert float(learner.parts.deviation) == pytest.approx(
        learner.config.deviation_at(1)
    )


def test_returns_are_the_sums_of_rewards():
    learner = ControllerLearner(runs.small(episodes_per_update=1, train_every=3))
    run = runs.Run(learner, 0)
    rewards = [run.look(final=at == 7) for at in range(8)]
    assert len(learner.history.updates) == 3
    (earned,) = learner.history.returns
    assert earned == pytest.approx(sum(rewards[1:]), rel=1e-5)


@pytest.mark.parametrize("network", ["mlp", "lstm"])
def test_trains_every_so_many_decisions(network):
    config = runs.small(train_every=3, episodes_per_update=9, network=network)
    learner = ControllerLearner(config)
    run = runs.Run(learner, 0)
    counts = []
    for _ in range(8):
        run.look()
        counts.append(len(learner.history.updates))
    # The first decision closes nothing.
    assert counts == [0, 0, 0, 1, 1, 1, 2, 2]
    assert [update["decisions"] for update in learner.history.updates] == [3, 3]
    kept = {"mlp": 1, "lstm": 7}[network]
    assert int(learner.buffer.num_frames()) == kept


def test_one_trace_serves_all_updates_of_a_config():
    learner = ControllerLearner(runs.small(episodes_per_update=2))
    for seed in range(6):
        runs.episode(learner, seed, 4)
    assert len(learner.history.updates) == 3
    assert learner._update.experimental_get_tracing_count() == 1


def test_a_run_that_broke_off_is_learned_from_without_its_last_action():
    learner = ControllerLearner(runs.small(episodes_per_update=1))
    run = runs.Run(learner, 0)
    for _ in range(4):
        run.look()
    assert learner.end_episode(None) is None
    assert runs.frames(learner).reward.shape == (1, 3)
    runs.episode(learner, 1, 2)
    (update,) = learner.history.updates
    # The last closed frame only lends its value to the one before.
    assert (update["episodes"], update["decisions"]) == (1, 4)


def test_a_full_buffer_is_learned_from_or_complained_about():
    learner = ControllerLearner(runs.small(capacity=5, episodes_per_update=9))
    run = runs.Run(learner, 0)
    for _ in range(6):
        run.look()
    assert [update["decisions"] for update in learner.history.updates] == [5]
    learner = ControllerLearner(
        runs.small(capacity=5, episodes_per_update=9, algorithm="reinforce")
    )
    run = runs.Run(learner, 0)
    with pytest.warns(UserWarning, match="5 frames.*capacity"):
        for _ in range(6):
            run.look()


def test_without_learning_it_is_greedy_and_records_nothing():
    learner = ControllerLearner(runs.small())
    act = tf.function(learner.act)
    seen = tf.constant([[0.3, -0.2]])
    assert float(act(seen, []).action[0]) != float(act(seen, []).action[0])
    learner.learning = False
    mean = float(learner.greedy().act(seen, []).action[0])
    assert float(act(seen, []).action[0]) == pytest.approx(mean, abs=1e-6)
    runs.episode(learner, 0)
    assert int(learner.buffer.num_frames()) == 0


def test_the_seed_decides_everything_and_the_users_random_state_is_left_alone():
    def draws():
        return random.random(), np.random.random(), float(tf.random.uniform([]))

    def seeded():
        random.seed(1)
        np.random.seed(1)
        tf.random.set_seed(1)

    seeded()
    wanted = [draws(), draws()]
    results = []
    for seed in (0, 0, 1):
        seeded()
        got = [draws()]
        learner = ControllerLearner(runs.small(seed=seed, minibatches=2))
        for at in range(2):
            runs.episode(learner, at)
        got.append(draws())
        assert got == wanted
        results.append(runs.weights(learner)[0])
    np.testing.assert_array_equal(results[0], results[1])
    assert (results[0] != results[2]).any()


def test_episodes_of_a_driver_may_be_cut_anywhere():
    config = runs.small(
        observation=toys.FEATURES, train_every=4, episodes_per_update=99
    )
    learner, toy = ControllerLearner(config, batch_size=3), toys.Toy("constant", 3)
    driver = toys.tfa.dynamic_step_driver.DynamicStepDriver(
        toy, learner.collect_policy, observers=[learner.add], num_steps=12
    )
    now = None
    for _ in range(5):
        now, _ = driver.run(now)
        learner.train_if_due()
    assert len(learner.history.updates) == 5
    assert all(math.isfinite(update["loss"]) for update in learner.history.updates)
    assert len(learner.history.returns) == 9


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ValueError, match="Received: 0"):
        ControllerLearner(batch_size=0)
    with pytest.raises(ValueError, match="train_every=3, batch_size=2"):
        ControllerLearner(runs.small(network="lstm", train_every=3), batch_size=2)
    with pytest.raises(RuntimeError, match="batch_size=2"):
        ControllerLearner(runs.small(), batch_size=2).begin_episode()
