"""Action forms: one contract for all, and the values of each by hand."""

import dataclasses
import json
import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from keras_learned_lr.control.actions import (
    COME_DOWN,
    ENVELOPE_FLOOR,
    HOLD,
    RETREAT,
    ActionForm,
    AnchoredScaleFactor,
    DirectLearningRate,
    LogLearningRate,
    ScaleFactor,
    Width,
)
from keras_learned_lr.control.schedules import (
    EverySteps,
    Geometric,
    GeometricPerRun,
    PerRun,
)

FORMS = {
    "scale": ScaleFactor(),
    "scale-wide": ScaleFactor(width=Width(3.0, 0.2, 0.3), range_decades=2.0),
    "anchored": AnchoredScaleFactor(),
    "anchored-even": AnchoredScaleFactor(schedule=PerRun(7)),
    "anchored-flat": AnchoredScaleFactor(
        schedule=GeometricPerRun(), envelope="trapezoid"
    ),
    "anchored-lifted": AnchoredScaleFactor(lift=0.1),
    "log": LogLearningRate(range_decades=3.0),
    "direct": DirectLearningRate(largest=5.0),
    "direct-annealed": DirectLearningRate(envelope="cosine"),
}
T = 100


@pytest.fixture(params=FORMS, name="form", scope="module")
def _form(request):
    return FORMS[request.param]


def take(form, state, action, step=10, horizon=T, **bounds):
    action = tf.convert_to_tensor(action, tf.float32)
    return form.step(state, action, tf.constant(step), tf.constant(horizon), **bounds)


def values(state):
    return [np.array(field) for field in state]


class TestContract:
    def test_is_pure(self, form):
        state = form.initial_state(0.01)
        before = values(state)
        first = take(form, state, 0.7)
        second = take(form, state, 0.7)
        np.testing.assert_array_equal(values(state), before)
        np.testing.assert_array_equal(values(first[0]), values(second[0]))
        assert float(first[1]) == float(second[1])

    def test_round_trip(self, form):
        config = json.loads(json.dumps(form.to_config()))
        assert ActionForm.from_config(config) == form

    def test_a_level_at_the_default_is_where_a_run_starts(self, form):
        state = form.initial_state(0.01)
        assert float(state.level) == pytest.approx(0.01)
        assert float(state.default) == pytest.approx(0.01)

    @pytest.mark.parametrize("action", [math.nan, math.inf, -math.inf])
    def test_holds_where_the_action_is_not_finite(self, form, action):
        state, _ = take(form, form.initial_state(0.01), 0.3)
        held, rate = take(form, state, action)
        assert float(held.level) == float(state.level)
        assert float(rate) == float(form.learning_rate(state, 10, T))

    @pytest.mark.parametrize("action", [1.0, -1.0])
    def test_clips_what_is_out_of_range(self, form, action):
        state = form.initial_state(0.01)
        edge, far = take(form, state, action), take(form, state, 40 * action)
        assert float(edge[0].level) == float(far[0].level)
        assert float(edge[1]) == float(far[1])

    def test_a_larger_action_never_gives_a_smaller_rate(self, form):
        state = form.initial_state(0.01)
        rates = [float(take(form, state, a)[1]) for a in np.linspace(-1, 1, 9)]
        assert np.all(np.diff(rates) >= 0) and rates[0] < rates[-1]

    @pytest.mark.parametrize("action", [1.0, -1.0, math.nan])
    def test_a_retreat_bounds_the_level_whatever_the_action(self, form, action):
        state = form.initial_state(tf.fill([3], 0.01))
        state = state._replace(level=tf.fill([3], 0.02), good=tf.fill([3], 0.015))
        action, retreat = tf.fill([3], action), tf.constant([0.0, HOLD, COME_DOWN])
        moved, _ = take(form, state, action, retreat=retreat)
        wanted, _ = take(form, state, action)
        np.testing.assert_allclose(
            moved.level,
            np.minimum(wanted.level, [np.inf, 0.02, RETREAT * 0.02]),
            rtol=1e-6,
        )
        good = [0.015, 0.015, min(0.015, float(moved.level[2]))]
        np.testing.assert_allclose(moved.good, good, rtol=1e-6)

    def test_a_batch_gives_what_scalars_give(self, form):
        defaults = np.array([1e-4, 0.01, 3.0], "float32")
        actions = np.array([0.5, math.nan, -2.0], "float32")
        batch, rates = take(form, form.initial_state(defaults, 1e-5, 1.0), actions)
        for i in range(3):
            alone, rate = take(
                form, form.initial_state(defaults[i], 1e-5, 1.0), actions[i]
            )
            np.testing.assert_allclose([f[i] for f in batch], values(alone), rtol=1e-6)
            assert float(rates[i]) == pytest.approx(float(rate), rel=1e-6)

    @hypothesis.settings(max_examples=40, deadline=None)
    @hypothesis.given(
        actions=st.lists(st.floats(width=32) | st.just(math.nan), max_size=8),
        default=st.floats(1e-8, 1e3),
        bounds=st.tuples(
            st.none() | st.floats(1e-10, 1e4), st.none() | st.floats(1e-10, 1e4)
        ),
    )
    def test_stays_finite_positive_and_in_bounds(self, form, actions, default, bounds):
        low, high = bounds
        if None not in bounds and low > high:
            low, high = high, low
        state, slack = form.initial_state(default, low, high), 1 + 1e-5
        for turn, action in enumerate([0.0, *actions]):
            state, rate = take(form, state, action, step=turn * 13)
            level, rate = float(state.level), float(rate)
            assert 0 < rate < math.inf and 0 < level < math.inf
            assert rate <= level * slack
            if low is not None:
                assert rate >= low / slack
            if high is not None:
                assert rate <= high * slack
            if bounds == (None, None):
                reach = 10.0**form.range_decades * slack
                assert default / reach <= level <= default * reach

    def test_unknown_settings_and_versions_are_refused(self, form):
        config = form.to_config()
        with pytest.raises(ValueError, match="version 99 cannot be read"):
            ActionForm.from_config(config | {"version": 99})
        with pytest.raises(ValueError, match=r"no setting \['speed'\]"):
            ActionForm.from_config(config | {"speed": 1})
        with pytest.raises(ValueError, match="Unknown action form: 'Nope'"):
            ActionForm.from_config(config | {"name": "Nope"})


class TestScaleFactor:
    def test_new_rate_is_the_most_recent_times_the_factor(self):
        form = ScaleFactor(width=Width(0.5, 0.5))
        state, expected = form.initial_state(0.01), 0.01
        for turn, action in enumerate([1.0, 0.4, -0.6, 0.0, -1.0]):
            state, rate = take(form, state, action, step=20 * turn)
            expected *= 10 ** (0.5 * action)
            assert float(rate) == pytest.approx(expected, rel=1e-5)
            assert float(state.level) == float(rate)

    def test_opposite_actions_undo_each_other(self):
        form = ScaleFactor()
        state, _ = take(form, form.initial_state(0.01), 0.8)
        assert float(take(form, state, -0.8)[1]) == pytest.approx(0.01, rel=1e-5)

    def test_the_range_around_the_default_is_the_clamp(self):
        form = ScaleFactor(range_decades=1.0)
        up = down = form.initial_state(0.01)
        for _ in range(9):
            up, high = take(form, up, 1.0)
            down, low = take(form, down, -1.0)
        assert float(high) == pytest.approx(0.1, rel=1e-5)
        assert float(low) == pytest.approx(0.001, rel=1e-5)


def test_a_lift_is_added_to_every_action_in_decades():
    form = ScaleFactor(width=Width(1.0, 1.0), lift=0.1)
    state = form.initial_state(0.01)
    for action, decades in ((0.0, 0.1), (0.5, 0.6), (-1.0, -0.9)):
        rate = take(form, state, action)[1]
        assert float(rate) == pytest.approx(0.01 * 10**decades, rel=1e-5)


class TestAnchored:
    def test_the_width_narrows(self):
        width = Width(initial=2.0, final=0.1, decay=0.05)
        got = [float(width.at(tf.constant(p))) for p in (0.0, 0.05, 1.0)]
        expected = [2.0, 0.1 + 1.9 / math.e, 0.1 + 1.9 * math.exp(-20)]
        assert got == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize(
        ("step", "share"),
        [
            (0, 1.0),
            (25, ENVELOPE_FLOOR + (1 - ENVELOPE_FLOOR) * 0.8535534),
            (50, ENVELOPE_FLOOR + (1 - ENVELOPE_FLOOR) * 0.5),
            (100, ENVELOPE_FLOOR),
            (250, ENVELOPE_FLOOR),
        ],
    )
    def test_the_envelope_is_half_a_cosine(self, step, share):
        form = AnchoredScaleFactor()
        state, rate = take(form, form.initial_state(0.01), 0.0, step=step)
        assert float(rate) == pytest.approx(0.01 * share, rel=1e-4)
        assert float(state.level) == pytest.approx(0.01, rel=1e-6)

    @pytest.mark.parametrize(
        ("envelope", "step", "share"),
        [
            ("trapezoid", 0, 1.0),
            ("trapezoid", 80, 1.0),
            ("trapezoid", 90, 0.5005),
            ("trapezoid", 99, 0.05095),
            ("long_trapezoid", 0, 1.0),
            ("long_trapezoid", 70, 1.0),
            ("long_trapezoid", 85, 0.5005),
            ("long_trapezoid", 97, 0.1009),
        ],
    )
    def test_trapezoids_come_down_over_the_end(self, envelope, step, share):
        form = AnchoredScaleFactor(envelope=envelope)
        _, rate = take(form, form.initial_state(0.01), 0.0, step=step)
        assert float(rate) == pytest.approx(0.01 * share, rel=1e-4)

    @pytest.mark.parametrize("step", [0, 30, 99, 100])
    def test_the_line_comes_down_all_along(self, step):
        form = AnchoredScaleFactor(envelope="linear")
        _, rate = take(form, form.initial_state(0.01), 0.0, step=step)
        share = ENVELOPE_FLOOR + (1 - ENVELOPE_FLOOR) * (100 - step) / 100
        assert float(rate) == pytest.approx(0.01 * share, rel=1e-4)

    def test_the_factor_moves_the_level_and_not_what_is_left_of_it(self):
        form = AnchoredScaleFactor(width=Width(1.0, 1.0))
        state, _ = take(form, form.initial_state(0.01), 1.0, step=50)
        state, rate = take(form, state, 0.0, step=50)
        assert float(state.level) == pytest.approx(0.1, rel=1e-5)
        assert float(rate) == pytest.approx(0.1 * 0.5005, rel=1e-4)


def test_log_form_is_the_logarithm_over_the_default():
    form = LogLearningRate(range_decades=3.0)
    state = form.initial_state(0.01)
    for action, expected in ((1.0, 10.0), (-1.0, 1e-5), (0.5, 0.01 * 10**1.5)):
        assert float(take(form, state, action)[1]) == pytest.approx(expected, rel=1e-4)


def test_direct_form_is_the_rate_itself():
    form = DirectLearningRate(largest=4.0)
    state = form.initial_state(0.01)
    for action, expected in ((1.0, 0.04), (0.0, 0.02), (-0.5, 0.01), (-1.0, 1e-6)):
        assert float(take(form, state, action)[1]) == pytest.approx(expected, rel=1e-4)


class TestBounds:
    @pytest.mark.parametrize("default", [1e-12, 1e-3, 1e6])
    def test_the_users_bounds_hold_whatever_the_default(self, form, default):
        for low, high in ((1e-4, None), (None, 1e-2), (1e-4, 1e-2)):
            state = form.initial_state(default, low, high)
            for step in (0, 50, 100):
                for action in (-1.0, 0.0, 1.0):
                    state, rate = take(form, state, action, step=step)
                    assert low is None or float(rate) >= low * (1 - 1e-5)
                    assert high is None or float(rate) <= high * (1 + 1e-5)

    def test_the_smallest_rate_holds_under_the_envelope_too(self):
        form = AnchoredScaleFactor()
        state = form.initial_state(0.01, minimum=0.002)
        assert float(take(form, state, 0.0, step=T)[1]) == pytest.approx(0.002)


@pytest.mark.parametrize(
    "build",
    [
        lambda: ScaleFactor(range_decades=0.0),
        lambda: ScaleFactor(range_decades=math.nan),
        lambda: ScaleFactor(envelope="square"),
        lambda: ScaleFactor(lift=2.0),
        lambda: ScaleFactor(lift=math.nan),
        lambda: Width(initial=-1.0),
        lambda: EverySteps(0),
        lambda: PerRun(0),
        lambda: GeometricPerRun(0),
        lambda: GeometricPerRun(density=0.0),
        lambda: Geometric(growth=-0.1),
        lambda: Geometric(minimum=0),
        lambda: Geometric(largest_share=0.0),
    ],
)
def test_impossible_settings_are_refused(build):
    with pytest.raises(ValueError, match="Received|Known"):
        build()


class TestSchedules:
    def steps(self, schedule, horizon):
        due, all_due = 0, [0]
        while (due := schedule.next_step(due, horizon)) < horizon:
            all_due.append(due)
        return all_due

    def test_every_steps(self):
        assert self.steps(EverySteps(30), 100) == [0, 30, 60, 90]
        assert not EverySteps(30).needs_horizon

    @pytest.mark.parametrize("horizon", [7, 100, 101, 99999])
    def test_per_run_spreads_its_decisions(self, horizon):
        due = self.steps(PerRun(7), horizon)
        assert len(due) == 7
        assert max(np.diff(due)) - min(np.diff(due)) <= 1

    def test_per_run_of_fewer_steps_than_decisions(self):
        assert self.steps(PerRun(20), 5) == [0, 1, 2, 3, 4]

    def test_geometric_is_dense_early_and_sparse_later(self):
        due = self.steps(Geometric(), 10_000)
        windows = np.diff(due)
        assert due[:4] == [0, 2, 4, 6]
        assert np.all(np.diff(windows) >= 0)
        assert max(windows) == 400

    def test_geometric_per_run_meets_a_short_run_as_it_meets_a_long_one(self):
        schedule = GeometricPerRun(24, density=4.0)
        long, short = self.steps(schedule, 100_000), self.steps(schedule, 1_000)
        assert len(long) == len(short) == 24
        np.testing.assert_allclose(
            np.array(short) / 1e3, np.array(long) / 1e5, atol=1e-3
        )
        # Each window is e^(4 / 24) times as long as the one before.
        windows = np.diff(long)
        np.testing.assert_allclose(
            windows[1:] / windows[:-1], np.exp(4 / 24), rtol=0.01
        )

    def test_geometric_per_run_of_few_steps(self):
        due = self.steps(GeometricPerRun(24), 20)
        assert due[:4] == [0, 1, 2, 3] and len(due) < 20

    @pytest.mark.parametrize(
        "schedule", [EverySteps(3), PerRun(9), Geometric(), GeometricPerRun()]
    )
    @pytest.mark.parametrize("horizon", [1, 2, 50, 10**7])
    def test_every_schedule_moves_on(self, schedule, horizon):
        """Also from steps at which no decision was due."""
        for step in range(0, horizon, max(1, horizon // 50)):
            assert schedule.next_step(step, horizon) > step

    @pytest.mark.parametrize(
        "schedule", [EverySteps(3), PerRun(9), Geometric(), GeometricPerRun()]
    )
    def test_a_form_carries_it(self, schedule):
        form = dataclasses.replace(ScaleFactor(), schedule=schedule)
        assert ActionForm.from_config(form.to_config()).schedule == schedule
        assert form.needs_horizon == schedule.needs_horizon

    def test_a_form_that_plans_for_the_run_says_so(self):
        assert not ScaleFactor().needs_horizon
        assert ScaleFactor(width=Width(2.0, 0.1)).needs_horizon
        assert ScaleFactor(envelope="cosine").needs_horizon
        assert AnchoredScaleFactor().needs_horizon
