"""A learner inside `fit`, what it exports, and TF-Agents policies as controllers."""

import json

import helpers
import numpy as np
import pytest
import runs
import tensorflow as tf

from keras_learned_lr import LearnedLearningRate
from keras_learned_lr.control.saved_model import load_controller
from keras_learned_lr.learning import ControllerLearner, LearnerConfig
from keras_learned_lr.learning import _tf_agents as tfa
from keras_learned_lr.learning.in_fit import learn_in_fit

WITHOUT_TF_AGENTS = """
import sys


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tf_agents", "tensorflow_probability", "tf_keras"):
            raise ImportError(name + " is blocked")


sys.meta_path.insert(0, Blocker())
import json
import helpers
import numpy as np
import tensorflow as tf
from keras_learned_lr import LearnedLearningRate

rate = LearnedLearningRate(sys.argv[1], validation_data=helpers.data())
helpers.fit(helpers.model(), [rate], epochs=3)
seen = rate.decisions
observations = np.stack(list(seen["observation"].values()), axis=1)
print(json.dumps([observations.tolist(), seen["action"].tolist()]))
"""


def learned(network, algorithm="ppo"):
    """A learner that has trained in a few fits."""
    config = LearnerConfig(
        algorithm=algorithm,
        network=network,
        hidden=(8,),
        lstm_size=4,
        passes=2,
        episodes_per_update=2,
        learning_rate=0.01,
    )
    learner = ControllerLearner(config)
    x, y = helpers.data()
    episodes = list(
        learn_in_fit(
            learner,
            helpers.model(),
            x=x,
            y=y,
            batch_size=16,
            epochs=2,
            validation_data=(x, y),
            episodes=5,
            learning_rates=(1e-3, 1e-1),
        )
    )
    return learner, episodes


@pytest.mark.parametrize(
    ("network", "algorithm"), [("mlp", "ppo"), ("lstm", "ppo"), ("mlp", "reinforce")]
)
def test_a_learner_trains_in_fit_and_its_export_acts_alike(
    network, algorithm, tmp_path
):
    untrained = ControllerLearner(
        LearnerConfig(network=network, hidden=(8,), lstm_size=4)
    )
    learner, episodes = learned(network, algorithm)

    # Five fits, an update every second one.
    assert len(learner.history.updates) == 2
    assert learner.history.returns == pytest.approx(
        [episode.reward for episode in episodes[:4]], rel=1e-5
    )
    assert len({episode.learning_rate for episode in episodes}) == 5
    moved = [
        not np.allclose(new, old)
        for new, old in zip(
            learner.parts.actor.trainable_variables,
            untrained.parts.actor.trainable_variables,
            strict=True,
        )
    ]
    assert all(moved)

    path = learner.export(tmp_path / "controller")
    code = f"import sys; sys.argv = ['', {str(path)!r}]\n" + WITHOUT_TF_AGENTS
    done = helpers.run_python(
        code, PYTHONPATH=f"{helpers.ROOT}:{helpers.ROOT / 'tests'}"
    )
    assert done.returncode == 0, done.stderr
    observations, actions = json.loads(done.stdout.splitlines()[-1])
    greedy = learner.greedy()
    state = greedy.initial_state(1)
    for observation, action in zip(observations, actions, strict=True):
        output = greedy.act(tf.constant([observation]), state)
        state = output.state
        assert float(output.action[0]) == pytest.approx(action, abs=1e-6)
    assert len(actions) > 3 and np.ptp(actions) > 0


def test_policies_of_tf_agents_are_controllers(tmp_path):
    learner, _ = learned("mlp")
    policy = learner.parts.agent.policy
    tfa.policy_saver.PolicySaver(policy).save(str(tmp_path / "saver"))
    exported = learner.export(tmp_path / "lean")
    taken = []
    for controller in (exported, policy, tmp_path / "saver"):
        rate = LearnedLearningRate(controller, validation_data=helpers.data())
        helpers.fit(helpers.model(), [rate])
        taken.append(rate.decisions["action"])
    np.testing.assert_allclose(taken[1], taken[0], atol=1e-6)
    np.testing.assert_allclose(taken[2], taken[0], atol=1e-6)


def test_the_range_of_learning_rates_is_checked():
    learner = ControllerLearner(runs.small())
    with pytest.raises(ValueError, match=r"lowest first. Received: \(1.0, 0.1\)"):
        next(
            learn_in_fit(
                learner,
                helpers.model(),
                validation_data=helpers.data(),
                episodes=1,
                learning_rates=(1.0, 0.1),
            )
        )


def test_an_exported_controller_carries_what_it_needs(tmp_path):
    learner, _ = learned("lstm")
    loaded = load_controller(learner.export(tmp_path / "controller"))
    assert loaded.observation_spec == learner.observation_spec
    assert loaded.action_form == learner.action_form
    shapes = [tuple(state.shape) for state in loaded.initial_state(3)]
    assert shapes == [(3, 4), (3, 4)]
