"""The decision: one graph, compiled anywhere, and the learning rate it says."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    GraphController,
    Recorder,
    RecurrentController,
    ScriptedController,
    compiled,
    every,
    fit,
    learning_rate,
    model,
    rate,
)

from keras_learned_lr import (
    AnchoredScaleFactor,
    DirectLearningRate,
    LogLearningRate,
    ScaleFactor,
)
from keras_learned_lr.control.plan import PLANNED
from keras_learned_lr.control.schedules import EverySteps
from keras_learned_lr.observation.spec import DEFAULT, PUBLISHED

EVERYTHING = tuple(dict.fromkeys(PUBLISHED + DEFAULT))
ACTIONS = [0.6, -0.3, 1.5, 0.0, -0.9]
FORMS = {
    "scale": ScaleFactor(schedule=EverySteps(3)),
    "anchored": AnchoredScaleFactor(schedule=EverySteps(3), range_decades=2.0),
    "log": LogLearningRate(schedule=EverySteps(3), range_decades=1.0),
    "direct": DirectLearningRate(schedule=EverySteps(3), largest=2.0),
}


class Counted(GraphController):
    """Counts how often it is traced (eager calls are not)."""

    traces = 0

    def act(self, observation, state):
        self.traces += tf.inside_function()
        return super().act(observation, state)


class TestTracing:
    @pytest.mark.parametrize("names", [None, ["learning_rate", "update_cosine"]])
    def test_once_a_fit_and_not_again_in_the_next(self, names):
        controller = Counted(names=names, form=every(2))
        callback, trainee = rate(controller), model()
        fit(trainee, [callback])
        assert controller.traces == 1
        fit(trainee, [callback], epochs=3, batch_size=8)
        assert controller.traces == 1
        compiled(trainee)
        fit(trainee, [callback])
        assert controller.traces == 2

    def test_the_train_step_is_not_traced_again_either(self):
        traces = []

        class Traced(keras.Model):
            def train_step(self, data):
                traces.append(1)
                return super().train_step(data)

        trainee, callback = model(model_class=Traced), rate()
        fit(trainee, [callback])
        first = len(traces)
        fit(trainee, [callback])
        assert len(traces) == first
        fit(trainee)
        plain = len(traces)
        fit(trainee)
        assert len(traces) == plain

    def test_eager_training_decides_eagerly(self):
        controller = Counted(form=every(2))
        fit(model(run_eagerly=True), [rate(controller)], epochs=1)
        assert controller.traces == 0


def test_compiles_with_xla_and_gives_the_same_numbers():
    """Which shows, without a GPU, that no operation in it is of the host alone."""
    form = AnchoredScaleFactor(schedule=EverySteps(5))
    controller = RecurrentController(EVERYTHING, form)
    callback, trainee = rate(controller, designated_layer="first"), model()

    def watch(_, logs):
        if trainee.optimizer.iterations == 9:
            loop = callback._loop
            kept = all_variables(loop)
            before = [v.read_value() for v in kept]
            jitted = tf.function(loop._decide, jit_compile=True, autograph=False)
            results.append(jitted()[0].numpy())
            for variable, value in zip(kept, before, strict=True):
                variable.assign(value)
            results.append(loop.decide_function()[0].numpy())

    results = []
    lambda_callback = keras.callbacks.LambdaCallback(on_train_batch_end=watch)
    fit(trainee, [callback, lambda_callback])
    np.testing.assert_allclose(results[0], results[1], rtol=1e-4, atol=1e-5)
    assert len(results[0]) == 10 + len(EVERYTHING)


def all_variables(loop):
    """Everything a decision may change."""
    return [
        *(loop._action_state.variable, loop._memory.variable),
        *loop._policy_state,
        *(loop._learning_rate, loop._contested),
        *(v.value for v in loop._optimizer._variables),
        *loop.probe.variables,
    ]


class TestDevice:
    def test_is_that_of_the_weights(self):
        trainee, callback = model(), rate(form_of(EVERYTHING))
        fit(trainee, [callback])
        loop = callback._loop
        device = trainee.trainable_variables[0].value.device
        packed = [loop._action_state.variable, loop._memory.variable]
        for variable in [*packed, *loop.probe._weights]:
            assert variable.device == device

    @pytest.mark.gpu
    @pytest.mark.skipif(
        not tf.config.list_physical_devices("GPU"), reason="TensorFlow sees no GPU"
    )
    def test_on_a_gpu_one_copy_a_decision_comes_to_the_host(self, monkeypatch):
        trainee, callback = model(), rate(form_of(EVERYTHING))
        fit(trainee, [callback])
        loop, copies = callback._loop, []
        assert "GPU" in trainee.trainable_variables[0].value.device
        concrete = loop.decide_function.concrete()
        placed = [
            op.device
            for op in concrete.graph.get_operations()
            if op.type not in ("Const", "NoOp", "Placeholder") and op.outputs
        ]
        assert all("GPU" in device for device in placed)
        kind = type(tf.constant(0.0))
        original = kind.numpy
        monkeypatch.setattr(
            kind, "numpy", lambda self: copies.append(1) or original(self)
        )
        loop.decide()
        assert len(copies) == 1


def form_of(names):
    return GraphController(0.1, names, every(3))


class TestLearningRate:
    """What the optimizer really used, told by SGD steps along a known gradient."""

    def used(self, callback, trainee_options=None, **fit_options):
        trainee = slope_model(**(trainee_options or {}))
        recorder = Recorder()
        fit(trainee, [callback, recorder], ONES, ONES, **fit_options)
        weights = np.array([w[0] for w in recorder.weights])[:, 0, 0]
        return -np.diff(weights), trainee

    @pytest.mark.parametrize(
        ("form", "jit"), [*((form, False) for form in FORMS), ("anchored", True)]
    )
    def test_at_every_step_is_what_the_form_says(self, form, jit):
        form, total = FORMS[form], 12
        callback = rate(ScriptedController(ACTIONS, form=form), validation_data=None)
        used, trainee = self.used(callback, {"jit_compile": jit})
        state, expected = form.initial_state(0.1), []
        for step in range(total):
            if step % 3 == 0:
                action = tf.constant(ACTIONS[step // 3])
                state, _ = form.step(state, action, step, total)
            expected.append(float(form.learning_rate(state, step, total)))
        np.testing.assert_allclose(used, expected, rtol=2e-3, atol=2e-6)
        assert learning_rate(trainee) == pytest.approx(0.1)
        decided = callback.decisions["learning_rate"]
        np.testing.assert_allclose(decided, expected[::3], rtol=1e-5)

    def test_is_decided_before_step_1(self):
        callback = rate(
            ScriptedController([1.0], form=every(100, decades=1.0)),
            validation_data=None,
        )
        used, _ = self.used(callback)
        assert used[0] == pytest.approx(1.0, rel=1e-4)

    def test_moves_inside_an_execution_of_several_steps(self):
        """The envelope is in the graph of the training step."""
        form = AnchoredScaleFactor(schedule=EverySteps(100))
        callback = rate(ScriptedController([0.0], form=form), validation_data=None)
        trainee = slope_model(steps_per_execution=6)
        recorder = Recorder()
        fit(trainee, [callback, recorder], ONES, ONES)
        weights = np.array([w[0] for w in recorder.weights])[:, 0, 0]
        state = form.initial_state(0.1)
        rates = [float(form.learning_rate(state, step, 12)) for step in range(12)]
        expected = [sum(rates[:6]), sum(rates[6:])]
        np.testing.assert_allclose(-np.diff(weights), expected, rtol=1e-3)

    def test_is_right_after_a_step_that_finds_no_batch(self):
        """In which every epoch of a generator ends; nor is anybody blamed for it."""
        signature = [tf.TensorSpec([None, 1])] * 2
        batches = tf.data.Dataset.from_generator(
            lambda: ((ONES[:8], ONES[:8]) for _ in range(4)),
            output_signature=tuple(signature),
        )
        form, recorder = AnchoredScaleFactor(schedule=EverySteps(5)), Recorder()
        callback = rate(
            ScriptedController([0.0], form=form), validation_data=None, total_steps=12
        )
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            slope_model().fit(
                batches, epochs=3, verbose=0, callbacks=[callback, recorder]
            )
        assert not any("Something else" in str(w.message) for w in told)
        weights = np.array([w[0] for w in recorder.weights])[:, 0, 0]
        state = form.initial_state(0.1)
        expected = form.learning_rate(state, tf.range(12), 12)
        np.testing.assert_allclose(-np.diff(weights), expected, rtol=2e-3, atol=2e-6)

    @pytest.mark.parametrize("execution", [1, 700])
    def test_of_steps_that_no_decision_has_planned(self, execution):
        """A window may be longer than what is computed at once."""
        steps = 2 * PLANNED + 52
        form = AnchoredScaleFactor(schedule=EverySteps(5000), envelope="trapezoid")
        callback = rate(ScriptedController([0.0], form=form), validation_data=None)
        trainee = slope_model(steps_per_execution=execution)
        x = np.ones((steps, 1), "float32")
        trainee.fit(x, x, batch_size=1, verbose=0, callbacks=[callback])
        expected = form.learning_rate(
            form.initial_state(0.1), tf.range(steps), tf.constant(steps)
        )
        (weight,) = trainee.get_weights()
        assert -weight == pytest.approx(float(tf.reduce_sum(expected)), rel=1e-3)

    def test_starts_from_the_default_that_is_passed(self):
        callback = rate(
            ScriptedController([0.0]), validation_data=None, default_learning_rate=0.5
        )
        used, trainee = self.used(callback)
        np.testing.assert_allclose(used, 0.5, rtol=1e-3)
        assert learning_rate(trainee) == pytest.approx(0.1)

    def test_stays_inside_the_bounds_that_are_passed(self):
        callback = rate(
            ScriptedController([1.0, -1.0, -1.0, -1.0], form=every(1, decades=2.0)),
            validation_data=None,
            min_learning_rate=0.05,
            max_learning_rate=0.2,
        )
        used, _ = self.used(callback)
        np.testing.assert_allclose(used[:3], [0.2, 0.05, 0.05], rtol=1e-3)


ONES = np.ones((96, 1), "float32")


def slope_model(**options):
    """One weight whose gradient is 1 at every step."""
    trainee = keras.Sequential(
        [keras.Input((1,)), keras.layers.Dense(1, use_bias=False)]
    )
    trainee.set_weights([np.zeros((1, 1))])
    return compiled(trainee, loss=lambda y, y_pred: keras.ops.mean(y_pred), **options)
