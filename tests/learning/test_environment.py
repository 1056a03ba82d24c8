import dataclasses

import gymnasium
import numpy as np
import pytest

from keras_learned_lr.control.actions import AnchoredScaleFactor
from keras_learned_lr.control.schedules import GeometricPerRun
from keras_learned_lr.learning import LearnerConfig, MetaTrainConfig, make_environment
from keras_learned_lr.learning import _tf_agents as tfa
from keras_learned_lr.learning.environment import TraineesEnvironment
from keras_learned_lr.learning.gymnasium_env import TraineesVectorEnv
from keras_learned_lr.learning.tasks.sampler import PRIVILEGED

LEARNER = LearnerConfig(
    observation=("log_level", "progress", "training_vs_first", "validation_vs_first"),
    action_form=AnchoredScaleFactor(schedule=GeometricPerRun(5)),
)
CONFIG = MetaTrainConfig(
    learner=LEARNER,
    training=("mixtures_sgd",),
    tasks=2,
    group=3,
    shortest_horizon=20,
    longest_horizon=30,
    baseline="none",
)


@pytest.fixture(scope="module")
def environment():
    return make_environment(CONFIG)


def run(environment, action=0.0):
    steps = [environment.reset()]
    while not steps[-1].is_last().all():
        actions = np.broadcast_to(np.float32(action), [environment.batch_size])
        steps.append(environment.step(actions))
    return steps


def test_tf_agents_finds_nothing_wrong(environment):
    tfa.environment_utils.validate_py_environment(environment, episodes=2)


def test_an_episode_is_a_run_and_its_rewards_are_its_improvement(environment):
    steps = run(environment)
    assert len(steps) == 6
    assert steps[0].is_first().all() and all(s.is_mid().all() for s in steps[1:-1])
    batch = environment.batch
    assert int(environment.state.step) == int(batch.members.horizon)
    first = environment._first
    earned = LEARNER.reward(first, first, environment.score())
    total = np.sum([s.reward for s in steps[1:]], axis=0)
    np.testing.assert_allclose(total, earned, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(environment.returns, total, rtol=1e-5)
    assert all((s.discount == 1).all() for s in steps[:-1])
    assert (steps[-1].discount == 0).all()


def test_actions_move_the_learning_rates(environment):
    run(environment, action=-1.0)
    low = environment.state.action.level.numpy()
    assert (low < 0.1 * environment.batch.members.learning_rate.numpy()).all()


def test_the_step_after_the_end_begins_a_new_run_with_other_trainees(environment):
    run(environment)
    before = environment.batch
    step = environment.step(np.zeros(6, np.float32))
    assert step.is_first().all()
    assert environment.batch is not before
    assert (
        environment.batch.members.parameters.numpy()
        != before.members.parameters.numpy()
    ).any()


def test_nothing_retraces_once_running(environment):
    run(environment)
    traces = environment.batch.trainees.traces
    for _ in range(3):
        run(environment)
    assert environment.batch.trainees.traces == traces


def test_the_group_baseline_leaves_how_well_a_run_did_for_its_task():
    plain = make_environment(CONFIG)
    relative = make_environment(dataclasses.replace(CONFIG, baseline="group"))
    expected = [s.reward for s in run(plain)[1:]]
    found = [s.reward for s in run(relative)[1:]]
    np.testing.assert_allclose(found[:-1], expected[:-1], rtol=1e-5)
    total = np.sum(expected, axis=0).reshape(2, 3)
    others = (total.sum(1, keepdims=True) - total) / 2
    np.testing.assert_allclose(
        found[-1], expected[-1] - others.ravel(), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(np.sum(found, axis=0).sum(), 0, atol=1e-4)


def test_a_critic_is_told_what_a_controller_is_not():
    config = dataclasses.replace(
        CONFIG, learner=dataclasses.replace(LEARNER, privileged=PRIVILEGED)
    )
    environment = make_environment(config)
    assert environment.observation_spec().shape == (4 + PRIVILEGED,)
    step = environment.reset()
    told = step.observation[:, 4:]
    np.testing.assert_allclose(told[:, 0], environment.batch.offset / 3, rtol=1e-6)
    np.testing.assert_array_equal(told[:, 1:].sum(1), 1)


def test_a_score_before_the_first_run_says_what_to_do():
    with pytest.raises(RuntimeError, match="call `reset` first"):
        make_environment(CONFIG).score()


def test_an_unknown_baseline_is_refused():
    with pytest.raises(ValueError, match="`baseline` must be one of"):
        TraineesEnvironment(lambda: None, LEARNER.reward, 2, 4, baseline="mean")


@pytest.fixture(scope="module")
def envs():
    return TraineesVectorEnv(CONFIG)


def test_the_vector_environment_speaks_gymnasium(envs):
    assert isinstance(envs, gymnasium.vector.VectorEnv)
    observations, info = envs.reset(seed=1)
    assert envs.observation_space.contains(observations) and info == {}
    count = 0
    while True:
        result = envs.step(envs.action_space.sample())
        observations, rewards, terminations, truncations, info = result
        count += 1
        assert envs.observation_space.contains(observations)
        assert rewards.shape == terminations.shape == truncations.shape == (6,)
        assert not truncations.any()
        if terminations.all():
            break
        assert not terminations.any() and info == {}
    assert count == 5
    assert info["score"].shape == (6,)
    # The step after the end resets, whatever its actions.
    observations, rewards, terminations, _, _ = envs.step(envs.action_space.sample())
    assert not terminations.any() and (rewards == 0).all()


def test_a_seed_brings_the_same_trainees_again(envs):
    first, _ = envs.reset(seed=5)
    after = envs.step(np.full((6, 1), 0.5))[0]
    again, _ = envs.reset(seed=5)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(envs.step(np.full((6, 1), 0.5))[0], after)
    envs.reset(seed=6)
    assert (envs.step(np.full((6, 1), 0.5))[0] != after).any()


def test_a_gymnasium_wrapper_goes_around_it(envs):
    wrapped = gymnasium.wrappers.vector.RecordEpisodeStatistics(envs)
    wrapped.reset(seed=0)
    for _ in range(5):
        *_, info = wrapped.step(np.zeros((6, 1)))
    assert info["episode"]["l"].tolist() == [5] * 6
    assert np.isfinite(info["episode"]["r"]).all()
