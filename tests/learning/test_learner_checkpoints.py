"""A learner that was saved and restored goes on to the same numbers."""

import json

import numpy as np
import pytest
import runs
import tensorflow as tf

from keras_learned_lr.controllers import as_controller
from keras_learned_lr.learning import ControllerLearner

CASES = [
    {},
    {"minibatches": 2, "gradient_clipping": None},
    {"algorithm": "reinforce"},
    {"network": "lstm", "train_every": 3},
]


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_continues_to_identical_weights(settings, tmp_path):
    learner = ControllerLearner(runs.small(**settings))
    for seed in range(3):
        runs.episode(learner, seed)
    run = runs.Run(learner, 3)
    run.look()
    run.look()
    # In mid-episode, with one finished episode in the buffer.
    learner.save(tmp_path)
    learner.save(tmp_path)
    other = ControllerLearner.load(tmp_path)
    assert other.config == learner.config

    twin = runs.Run.__new__(runs.Run)
    twin.__dict__.update(run.__dict__, learner=other, decisions=[])
    twin.noise = np.random.default_rng()
    twin.noise.bit_generator.state = run.noise.bit_generator.state
    for current in (run, twin):
        current.look()
        current.look()
        current.look(final=True)
        for seed in range(4, 7):
            runs.episode(current.learner, seed)
    for a, b in zip(runs.weights(learner), runs.weights(other), strict=True):
        np.testing.assert_array_equal(a, b)
    assert learner.history == other.history
    assert len(learner.history.updates) > 2


def test_a_checkpoint_is_a_controller_that_acts_greedily(tmp_path):
    learner = ControllerLearner(runs.small())
    for variable in learner.parts.actor.trainable_variables:
        variable.assign_add(0.1 * tf.ones_like(variable))
    learner.save(tmp_path)
    controller = as_controller(tmp_path)
    observation = np.ones((3, len(learner.observation_spec.names)), np.float32)
    actions = [
        each.act(tf.constant(observation), each.initial_state(3)).action
        for each in (controller, learner.greedy(), controller)
    ]
    np.testing.assert_array_equal(actions[0], actions[1])
    np.testing.assert_array_equal(actions[0], actions[2])


def test_only_the_last_save_is_kept_and_the_index_names_it(tmp_path):
    learner = ControllerLearner(runs.small())
    for _ in range(3):
        learner.save(tmp_path)
    index = json.loads((tmp_path / "learner.json").read_text())
    others = {f.name.partition(".")[0] for f in tmp_path.iterdir()} - {"learner"}
    assert others == {index["tensors"]}


def test_errors_say_what_to_do(tmp_path):
    learner = ControllerLearner(runs.small())
    with pytest.raises(ValueError, match="No learner is saved in"):
        learner.restore(tmp_path)
    learner.save(tmp_path)
    with pytest.raises(ValueError, match="another hidden.*load"):
        ControllerLearner(runs.small(hidden=(4,))).restore(tmp_path)
    index = tmp_path / "learner.json"
    index.write_text(index.read_text().replace('"version": 1', '"version": 99', 1))
    with pytest.raises(ValueError, match="99"):
        learner.restore(tmp_path)
