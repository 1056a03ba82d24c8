"""LearnedLearningRate in `fit`: when it decides, and that it leaves no trace."""

import copy
import gc
import json
import pickle
import warnings
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    LAYER,
    GraphController,
    Interrupter,
    Recorder,
    ScriptedController,
    compiled,
    data,
    every,
    fit,
    learning_rate,
    model,
    rate,
    run_python,
)

from keras_learned_lr import (
    AnchoredScaleFactor,
    LearnedLearningRate,
    ScaleFactor,
    plot_decisions,
)
from keras_learned_lr.control.controller import PolicyOutput
from keras_learned_lr.control.schedules import Geometric, PerRun


def steps_of(callback):
    return callback.decisions["step"].tolist()


def batches(count=6, size=16, repeat=False):
    """A generator, which tells nobody its length."""
    x, y = data(count * size)
    while True:
        for i in range(count):
            yield x[i * size :][:size], y[i * size :][:size]
        if not repeat:
            return


def unknown_length(count=6):
    x, y = data(count * 16)
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    return dataset.filter(lambda x, y: True)


class TestWhen:
    """12 steps: 2 epochs of 6."""

    @pytest.mark.parametrize(
        ("update_freq", "expected"),
        [
            (1, list(range(12))),
            (5, [0, 5, 10]),
            (6, [0, 6]),
            (12, [0]),
            (99, [0]),
            (np.int64(5), [0, 5, 10]),
        ],
    )
    def test_every_so_many_steps(self, update_freq, expected):
        callback = rate(update_freq=update_freq)
        fit(model(), [callback])
        assert steps_of(callback) == expected

    @pytest.mark.parametrize("schedule", [PerRun(5), Geometric()])
    def test_auto_is_the_schedule_that_the_controller_carries(self, schedule):
        callback = rate(GraphController(form=ScaleFactor(schedule=schedule)))
        fit(model(), [callback], epochs=8)
        expected, due = [], 0
        while due < 48:
            expected.append(due)
            due = schedule.next_step(due, 48)
        assert steps_of(callback) == expected

    @pytest.mark.parametrize(
        ("size", "expected"), [(7, [0, 6, 12, 18]), (2, [0, 6, 12, 18]), (50, [0, 6])]
    )
    def test_with_several_steps_an_execution(self, size, expected):
        """At the first hook at or after the due step."""
        epochs = 2 if size == 50 else 4
        callback = rate(update_freq=5)
        trainee = model(steps_per_execution=size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras: the data has run out.
            fit(trainee, [callback], epochs=epochs)
        assert steps_of(callback) == expected
        assert int(trainee.optimizer.iterations) == 6 * epochs

    def test_only_where_accumulated_gradients_are_applied(self):
        optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=4)
        callback = rate(update_freq=3)
        fit(model(optimizer), [callback], epochs=4)
        assert steps_of(callback) == [0, 4, 8, 12, 16, 20]

    def test_also_where_the_accumulating_optimizer_is_wrapped(self):
        inner = keras.optimizers.SGD(0.1, gradient_accumulation_steps=4)
        callback = rate(update_freq=3)
        fit(model(keras.optimizers.LossScaleOptimizer(inner)), [callback], epochs=4)
        assert steps_of(callback) == [0, 4, 8, 12, 16, 20]

    def test_from_a_dataset_of_unknown_length(self):
        callback = rate(GraphController(form=AnchoredScaleFactor(schedule=PerRun(6))))
        fit(model(), [callback], unknown_length(), batch_size=None, epochs=4)
        # In the first epoch the run is taken to be 4 × 100 steps; then it is known.
        assert steps_of(callback)[0] == 0
        assert int(callback._loop._horizon) == 24
        assert callback._loop.probe.step == 24

    def test_from_a_generator_of_unknown_length_and_one_epoch(self):
        callback = rate(GraphController(names=["learning_rate"], form=every(2)))
        fit(model(), [callback], batches(), batch_size=None, epochs=1)
        # Where the run ends nobody knew: the last decision may be at its end.
        assert steps_of(callback) in ([0, 2, 4], [0, 2, 4, 6])

    def test_total_steps_is_the_length_of_the_run(self):
        form = AnchoredScaleFactor(schedule=PerRun(3))
        callback = rate(GraphController(form=form), total_steps=9)
        fit(model(), [callback], batches(9), batch_size=None, epochs=1)
        assert steps_of(callback) == [0, 3, 6]

    def test_from_an_initial_epoch(self):
        form = AnchoredScaleFactor(schedule=PerRun(3))
        callback = rate(GraphController(form=form))
        fit(model(), [callback], epochs=5, initial_epoch=3)
        assert steps_of(callback) == [0, 4, 8]
        assert int(callback._loop._horizon) == 12

    def test_steps_per_epoch(self):
        callback = rate(update_freq=3)
        options = {"batch_size": None, "steps_per_epoch": 4, "epochs": 2}
        fit(model(), [callback], batches(repeat=True), **options)
        assert steps_of(callback) == [0, 3, 6]

    def test_not_at_all_where_there_is_no_epoch(self):
        callback, trainee = rate(), model()
        fit(trainee, [callback])
        trainee.optimizer.learning_rate = 0.7
        fit(trainee, [callback], epochs=0)
        assert learning_rate(trainee) == pytest.approx(0.7)
        assert steps_of(callback) == []


class TestDecisions:
    def test_are_arrays_with_one_entry_each(self):
        names = ["log_level", "validation_loss", "previous_action"]
        actions = [0.5, -2.0, 0.25]
        controller = ScriptedController(actions, names, every(4, decades=1.0))
        callback = rate(controller)
        assert all(len(v) == 0 for k, v in callback.decisions.items() if k[0] != "o")
        trainee = model()
        start = trainee.evaluate(*data(32, seed=1), verbose=0)
        fit(trainee, [callback])
        decisions = callback.decisions
        assert set(decisions) == {
            *("step", "learning_rate", "factor", "action", "loss", "held"),
            *("rolled_back", "observation"),
        }
        assert decisions["step"].tolist() == [0, 4, 8]
        np.testing.assert_allclose(decisions["action"], actions, rtol=1e-6)
        np.testing.assert_allclose(
            decisions["factor"], [10**0.5, 0.1, 10**0.25], rtol=1e-5
        )
        np.testing.assert_allclose(
            decisions["learning_rate"], 0.1 * np.cumprod(decisions["factor"]), rtol=1e-5
        )
        assert not decisions["held"].any()
        assert decisions["rolled_back"].tolist() == [-1, -1, -1]
        assert decisions["loss"][0] == pytest.approx(start, rel=1e-4)
        observed = decisions["observation"]
        assert list(observed) == names
        np.testing.assert_allclose(observed["validation_loss"], decisions["loss"])
        # Clipped to what was done.
        np.testing.assert_allclose(observed["previous_action"], [0.0, 0.5, -1.0])
        np.testing.assert_allclose(observed["log_level"], [0, 0.25, -0.25], atol=1e-5)

    def test_are_of_the_last_run(self):
        callback, trainee = rate(update_freq=4), model()
        for _ in range(2):
            fit(trainee, [callback])
            assert steps_of(callback) == [0, 4, 8]

    def test_of_the_same_run_are_the_same(self):
        runs = []
        for _ in range(2):
            callback = rate(GraphController(lambda o: 0.3 * o[:, 7] - 0.1))
            fit(model(dropout=True), [callback], shuffle=True)
            runs.append(callback.decisions["learning_rate"])
        np.testing.assert_array_equal(*runs)

    def test_verbose_prints_each(self, capsys):
        fit(model(), [rate(update_freq=6, verbose=1)])
        lines = capsys.readouterr().out.splitlines()
        assert [line.split(":")[0] for line in lines] == ["step 0", "step 6"]

    def test_are_drawn(self, tmp_path):
        pytest.importorskip("matplotlib")
        callback = rate()
        with pytest.raises(ValueError, match="no decision yet"):
            plot_decisions(callback)
        fit(model(), [callback])
        figure = plot_decisions(callback, tmp_path / "picture.png")
        assert (tmp_path / "picture.png").stat().st_size > 1000
        assert len(figure.axes) == 2

    def test_without_validation_data_watch_the_training_loss(self):
        callback = rate(validation_data=None, update_freq=4)
        with pytest.warns(UserWarning, match="no `validation_data`.*training loss"):
            fit(model(), [callback])
        losses = callback.decisions["loss"]
        assert np.isnan(losses[0]) and np.all(np.isfinite(losses[1:]))


class TestLogs:
    def test_reach_later_callbacks_and_history(self):
        callback, recorder = rate(ScriptedController([1.0, 0.0]), update_freq=4), None
        recorder = Recorder()
        history = fit(model(), [callback, recorder]).history
        expected = np.repeat(callback.decisions["learning_rate"], 4)
        # At a decision's own batch the logs hold what it has just set.
        seen = [logs["learning_rate"] for logs in recorder.batch_logs]
        np.testing.assert_allclose(seen, [*expected[1:], expected[-1]], rtol=1e-6)
        epochs = [logs["learning_rate"] for logs in recorder.epoch_logs]
        np.testing.assert_allclose(epochs, history["learning_rate"])
        np.testing.assert_allclose(epochs, [seen[5], seen[11]], rtol=1e-6)


def state_of(trainee):
    optimizer = trainee.optimizer
    return {
        "attributes": set(trainee.__dict__),
        "train_step": trainee.__dict__.get("train_step"),
        "train_function": trainee.train_function,
        "compute_loss": trainee.__dict__.get("compute_loss"),
        "learning rate": learning_rate(trainee),
        "variables": [v.path for v in [*trainee.variables, *optimizer.variables]],
    }


class TestLeavesNoTrace:
    def test_after_fit(self):
        trainee = model()
        fit(trainee)
        before = state_of(trainee)
        fit(trainee, [rate(ScriptedController([1.0]))])
        assert state_of(trainee) == before

    def test_in_evaluate_and_predict(self):
        trainee, callback = model(), rate()
        fit(trainee, [callback])
        before, decisions = state_of(trainee), steps_of(callback)
        x, y = data(16)
        trainee.evaluate(x, y, verbose=0, callbacks=[callback])
        trainee.predict(x, verbose=0, callbacks=[callback])
        after = state_of(trainee)
        before.pop("attributes"), after.pop("attributes")
        assert after == before
        assert steps_of(callback) == decisions

    def test_in_memory(self):
        trainee = model()
        fit(trainee, [rate()])
        gone = weakref.ref(trainee)
        del trainee
        keras.backend.clear_session()
        gc.collect()
        assert gone() is None


class TestSeveralRuns:
    def test_a_second_fit_starts_from_the_default_again(self):
        callback, trainee = rate(ScriptedController([1.0], form=every(4))), model()
        rates = []
        for _ in range(2):
            fit(trainee, [callback])
            rates.append(callback.decisions["learning_rate"])
        np.testing.assert_array_equal(*rates)

    def test_a_rate_set_by_hand_is_the_next_default(self):
        callback, trainee = rate(ScriptedController([0.0])), model()
        fit(trainee, [callback])
        trainee.optimizer.learning_rate = 0.02
        fit(trainee, [callback])
        np.testing.assert_allclose(callback.decisions["learning_rate"], 0.02, rtol=1e-6)
        assert learning_rate(trainee) == pytest.approx(0.02)

    def test_a_compile_between_two(self):
        callback, trainee = rate(), model()
        fit(trainee, [callback])
        compiled(trainee, keras.optimizers.Adam(0.003))
        fit(trainee, [callback])
        np.testing.assert_allclose(callback.decisions["learning_rate"], 0.003)
        assert learning_rate(trainee) == pytest.approx(0.003)
        fit(trainee)

    def test_layers_frozen_between_two(self):
        callback, trainee = rate(), model()
        fit(trainee, [callback])
        trainee.layers[0].trainable = False
        compiled(trainee)
        frozen = trainee.layers[0].get_weights()
        fit(trainee, [callback])
        assert all(map(np.array_equal, frozen, trainee.layers[0].get_weights()))

    def test_custom_step_without_fit_in_between(self):
        callback, trainee = rate(), model()
        fit(trainee, [callback])
        trainee.train_on_batch(*data(16))
        fit(trainee, [callback])
        assert steps_of(callback) == [0, 5, 10]


class TestAfterAnException:
    """`on_train_end` does not run: the next run finds the tap and removes it."""

    @pytest.fixture
    def broken(self):
        trainee = model()
        callback = rate(ScriptedController([1.0], form=every(2)))
        with pytest.raises(KeyboardInterrupt):
            fit(trainee, [callback, Interrupter(3)])
        assert learning_rate(trainee) > 0.15
        return trainee, callback

    def test_a_fit_without_it_is_a_plain_fit(self, broken):
        trainee, callback = broken
        recorder, step = Recorder(), int(callback._loop.probe.step)
        fit(trainee, [recorder])
        assert int(callback._loop.probe.step) == step
        assert "train_step" not in trainee.__dict__
        assert learning_rate(trainee) == pytest.approx(0.1)
        assert "learning_rate" not in recorder.batch_logs[0]

    def test_a_fit_with_it_starts_anew(self, broken):
        trainee, callback = broken
        fit(trainee, [callback])
        fresh = rate(ScriptedController([1.0], form=every(2)))
        fit(model(), [fresh])
        expected = fresh.decisions["learning_rate"]
        np.testing.assert_allclose(callback.decisions["learning_rate"], expected)
        assert "train_step" not in trainee.__dict__
        assert learning_rate(trainee) == pytest.approx(0.1)

    def test_a_fit_with_another_starts_from_the_true_default(self, broken):
        trainee, _ = broken
        other = rate(ScriptedController([0.0]))
        fit(trainee, [other])
        assert other.decisions["learning_rate"] == pytest.approx(0.1)
        assert "train_step" not in trainee.__dict__

    def test_a_rate_set_by_hand_since_stays(self, broken):
        trainee, callback = broken
        trainee.optimizer.learning_rate = 0.03
        fit(trainee, [callback])
        assert callback.decisions["learning_rate"][0] == pytest.approx(0.03 * 10**0.3)
        assert learning_rate(trainee) == pytest.approx(0.03)

    def test_a_compile_and_a_fit_without_it_are_plain(self, broken):
        trainee, callback = broken
        compiled(trainee, keras.optimizers.SGD(0.2))
        step = int(callback._loop.probe.step)
        fit(trainee)
        assert int(callback._loop.probe.step) == step
        assert "train_step" not in trainee.__dict__
        assert learning_rate(trainee) == pytest.approx(0.2)

    def test_train_on_batch_is_plain(self, broken):
        trainee, callback = broken
        step = int(callback._loop.probe.step)
        trainee.train_on_batch(*data(16))
        assert int(callback._loop.probe.step) == step
        assert "train_step" not in trainee.__dict__

    def test_another_model_is_left_alone(self, broken):
        _, callback = broken
        other = model(keras.optimizers.SGD(0.4))
        fit(other, [callback])
        assert callback.decisions["learning_rate"][0] == pytest.approx(0.4 * 10**0.3)
        assert learning_rate(other) == pytest.approx(0.4)


class TestOptimizers:
    def test_adversarial_models_with_two_optimizers_are_not_our_business(self):
        """Only `model.optimizer` is steered; others a step uses stay as they are."""

        class Two(keras.Model):
            def train_step(self, data):
                logs = super().train_step(data)
                self.extra.assign_add(self.second.learning_rate)
                return logs

        trainee = model(model_class=Two)
        trainee.second = keras.optimizers.SGD(0.5)
        trainee.extra = tf.Variable(0.0)
        fit(trainee, [rate(ScriptedController([1.0]))], epochs=1)
        assert float(trainee.extra) == pytest.approx(3.0)


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("validation", [True, False])
def test_a_model_that_its_first_batch_builds(validation):
    """As a Sequential without Input is; everything of it is seen all the same."""
    names = ["layer_variance", "log_update_ratio", "output_variance_after"]
    options = {} if validation else {"validation_data": None}
    callback = rate(
        GraphController(names=names, form=every(4)), designated_layer="one", **options
    )
    keras.utils.set_random_seed(1)
    trainee = keras.Sequential([LAYER.Dense(8, name="one"), LAYER.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compiled(trainee, loss=loss)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*no `validation_data`")
        fit(trainee, [callback])
    for name, values in callback.decisions["observation"].items():
        assert np.all(values[1:] != 0), name
    one = trainee.layers[0].kernel.numpy()
    assert one.shape == (6, 8)


def test_a_model_that_its_first_batch_builds_trains_as_without():
    def run(callbacks):
        keras.utils.set_random_seed(1)
        trainee = keras.Sequential([LAYER.Dense(8), LAYER.Dropout(0.5), LAYER.Dense(3)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        fit(compiled(trainee, loss=loss), callbacks, shuffle=True)
        return trainee.get_weights()

    for a, b in zip(run([]), run([rate()]), strict=True):
        np.testing.assert_array_equal(a, b)


class TestWhenThingsBreak:
    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_a_loss_that_is_not_finite_keeps_the_last_good_rate(self, bad):
        x, y = data()
        y = np.eye(3, dtype="float32")[y]
        y[50] = bad  # In the 4th batch.
        controller = ScriptedController([0.5], form=every(2))
        callback = rate(controller, validation_data=None, rollback=False)
        trainee = model(loss="mean_squared_error")
        with pytest.warns(UserWarning, match="not finite") as caught:
            fit(trainee, [callback], x, y, epochs=3)
        told = [w for w in caught if "not finite" in str(w.message)]
        assert len(told) == 1
        decisions = callback.decisions
        # Steps 0 and 2 are healthy; the window from 2 to 4 is not, nor any later.
        assert decisions["held"].tolist() == [False, False] + [True] * 7
        assert decisions["learning_rate"][1] > decisions["learning_rate"][0]
        good = decisions["learning_rate"][0]
        np.testing.assert_allclose(decisions["learning_rate"][2:], good, rtol=1e-6)
        for values in decisions["observation"].values():
            assert np.all(np.isfinite(values))
        assert learning_rate(trainee) == pytest.approx(0.1)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_an_action_that_is_not_finite_keeps_the_rate(self, bad):
        controller = ScriptedController([0.5, bad, -0.5], form=every(2))
        callback = rate(controller)
        with pytest.warns(UserWarning, match="not finite") as caught:
            fit(model(), [callback])
        assert len([w for w in caught if "not finite" in str(w.message)]) == 1
        decisions = callback.decisions
        assert decisions["held"].tolist() == [False, True, False] * 2
        rates = decisions["learning_rate"]
        assert rates[1] == rates[0] and rates[2] < rates[1]
        assert np.all(np.isfinite(rates))

    def test_a_state_that_is_not_finite_is_forgotten(self):
        class Poisoned(ScriptedController):
            def act(self, observation, state):
                output = super().act(observation, state)
                poison = tf.where(state[0] > 0.5, float("nan"), output.state[0])
                return PolicyOutput(output.action, [poison])

        callback = rate(Poisoned([0.5, -0.5], form=every(2)))
        fit(model(), [callback])
        assert np.all(np.isfinite(callback.decisions["action"]))

    def test_an_exception_in_a_later_decision_does_not_end_the_run(self):
        def act(observation):
            check = tf.debugging.assert_less(observation[0, 0], 0.5, "no more")
            with tf.control_dependencies([check]):
                return tf.fill([tf.shape(observation)[0]], 0.3)

        controller = GraphController(act, ["progress"], every(2))
        callback, trainee = rate(controller), model()
        with pytest.warns(
            UserWarning, match="(?s)A decision failed.*no more"
        ) as caught:
            history = fit(trainee, [callback]).history
        assert len([w for w in caught if "A decision failed" in str(w.message)]) == 1
        assert len(history["loss"]) == 2
        assert steps_of(callback) == [0, 2, 4, 6, 8]
        assert "train_step" not in trainee.__dict__
        assert learning_rate(trainee) == pytest.approx(0.1)
        last = callback.decisions["learning_rate"][-1]
        assert history["learning_rate"][-1] == pytest.approx(last)

    @pytest.mark.parametrize("where", ["act", "initial_state"])
    def test_an_exception_before_step_1_leaves_the_model_as_it_was(self, where):
        controller = GraphController()

        def fail(*_):
            raise RuntimeError("broken controller")

        trainee = model()
        fit(trainee, epochs=1)
        before, weights = state_of(trainee), trainee.get_weights()
        setattr(controller, where, fail)
        with pytest.raises(RuntimeError, match="broken controller"):
            fit(trainee, [rate(controller)])
        assert state_of(trainee) == before
        assert all(map(np.array_equal, weights, trainee.get_weights()))

    def test_early_stopping_ends_it_cleanly(self):
        class Stop(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                self.model.stop_training = batch >= 2

        callback, trainee = rate(update_freq=1), model()
        fit(trainee, [callback, Stop()])
        assert steps_of(callback) == [0, 1, 2, 3]
        assert "train_step" not in trainee.__dict__


MIRRORED = """
import json, warnings
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)
import keras, numpy as np
import sys
sys.path.insert(0, "tests")
from helpers import *
from keras_learned_lr import AnchoredScaleFactor
from keras_learned_lr.observation.spec import DEFAULT, PUBLISHED

x, y = data()
names = tuple(dict.fromkeys(PUBLISHED + DEFAULT))

def run(strategy):
    with strategy.scope():
        trainee = model()
    form = AnchoredScaleFactor(schedule=EverySteps(4))
    controller = GraphController(0.2, names, form)
    callback = rate(controller, designated_layer="first", probe_size=8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = fit(trainee, [callback], x, y)
    told = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    seen = {k: v.tolist() for k, v in callback.decisions["observation"].items()}
    rates = callback.decisions["learning_rate"].tolist()
    return dict(seen=seen, rates=rates, told=told, after=learning_rate(trainee),
                loss=history.history["loss"])

from keras_learned_lr.control.schedules import EverySteps
two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert two.num_replicas_in_sync == 2
print(json.dumps([run(tf.distribute.get_strategy()), run(two)]))
"""


def test_two_replicas_see_what_one_does():
    finished = run_python(MIRRORED)
    assert finished.returncode == 0, finished.stderr[-3000:]
    one, two = json.loads(finished.stdout.splitlines()[-1])
    assert two["told"] == []
    np.testing.assert_allclose(one["rates"], two["rates"], rtol=1e-5)
    np.testing.assert_allclose(one["loss"], two["loss"], rtol=1e-4)
    assert two["after"] == pytest.approx(0.1)
    for name, values in one["seen"].items():
        # The training losses and the noted batch are those of the first replica.
        if "training" in name or "input" in name or "output" in name:
            assert np.all(np.isfinite(two["seen"][name])), name
            same = np.array(values) != 0
            assert np.array_equal(np.array(two["seen"][name]) != 0, same), name
        else:
            np.testing.assert_allclose(
                values, two["seen"][name], atol=1e-3, err_msg=name
            )


def test_works_as_the_readme_says():
    trainee = model("adam")
    callback = LearnedLearningRate(
        GraphController(0.1), validation_data=data(32, seed=1)
    )
    x, y = data()
    history = trainee.fit(x, y, epochs=2, callbacks=[callback], verbose=0)
    assert "learning_rate" in history.history


class FailingLearner(GraphController):
    """Learns nothing: fails at its third decision, or at the end of the run."""

    def __init__(self, fails_at_end):
        super().__init__(form=every(2))
        self._fails_at_end = fails_at_end
        self.recorded = 0
        self.ended = []

    def begin_episode(self):
        pass

    def record(self, decision):
        self.recorded += 1
        if self.recorded == 3 and not self._fails_at_end:
            raise RuntimeError("out of memory")

    def end_episode(self, decision):
        self.ended.append(decision)
        if self._fails_at_end:
            raise RuntimeError("out of memory")


@pytest.mark.parametrize("fails_at_end", [False, True])
def test_a_learner_that_fails_does_not_end_the_run(fails_at_end):
    learner = FailingLearner(fails_at_end)
    trainee = model()
    learned = LearnedLearningRate(learner, validation_data=data())
    with pytest.warns(UserWarning, match="out of memory") as warned:
        history = fit(trainee, [learned], epochs=2)
    assert ["out of memory" in str(w.message) for w in warned].count(True) == 1
    assert len(history.history["loss"]) == 2
    assert len(learner.ended) == 1
    # Where it failed on the way it is told that the run broke off.
    assert (learner.ended[0] is None) is not fails_at_end
    assert "train_step" not in trainee.__dict__


@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_has_the_settings_and_none_of_the_runs(how, fitted):
    """As tuners make one for each trial."""
    original = LearnedLearningRate(validation_data=data(32, seed=1), update_freq=4)
    if fitted:
        fit(model("adam"), [original])
    copied = (
        copy.deepcopy(original)
        if how == "deepcopy"
        else pickle.loads(pickle.dumps(original))
    )
    assert len(copied.decisions["step"]) == 3 * fitted
    trainee, twin = model("adam"), model("adam")
    fit(trainee, [copied])
    assert learning_rate(trainee) == pytest.approx(0.001)
    fit(twin, [LearnedLearningRate(validation_data=data(32, seed=1), update_freq=4)])
    for one, other in zip(trainee.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
    assert len(original.decisions["step"]) == 3 * fitted


def test_may_be_made_inside_the_scope_of_a_strategy():
    with tf.distribute.OneDeviceStrategy("CPU:0").scope():
        assert LearnedLearningRate().controller.observation_spec.names


class MadeAnew(keras.callbacks.Callback):
    """Compiles with the same optimizer in mid-run, as callbacks that unfreeze do."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            self.model.compile(self.model.optimizer, "sparse_categorical_crossentropy")
            self.model.make_train_function(force=True)


def test_a_training_step_that_is_made_anew_gets_its_own_learning_rate():
    class Reads(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            rates.append(learning_rate(self.model))

    rates, trainee = [], model("adam")
    learned = rate(GraphController(1.0, form=every(4)))
    with pytest.warns(UserWarning, match="step was made anew"):
        fit(trainee, [learned, MadeAnew(), Reads()], epochs=3)
    assert rates[0] > 0.0011
    assert rates[1:] == pytest.approx([0.001, 0.001])


def test_a_list_that_knows_no_epochs_is_refused():
    trainee = model()
    own = keras.callbacks.CallbackList([rate()], model=trainee)
    with pytest.raises(ValueError, match="a list of callbacks"):
        trainee.fit(*data(), callbacks=own, verbose=0)
