"""`average`: a run ends with the average of its last weights, if that is no worse."""

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
from keras_learned_lr.control.average import REACH, SAMPLES
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


def weighted(weights, share=SHARE, steps=STEPS):
    """The average in plain NumPy, of the weights after every step."""
    every_so_many = max(1, round(share * steps / SAMPLES))
    begin = steps - REACH * share * steps
    mean, count = None, 0
    for step in range(1, steps + 1):
        if step < begin or (step % every_so_many and step < steps):
            continue
        count += 1
        forgotten = 1 - math.exp(-every_so_many / (share * steps))
        part = max(1 / count, forgotten)
        now = weights[step]
        if mean is None:
            mean = [0 * value for value in now]
        mean = [m + part * (v - m) for m, v in zip(mean, now, strict=True)]
    return mean


def assert_close(got, expected):
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def loss_of(trainee, weights):
    trainee.set_weights(weights)
    return trainee.evaluate(*data(32, seed=1), verbose=0)


@pytest.mark.parametrize(("batch_norm", "high"), [(False, HIGH), (True, 2.0)])
def test_ends_with_the_average_of_the_last_weights(batch_norm, high):
    trainee, callback, seen = averaging(high, batch_norm=batch_norm)
    # What `Recorder`, which comes first, saw after the last step is not averaged yet.
    assert callback.averaged
    assert bool(moving_statistics(trainee)) == batch_norm
    assert_close(trainee.get_weights(), weighted(seen.weights))
    mean = trainee.get_weights()
    assert loss_of(trainee, mean) < loss_of(trainee, seen.weights[-1])


def test_weights_are_taken_in_every_so_often_in_a_long_run():
    trainee, callback, seen = averaging(share=0.3, batch_size=4)
    steps = EPOCHS * 24
    assert round(0.3 * steps / SAMPLES) > 1
    assert callback.averaged
    assert_close(trainee.get_weights(), weighted(seen.weights, 0.3, steps))


def test_not_where_the_last_weights_are_better():
    trainee, callback, seen = averaging(LOW)
    assert not callback.averaged
    for got, last in zip(trainee.get_weights(), seen.weights[-1], strict=True):
        np.testing.assert_array_equal(got, last)
    # Nothing of it is left where it was never asked for, either.
    plain, asked, _ = averaging(LOW, share=0.0)
    assert not asked.averaged
    for got, last in zip(plain.get_weights(), seen.weights[-1], strict=True):
        np.testing.assert_array_equal(got, last)


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
    assert_close(last.weights, trainee.get_weights())
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
    assert not callback.averaged
    if reason != "own average":
        for got, last in zip(trainee.get_weights(), seen.weights[-1], strict=True):
            np.testing.assert_array_equal(got, last)


@pytest.mark.parametrize(
    "options",
    [{"run_eagerly": True}, {"steps_per_execution": 6}],
    ids=["eager", "executions"],
)
def test_however_steps_are_made(options):
    trainee, callback, seen = averaging(**options)
    assert callback.averaged
    if "steps_per_execution" not in options:
        assert_close(trainee.get_weights(), weighted(seen.weights))
        return
    # Weights are seen after every sixth step only.
    mean, count = None, 0
    for number, now in enumerate(seen.weights[1:], start=1):
        if 6 * number < STEPS * (1 - REACH * SHARE):
            continue
        count += 1
        part = max(1 / count, 1 - math.exp(-1 / 12))
        mean = [np.zeros_like(v) for v in now] if mean is None else mean
        mean = [m + part * (v - m) for m, v in zip(mean, now, strict=True)]
    assert_close(trainee.get_weights(), mean)


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
    assert callback.averaged
    assert_close(trainee.get_weights(), weighted(seen.weights))


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
    assert callback.averaged
    assert_close(trainee.get_weights(), weighted(seen.weights))


def test_a_failure_ends_no_run(monkeypatch):
    from keras_learned_lr.control.average import WeightAverage

    def broken(self, step, horizon):
        raise tf.errors.ResourceExhaustedError(None, None, "no memory")

    monkeypatch.setattr(WeightAverage, "go_on", broken)
    with pytest.warns(UserWarning, match="cannot be averaged: no memory") as caught:
        _, callback, seen = averaging()
    assert sum("cannot be averaged" in str(w.message) for w in caught) == 1
    assert not callback.averaged and len(seen.weights) == STEPS + 1
    assert len(callback.decisions["step"]) == 4


def test_the_share_is_checked_and_travels():
    for share in (-0.1, 0.31, math.nan):
        with pytest.raises(ValueError, match="`average` must be 0, or a share"):
            ScaleFactor(average=share)
    form = AnchoredScaleFactor(average=0.1)
    assert AnchoredScaleFactor.from_config(form.to_config()) == form
    # Whose average begins before the end has to know where the end is.
    assert not ScaleFactor().needs_horizon and ScaleFactor(average=0.1).needs_horizon
