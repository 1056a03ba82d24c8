"""One contract for every reward."""

import json
import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_learned_lr.learning import (
    InverseValidationLoss,
    LogImprovement,
    NegativeValidationLoss,
    Reward,
)

REWARDS = [NegativeValidationLoss(), InverseValidationLoss(), LogImprovement()]
ODD = [0.0, -1.0, 1e-30, 1e38, -1e38, math.inf, -math.inf, math.nan, 0.7]
any_float = st.one_of(st.floats(width=32), st.sampled_from(ODD))
per_reward = pytest.mark.parametrize(
    "reward", REWARDS, ids=lambda reward: type(reward).__name__
)


@per_reward
@settings(max_examples=150, deadline=None)
@given(first=any_float, previous=any_float, loss=any_float)
def test_finite_for_all_inputs_and_worst_at_divergence(reward, first, previous, loss):
    earned = float(reward(first, previous, loss))
    assert math.isfinite(earned)
    for diverged in (math.nan, math.inf):
        assert float(reward(first, previous, diverged)) <= earned


@per_reward
@pytest.mark.parametrize("first", [2.0, -0.5, 0.0])
def test_falls_with_the_loss(reward, first):
    losses = np.linspace(-3, 200, 500, dtype=np.float32)
    earned = reward(np.full(500, first), np.full(500, 1.0), losses).numpy()
    assert np.all(np.diff(earned) <= 1e-6)
    assert earned[0] > earned[-1]


@per_reward
def test_works_on_floats_arrays_and_tensors_alike(reward):
    one = float(reward(2.0, 1.5, 1.0))
    many = reward(np.full(3, 2.0), np.full(3, 1.5), np.array([1.0, math.nan, 1.0]))
    assert many.shape == (3,)
    assert float(many[0]) == pytest.approx(one)
    graph = tf.function(reward)(tf.constant(2.0), tf.constant(1.5), tf.constant(1.0))
    assert float(graph) == pytest.approx(one)


@per_reward
def test_does_not_depend_on_the_unit_of_the_loss(reward):
    plain, scaled = reward(2.0, 1.5, 1.0), reward(2e3, 1.5e3, 1e3)
    assert float(plain) == pytest.approx(float(scaled), rel=1e-5)


@per_reward
def test_survives_json(reward):
    config = json.loads(json.dumps(reward.to_config()))
    assert Reward.from_config(config) == reward


def test_formulas():
    assert float(NegativeValidationLoss()(2.0, 9.0, 1.0)) == -0.5
    assert float(InverseValidationLoss()(2.0, 9.0, 0.5)) == 4.0
    assert float(InverseValidationLoss(limit=10)(2.0, 9.0, -1.0)) == 10.0
    # Far above the resolution it is the log ratio.
    assert float(LogImprovement()(1.0, 2.0, 1.0)) == pytest.approx(
        math.log(2), abs=1e-3
    )
    exact = math.asinh(0.1 / 0.04) - math.asinh(0.05 / 0.04)
    assert float(LogImprovement()(1.0, 0.1, 0.05)) == pytest.approx(exact, rel=1e-5)


@given(st.lists(any_float, min_size=2, max_size=8))
@settings(max_examples=100, deadline=None)
def test_log_improvements_add_up_whatever_happens_on_the_way(losses):
    reward = LogImprovement()
    steps = [
        float(reward(1.0, a, b)) for a, b in zip(losses[:-1], losses[1:], strict=True)
    ]
    whole = float(reward(1.0, losses[0], losses[-1]))
    assert sum(steps) == pytest.approx(whole, abs=1e-4)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LogImprovement(explosion=0.5), "explosion.*0.5"),
        (lambda: LogImprovement(resolution=0.0), "resolution.*0.0"),
        (lambda: InverseValidationLoss(limit=-3), "limit.*-3"),
    ],
)
def test_errors_quote_what_they_got(build, message):
    with pytest.raises(ValueError, match=message):
        build()
