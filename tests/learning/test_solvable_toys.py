"""Each algorithm and network learns what can be learned, within seconds."""

import pytest
import toys

from keras_learned_lr.learning import ControllerLearner, LearnerConfig

UPDATES = {
    ("ppo", "constant"): 12,
    ("ppo", "feature"): 16,
    ("ppo", "memory"): 25,
    ("reinforce", "constant"): 50,
    ("reinforce", "feature"): 50,
}


def share_after_learning(algorithm, network, target, **settings):
    """Returns the greedy share of the best return before and after learning."""
    updates = UPDATES[algorithm, target]
    rate = {"ppo": 0.005, "reinforce": 0.015}[algorithm]
    config = LearnerConfig(
        **{
            "algorithm": algorithm,
            "network": network,
            "observation": toys.FEATURES,
            "hidden": (32,),
            "lstm_size": 16,
            "learning_rate": rate,
            "final_learning_rate": rate / 3,
            "annealing_updates": updates,
            "episodes_per_update": 64,
            "capacity": 16,
            **settings,
        }
    )
    learner, toy = ControllerLearner(config, batch_size=64), toys.Toy(target)
    before = toys.score(learner, toy)
    toys.collect_and_learn(learner, toy, updates)
    assert len(learner.history.updates) == updates
    assert learner._update.experimental_get_tracing_count() == 1
    return before, toys.score(learner, toy)


@pytest.mark.parametrize("target", ["constant", "feature"])
@pytest.mark.parametrize("network", ["mlp", "lstm"])
@pytest.mark.parametrize("algorithm", ["ppo", "reinforce"])
def test_learns(algorithm, network, target):
    before, after = share_after_learning(algorithm, network, target)
    assert before < 0.5
    assert after >= toys.LEARNED


def test_minibatches_learn():
    assert share_after_learning("ppo", "mlp", "constant", minibatches=4, passes=3)[
        1
    ] >= (toys.LEARNED)


@pytest.mark.parametrize("algorithm", ["ppo", "reinforce"])
def test_without_gradients_it_fails(algorithm):
    rates = {"learning_rate": 1e-12, "final_learning_rate": 1e-12}
    before, after = share_after_learning(algorithm, "mlp", "constant", **rates)
    assert after < toys.LEARNED
    assert after == pytest.approx(before, abs=1e-3)


def test_only_the_lstm_solves_what_needs_memory():
    assert share_after_learning("ppo", "lstm", "memory")[1] >= toys.LEARNED
    assert share_after_learning("ppo", "mlp", "memory")[1] < toys.LEARNED
