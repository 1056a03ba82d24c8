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
from keras_learned_lr.control.refined import (
    CONSTANT_KNOTS,
    FEATURE_WEIGHTS,
    FEATURES,
    KNOTS,
    LIMIT,
    QUANTITIES,
    Refined,
    Scales,
    between,
    check_refinable,
)
from keras_learned_lr.control.schedules import GeometricPerRun
from keras_learned_lr.learning.refining import (
    WEIGHTS,
    RefineConfig,
    Refining,
    TrialSettings,
)
from keras_learned_lr.learning.slopes import fit_slopes, moments, size_of
from keras_learned_lr.learning.tasks.sampler import TaskSampler
from keras_learned_lr.learning.tasks.split import choose_templates
from keras_learned_lr.learning.trials import TrialRunner, Trials
from keras_learned_lr.observation.spec import ObservationSpec
from keras_learned_lr.rehearsal import rehearse

NAMES = ("progress", *FEATURES)
FORM = AnchoredScaleFactor(
    schedule=GeometricPerRun(decisions=8, density=2.0),
    width=Width(initial=2.0, final=0.5, decay=0.1),
    envelope="linear",
)
SMALL = TrialSettings(
    tasks=2,
    group=4,
    shortest_horizon=20,
    longest_horizon=30,
    longest_seldom=25,
    shown=32,
    spread=0.5,
)
PLAIN = Scales((0.0,) * len(FEATURES), (1.0,) * len(FEATURES))
NOTHING = np.zeros(QUANTITIES)


def decades(controller, more, observation):
    """How much further a refined controller moves the level than the one it refines."""
    state = controller.initial_state(len(observation))
    moves = [
        np.asarray(c.act(tf.constant(observation), state).action)
        * np.asarray(FORM.width.at(0.5 * (observation[:, 0] + 1.0)))
        for c in (more, controller)
    ]
    return moves[0] - moves[1]


def draw_seen(rng, count):
    seen = rng.normal(size=(count, len(NAMES))).astype("float32") * 2.0
    seen[:, 0] = rng.uniform(-1, 1, count)
    return seen


def test_a_correction_is_a_bounded_sum_in_decades_whatever_the_width():
    controller = MLPController(names=NAMES, form=FORM)
    rng = np.random.default_rng(0)
    seen, weights = draw_seen(rng, 50), rng.normal(size=QUANTITIES) * 0.05
    mean, deviation = rng.normal(size=(2, len(FEATURES)))
    scales = Scales(mean.tolist(), np.abs(deviation).tolist())
    refined = Refined(controller, weights, scales)
    told = np.tanh((seen[:, 1:] - mean) / np.abs(deviation))
    parts = np.split(weights, [FEATURE_WEIGHTS])
    by_feature = parts[0].reshape(len(KNOTS), -1)
    share = 0.5 * (seen[:, 0] + 1.0)
    each = [np.interp(share, KNOTS, row) for row in by_feature.T]
    total = (told * np.transpose(each)).sum(1)
    total += np.interp(share, CONSTANT_KNOTS, parts[1])
    expected = LIMIT * np.tanh(total / LIMIT)
    assert 0.1 * LIMIT < np.abs(expected).max() < LIMIT
    np.testing.assert_allclose(decades(controller, refined, seen), expected, atol=1e-5)
    # Each trainee may have weights of its own.
    own = np.outer(np.arange(50) % 2, weights)
    apart = decades(controller, Refined(controller, own, scales), seen)
    np.testing.assert_allclose(apart, expected * (np.arange(50) % 2), atol=1e-5)


def test_nothing_that_is_seen_moves_a_level_further_than_the_limit():
    controller = MLPController(names=NAMES, form=FORM)
    refined = Refined(controller, np.full(QUANTITIES, 9.0), PLAIN)
    seen = np.array([[-1.0] + [1e3] * len(FEATURES)] * 2, "float32")
    np.testing.assert_allclose(decades(controller, refined, seen), LIMIT, atol=1e-5)


def test_what_cannot_be_refined_is_refused():
    controller = MLPController(names=NAMES, form=FORM)
    with pytest.raises(ValueError, match="weights. Received: \\(12,\\)"):
        Refined(controller, np.zeros(12), PLAIN)
    with pytest.raises(ValueError, match="missing: \\['log_level'\\]"):
        check_refinable(ObservationSpec([n for n in NAMES if n != "log_level"]))
    other = MLPController(names=NAMES, form=LogLearningRate())
    with pytest.raises(ValueError, match="ScaleFactor"):
        Refined(other, NOTHING, PLAIN)


def trials_of(slopes, noise, seed, batches=24):
    """Trials whose results are what moves along known slopes would make of them."""
    rng = np.random.default_rng(seed)
    share = np.linspace(0.02, 0.98, 12)
    at = np.asarray(between(tf.constant(share), KNOTS))
    constant = np.asarray(between(tf.constant(share), CONSTANT_KNOTS))
    found = []
    for _ in range(batches):
        told = np.tanh(rng.normal(size=(4, len(FEATURES))))
        each = np.einsum("dk,tf->dtkf", at, told).reshape(12, 4, -1)
        beside = np.broadcast_to(constant[:, np.newaxis], (12, 4, constant.shape[-1]))
        seen = np.concatenate([each, beside], -1)
        half = rng.uniform(-0.1, 0.1, (4, 8, len(CONSTANT_KNOTS)))
        moved = np.concatenate([half, -half], 1)
        lower = np.einsum("tgk,dk,dt->tg", moved, constant, seen @ slopes)
        result = rng.normal(size=(4, 1)) - lower + noise * rng.normal(size=(4, 16))
        one = np.asarray(1)
        found.append(
            Trials(
                seen.astype("float32"),
                moved.astype("float32"),
                np.exp(result),
                one,
                one,
            )
        )
    return found


def corrections(weights, trials):
    return np.concatenate([(t.seen @ weights).ravel() for t in trials])


def known_slopes():
    slopes = np.zeros(QUANTITIES)
    slopes[[0, 5, 20, 45, -1, -4]] = [0.1, -0.05, 0.2, 0.1, -0.2, 0.1]
    return slopes


def test_slopes_are_found_among_tasks_that_end_wherever_they_end():
    slopes = known_slopes()
    found = fit_slopes(moments(trials_of(slopes, 0.01, 0)), 1e-3)
    unseen = trials_of(slopes, 0.0, 1)
    both = [corrections(which, unseen) for which in (slopes, found)]
    assert np.corrcoef(both)[0, 1] > 0.95
    # Without any there is nothing to find but noise, which the ridge keeps small.
    nothing = fit_slopes(moments(trials_of(NOTHING, 0.02, 2)), 1.0)
    assert np.std(corrections(nothing, unseen)) < 0.2 * np.std(both[1])


def test_moments_of_several_passes_add_up():
    batches = trials_of(known_slopes(), 0.02, 0, 6)
    together = moments(batches[:4] + batches[4:])
    apart = moments(batches[:4]).plus(moments(batches[4:]), 1.0)
    np.testing.assert_allclose(fit_slopes(apart, 0.1), fit_slopes(together, 0.1))
    half = moments(batches[:4]).plus(moments(batches[4:]), 0.5)
    assert half.runs == 5 * 64
    with pytest.raises(ValueError, match="no trials"):
        moments([])


def test_runs_that_diverge_count_as_bad_and_not_as_nothing():
    trials = trials_of(NOTHING, 0.001, 0)
    for found in trials:
        # A loss of 1 would be far below all others.
        found.loss[:] *= np.e**9
        lost = np.argsort(found.moved.sum(-1), 1)[:, :3]
        np.put_along_axis(found.loss, lost, np.nan, 1)
    assert np.all(fit_slopes(moments(trials), 0.1)[FEATURE_WEIGHTS:] > 0.1)


def test_the_size_of_a_correction_is_that_of_what_was_seen():
    trials = trials_of(NOTHING, 0.1, 0, 3)
    constant = np.zeros(QUANTITIES)
    constant[FEATURE_WEIGHTS:] = 0.07
    assert size_of(constant, trials) == pytest.approx(0.07, rel=1e-5)


def run_trials(controller, weights=NOTHING, seldom=False, **settings):
    (template,) = choose_templates("training", ["mixtures_sgd"])
    runner = TrialRunner(controller, dataclasses.replace(SMALL, **settings))
    runner.begin(PLAIN)
    return runner.run(template, weights, [3], seldom)


def test_trainees_of_a_task_differ_in_how_they_are_moved_alone():
    controller = MLPController(names=NAMES, form=FORM)
    still, moved = (run_trials(controller, spread=spread) for spread in (1e-9, 0.5))
    np.testing.assert_allclose(still.loss, still.loss[:, :1].repeat(4, 1), rtol=5e-4)
    assert np.all(np.ptp(np.log(moved.loss), 1) > 2e-3)
    assert np.all(np.ptp(still.loss, 0) > 1e-3)
    assert moved.moved.shape == (2, 4, len(CONSTANT_KNOTS))
    np.testing.assert_array_equal(moved.moved[:, :2], -moved.moved[:, 2:])


def test_trials_are_around_the_correction_so_far():
    weights = np.zeros(QUANTITIES)
    weights[FEATURE_WEIGHTS:] = 0.05
    still = GraphController(0.0, NAMES, FORM)
    trials = run_trials(still, weights, spread=1e-9)
    # `log_level` is halved; what is seen of it is tanh, at one knot or the other.
    seen = trials.seen[..., :FEATURE_WEIGHTS].reshape(
        len(trials.seen), 2, len(KNOTS), -1
    )
    levels = 2.0 * np.arctanh(seen.sum(2)[..., FEATURES.index("log_level")])
    each = LIMIT * np.tanh(0.05 / LIMIT)
    expected = np.outer(each * np.arange(len(levels)), [1.0, 1.0])
    np.testing.assert_allclose(levels, expected, atol=1e-4)


def test_what_is_tried_seldom_is_shorter():
    controller = GraphController(0.0, NAMES, FORM)
    longest = {"shortest_horizon": 20, "longest_horizon": 500, "longest_seldom": 20}
    often, seldom = (run_trials(controller, seldom=s, **longest) for s in (False, True))
    assert seldom.steps == 20 * 8 < often.steps


def test_other_data_for_the_same_engines():
    spec = ObservationSpec(("log_level",))
    few = TaskSampler(spec, FORM, 32, fewest_rows=64)
    plenty = few.drawing(4608, 0.03)
    (template,) = choose_templates("training", ["mixtures_sgd"])

    def draw(sampler):
        rng = np.random.default_rng(0)
        return sampler.draw(template, 2, np.zeros((2, 1)), 20, rng)

    batches = [draw(few), draw(plenty)]
    assert batches[0].trainees is batches[1].trainees
    rows = [len(np.unique(batch.members.order[0])) for batch in batches]
    assert rows[1] > 2 * rows[0]


def test_settings_are_checked():
    for settings in (
        {"group": 3},
        {"tasks": 0},
        {"spread": 0.0},
        {"shortest_horizon": 2000},
        {"longest_seldom": 2000},
        {"shown": 0},
        {"most_wrong": 0.0},
        {"plentiful": 1.5},
    ):
        with pytest.raises(ValueError, match=next(iter(settings))):
            TrialSettings(**settings)
    for settings in (
        {"passes": 0},
        {"step": 0.0},
        {"memory": 2.0},
        {"training": ("nobody",)},
        {"seldom": ("nobody",)},
    ):
        named = next(iter(settings))
        with pytest.raises(ValueError, match=f"{named}|nobody"):
            RefineConfig(**settings)


def refining(folder, passes=2, **settings):
    config = RefineConfig(
        SMALL,
        passes,
        training=("mixtures_sgd", "digits_adam"),
        seldom=("digits_adam",),
        **settings,
    )
    controller = RecurrentController(names=NAMES, form=FORM)
    return Refining(controller, folder, config)


def test_a_refinement_goes_on_to_the_same_weights(tmp_path):
    whole = refining(tmp_path / "whole", 3)
    # The second of the two templates is tried in every second pass.
    assert whole.due == [[0], [0, 1], [0]]
    done = []
    assert whole.run(done.append) and done == [1, 2, 3, 4]
    assert whole.facts()["passes"] == 3 and whole.facts()["trainee_steps"] > 0
    fewer = refining(tmp_path / "broken", 1)
    fewer.run()
    # Of the second pass one batch is there, and the other was being written.
    refining(tmp_path / "broken", 2).run()
    trials = tmp_path / "broken" / "trials"
    assert sorted(f.name for f in trials.iterdir()) == [
        "0-000.npz",
        "1-000.npz",
        "1-001.npz",
    ]
    (trials / "1-001.npz").unlink()
    (trials / "1-001.npz.new").write_bytes(b"half")
    last = refining(tmp_path / "broken", 3)
    last.run()

    def weights(run):
        told = json.loads((tmp_path / run / WEIGHTS).read_text())
        return np.array(told["weights"])

    np.testing.assert_array_equal(weights("broken"), weights("whole"))
    read = refining(tmp_path / "broken", 3)
    assert not read.run(lambda _: pytest.fail("Nothing is left to try."))
    seen = draw_seen(np.random.default_rng(0), 20)
    moves = [
        decades(RecurrentController(names=NAMES, form=FORM), r.refined, seen)
        for r in (whole, last, read, fewer)
    ]
    np.testing.assert_array_equal(moves[0], moves[1])
    np.testing.assert_array_equal(moves[0], moves[2])
    assert not np.allclose(moves[0], moves[3], atol=1e-3)


def test_trials_of_two_controllers_or_settings_are_not_mixed(tmp_path):
    refining(tmp_path)
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


def test_passes_change_a_correction_by_as_much_as_the_config_says(tmp_path):
    weights = []
    for passes in (1, 2):
        run = refining(tmp_path, passes, step=0.1, shrink=0.5)
        run.run()
        weights.append(
            np.array(json.loads((tmp_path / WEIGHTS).read_text())["weights"])
        )
    before, known = NOTHING, None
    for number, after in enumerate(weights):
        trials = [run.collect(number, index, before) for index in run.due[number]]
        size = size_of(after - before, trials)
        assert size == pytest.approx(0.1 * 0.5**number, rel=1e-3)
        # Trials of the pass before count for three quarters.
        now = moments(trials)
        known = now if known is None else now.plus(known, 0.75)
        slopes = fit_slopes(known, run.config.ridge)
        np.testing.assert_allclose(
            (after - before) / size, slopes / size_of(slopes, trials), atol=1e-4
        )
        before = after


def test_what_next_to_never_happens_gets_no_weight():
    slopes = np.zeros(QUANTITIES)
    slopes[FEATURE_WEIGHTS:] = 0.1
    trials = trials_of(slopes, 0.02, 0)
    for index, found in enumerate(trials):
        found.seen[:, :, 0] = 0.0
        found.seen[0, 0, 0] = 0.01 * (index == 0)
    found = np.abs(fit_slopes(moments(trials), 0.1))
    assert found[0] < 0.1 * found.max()


def test_a_refined_controller_is_exported_and_a_fit_follows_it(tmp_path):
    folder = tmp_path / "plain"
    facts = {"tasks": ["a"], "seeds": [3], "steps": 5, "scores": {"ratio": 1.1}}
    plain = MLPController(names=NAMES, form=FORM)
    export_version(plain, folder, None, facts)
    config = tmp_path / "refine.toml"
    config.write_text(
        "passes = 1\nstep = 0.2\ntraining = ['digits_adam']\n[trials]\n"
        "tasks = 2\ngroup = 4\nspread = 0.5\n"
        "shortest_horizon = 20\nlongest_horizon = 30\nlongest_seldom = 30\n"
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
    told = json.loads((to / WEIGHTS).read_text())
    refined = Refined(plain, np.array(told["weights"]), Scales(*told["scales"]))
    runs = [rehearse(c).decisions["action"] for c in (made, refined, plain)]
    np.testing.assert_allclose(runs[0], runs[1], rtol=1e-4, atol=1e-5)
    assert np.ptp(runs[0] - runs[2]) > 0.05
    again = CliRunner().invoke(app, options)
    assert again.exit_code == 0 and "Nothing is left" in again.output
    assert len(list((to / "controller" / "learned_lr").iterdir())) == 1
    wrong = CliRunner().invoke(app, [*options, "--seed", "1"])
    assert wrong.exit_code == 2 and "begun" in wrong.output
    config.write_text("stride = 1\n")
    wrong = CliRunner().invoke(app, options)
    assert wrong.exit_code == 2 and "stride" in wrong.output
