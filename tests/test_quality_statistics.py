"""The benchmark's statistics, on numbers that can be worked out by hand."""

import numpy as np
import pytest

from keras_learned_lr.benchmark.quality import statistics as s

INF = float("inf")


@pytest.mark.parametrize(
    ("loss", "reference", "expected"),
    [
        (0.5, 1.0, 0.5),
        (3.0, 2.0, 1.5),
        (100.0, 1.0, s.CAP),
        (0.0, 1.0, 1.0 / s.CAP),
        (1.0, 0.0, s.CAP),
        (None, 1.0, s.CAP),
        (1.0, None, 1.0 / s.CAP),
        (None, None, 1.0),
    ],
)
def test_a_diverged_run_counts_as_the_worst_ratio(loss, reference, expected):
    assert s.ratio(loss, reference) == pytest.approx(expected)


def test_the_interquartile_mean_leaves_out_a_quarter_at_each_end():
    values = [100.0, 1.0, 2.0, 3.0, 4.0, -50.0, 7.0, 0.0]
    assert s.interquartile_mean(values) == pytest.approx((1 + 2 + 3 + 4) / 4)


def test_the_interval_of_equal_seeds_is_a_point():
    # Tasks differ, seeds do not: only drawing seeds within tasks leaves no spread.
    strata = [np.tile([0.7, 0.9, 1.1], (5, 1)), np.full((5, 3), 1.3)]
    low, high = s.stratified_interval(strata)
    # Sorted, 0.7 five times, 0.9 five, 1.1 five, 1.3 fifteen: seven go at each end.
    assert low == high == pytest.approx((3 * 0.9 + 5 * 1.1 + 8 * 1.3) / 16)


def test_the_interval_covers_the_mean_as_often_as_it_says():
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        table = random.normal(1.0, 0.1, (40, 1))
        low, high = s.stratified_interval([table])
        covered += low <= 1.0 <= high
    assert 52 <= covered <= 60  # 57 expected; below 52 has a probability of 0.01


@pytest.mark.parametrize("seeds", [2, 5])
def test_the_interval_covers_the_mean_with_few_seeds_too(seeds):
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        strata = [random.normal(1.0, 0.1, (seeds, 1)) for _ in range(12)]
        low, high = s.stratified_interval(strata)
        covered += low <= 1.0 <= high
    assert 52 <= covered <= 60  # without the widening 47 and 50


def test_runs_of_one_seed_are_drawn_together():
    # Both starts of a seed share its luck: twice the runs are no narrower.
    random = np.random.default_rng(1)
    one = random.normal(1.0, 0.1, (8, 1))
    both = np.repeat(one, 2, axis=1)
    assert s.stratified_interval([both]) == pytest.approx(
        s.stratified_interval([one]), abs=0.01
    )


def test_one_seed_has_no_interval():
    assert s.stratified_interval([np.ones((1, 3))]) is None


def test_close_ratios_are_ties():
    ratios = np.array([[0.5, 0.996], [1.004, 1.006], [s.CAP, 1.0]])
    assert s.wins_ties_losses(ratios) == (1, 3, 2)


def test_steps_to_target_are_those_of_the_first_look_below_it():
    curve = [3.0, None, 2.0, 1.0, 2.5]
    assert s.steps_to_target(curve, 10, 2.0) == 30.0
    assert s.steps_to_target(curve, 10, 0.5) == INF
    assert s.steps_to_target(curve, 10, None) == INF


def test_the_profile_is_measured_by_the_fastest_of_each_task():
    times = {"a": np.array([10.0, 40.0, INF]), "b": np.array([20.0, 20.0, INF])}
    found = s.performance_profiles(times)
    assert found["a"]["factors"] == [1.0, 2.0, None]
    assert found["b"]["factors"] == [2.0, 1.0, None]
    # A task at factor f is in the profile from f to 4: (4 - f) / 3 of its width.
    expected = ((4 - 1) / 3 + (4 - 2) / 3 + 0) / 3
    assert found["a"]["score"] == pytest.approx(expected)
    assert found["b"]["score"] == pytest.approx(expected)
