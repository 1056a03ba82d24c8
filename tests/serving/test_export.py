"""Version folders, warm-up requests, the model card, and the command for them."""

import dataclasses
import json
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    MLPController,
    RecurrentController,
    every,
    exported,
    fit,
    model,
    rate,
    run_python,
)
from servers import export, observations
from tensorflow_serving.apis import prediction_log_pb2
from typer.testing import CliRunner

from keras_learned_lr import (
    AnchoredScaleFactor,
    DirectLearningRate,
    LogLearningRate,
    load_controller,
)
from keras_learned_lr.cli import app
from keras_learned_lr.control.export import export_controller, export_version
from keras_learned_lr.control.model_card import FILE as CARD
from keras_learned_lr.control.model_card import checksums
from keras_learned_lr.control.schedules import EverySteps
from keras_learned_lr.control.versions import latest_version, versions_in
from keras_learned_lr.control.warm_up import FILE as WARM_UP


class TestVersions:
    def test_follow_each_other_and_the_latest_is_loaded(self, tmp_path):
        folder = tmp_path / "learned_lr"
        for seed in (1, 2):
            controller = export(folder, seed=seed)
        assert versions_in(folder) == [1, 2]
        assert {p.name for p in folder.iterdir()} == {"1", "2"}
        seen = tf.constant(observations(controller))
        for path in (tmp_path, folder, folder / "2"):
            action = load_controller(path).act(seen, []).action
            np.testing.assert_allclose(action, controller.act(seen, []).action, 1e-5)

    def test_go_on_after_the_largest_and_skip_what_is_none(self, tmp_path):
        for name in ("7", "10", "11.old", "٣", "-4"):
            (tmp_path / name).mkdir()
        export(tmp_path)
        assert versions_in(tmp_path) == [7, 10, 11]
        assert latest_version(tmp_path) == tmp_path / "11"

    def test_written_at_once_do_not_overwrite_each_other(self, tmp_path):
        controller = MLPController()
        seen = observations(controller)
        threads = [
            threading.Thread(target=export_version, args=(controller, tmp_path, seen))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert versions_in(tmp_path) == [1, 2, 3]
        for version in "123":
            load_controller(tmp_path / version)

    def test_are_whole_or_not_there(self, tmp_path):
        broken = MLPController()
        broken.act = lambda *_: 1 / 0
        with pytest.raises(ZeroDivisionError):
            export_version(broken, tmp_path, observations(broken))
        assert list(tmp_path.iterdir()) == []

    def test_do_not_go_into_a_saved_model(self, tmp_path):
        exported(tmp_path / "controller")
        with pytest.raises(ValueError, match="folder of their own. Received: .*contr"):
            export(tmp_path / "controller")


class TestModelCard:
    def test_tells_training_spec_and_checksums(self, tmp_path):
        controller = RecurrentController(form=every(3))
        facts = {"tasks": ["digits"], "seeds": [0, 1], "scores": {"ratio": 0.97}}
        path = export_version(controller, tmp_path, observations(controller), facts)
        card = json.loads((path / CARD).read_text())
        assert card["trained"] == {**facts, "steps": None}
        names = list(controller.observation_spec.names)
        assert card["controller"]["observation"]["names"] == names
        assert card["controller"]["state_shapes"] == [[8], [2, 3]]
        assert card["version"] == 1
        assert card["files"] == checksums(path)
        assert {"saved_model.pb", WARM_UP} < set(card["files"])

    @pytest.mark.parametrize("what", ["changed", "missing", "new", "card"])
    def test_finds_what_is_not_as_it_was_written(self, tmp_path, what):
        export(tmp_path)
        path = tmp_path / "1"
        (weights,) = path.rglob("variables.data-*")
        if what == "changed":
            content = bytearray(weights.read_bytes())
            content[-1] ^= 1
            weights.write_bytes(content)
        elif what == "missing":
            (path / WARM_UP).unlink()
        elif what == "new":
            (path / "assets" / "extra.txt").write_text("hello")
        else:
            (path / CARD).write_text('{"files": 3}')
        match = "model card .* cannot be read" if what == "card" else "model card says"
        with pytest.raises(ValueError, match=match):
            load_controller(path)

    def test_tells_only_what_it_is_for(self, tmp_path):
        controller = MLPController()
        with pytest.raises(ValueError, match=r"Received: \['mood'\]"):
            export_version(controller, tmp_path, observations(controller), {"mood": 1})


def replay(path):
    """Answers every warm-up record as it says, through plain TensorFlow."""
    loaded = tf.saved_model.load(str(path))
    for record in tf.data.TFRecordDataset(str(path / WARM_UP)):
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        request = log.predict_log.request
        signature = loaded.signatures[request.model_spec.signature_name]
        inputs = {k: tf.constant(tf.make_ndarray(v)) for k, v in request.inputs.items()}
        yield request, inputs, signature(**inputs)


@pytest.mark.parametrize("kind", [MLPController, RecurrentController])
def test_the_warm_up_requests_are_those_of_a_run(kind, tmp_path):
    controller = kind(form=every(3))
    seen = observations(controller, 4)
    path = export_version(controller, tmp_path / "my_model", seen)
    records = list(replay(path))
    names = [request.model_spec.signature_name for request, *_ in records]
    others = ["describe"] + ["initial_state"] * (kind is RecurrentController)
    assert names == [*others, *["serving_default"] * 5]
    assert {r.model_spec.name for r, *_ in records} == {"my_model"}
    state = controller.initial_state(1)
    for row, (_, inputs, answer) in enumerate(records[len(others) : -1]):
        np.testing.assert_array_equal(inputs["observation"], seen[row : row + 1])
        for index, value in enumerate(state):
            np.testing.assert_allclose(inputs[f"state_{index}"], value, rtol=1e-6)
        output = controller.act(tf.constant(seen[row : row + 1]), state)
        np.testing.assert_allclose(answer["action"], output.action, rtol=1e-5)
        state = output.state
    assert records[-1][2]["action"].shape == (4,)


FORMS = [
    every(3, decades=0.7),
    AnchoredScaleFactor(schedule=EverySteps(3)),
    LogLearningRate(schedule=EverySteps(3), range_decades=1.0),
    DirectLearningRate(schedule=EverySteps(3), largest=2.0),
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: type(form).__name__)
def test_the_factor_is_the_one_that_a_run_is_steered_by(form, tmp_path):
    names = ["log_level", "progress", "training_vs_first", "validation_vs_first"]
    controller = MLPController(names, form)
    path = export_controller(controller, tmp_path / "controller")
    # A server is not told of weights that go back.
    callback = rate(controller, rollback=False)
    fit(model(), [callback])
    seen = np.stack([*callback.decisions["observation"].values()], axis=-1)
    serve = tf.saved_model.load(str(path)).signatures["serving_default"]
    answer = serve(observation=tf.constant(seen, tf.float32))
    factors = callback.decisions["factor"]
    assert np.ptp(factors) > 0.01
    np.testing.assert_allclose(answer["factor"], factors, rtol=1e-4)
    # Without what it takes to know it, none is told.
    bare = export_controller(MLPController(names[2:], form), tmp_path / "bare")
    outputs = tf.saved_model.load(str(bare)).signatures["serving_default"]
    assert ("factor" in outputs.structured_outputs) == (form is FORMS[0])


def test_a_controllers_own_first_state_is_kept(tmp_path):
    controller = RecurrentController()
    controller.initial_state = lambda batch: [
        tf.fill([batch, 8], 0.5),
        tf.fill([batch, 2, 3], -1.0),
    ]
    loaded = load_controller(export_controller(controller, tmp_path / "controller"))
    for got, expected in zip(
        loaded.initial_state(3), controller.initial_state(3), strict=True
    ):
        np.testing.assert_array_equal(got, expected)


def test_a_learner_exports_versions_with_the_observations_of_a_run(tmp_path):
    from keras_learned_lr.learning import ControllerLearner, LearnerConfig

    learner = ControllerLearner(
        LearnerConfig(network="lstm", hidden=(4,), lstm_size=4, seed=3)
    )
    path = learner.export(tmp_path, tasks=["digits"])
    assert path == tmp_path / "learned_lr" / "1"
    card = json.loads((path / CARD).read_text())
    assert card["trained"]["tasks"] == ["digits"]
    assert card["trained"]["seeds"] == [3]
    assert card["trained"]["steps"] == {"episodes": 0, "updates": 0}
    records = [r for r in replay(path) if r[0].model_spec.signature_name[0] == "s"]
    seen = np.concatenate([inputs["observation"] for _, inputs, _ in records[:-1]])
    names = learner.observation_spec.names
    progress, first = (seen[:, names.index(n)] for n in ("progress", "first_decision"))
    assert first.tolist() == [1.0] + [0.0] * (len(seen) - 1)
    assert np.all(np.diff(progress) > 0)
    loaded, greedy = load_controller(tmp_path), learner.greedy()
    state = greedy.initial_state(len(seen))
    np.testing.assert_allclose(
        loaded.act(tf.constant(seen), state).action,
        greedy.act(tf.constant(seen), state).action,
        rtol=1e-4,
        atol=1e-6,
    )


@pytest.mark.parametrize("network", ["mlp", "lstm"])
def test_an_export_holds_the_actor_and_no_critic(tmp_path, network):
    from keras_learned_lr.learning import ControllerLearner, LearnerConfig

    learner = ControllerLearner(
        LearnerConfig(network=network, hidden=(5,), lstm_size=3, privileged=2)
    )
    path = export_controller(learner.greedy(), tmp_path / "controller")
    held = [
        shape
        for name, shape in tf.train.list_variables(str(path / "variables/variables"))
        if not name.startswith("_CHECKPOINTABLE")
    ]
    parts = learner.parts
    acting = [*parts.actor.trainable_variables, parts.deviation]
    assert sorted(held) == sorted(v.shape.as_list() for v in acting)


class TestCommand:
    def test_writes_the_next_version_of_what_it_is_given(self, tmp_path):
        controller = export(tmp_path / "source", "recurrent")
        source = load_controller(tmp_path / "source")
        card = tmp_path / "source" / "1" / CARD
        assert card.is_file()
        to = tmp_path / "base" / "learned_lr"
        for version in ("1", "2"):
            done = CliRunner().invoke(
                app, ["export", str(tmp_path / "source"), "--to", str(to)]
            )
            assert done.exit_code == 0, done.output
            assert done.output.split()[-1].endswith(f"learned_lr/{version}")
        # Nothing of the source is needed any more.
        shutil.rmtree(tmp_path / "source")
        loaded = load_controller(to)
        assert loaded.action_form == controller.action_form
        seen, state = tf.constant(observations(controller)), source.initial_state(5)
        expected = controller.act(seen, state)
        got = loaded.act(seen, state)
        np.testing.assert_allclose(got.action, expected.action, rtol=1e-5)
        records = list(replay(to / "2"))
        assert len({r[1]["observation"].numpy().tobytes() for r in records[2:-1]}) > 3

    def test_keeps_what_the_card_told_of_the_training(self, tmp_path):
        controller = MLPController(form=every(3))
        facts = {"seeds": [3], "scores": {"ratio": 0.9}}
        export_version(controller, tmp_path / "a", observations(controller), facts)
        arguments = ["export", str(tmp_path / "a"), "--to", str(tmp_path / "b")]
        assert CliRunner().invoke(app, arguments).exit_code == 0
        card = json.loads((tmp_path / "b" / "1" / CARD).read_text())
        assert card["trained"] == {"tasks": None, "steps": None, **facts}

    def test_lifts_a_factor_and_refuses_to_lift_another_form(self, tmp_path):
        for name, form, code in (
            ("factor", every(3), 0),
            ("direct", DirectLearningRate(schedule=EverySteps(3)), 2),
        ):
            controller = MLPController(form=form)
            facts = {"scores": {"ratio": 0.9}}
            export_version(controller, tmp_path / name, observations(controller), facts)
            to = tmp_path / f"{name}-lifted"
            arguments = ["export", str(tmp_path / name), "--to", str(to)]
            done = CliRunner().invoke(app, [*arguments, "--lift", "0.1"])
            assert done.exit_code == code
        card = json.loads((tmp_path / "factor-lifted" / "1" / CARD).read_text())
        assert card["trained"]["scores"] == {"before_the_change": {"ratio": 0.9}}
        lifted = load_controller(tmp_path / "factor-lifted").action_form
        assert lifted == dataclasses.replace(every(3), lift=0.1)
        assert not (tmp_path / "direct-lifted").exists()

    @pytest.mark.parametrize(
        ("setting", "known", "unknown", "told"),
        [
            ("envelope", "linear", "sawtooth", "sawtooth"),
            ("average", 0.2, 0.9, "Received: 0.9"),
        ],
    )
    def test_finishes_runs_otherwise_and_refuses_what_it_cannot(
        self, tmp_path, setting, known, unknown, told
    ):
        controller = MLPController(form=every(3))
        export_version(controller, tmp_path / "a", observations(controller))
        for value, code in ((known, 0), (unknown, 2)):
            to = tmp_path / str(value)
            arguments = ["export", str(tmp_path / "a"), "--to", str(to)]
            done = CliRunner().invoke(app, [*arguments, f"--{setting}", str(value)])
            assert done.exit_code == code
        exported = load_controller(tmp_path / str(known)).action_form
        assert exported == dataclasses.replace(every(3), **{setting: known})
        assert told in done.output and not (tmp_path / str(unknown)).exists()

    @pytest.mark.parametrize("given", ["fastest", "/"])
    def test_refuses_what_is_no_controller(self, tmp_path, given):
        done = CliRunner().invoke(app, ["export", given, "--to", str(tmp_path / "to")])
        assert done.exit_code == 2
        assert given in done.output
        assert not (tmp_path / "to").exists()


WITHOUT = """
import sys
class Blocked:
    def find_spec(self, name, *_):
        if name.split(".")[0] in {blocked}:
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocked())
import warnings
warnings.simplefilter("always")
from keras_learned_lr.cli import app
app(["export", {source!r}, "--to", {to!r}], standalone_mode=False)
"""


def test_the_command_needs_nothing_of_the_learning_stack(tmp_path):
    export(tmp_path / "source")
    code = WITHOUT.format(
        blocked=("tf_agents", "tensorflow_probability", "tf_keras"),
        source=str(tmp_path / "source"),
        to=str(tmp_path / "to"),
    )
    finished = run_python(code)
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert len(list(replay(tmp_path / "to" / "1"))) > 3


def test_without_the_protos_it_says_that_there_is_no_warm_up(tmp_path, monkeypatch):
    monkeypatch.setattr("keras_learned_lr.control.export.can_warm_up", lambda: False)
    with pytest.warns(UserWarning, match=r"no warm-up requests.*\[serving\]"):
        export(tmp_path)
    assert not (tmp_path / "1" / WARM_UP).exists()
    load_controller(tmp_path)


@pytest.mark.parametrize("kind", ["mlp", "recurrent"])
def test_saved_model_cli_runs_it(kind, base, tmp_path):
    """The command in docs/serving.md."""
    folder, controllers = base
    controller = controllers[kind]
    seen, state = observations(controller, 2), controller.initial_state(2)
    inputs = {"observation": seen} | {f"state_{i}": s for i, s in enumerate(state)}
    files = []
    for name, value in inputs.items():
        np.save(tmp_path / f"{name}.npy", value)
        files.append(f"{name}={tmp_path / name}.npy")
    command = [sys.executable, "-m", "tensorflow.python.tools.saved_model_cli", "run"]
    command += ["--dir", str(folder / kind / "1"), "--tag_set", "serve"]
    command += ["--signature_def", "serving_default", "--inputs", ";".join(files)]
    command += ["--outdir", str(tmp_path), "--overwrite"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = controller.act(tf.constant(seen), state).action
    np.testing.assert_allclose(np.load(tmp_path / "action.npy"), expected, rtol=1e-5)
