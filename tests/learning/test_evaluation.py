import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from keras_learned_lr.control.actions import AnchoredScaleFactor
from keras_learned_lr.control.schedules import GeometricPerRun
from keras_learned_lr.learning import evaluation
from keras_learned_lr.learning.environment import scores
from keras_learned_lr.learning.tasks import read_split
from keras_learned_lr.learning.tasks.sampler import TaskSampler
from keras_learned_lr.observation.spec import ObservationSpec

SPEC = ObservationSpec(("log_level", "progress", "validation_vs_first"))
TEMPLATE = read_split()["validation/rings_nesterov"]
HORIZON = 24


@pytest.fixture(scope="module")
def sampler():
    form = AnchoredScaleFactor(
        schedule=GeometricPerRun(6, density=2.0), range_decades=6.0
    )
    return TaskSampler(SPEC, form)


@pytest.fixture(scope="module")
def exams(sampler):
    return evaluation.set_exams(sampler, [TEMPLATE], [HORIZON], 3, seed=4)


def stateless(_):
    return []


def holds(observation, state):
    return tf.zeros(observation.shape[0]), state


def test_a_controller_that_holds_is_the_cosine_from_where_it_starts(exams):
    (exam,) = exams
    batch = exam.draw(evaluation.GRID)
    losses, seen = evaluation.run_controller(batch, holds, [])
    assert len(seen) == 6
    # A cosine has no decisions at which it could go back from the highest.
    found, expected = losses.reshape(3, 8)[:, :6], exam.cosine[:, :6]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_array_equal(exam.best_cosine, exam.cosine.min(1))


def test_the_cosine_grid_follows_its_formula(sampler, exams):
    """Replayed step by step through the engine, at learning rates set by hand."""
    (exam,) = exams
    batch = exam.draw(evaluation.GRID)
    members = batch.members
    constant = AnchoredScaleFactor(
        schedule=GeometricPerRun(6, density=2.0), range_decades=6.0, envelope="constant"
    )
    plain = TaskSampler(SPEC, constant)._engine(TEMPLATE)[0]
    state, _ = plain.begin(members)
    low = 1e-3
    for step in range(HORIZON):
        shape = low + (1 - low) * 0.5 * (1 + np.cos(np.pi * step / HORIZON))
        level = members.learning_rate * tf.constant(shape, tf.float32)
        state = state._replace(
            action=state.action._replace(level=level, good=level),
            # A cosine never goes back, nor down.
            collapsed=tf.zeros_like(state.collapsed),
            memory=state.memory._replace(retreats=tf.zeros(24)),
        )
        state, _ = plain.advance(members, state, tf.zeros(24), tf.constant(1, tf.int64))
    found = scores(batch, state).reshape(3, 8)
    np.testing.assert_allclose(
        np.where(np.isfinite(found), found, np.inf), exam.cosine, rtol=1e-3
    )


def test_a_search_chooses_on_the_examples_that_a_controller_is_shown(sampler):
    """Thirty tasks: in some of them the scored examples would have chosen another."""
    (exam,) = evaluation.set_exams(sampler, [TEMPLATE], [HORIZON], 30, seed=4)
    cosines = TaskSampler(evaluation.COSINE_SPEC, evaluation.COSINE)
    rng = np.random.default_rng([4, 0, HORIZON])
    offsets = np.tile(evaluation.GRID, (30, 1))
    batch = cosines.draw(TEMPLATE, 30, offsets, HORIZON, rng)
    trainees, members = batch.trainees, batch.members
    state, _ = trainees.begin(members)
    state, _ = trainees.advance(members, state, tf.zeros(240), members.horizon)
    shown = batch.measure(state, members).numpy().reshape(30, 8)
    scored = scores(batch, state).reshape(30, 8)
    ended = np.isfinite(scored) & np.isfinite(shown)
    chosen = np.where(ended, shown, np.inf).argmin(1)
    found = scored[np.arange(30), chosen]
    np.testing.assert_allclose(exam.tuned_cosine, found, rtol=1e-4)
    assert (exam.tuned_cosine >= exam.best_cosine).all()
    assert (exam.tuned_cosine > exam.best_cosine).any()


def test_the_exams_are_the_same_every_time(sampler, exams):
    again = evaluation.set_exams(sampler, [TEMPLATE], [HORIZON], 3, seed=4)
    np.testing.assert_array_equal(again[0].cosine, exams[0].cosine)
    other = evaluation.set_exams(sampler, [TEMPLATE], [HORIZON], 3, seed=5)
    assert (other[0].cosine != exams[0].cosine).any()


def test_marks_are_geometric_means_of_ratios(exams):
    (exam,) = exams
    losses = np.tile(exam.best_cosine[:, np.newaxis], (1, 8))
    losses[:, 1] *= 2.0  # 100 times too small
    losses[:, 0] *= 3.0  # 1000 times
    losses[0, 7] = np.nan
    losses[1, 7] *= 1e6
    ratios = evaluation.ratios_to_best(exam, losses.ravel())
    result = evaluation.mark([exam], [ratios])
    assert result.ratio == pytest.approx(2.0 ** (1 / 6))
    lead = np.exp(np.log(exam.tuned_cosine / exam.best_cosine).mean())
    assert result.tuned_ratio == pytest.approx(result.ratio / lead)
    assert result.far_ratio == pytest.approx((3.0**3 * 10 * 10) ** (1 / 6))
    assert result.lost == pytest.approx(2 / 24)
    assert result.by_offset["-2"] == pytest.approx(2.0)
    assert result.by_exam == {
        "validation/rings_nesterov T=24": pytest.approx(result.ratio)
    }


def test_feedback_is_cut_off_in_the_open_loop(exams):
    """What answers the loss alone does the same in every run there."""
    answers = []

    def answering(observation, state):
        action = tf.tanh(3.0 * observation[:, 2])
        answers.append(action.numpy())
        return action, state

    closed = evaluation.examine(exams, answering, stateless)
    assert np.ptp(answers[-1]) > 0
    answers.clear()
    opened = evaluation.open_loop(exams, answering, stateless)
    decisions = len(answers) // 2
    assert np.ptp(answers[decisions - 1]) > 0
    assert all(np.ptp(a) == 0 for a in answers[decisions:])
    averages = [a.mean() for a in answers[decisions:]]
    assert np.ptp(averages) > 0
    assert dataclasses.asdict(closed) != dataclasses.asdict(opened)
