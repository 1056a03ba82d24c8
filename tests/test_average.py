"""`average`: a run's last step, along the line to the average of its weights."""

import dataclasses
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    GraphController,
    Poison,
    Recorder,
    data,
    every,
    fit,
    model,
    rate,
    run_python,
)

from keras_learned_lr import AnchoredScaleFactor, ScaleFactor
from keras_learned_lr.control.average import REACH, SAMPLES, WeightAverage, lowest_at
from keras_learned_lr.observation.layers import moving_statistics

# 12 steps of 120 back weigh 1/e: it begins after step 84, and every step counts.
SHARE, EPOCHS, STEPS = 0.1, 20, 120
# High enough for the last weights to be worse than their average.
HIGH, LOW = 3.0, 0.01


def averaging(
    learning_rate=HIGH, share=SHARE, *, before=(), callbacks=(), validation=(), **more
):
    """Trains under a constant learning rate; returns model, callback and recorder."""
    options = {k: more.pop(k) for k in ("batch_norm",) if k in more}
    compiled = {
        k: more.pop(k) for k in ("run_eagerly", "steps_per_execution") if k in more
    }
    optimizer = more.pop("optimizer", None) or keras.optimizers.SGD(learning_rate)
    trainee, seen = model(optimizer, **options, **compiled), Recorder()
    settings = {k: more.pop(k) for k in ("average", "rollback") if k in more}
    settings = {"rollback": False} | settings
    callback = rate(
        GraphController(form=dataclasses.replace(every(30), average=share)),
        **settings,
        **dict(validation),
    )
    fit(trainee, [seen, *before, callback, *callbacks], epochs=EPOCHS, **more)
    return trainee, callback, seen


def weighted(weights, share=SHARE, steps=STEPS, execution=1):
    """The average in plain NumPy, of the weights after every execution."""
    every_so_many = max(1, round(share * steps / SAMPLES))
    begin = steps - REACH * share * steps
    mean, count = None, 0
    for step in range(execution, steps + 1, execution):
        if step < begin or (step % every_so_many >= execution and step < steps):
            continue
        count += 1
        forgotten = 1 - math.exp(-every_so_many / (share * steps))
        part = max(1 / count, forgotten)
        now = weights[step // execution]
        if mean is None:
            mean = [0 * value for value in now]
        mean = [m + part * (v - m) for m, v in zip(mean, now, strict=True)]
    return mean


def assert_on_the_line(trainee, callback, last, mean):
    """The model is as far from its last weights as the callback says."""
    assert callback.averaged
    moving = {id(v) for v in moving_statistics(trainee)}
    for variable, one, other in zip(trainee.weights, last, mean, strict=True):
        way = callback.averaged
        way = max(way, 0.0) if id(variable) in moving else way
        expected = one + way * (other - one)
        np.testing.assert_allclose(variable, expected, rtol=1e-4, atol=1e-5)


def assert_same(got, expected):
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def loss_of(trainee, weights):
    trainee.set_weights(weights)
    return trainee.evaluate(*data(32, seed=1), verbose=0)


@pytest.mark.parametrize("learning_rate", [HIGH, LOW])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_goes_to_the_average_or_beyond_the_last_weights(batch_norm, learning_rate):
    if batch_norm:
        learning_rate = min(learning_rate, 2.0)
    # What `Recorder`, which comes first, saw after the last step is of before.
    trainee, callback, seen = averaging(learning_rate, batch_norm=batch_norm)
    assert bool(moving_statistics(trainee)) == batch_norm
    assert (callback.averaged > 0) == (learning_rate > LOW)
    assert_on_the_line(trainee, callback, seen.weights[-1], weighted(seen.weights))
    ends = trainee.get_weights()
    assert loss_of(trainee, ends) < loss_of(trainee, seen.weights[-1])


def test_weights_are_taken_in_every_so_often_in_a_long_run():
    trainee, callback, seen = averaging(share=0.3, batch_size=4)
    steps = EPOCHS * 24
    assert round(0.3 * steps / SAMPLES) > 1
    mean = weighted(seen.weights, 0.3, steps)
    assert_on_the_line(trainee, callback, seen.weights[-1], mean)


def test_epochs_of_unknown_length_are_not_cut_short():
    """Two epochs are taken for 200 steps at first, and no decision tells better."""
    batches = tf.data.Dataset.from_tensor_slices(data()).batch(4).repeat(6)
    batches = batches.filter(lambda *_: True)
    trainee, seen = model(keras.optimizers.SGD(HIGH)), Recorder()
    form = dataclasses.replace(every(1000), average=SHARE)
    callback = rate(GraphController(form=form))
    trainee.fit(batches, epochs=2, verbose=0, callbacks=[seen, callback])
    assert len(seen.weights) == 2 * 144 + 1
    mean = weighted(seen.weights, SHARE, 2 * 144)
    assert_on_the_line(trainee, callback, seen.weights[-1], mean)


def test_what_has_a_constraint_keeps_it():
    trainee = model(keras.optimizers.SGD(LOW))
    trainee.layers[0].kernel.constraint = keras.constraints.NonNeg()
    seen, form = Recorder(), dataclasses.replace(every(30), average=SHARE)
    callback = rate(GraphController(form=form))
    fit(trainee, [seen, callback], epochs=EPOCHS)
    assert callback.averaged < 0
    constrained, free = (np.asarray(layer.kernel) for layer in trainee.layers)
    np.testing.assert_array_equal(constrained, seen.weights[-1][0])
    assert np.all(constrained >= 0) and np.any(free != seen.weights[-1][2])


def test_nothing_is_left_of_it_where_it_was_never_asked_for():
    trainee, callback, seen = averaging(LOW, share=0.0)
    assert callback.averaged == 0
    assert_same(trainee.get_weights(), seen.weights[-1])


def after(trainee, measure):
    """Returns the weights before a last step, after it, and what it says."""
    average = WeightAverage(trainee, SHARE)
    for step in range(90, STEPS + 1):
        trainee.layers[0].kernel.assign_add(keras.ops.ones((6, 8)))
        average.go_on(step, STEPS)
    last = trainee.get_weights()
    try:
        return last, average.last_step(measure), trainee.get_weights()
    except RuntimeError as error:
        return last, error, trainee.get_weights()


class TestTheLastStep:
    @pytest.mark.parametrize(
        "losses",
        [[1.0] * 4, [2.0, 1.0, 1.9, 1.1], [math.nan] * 3, [1.0, math.inf, 1.0]],
    )
    def test_leaves_the_last_weights_to_the_bit(self, losses):
        """Where they are best, look best, or the loss says nothing."""
        told = iter(losses)
        last, share, weights = after(model(), lambda: next(told))
        assert share == 0
        assert_same(weights, last)
        # A fourth look is only worth it where three tell of a better place.
        assert not [*told]

    def test_takes_what_the_fourth_look_confirms(self):
        told = iter([2.0, 1.0, 0.5, 0.4])
        last, share, weights = after(model(), lambda: next(told))
        assert share == pytest.approx(0.75)
        assert np.any(weights[0] != last[0])

    def test_takes_back_what_it_tried_where_the_loss_cannot_be_measured(self):
        def measure():
            raise RuntimeError("no memory")

        last, error, weights = after(model(), measure)
        assert str(error) == "no memory"
        assert_same(weights, last)

    @pytest.mark.parametrize(
        ("losses", "where"),
        [
            ([1.25, 1.0, 1.25], 0.0),
            ([2.25, 1.0, 0.25], 1.0),  # (x - 1)², the average itself
            ([16.0, 9.0, 4.0], 1.0),  # further than that: not beyond it
            ([0.25, 1.0, 2.25], -0.5),  # (x + 1)²: so far and no further
            ([0.04, 0.09, 0.64], -0.3),  # (x + 0.3)²
            ([3.0, 2.0, 1.0], 0.5),  # a line, and one that curves down
            ([0.5, 1.0, 0.9], -0.5),
            ([1.0, math.nan, 0.5], 0.0),
        ],
    )
    def test_is_to_the_lowest_point_of_the_parabola(self, losses, where):
        assert lowest_at(losses) == pytest.approx(where)


@pytest.mark.parametrize("learning_rate", [HIGH, LOW])
def test_the_end_of_the_last_epoch_sees_the_weights_that_it_ends_with(learning_rate):
    class AtTheEnd(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.weights, self.loss = self.model.get_weights(), logs["val_loss"]

    last = AtTheEnd()
    validation = data(32, seed=1)
    trainee, _, _ = averaging(
        learning_rate, callbacks=[last], validation_data=validation
    )
    assert_same(last.weights, trainee.get_weights())
    assert last.loss == pytest.approx(trainee.evaluate(*validation, verbose=0))


@pytest.mark.parametrize("reason", ["stopped", "no data", "refused", "own average"])
def test_not_where(reason):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == EPOCHS - 2

    options = {
        "stopped": {"callbacks": [Stop()]},
        "no data": {"validation": {"validation_data": None}},
        "refused": {"average": False},
        "own average": {"optimizer": keras.optimizers.SGD(HIGH, use_ema=True)},
    }[reason]
    if reason == "no data":
        with pytest.warns(UserWarning, match="no `validation_data`"):
            trainee, callback, seen = averaging(**options)
    else:
        trainee, callback, seen = averaging(**options)
    assert callback.averaged == 0
    if reason != "own average":
        assert_same(trainee.get_weights(), seen.weights[-1])


@pytest.mark.parametrize(
    "options",
    [{"run_eagerly": True}, {"steps_per_execution": 6}],
    ids=["eager", "executions"],
)
def test_however_steps_are_made(options):
    trainee, callback, seen = averaging(**options)
    # Weights are seen after every execution only.
    execution = options.get("steps_per_execution", 1)
    mean = weighted(seen.weights, execution=execution)
    assert_on_the_line(trainee, callback, seen.weights[-1], mean)


MIRRORED = """
import sys
sys.path.insert(0, "tests")
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)
import test_average as tests
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    trainee = tests.model(tests.keras.optimizers.SGD(tests.HIGH))
tests.check_average(trainee)
print("done")
"""


def check_average(trainee):
    seen = Recorder()
    form = dataclasses.replace(every(30), average=SHARE)
    callback = rate(GraphController(form=form), rollback=False)
    fit(trainee, [seen, callback], epochs=EPOCHS)
    assert_on_the_line(trainee, callback, seen.weights[-1], weighted(seen.weights))


def test_across_devices():
    finished = run_python(MIRRORED)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "done" in finished.stdout


def test_begins_anew_where_weights_go_back():
    # After the decision at step 90, in the middle of what is averaged.
    with pytest.warns(UserWarning, match="those of step 60 again"):
        trainee, callback, _ = averaging(rollback=True, before=[Poison(89)])
    assert all(np.all(np.isfinite(value)) for value in trainee.get_weights())
    assert callback.averaged


def test_twice_with_one_callback():
    trainee, callback, _ = averaging()
    seen = Recorder()
    fit(trainee, [seen, callback], epochs=EPOCHS)
    assert_on_the_line(trainee, callback, seen.weights[-1], weighted(seen.weights))


def test_a_failure_ends_no_run(monkeypatch):
    def broken(self, step, horizon):
        raise tf.errors.ResourceExhaustedError(None, None, "no memory")

    monkeypatch.setattr(WeightAverage, "go_on", broken)
    with pytest.warns(UserWarning, match="cannot be averaged: no memory") as caught:
        _, callback, seen = averaging()
    assert sum("cannot be averaged" in str(w.message) for w in caught) == 1
    assert callback.averaged == 0 and len(seen.weights) == STEPS + 1
    assert len(callback.decisions["step"]) == 4


def test_the_share_is_checked_and_travels():
    for share in (-0.1, 0.31, math.nan):
        with pytest.raises(ValueError, match="`average` must be 0, or a share"):
            ScaleFactor(average=share)
    form = AnchoredScaleFactor(average=0.1)
    assert AnchoredScaleFactor.from_config(form.to_config()) == form
    # Whose average begins before the end has to know where the end is.
    assert not ScaleFactor().needs_horizon and ScaleFactor(average=0.1).needs_horizon
