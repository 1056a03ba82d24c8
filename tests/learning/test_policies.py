"""TF-Agents policies as controllers."""

import numpy as np
import pytest
import runs
import tensorflow as tf

from keras_learned_lr.learning import (
    ControllerLearner,
    PolicyController,
    load_policy_saver,
)
from keras_learned_lr.learning import _tf_agents as tfa
from keras_learned_lr.observation.spec import ObservationSpec

SPEC = ObservationSpec(runs.FEATURES)


@pytest.fixture(params=["mlp", "lstm"])
def learner(request):
    made = ControllerLearner(runs.small(network=request.param))
    # Weights that tell observations apart.
    made.parts.actor.trainable_variables[-2].assign_add(
        tf.ones_like(made.parts.actor.trainable_variables[-2])
    )
    return made


def answers(controller, batch=3, steps=4):
    """Returns actions `[steps, batch]` to fixed observations."""
    seen = np.random.default_rng(0).uniform(-1, 1, (steps, batch, 2))
    state, actions = controller.initial_state(batch), []
    for observation in seen.astype(np.float32):
        action, state, *_ = controller.act(tf.constant(observation), state)
        assert action.shape == (batch,)
        actions.append(np.asarray(action))
    return np.array(actions)


def test_greedy_is_the_mean_and_follows_the_learner(learner):
    greedy = learner.greedy()
    learner.learning = False
    before = answers(greedy)
    np.testing.assert_allclose(before, answers(learner), atol=1e-6)
    assert np.ptp(before) > 0.01
    learner.parts.actor.trainable_variables[-1].assign_add([0.3])
    assert np.all(answers(greedy) > before)


def test_greedy_can_be_exported_with_a_free_batch_size(learner, tmp_path):
    greedy = learner.greedy()
    spec = [
        tf.TensorSpec([None, *state.shape[1:]], tf.float32)
        for state in greedy.initial_state(1)
    ]

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32), spec])
    def act(observation, state):
        return greedy.act(observation, state)[:2]

    module = tf.Module()
    module.kept, module.act = list(greedy.variables), act
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))

    class Loaded:
        initial_state = staticmethod(greedy.initial_state)

        @staticmethod
        def act(observation, state):
            return (*loaded.act(observation, state), ())

    for batch in (1, 3):
        np.testing.assert_allclose(
            answers(Loaded, batch), answers(greedy, batch), atol=1e-6
        )


def test_a_policy_saver_folder_is_a_controller(learner, tmp_path):
    policy = learner.parts.agent.policy
    tfa.policy_saver.PolicySaver(policy).save(str(tmp_path))
    loaded = load_policy_saver(tmp_path, observation_spec=SPEC)
    np.testing.assert_allclose(answers(loaded), answers(learner.greedy()), atol=1e-6)
    assert len(loaded.variables) >= len(learner.parts.actor.trainable_variables)
    graph = tf.function(loaded.act)
    output = graph(tf.zeros([2, 2]), loaded.initial_state(2))
    assert output.action.shape[0] == 2


def test_a_policy_of_another_width_is_refused(learner, tmp_path):
    policy = learner.parts.agent.policy
    with pytest.raises(ValueError, match=r"shape \[2\].*describes \[1\]"):
        PolicyController(policy, observation_spec=ObservationSpec(["progress"]))
    tfa.policy_saver.PolicySaver(policy).save(str(tmp_path))
    with pytest.raises(ValueError, match=r"shape \[2\].*describes \[20\]|describes"):
        load_policy_saver(tmp_path)
    with pytest.raises(ValueError, match="Not a PolicySaver folder"):
        load_policy_saver(tmp_path / "nothing")
