"""What bad input gets: an error that helps, before the first training step."""

import importlib.util

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    GraphController,
    data,
    every,
    exported,
    fit,
    learning_rate,
    model,
    rate,
    run_python,
)

from keras_learned_lr import AnchoredScaleFactor, LearnedLearningRate, ObservationSpec
from keras_learned_lr.control.actions import Width

X, Y = data(32)


class Untouched:
    """A trained model of which nothing may change."""

    def __init__(self, optimizer=None, **options):
        self.model = model(optimizer, **options)
        fit(self.model, epochs=1)
        self.before = self.state()

    def state(self):
        optimizer = self.model.optimizer
        values = [*self.model.variables, *optimizer.variables]
        return {
            "values": [np.array(v).tolist() for v in values],
            "iterations": int(optimizer.iterations),
            "learning rate": learning_rate(self.model),
            "train_step": self.model.__dict__.get("train_step"),
            "train_function": self.model.train_function,
            "attributes": set(self.model.__dict__),
        }

    def refuses(self, callback, match, error=ValueError, **options):
        steps = StepCounter()
        with pytest.raises(error, match=match):
            fit(self.model, [callback, steps], **options)
        assert steps.taken == 0
        assert self.state() == self.before


class StepCounter(keras.callbacks.Callback):
    taken = 0

    def on_train_batch_begin(self, batch, logs=None):
        self.taken += 1


@pytest.fixture(scope="module")
def untouched():
    return Untouched()


class TestOptimizer:
    def test_with_a_schedule(self):
        schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
        Untouched(keras.optimizers.SGD(schedule)).refuses(
            rate(), "(?s)LearningRateSchedule.*Received: .*CosineDecay.*with a float"
        )

    def test_with_a_callable(self):
        Untouched(keras.optimizers.SGD(lambda: 0.1)).refuses(
            rate(), "(?s)a callable.*Received: .*lambda.*with a float"
        )

    def test_with_a_schedule_inside_loss_scaling(self):
        schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
        inner = keras.optimizers.SGD(schedule)
        trainee = model(keras.optimizers.LossScaleOptimizer(inner))
        with pytest.raises(ValueError, match="LearningRateSchedule"):
            fit(trainee, [rate()])

    @pytest.mark.parametrize("value", [0.0, np.inf, np.nan])
    def test_with_a_rate_that_no_factor_can_change(self, value):
        trainee = model()
        trainee.optimizer.learning_rate = value
        before = trainee.get_weights()
        with pytest.raises(ValueError, match=rf"positive.*Received: .*\[{value}\]"):
            fit(trainee, [rate()])
        assert all(map(np.array_equal, before, trainee.get_weights()))
        assert "train_step" not in trainee.__dict__


class TestValidationData:
    @pytest.mark.parametrize(
        "given",
        [
            (X[:0], Y[:0]),
            (),
            [],
            (None, None),
            tf.data.Dataset.from_tensor_slices((X[:0], Y[:0])).batch(4),
        ],
        ids=["arrays", "tuple", "list", "nones", "dataset"],
    )
    def test_that_is_empty(self, untouched, given):
        untouched.refuses(rate(validation_data=given), "`validation_data` is empty")

    @pytest.mark.parametrize(
        ("given", "received"),
        [
            ((X[:, :4], Y), r"float32\(32, 4\)"),
            (X, r"float32\(32, 6\)"),
            ((X,), r"float32\(32, 6\)"),
            ((X, X, X, X), ""),
            (({"a": X}, Y), r"float32\(32, 6\)"),
            ((X, {"a": Y, "b": Y}), r"int64\(32,\)"),
            ((X, Y[:31]), r"same number of examples.*\(32, 6\), \(31,\)"),
            ((X, np.float32(3.0)), r"same number of examples.*\(32, 6\), \(1,\)"),
            (tf.data.Dataset.from_tensor_slices((X, Y)), r"\(6,\), \(\).*`.batch\(\)`"),
            ("data.npz", "'?data.npz"),
            (7, "Received: 7 .*int"),
            (([1.0, 2.0], [0, 1]), r"Received: \(\[1.0"),
        ],
        ids=[
            *("width", "no y", "no y in tuple", "four", "dict x", "dict y"),
            *("lengths", "scalar", "no batches", "path", "number", "lists"),
        ],
    )
    def test_of_the_wrong_structure(self, untouched, given, received):
        match = f"(?s)validation_data.*{received}"
        untouched.refuses(rate(validation_data=given), match)

    def test_of_unknown_length_taken_whole(self, untouched):
        def forever():
            while True:
                yield X, Y

        callback = rate(validation_data=forever(), validation_size=None)
        untouched.refuses(callback, "known length.*generator.*Pass `validation_size`")


class TestNames:
    def test_of_a_controller(self, tmp_path):
        with pytest.raises(
            ValueError, match="'fast'.*neither one that ships.*nor a fo"
        ):
            LearnedLearningRate("fast")
        with pytest.raises(ValueError, match="no SavedModel at"):
            LearnedLearningRate(tmp_path)

    @pytest.mark.parametrize("value", [None, 3, 0.1, GraphController, lambda o: o])
    def test_of_no_controller_at_all(self, value):
        with pytest.raises(TypeError, match="`controller` must be.*Received: "):
            LearnedLearningRate(value)

    def test_of_a_layer(self, untouched):
        controller = GraphController(names=["layer_mean"], form=every(5))
        callback = rate(controller, designated_layer="conv7")
        untouched.refuses(callback, r"no layer 'conv7'.*\['first', 'last'\]")

    def test_of_a_layer_without_weights(self):
        controller = GraphController(names=["layer_mean"], form=every(5))
        untouched = Untouched(dropout=True)
        callback = rate(controller, designated_layer="dropout")
        untouched.refuses(callback, r"no layer 'dropout' with weights")

    def test_of_a_layer_in_a_model_that_is_not_built(self):
        controller = GraphController(names=["layer_mean"], form=every(5))
        callback = rate(controller, designated_layer="two", validation_data=None)
        trainee = keras.Sequential([keras.layers.Dense(3, name="one")])
        trainee.compile("sgd", "mse")
        with pytest.raises(ValueError, match=r"no layer 'two'.*\['one'\]"):
            trainee.fit(X, X[:, :3], callbacks=[callback], verbose=0)

    def test_of_a_feature(self):
        with pytest.raises(
            ValueError, match=r"Unknown features: \['gradient'\].*Known"
        ):
            ObservationSpec(["gradient"])

    def test_of_another_observation_version(self, tmp_path, monkeypatch):
        from keras_learned_lr.observation import spec

        with monkeypatch.context() as patch:
            patch.setattr(spec, "SPEC_VERSION", 99)
            path = exported(tmp_path / "future")
        with pytest.raises(ValueError, match="version 99; this .* makes version"):
            LearnedLearningRate(path)


class TestNumbers:
    @pytest.mark.parametrize("value", [0, -3, 2.5, True, None, "often", "5", [5]])
    def test_update_freq(self, value):
        with pytest.raises(ValueError, match="`update_freq` must be.*Received: "):
            rate(update_freq=value)

    @pytest.mark.parametrize("name", ["total_steps", "validation_size", "probe_size"])
    @pytest.mark.parametrize("value", [0, -1, 1.5, "10", True])
    def test_counts(self, name, value):
        with pytest.raises(ValueError, match=f"`{name}` must be.*Received: {value!r}"):
            rate(**{name: value})

    def test_counts_of_numpy_are_fine(self):
        rate(update_freq=np.int64(3), total_steps=np.int32(9), probe_size=np.uint8(4))

    @pytest.mark.parametrize(
        "name", ["default_learning_rate", "min_learning_rate", "max_learning_rate"]
    )
    @pytest.mark.parametrize("value", [0, -1e-3, np.nan, np.inf, "0.1"])
    def test_rates(self, name, value):
        with pytest.raises(ValueError, match=f"`{name}` must be positive.*Received"):
            rate(**{name: value})

    def test_bounds_in_the_wrong_order(self):
        with pytest.raises(ValueError, match=r"must not exceed.*0.1 > 0.01"):
            rate(min_learning_rate=0.1, max_learning_rate=0.01)


def test_a_model_that_was_not_compiled():
    trainee = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    with pytest.raises(ValueError, match="compile"):
        trainee.fit(X, Y, callbacks=[rate()], verbose=0)
    callback = rate()
    callback.set_model(trainee)
    callback.set_params({"epochs": 1, "steps": 2})
    with pytest.raises(ValueError, match="not compiled.*model.compile"):
        callback.on_train_begin()


class TestUnknownLength:
    """Where the controller plans for a whole run."""

    CONTROLLERS = {
        "envelope": lambda: GraphController(
            names=["learning_rate"], form=AnchoredScaleFactor()
        ),
        "width": lambda: GraphController(
            names=["learning_rate"],
            form=AnchoredScaleFactor(envelope="constant", width=Width(2.0, 0.1)),
        ),
        "feature": lambda: GraphController(names=["progress"], form=every(2)),
    }

    def dataset(self):
        dataset = tf.data.Dataset.from_tensor_slices((X, Y)).batch(16)
        return dataset.filter(lambda x, y: True)

    @pytest.mark.parametrize("kind", CONTROLLERS)
    @pytest.mark.parametrize(
        "epochs", [{"epochs": 1}, {"epochs": 4, "initial_epoch": 3}]
    )
    def test_names_total_steps(self, untouched, kind, epochs):
        untouched.refuses(
            rate(self.CONTROLLERS[kind]()),
            r"length of this run is unknown.*epochs=1.*total_steps=",
            **{"x": self.dataset(), "batch_size": None, **epochs},
        )

    @pytest.mark.parametrize("kind", CONTROLLERS)
    def test_told_it_runs(self, kind):
        callback = rate(self.CONTROLLERS[kind](), total_steps=2)
        fit(model(), [callback], self.dataset(), batch_size=None, epochs=1)


OTHER_BACKEND = """
import keras
assert keras.config.backend() == "{backend}"
from keras_learned_lr import LearnedLearningRate
try:
    LearnedLearningRate("anything")
except ValueError as error:
    print(error)
"""


def test_another_keras_backend():
    backend = next(
        (name for name in ("jax", "torch") if importlib.util.find_spec(name)), None
    )
    if backend is None:
        pytest.skip("neither jax nor torch is installed")
    code = OTHER_BACKEND.format(backend=backend)
    finished = run_python(code, KERAS_BACKEND=backend)
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert f"Received: KERAS_BACKEND='{backend}'" in finished.stdout
    assert "Set KERAS_BACKEND=tensorflow" in finished.stdout


def test_the_check_of_the_backend_by_its_name(monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with pytest.raises(ValueError, match="Received: KERAS_BACKEND='jax'. Set KERAS_B"):
        LearnedLearningRate(GraphController())
