import dataclasses
import json

import pytest

from keras_learned_lr.control.actions import ScaleFactor
from keras_learned_lr.learning import LearnerConfig, NegativeValidationLoss
from keras_learned_lr.observation.spec import PUBLISHED


def test_survives_json():
    config = LearnerConfig(
        algorithm="reinforce",
        network="lstm",
        observation=PUBLISHED,
        action_form=ScaleFactor(),
        reward=NegativeValidationLoss(explosion=9.0),
        hidden=(8, 4),
        gradient_clipping=None,
        seed=3,
    )
    again = LearnerConfig.from_config(json.loads(json.dumps(config.to_config())))
    assert again == config


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("algorithm", "dqn"),
        ("network", "gru"),
        ("action_form", "scale"),
        ("reward", "loss"),
        ("discount", 1.01),
        ("gae_lambda", -0.1),
        ("learning_rate", 0.0),
        ("clip", float("nan")),
        ("initial_deviation", -1.0),
        ("passes", 0),
        ("hidden", ()),
        ("hidden", (64, 0)),
        ("lstm_size", 2.5),
        ("capacity", 1),
        ("train_every", 0),
        ("train_every", 2048),
        ("gradient_clipping", 0.0),
        ("episodes_per_update", True),
    ],
)
def test_errors_quote_what_they_got(setting, value):
    with pytest.raises(ValueError) as error:
        LearnerConfig(**{setting: value})
    assert f"`{setting}`" in str(error.value)
    assert repr(value) in str(error.value)


def test_an_unknown_feature_is_refused():
    with pytest.raises(ValueError, match="no_such"):
        LearnerConfig(observation=("progress", "no_such"))


def test_reinforce_trains_at_the_end_of_episodes_only():
    with pytest.raises(ValueError, match="train_every=16"):
        LearnerConfig(algorithm="reinforce", train_every=16)


def test_every_setting_is_documented():
    for field in dataclasses.fields(LearnerConfig):
        assert f"        {field.name}: " in LearnerConfig.__doc__


def test_schedules_run_from_initial_to_final():
    config = LearnerConfig(annealing_updates=10)
    assert config.deviation_at(0) == 0.5
    assert config.deviation_at(5) == pytest.approx(0.325)
    assert config.deviation_at(10) == config.deviation_at(99) == pytest.approx(0.15)
    assert config.learning_rate_at(5) == pytest.approx(10**-3.5)
    assert config.learning_rate_at(99) == pytest.approx(1e-4)
