"""What is set right about TF-Agents' agents, against hand-computed numbers."""

import numpy as np
import pytest
import runs
import tensorflow as tf

from keras_learned_lr.control.saved_model import load_controller
from keras_learned_lr.learning import ControllerLearner, LearnerConfig, sequences
from keras_learned_lr.learning import _tf_agents as tfa
from keras_learned_lr.learning.agents import build_agent

both = pytest.mark.parametrize("network", ["mlp", "lstm"])
all_four = pytest.mark.parametrize(
    ("algorithm", "network"),
    [(a, n) for a in ("ppo", "reinforce") for n in ("mlp", "lstm")],
)


def normal_log_prob(action, mean, deviation):
    off = (action - mean) / deviation
    return -0.5 * off**2 - np.log(deviation) - 0.5 * np.log(2 * np.pi)


def collected(learner, lengths=(4, 6)):
    """Returns weighed pieces of unfinished business: nothing is trained on."""
    for seed, length in enumerate(lengths):
        runs.episode(learner, seed, length)
    row = tf.nest.map_structure(lambda leaf: leaf[0], runs.frames(learner))
    return [sequences.weigh(piece, 0) for piece in sequences.split(row)]


@all_four
def test_all_networks_are_trainable(algorithm, network):
    parts = build_agent(runs.small(algorithm=algorithm, network=network, hidden=(8, 8)))
    wanted = 6 if network == "mlp" else 9
    assert len(parts.actor.trainable_variables) == wanted
    assert len(parts.critic.trainable_variables) == wanted
    assert not any(v is parts.deviation for v in parts.actor.trainable_variables)


@all_four
def test_the_untrained_mean_is_near_zero(algorithm, network):
    learner = ControllerLearner(runs.small(algorithm=algorithm, network=network))
    seen = np.random.default_rng(0).uniform(-5, 5, (32, 2)).astype(np.float32)
    controller = learner.greedy()
    action = controller.act(tf.constant(seen), controller.initial_state(32)).action
    assert np.abs(action).max() < 0.05


@both
def test_ppo_trains_on_the_log_probability_of_the_unclipped_sample(network):
    config = runs.small(network=network, initial_deviation=2.0, episodes_per_update=9)
    learner = ControllerLearner(config)
    pieces = collected(learner)
    rows = sequences.pad(pieces)
    real = rows.weights > 0
    actions = rows.experience.action[real]
    assert np.abs(actions).max() > 1
    agent, seen = learner.parts.agent, {}
    original = agent.policy_gradient_loss

    def spy(time_steps, actions, old, advantages, distribution, *rest, **more):
        new = distribution.log_prob(actions)
        seen.update(actions=actions.numpy(), old=old.numpy(), new=new.numpy())
        return original(
            time_steps, actions, old, advantages, distribution, *rest, **more
        )

    agent.policy_gradient_loss = spy
    experience = tf.nest.map_structure(tf.constant, rows.experience)
    agent.train(agent.preprocess_sequence(experience), tf.constant(rows.weights))
    mean = rows.experience.policy_info["dist_params"]["loc"][real]
    wanted = normal_log_prob(actions, mean, 2.0)
    tfp = tfa.tfp.distributions.Normal(mean, 2.0).log_prob(actions)
    np.testing.assert_allclose(wanted, tfp, rtol=1e-5)
    np.testing.assert_array_equal(seen["actions"][real], actions)
    np.testing.assert_allclose(seen["old"][real], wanted, rtol=1e-5)
    # Before the first step the policy is still the one that sampled; with an LSTM this
    # also says that training unrolls it as acting did.
    np.testing.assert_allclose(seen["new"][real], wanted, rtol=1e-4, atol=1e-5)


@both
def test_reinforce_trains_on_the_log_probability_of_the_unclipped_sample(network):
    config = runs.small(
        algorithm="reinforce",
        network=network,
        initial_deviation=2.0,
        episodes_per_update=9,
    )
    learner = ControllerLearner(config)
    pieces = collected(learner)
    rows = sequences.pad(pieces)
    real = rows.weights > 0
    experience = rows.experience
    assert np.abs(experience.action[real]).max() > 1
    info = learner.parts.agent.total_loss(
        *_with_returns(experience), weights=None, training=True
    )
    actor, critic = learner.parts.actor, learner.parts.critic
    seen, kind = map(tf.constant, (experience.observation, experience.step_type))
    mean = actor(seen, kind, ())[0].loc.numpy()[real]
    value = critic(seen, kind)[0].numpy()[real]
    returns = _with_returns(experience)[1].numpy()[real]
    advantage = returns - value
    advantage = (advantage - advantage.mean()) / advantage.std()
    scores = normal_log_prob(experience.action[real], mean, 2.0)
    wanted = -np.sum(scores * advantage) / len(pieces)
    assert float(info.extra.policy_gradient_loss) == pytest.approx(wanted, rel=1e-3)


def _with_returns(experience):
    returns = np.cumsum(experience.reward[:, ::-1], axis=1)[:, ::-1]
    return tf.nest.map_structure(tf.constant, experience), tf.constant(returns)


def test_collected_actions_are_those_that_were_answered():
    for algorithm in ("ppo", "reinforce"):
        config = runs.small(
            algorithm=algorithm, initial_deviation=3.0, episodes_per_update=9
        )
        learner = ControllerLearner(config)
        run = runs.episode(learner, 0, 12)
        sampled = [decision.action for decision in run.decisions[:-1]]
        np.testing.assert_array_equal(runs.frames(learner).action[0], sampled)
        assert np.abs(sampled).max() > 1


@all_four
def test_padding_changes_nothing(algorithm, network):
    results = []
    for shortest, multiple in ((0, 1), (24, 5)):
        learner = ControllerLearner(
            runs.small(algorithm=algorithm, network=network, episodes_per_update=9)
        )
        rows = sequences.pad(collected(learner), shortest, multiple)
        losses = learner._update(*tf.nest.map_structure(tf.constant, tuple(rows)))
        results.append((rows.weights.shape, runs.weights(learner), losses))
    (small, few, losses), (large, many, same) = results
    assert small != large
    for a, b in zip(few, many, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)
    for name in losses:
        assert float(losses[name]) == pytest.approx(float(same[name]), abs=1e-5)


def test_advantages_of_a_cut_sequence():
    agent = build_agent(runs.small(discount=0.9, gae_lambda=0.8)).agent
    rewards, values = [[1.0, 2.0]], [[0.5, 0.25, 0.75]]
    advantages = agent.compute_advantages(
        *map(tf.constant, (rewards, [[0.0, 0.0]], [[0.9, 0.9]], values))
    )
    second = 2.0 + 0.9 * 0.75 - 0.25
    first = 1.0 + 0.9 * 0.25 - 0.5 + 0.9 * 0.8 * second
    np.testing.assert_allclose(advantages, [[first, second]], rtol=1e-6)


@pytest.mark.parametrize("shortest", [0, 12])
def test_a_chunk_is_bootstrapped_from_the_open_decision(shortest):
    config = runs.small(discount=0.9, gae_lambda=0.8, train_every=50)
    learner = ControllerLearner(config)
    run = runs.Run(learner, 0)
    rewards = [run.look() for _ in range(3)][1:]
    row = tf.nest.map_structure(lambda leaf: leaf[0], runs.frames(learner))
    (piece,) = sequences.split(row)
    piece, _ = learner._still_open(piece)
    rows = sequences.pad([sequences.weigh(piece, 0)], shortest)
    np.testing.assert_array_equal(rows.weights[0, :4], [1, 1, 0, 0])
    done = learner.parts.agent.preprocess_sequence(
        tf.nest.map_structure(tf.constant, rows.experience)
    )
    values = [d.info["value_prediction"] for d in run.decisions]
    second = rewards[1] + 0.9 * values[2] - values[1]
    first = rewards[0] + 0.9 * values[1] - values[0] + 0.9 * 0.8 * second
    got = done.policy_info["advantage"][0, :2]
    np.testing.assert_allclose(got, [first, second], rtol=1e-5)
    wanted = [first + values[0], second + values[1]]
    np.testing.assert_allclose(done.policy_info["return"][0, :2], wanted, rtol=1e-5)


@pytest.mark.parametrize("network", ["mlp", "lstm"])
def test_only_the_critic_sees_what_is_privileged(network, tmp_path):
    config = LearnerConfig(
        observation=("log_level", "progress"), privileged=3, network=network
    )
    learner = ControllerLearner(config, batch_size=2)
    state = learner.initial_state(2)
    seen = np.array([[0.3, -0.2, 0, 0, 0], [0.3, -0.2, 1, -2, 3]], np.float32)
    output = learner.act(tf.constant(seen), state)
    mean = output.info["dist_params"]["loc"].numpy()
    assert mean[0] == mean[1]
    value = output.info["value_prediction"].numpy()
    assert value[0] != value[1]
    # The controller that comes of it does not ask for it.
    controller = learner.greedy()
    greedy = controller.act(tf.constant(seen[:, :2]), controller.initial_state(2))
    np.testing.assert_allclose(greedy.action, np.clip(mean, -1, 1), rtol=1e-5)
    loaded = load_controller(learner.export(tmp_path / "controller"))
    exported = loaded.act(tf.constant(seen[:, :2]), loaded.initial_state(2))
    np.testing.assert_allclose(exported.action, greedy.action, atol=1e-6)


def test_inside_fit_nothing_is_privileged():
    learner = ControllerLearner(LearnerConfig(privileged=1))
    with pytest.raises(RuntimeError, match="privileged=0"):
        learner.begin_episode()
