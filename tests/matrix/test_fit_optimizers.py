"""The matrix: every optimizer, and what can be wrapped around one."""

import warnings

import keras
import numpy as np
import pytest
from contract import check_run, classes_of, compiled, draws, rate_of, scripted
from helpers import ScriptedController, fit, model, rate

from keras_learned_lr import LearnedLearningRate

LAYER = keras.layers
OPTIMIZERS = keras.optimizers

X = draws().normal(size=(64, 6)).astype("float32")
Y = classes_of(X, 3)


def check(optimizer, **options):
    """In all but two rows the controller is a script: what it sees matters little."""
    trainee = classifier(optimizer)
    options = {"controller": scripted(), "batch_size": 16, **options}
    return check_run(trainee, X, Y, **options)


def classifier(optimizer, **options):
    body = [
        keras.Input((6,)),
        LAYER.Dense(8, "relu", name="first"),
        LAYER.Dense(3, name="last"),
    ]
    return compiled(keras.Sequential(body), optimizer=optimizer, **options)


EVERY = {
    "SGD": lambda: OPTIMIZERS.SGD(0.1),
    "momentum": lambda: OPTIMIZERS.SGD(0.05, momentum=0.9),
    "Nesterov": lambda: OPTIMIZERS.SGD(0.05, momentum=0.9, nesterov=True),
    "Adam": lambda: OPTIMIZERS.Adam(0.01),
    "AMSGrad": lambda: OPTIMIZERS.Adam(0.01, amsgrad=True),
    "AdamW": lambda: OPTIMIZERS.AdamW(0.01),
    "Adagrad": lambda: OPTIMIZERS.Adagrad(0.1),
    "RMSprop": lambda: OPTIMIZERS.RMSprop(0.01, momentum=0.5, centered=True),
    "Lion": lambda: OPTIMIZERS.Lion(0.005),
    "Lamb": lambda: OPTIMIZERS.Lamb(0.02),
    "Muon": lambda: OPTIMIZERS.Muon(0.01),
    "Adafactor": lambda: OPTIMIZERS.Adafactor(0.05),
    "Adadelta": lambda: OPTIMIZERS.Adadelta(1.0),
    "Adamax": lambda: OPTIMIZERS.Adamax(0.02),
    "Nadam": lambda: OPTIMIZERS.Nadam(0.01),
    "Ftrl": lambda: OPTIMIZERS.Ftrl(0.1),
    "ScheduleFreeAdamW": lambda: OPTIMIZERS.ScheduleFreeAdamW(0.02),
    "clipnorm": lambda: OPTIMIZERS.SGD(0.1, clipnorm=0.5),
    "clipvalue": lambda: OPTIMIZERS.Adam(0.01, clipvalue=0.1),
    "global_clipnorm": lambda: OPTIMIZERS.SGD(0.1, global_clipnorm=0.5),
    "weight_decay": lambda: OPTIMIZERS.SGD(0.1, weight_decay=1e-3),
    "loss_scale_factor": lambda: OPTIMIZERS.SGD(0.1, loss_scale_factor=8.0),
}


@pytest.mark.parametrize("name", EVERY)
def test_every(name):
    check(EVERY[name]())


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_by_name(name):
    check(name, controller=None)


def test_accumulated_gradients():
    optimizer = OPTIMIZERS.Adam(0.02, gradient_accumulation_steps=3)
    run = check(optimizer, accumulated=3, batch_size=8, epochs=6)
    assert all(step % 3 == 0 for step in run.callback.decisions["step"])


def test_accumulated_gradients_of_an_earlier_run():
    """The optimizer has counted its steps: two of four when the run begins."""
    optimizer = OPTIMIZERS.SGD(0.02, gradient_accumulation_steps=4)
    trainee = model(optimizer)
    fit(trainee, batch_size=48, epochs=1)
    learned = rate(ScriptedController([0.4, -0.6]), update_freq=3)
    with warnings.catch_warnings():
        # It does make updates, also in an epoch of two steps.
        warnings.filterwarnings("error", message=".*no update")
        fit(trainee, [learned], batch_size=48, epochs=8)
    assert learned.decisions["step"].tolist() == [0, 6, 10, 14]


def test_moving_average_of_the_weights():
    optimizer = OPTIMIZERS.Adam(0.02, use_ema=True, ema_momentum=0.5)
    trainee = check(optimizer).callback.model
    # `fit` ends by putting the averages into the model.
    for weight, average in zip(
        trainee.trainable_variables,
        optimizer._model_variables_moving_average,
        strict=True,
    ):
        np.testing.assert_array_equal(weight, average)


def test_moving_average_that_overwrites():
    options = {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 3}
    check(OPTIMIZERS.Adam(0.02, **options))


def several():
    slow, fast = OPTIMIZERS.SGD(0.02), OPTIMIZERS.Adam(0.01)
    mapped = OPTIMIZERS.OptimizerMap(slow, {".*first/.*": fast})
    return OPTIMIZERS.MultiOptimizer(mapped)


def test_several_keep_their_ratio():
    run = check(several())
    slow, fast = run.callback.model.optimizer.optimizers
    ratio = rate_of(slow) / rate_of(fast)
    logged = [run.history[f"learning_rate_{one.name}"] for one in (slow, fast)]
    np.testing.assert_allclose(logged[0], ratio * np.array(logged[1]), rtol=1e-5)


def choose():
    slow, fast = OPTIMIZERS.SGD(0.02), OPTIMIZERS.Adam(0.01)
    return lambda variable: fast if "first" in variable.path else slow


def test_several_that_a_function_chooses():
    trainee = classifier(OPTIMIZERS.MultiOptimizer(choose()))
    trainee.optimizer.build(trainee.trainable_variables)
    check_run(trainee, X, Y, batch_size=16)


def test_several_that_are_not_there_yet():
    trainee = classifier(OPTIMIZERS.MultiOptimizer(choose()))
    weights = trainee.get_weights()
    with (
        pytest.warns(UserWarning, match="no `validation_data`"),
        pytest.raises(ValueError, match=r"no optimizers yet.*optimizer\.build\("),
    ):
        trainee.fit(X, Y, callbacks=[LearnedLearningRate()], verbose=0)
    assert all(map(np.array_equal, weights, trainee.get_weights()))
