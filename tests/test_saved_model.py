"""Export and load: the same actions with plain TensorFlow."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    MLPController,
    RecurrentController,
    data,
    every,
    exported,
    fit,
    model,
    rate,
    run_python,
)

from keras_learned_lr import AnchoredScaleFactor, load_controller, shipped_controllers
from keras_learned_lr.control.description import FORMAT, describe
from keras_learned_lr.control.export import export_controller
from keras_learned_lr.observation.spec import PUBLISHED

KINDS = pytest.mark.parametrize("kind", [MLPController, RecurrentController])


def play(controller, turns=4, batch=3):
    """Actions and final states over several decisions."""
    features = len(controller.observation_spec.names)
    rng = np.random.default_rng(0)
    state, actions = controller.initial_state(batch), []
    for _ in range(turns):
        observation = rng.normal(size=(batch, features)).astype("float32")
        output = controller.act(tf.constant(observation), state)
        state = output.state
        actions.append(output.action.numpy().tolist())
    return actions, [s.numpy().tolist() for s in state]


@KINDS
def test_the_same_actions_come_back(kind, tmp_path):
    controller = kind(PUBLISHED, AnchoredScaleFactor(range_decades=2.0))
    path = exported(tmp_path / "a" / "controller", controller)
    loaded = load_controller(path)
    assert loaded.observation_spec == controller.observation_spec
    assert loaded.action_form == controller.action_form
    for got, expected in zip(play(loaded), play(controller), strict=True):
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


ALONE = """
import sys
class Blocked:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("tf_agents", "tensorflow_probability", "tf_keras"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocked())
import json
sys.path.insert(0, "tests")
from test_saved_model import play
from keras_learned_lr import load_controller
print(json.dumps(play(load_controller({path!r}))))
"""


@KINDS
def test_it_loads_where_the_learning_stack_is_missing(kind, tmp_path):
    controller = kind()
    path = exported(tmp_path / "controller", controller)
    finished = run_python(ALONE.format(path=str(path)))
    assert finished.returncode == 0, finished.stderr[-2000:]
    actions, states = json.loads(finished.stdout.splitlines()[-1])
    expected_actions, expected_states = play(controller)
    np.testing.assert_allclose(actions, expected_actions, rtol=1e-5, atol=1e-6)
    for a, b in zip(states, expected_states, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@KINDS
def test_it_steers_as_the_original_does(kind, tmp_path):
    controller = kind(form=every(3))
    runs = []
    for given in (controller, exported(tmp_path / "controller", controller)):
        callback = rate(given)
        fit(model(), [callback])
        runs.append(callback.decisions["learning_rate"])
    assert len(set(runs[0].tolist())) > 1
    np.testing.assert_allclose(*runs, rtol=1e-5)


@KINDS
def test_the_signature_serves(kind, tmp_path):
    controller = kind(form=every(3))
    path = exported(tmp_path / "controller", controller)
    loaded = tf.saved_model.load(str(path))
    serve = loaded.signatures["serving_default"]
    states = controller.initial_state(2)
    named = {f"state_{i}": s for i, s in enumerate(states)}
    features = len(controller.observation_spec.names)
    answer = serve(observation=tf.zeros([2, features]), **named)
    assert set(answer) == {"action", "factor", *named}
    assert answer["action"].shape == (2,)
    told = loaded.signatures["describe"](batch=tf.zeros([2], tf.int32))["json"]
    told = json.loads(told.numpy()[1])
    assert told["format"] == FORMAT
    assert told["observation"]["names"] == list(controller.observation_spec.names)


class TestFolder:
    def test_an_earlier_export_is_replaced(self, tmp_path):
        path = exported(tmp_path / "controller", MLPController(seed=1))
        again = MLPController(seed=2)
        exported(path, again)
        np.testing.assert_allclose(
            play(load_controller(path))[0], play(again)[0], rtol=1e-5
        )
        assert [p.name for p in tmp_path.iterdir()] == ["controller"]

    def test_an_empty_folder_is_fine(self, tmp_path):
        load_controller(exported(tmp_path))

    @pytest.mark.parametrize("kind", ["folder", "file"])
    def test_what_is_no_export_is_not_overwritten(self, tmp_path, kind):
        path = tmp_path / "precious"
        if kind == "folder":
            path.mkdir()
            (path / "thesis.txt").write_text("all of it")
        else:
            path.write_text("all of it")
        with pytest.raises(
            ValueError, match="holds no SavedModel.*precious.*new folder"
        ):
            exported(path)
        assert (path / "thesis.txt" if kind == "folder" else path).read_text()

    def test_a_failed_export_leaves_the_earlier_one(self, tmp_path):
        path = exported(tmp_path / "controller")
        before = play(load_controller(path))
        broken = MLPController()
        broken.act = lambda *_: 1 / 0
        with pytest.raises(ZeroDivisionError):
            export_controller(broken, path)
        assert play(load_controller(path)) == before
        assert [p.name for p in tmp_path.iterdir()] == ["controller"]


class TestRefuses:
    @pytest.fixture(scope="class")
    def good(self, tmp_path_factory):
        return exported(tmp_path_factory.mktemp("good") / "controller")

    @pytest.fixture
    def copy(self, good, tmp_path):
        return shutil.copytree(good, tmp_path / "copy")

    def test_a_name_that_is_unknown(self):
        with pytest.raises(ValueError, match="Unknown controller: 'fastest'"):
            load_controller("fastest")
        assert "fastest" not in shipped_controllers()

    def test_an_empty_folder_and_a_file(self, tmp_path):
        with pytest.raises(ValueError, match=f"no SavedModel at '{tmp_path}'"):
            load_controller(tmp_path)
        (tmp_path / "weights.h5").write_text("")
        with pytest.raises(ValueError, match="no SavedModel at .*weights.h5"):
            load_controller(tmp_path / "weights.h5")

    def test_an_exported_keras_model(self, tmp_path):
        trainee = model()
        trainee.predict(data(2)[0], verbose=0)
        trainee.export(str(tmp_path / "model"), verbose=False)
        with pytest.raises(ValueError, match="is not a controller"):
            load_controller(tmp_path / "model")

    @pytest.mark.parametrize("name", ["saved_model.pb", "variables.data-*"])
    def test_a_truncated_file(self, copy, name):
        (file,) = copy.rglob(name)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        with pytest.raises(ValueError, match="(?s)copy' is not a controller"):
            load_controller(copy)

    def test_a_missing_file(self, copy):
        shutil.rmtree(copy / "variables")
        with pytest.raises(ValueError, match="is not a controller"):
            load_controller(copy)

    @pytest.mark.parametrize(
        ("changed", "match"),
        [
            ({"format": "something"}, "is not a controller"),
            ({"format_version": 2}, "format version 2; .* reads 1"),
            ({"format_version": None}, "format version None"),
            ({"observation": {"version": 7, "names": ["progress"]}}, "version 7"),
            ({"observation": {"version": 1, "names": ["speed"]}}, "speed"),
            (
                {"observation": {"version": 1, "names": ["progress"]}},
                "cannot be run on",
            ),
            ({"observation": None}, "incompletely"),
            ({"action_form": {"name": "Teleport", "version": 1}}, "Teleport"),
            ({"action_form": {"name": "ScaleFactor", "version": 5}}, "version 5"),
            ({"action_form": None}, "incompletely"),
            ({"state_shapes": [[4]]}, "cannot be run on"),
            ("not json", "is not a controller"),
            ("[1, 2]", "is not a controller"),
        ],
        ids=lambda value: None if isinstance(value, str) else str(value)[:40],
    )
    def test_another_description(self, tmp_path, changed, match):
        path = self.forged(tmp_path / "forged", changed)
        with pytest.raises(ValueError, match=match):
            load_controller(path)

    def test_a_wrong_answer(self, tmp_path):
        controller = MLPController()
        act = controller.act
        controller.act = lambda o, s: act(tf.concat([o, o], 0), s)
        with pytest.raises(ValueError, match=r"wrong shape. Received: action \(4,\)"):
            load_controller(exported(tmp_path / "controller", controller))

    def forged(self, path, changed):
        """An export whose description says something else."""
        controller = MLPController()
        told = changed
        if isinstance(changed, dict):
            good = load_controller(exported(path.with_name("good"), controller))
            told = json.dumps(json.loads(describe(good)) | changed)
        features = len(controller.observation_spec.names)
        module = tf.Module()
        module.kept = controller.variables
        signature = [tf.TensorSpec([None, features], tf.float32, name="observation")]
        serve = tf.function(
            lambda observation: {"action": controller.act(observation, []).action},
            input_signature=signature,
        )
        tell = tf.function(lambda: {"json": tf.constant(told)}, input_signature=[])
        signatures = {"serving_default": serve, "describe": tell}
        tf.saved_model.save(module, str(path), signatures)
        return path
