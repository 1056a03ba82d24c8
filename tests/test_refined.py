"""A controller whose levels whole runs have corrected."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf
from helpers import GraphController, MLPController, RecurrentController
from typer.testing import CliRunner

from keras_learned_lr import load_controller
from keras_learned_lr.cli import app
from keras_learned_lr.control.actions import (
    AnchoredScaleFactor,
    LogLearningRate,
    Width,
)
from keras_learned_lr.control.export import export_version
from keras_learned_lr.control.refined import Refined, quantities, refinable
from keras_learned_lr.control.schedules import GeometricPerRun
from keras_learned_lr.learning.refining import (
    WEIGHTS,
    RefineConfig,
    Refining,
    TrialSettings,
)
from keras_learned_lr.learning.slopes import fit_slopes, weigh
from keras_learned_lr.learning.tasks.split import choose_templates
from keras_learned_lr.learning.trials import TrialRunner, Trials
from keras_learned_lr.rehearsal import rehearse

NAMES = ("log_level", "progress", "training_vs_first", "training_vs_first@0.5")
FORM = AnchoredScaleFactor(
    schedule=GeometricPerRun(decisions=8, density=2.0),
    width=Width(initial=2.0, final=0.5, decay=0.1),
    envelope="linear",
)
SMALL = TrialSettings(
    tasks=2, group=4, shortest_horizon=20, longest_horizon=30, shown=32, spread=0.5
)


def decades(controller, more, observation):
    """How much further a refined controller moves the level than the one it refines."""
    state = controller.initial_state(len(observation))
    moves = [
        np.asarray(c.act(tf.constant(observation), state).action)
        * np.asarray(FORM.width.at(0.5 * (observation[:, 1] + 1.0)))
        for c in (more, controller)
    ]
    return moves[0] - moves[1]


def test_a_correction_is_a_weighted_sum_in_decades_whatever_the_width():
    controller = MLPController(names=NAMES, form=FORM)
    rng = np.random.default_rng(0)
    seen = rng.normal(size=(50, 4)).astype("float32") * [1.0, 0.5, 2.0, 1.0]
    seen = seen.astype("float32")
    weights = rng.normal(size=13) * 0.02
    refined = Refined(controller, weights, 0.1)
    x = np.clip(seen[:, :3], -3, 3)
    parts = [x, x**2, x * x[:, 1:2], np.tanh(3 * x), np.ones((50, 1))]
    expected = np.clip(np.concatenate(parts, 1) @ weights, -0.1, 0.1)
    assert 0 < np.mean(np.abs(expected) < 0.1) < 1
    np.testing.assert_allclose(decades(controller, refined, seen), expected, atol=1e-5)


def test_what_cannot_be_refined_is_refused():
    controller = MLPController(names=NAMES, form=FORM)
    with pytest.raises(ValueError, match="13 weights. Received: \\(12,\\)"):
        Refined(controller, np.zeros(12), 0.1)
    with pytest.raises(ValueError, match="`progress` must be in"):
        refinable(["log_level", "progress@0.5"])
    other = MLPController(names=NAMES, form=LogLearningRate())
    with pytest.raises(ValueError, match="ScaleFactor"):
        Refined(other, np.zeros(13), 0.1)


def trials_of(slopes, noise, seed, batches=12):
    """Trials whose results are what moves along known slopes would make of them."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(batches):
        seen = rng.normal(size=(9, 4, 3)).astype("float32")
        phase = np.repeat([0, 1, 2], 3)
        moved = rng.uniform(-0.1, 0.1, (4, 16, 3)).astype("float32")
        gain = quantities(seen, 1) @ slopes
        summed = np.stack([gain[phase == p].sum(0) for p in range(3)], -1)
        result = -np.einsum("tgp,tp->tg", moved, summed)
        result += rng.normal(size=(4, 1)) + noise * rng.normal(size=(4, 16))
        one = np.asarray(1)
        found.append(Trials(seen, phase, moved, np.exp(result), one, one))
    return found


def test_slopes_are_found_among_tasks_that_end_wherever_they_end():
    slopes = np.zeros(13)
    slopes[[0, 5, 9, 12]] = [0.1, -0.05, 0.2, 0.1]
    found = fit_slopes(trials_of(slopes, 0.02, 0), 1, 1e-3)
    unseen = trials_of(slopes, 0.0, 1)
    both = [weigh(which, unseen, 1) for which in (slopes, found)]
    assert np.corrcoef(both)[0, 1] > 0.97
    # Where nothing else decides, only what is clipped is lost.
    small = fit_slopes(trials_of(0.05 * slopes, 0.0, 0), 1, 1e-6)
    exact = [weigh(which, unseen, 1) for which in (slopes, small)]
    assert np.corrcoef(exact)[0, 1] > 0.9999
    # Without any there is nothing to find but noise, which the ridge keeps small.
    nothing = fit_slopes(trials_of(np.zeros(13), 0.02, 2), 1, 1.0)
    assert np.std(weigh(nothing, unseen, 1)) < 0.1 * np.std(both[1])


def test_runs_that_diverge_count_as_bad_and_not_as_nothing():
    trials = trials_of(np.zeros(13), 0.001, 0)
    for found in trials:
        # A loss of 1 would be far below all others.
        found.loss[:] *= np.e**9
        lost = np.argsort(found.moved.sum(-1), 1)[:, :3]
        np.put_along_axis(found.loss, lost, np.nan, 1)
    assert fit_slopes(trials, 1, 0.1)[12] > 1.0
    with pytest.raises(ValueError, match="no trials"):
        fit_slopes([], 1, 0.1)


def test_trainees_of_a_task_differ_in_how_they_are_moved_alone():
    controller = Refined(MLPController(names=NAMES, form=FORM), np.zeros(13), 0.1)
    (template,) = choose_templates("training", ["mixtures_sgd"])

    def run(spread):
        settings = dataclasses.replace(SMALL, spread=spread)
        rng = np.random.default_rng(3)
        return TrialRunner(controller, settings).run(template, rng)

    still, moved = run(1e-9), run(0.5)
    np.testing.assert_allclose(still.loss, still.loss[:, :1].repeat(4, 1), rtol=1e-5)
    assert np.all(np.ptp(np.log(moved.loss), 1) > 1e-3)
    assert np.all(np.ptp(still.loss, 0) > 1e-3)
    assert moved.moved.shape == (2, 4, 4) and moved.loss.shape == (2, 4)
    assert list(moved.phase) == sorted(moved.phase) and set(moved.phase) == set(
        range(4)
    )


def test_trials_are_moved_by_decades_whatever_the_width():
    still = GraphController(0.0, NAMES, FORM)
    runner = TrialRunner(Refined(still, np.zeros(13), 0.1), SMALL)
    (template,) = choose_templates("training", ["digits_adam"])
    trials = runner.run(template, np.random.default_rng(0))
    # Phase 0 has three of these decisions; `log_level` is halved, and a mean of four.
    assert list(trials.phase[:4]) == [0, 0, 0, 1]
    levels = 2.0 * trials.seen[1:4, :, 0]
    moved = trials.moved[..., 0].mean(1)
    np.testing.assert_allclose(levels, np.outer([1, 2, 3], moved), atol=1e-4)


def test_settings_are_checked():
    for settings in (
        {"phases": (0.5, 0.4)},
        {"group": 1},
        {"spread": 0.0},
        {"shortest_horizon": 2000},
        {"shown": 0},
        {"most_wrong": 0.0},
    ):
        with pytest.raises(ValueError, match=next(iter(settings))):
            TrialSettings(**settings)
    with pytest.raises(ValueError, match="`passes`"):
        RefineConfig(passes=0)
    with pytest.raises(ValueError, match="`step` must be below `limit`"):
        RefineConfig(step=0.2)
    with pytest.raises(ValueError, match="nobody"):
        RefineConfig(training=("nobody",))


def refining(folder, passes=2, **settings):
    config = RefineConfig(
        SMALL, passes, training=("mixtures_sgd", "digits_adam"), **settings
    )
    controller = RecurrentController(names=NAMES, form=FORM)
    return Refining(controller, folder, config)


def test_a_refinement_goes_on_to_the_same_weights(tmp_path):
    whole = refining(tmp_path / "whole")
    done = []
    whole.run(done.append)
    assert done == [1, 2, 3, 4]
    assert whole.facts()["passes"] == 2 and whole.facts()["trainee_steps"] > 0
    fewer = refining(tmp_path / "broken", passes=1)
    fewer.run()
    # Of the second pass one batch is there, and the other was being written.
    again = refining(tmp_path / "broken")
    again.collect(3)
    (tmp_path / "broken" / "trials" / "1-000.new").write_bytes(b"half")
    last = refining(tmp_path / "broken")
    last.run()

    def weights(run):
        told = json.loads((tmp_path / run / WEIGHTS).read_text())
        return np.array(told["weights"])

    np.testing.assert_array_equal(weights("broken"), weights("whole"))
    read = refining(tmp_path / "broken")
    read.run(lambda _: pytest.fail("Nothing is left to try."))
    seen = np.random.default_rng(0).normal(size=(20, 4)).astype("float32")
    moves = [
        decades(RecurrentController(names=NAMES, form=FORM), r.refined, seen)
        for r in (whole, last, read, fewer)
    ]
    np.testing.assert_array_equal(moves[0], moves[1])
    np.testing.assert_array_equal(moves[0], moves[2])
    assert not np.allclose(moves[0], moves[3], atol=1e-3)


def test_trials_of_two_controllers_or_settings_are_not_mixed(tmp_path):
    refining(tmp_path).collect(0)
    for other in ({"seed": 1}, {"step": 0.01}):
        with pytest.raises(ValueError, match="begun with another config"):
            refining(tmp_path, **other)
    config = refining(tmp_path).config
    lifted = dataclasses.replace(FORM, lift=0.1)
    for key, controller in (
        ("action_form", RecurrentController(names=NAMES, form=lifted)),
        ("controller", RecurrentController(names=NAMES, form=FORM, seed=1)),
    ):
        with pytest.raises(ValueError, match=f"begun with another {key}"):
            Refining(controller, tmp_path, config)


def test_a_correction_is_as_large_as_the_config_says(tmp_path):
    run = refining(tmp_path, step=0.1)
    run.run()
    trials = [run.collect(index) for index in range(run.batches)]
    weights = json.loads((tmp_path / WEIGHTS).read_text())["weights"]
    size = np.sqrt(np.mean(weigh(np.array(weights), trials, 1) ** 2))
    assert size == pytest.approx(0.1, rel=1e-3)


def test_what_next_to_never_happens_gets_no_weight():
    slopes = np.zeros(13)
    slopes[12] = 0.1
    trials = trials_of(slopes, 0.02, 0)
    for index, found in enumerate(trials):
        found.seen[:, :, 0] = 0.0
        found.seen[0, 0, 0] = 0.01 * (index == 0)
    found = np.abs(fit_slopes(trials, 1, 0.1))
    assert found.max() < 2 * found[12]


def test_a_refined_controller_is_exported_and_a_fit_follows_it(tmp_path):
    folder = tmp_path / "plain"
    facts = {"tasks": ["a"], "seeds": [3], "steps": 5, "scores": {"ratio": 1.1}}
    plain = MLPController(names=NAMES, form=FORM)
    export_version(plain, folder, None, facts)
    config = tmp_path / "refine.toml"
    config.write_text(
        "passes = 1\nstep = 0.2\nlimit = 0.4\ntraining = ['digits_adam']\n[trials]\n"
        "tasks = 2\ngroup = 4\nspread = 0.5\n"
        "shortest_horizon = 20\nlongest_horizon = 30\n"
    )
    to = tmp_path / "to"
    options = ["refine", str(folder), "--to", str(to), "--config", str(config)]
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 0, done.output
    made = load_controller(to / "controller" / "learned_lr")
    card = json.loads((made.path / "model_card.json").read_text())["trained"]
    assert card["steps"]["refined"] == 5 and card["tasks"] == [
        "a",
        "training/digits_adam",
    ]
    assert card["steps"]["refinement"]["passes"] == 1
    assert card["scores"] == {"before_the_refinement": {"ratio": 1.1}}
    weights = json.loads((to / WEIGHTS).read_text())["weights"]
    refined = Refined(plain, np.array(weights), 0.4)
    runs = [rehearse(c).decisions["action"] for c in (made, refined, plain)]
    np.testing.assert_allclose(runs[0], runs[1], rtol=1e-4, atol=1e-5)
    assert np.ptp(runs[0] - runs[2]) > 0.05
    wrong = CliRunner().invoke(app, [*options, "--seed", "1"])
    assert wrong.exit_code == 2 and "begun" in wrong.output
    config.write_text("stride = 1\n")
    wrong = CliRunner().invoke(app, options)
    assert wrong.exit_code == 2 and "stride" in wrong.output
