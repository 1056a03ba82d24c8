"""The controllers that ship: whole, small, and of use to a model they never saw."""

import json

import keras
import numpy as np
import pytest

from keras_learned_lr import LearnedLearningRate, load_controller, shipped_controllers


@pytest.fixture(params=shipped_controllers(), name="controller")
def _controller(request):
    return load_controller(request.param)


def test_one_is_the_default():
    assert "default" in shipped_controllers()


def test_it_is_small_and_tells_where_it_comes_from(controller):
    files = [path for path in controller.path.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 2**20
    trained = json.loads((controller.path / "model_card.json").read_text())["trained"]
    assert all(name.startswith("training/") for name in trained["tasks"])
    assert trained["steps"]["trainee_steps"] > 1e6
    assert trained["seeds"]
    assert trained["scores"]["validation"]["lost"] < 0.05


def data():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(1200, 10)).astype("float32")
    y = np.argmax(np.tanh(x @ rng.normal(size=(10, 5))) ** 2, axis=1)
    return (x[:800], y[:800]), (x[800:1000], y[800:1000]), (x[1000:], y[1000:])


def final_loss(learning_rate, callbacks=()):
    train, _, test = data()
    model = keras.Sequential(
        [
            keras.Input((10,)),
            keras.layers.Dense(40, "swish", kernel_initializer=_glorot(1)),
            keras.layers.Dense(5, "softmax", kernel_initializer=_glorot(2)),
        ]
    )
    model.compile(
        keras.optimizers.Adam(learning_rate), "sparse_categorical_crossentropy"
    )
    model.fit(*train, epochs=12, batch_size=40, verbose=0, callbacks=list(callbacks))
    return model.evaluate(*test, verbose=0)


def _glorot(seed):
    return keras.initializers.GlorotUniform(seed)


def test_a_model_that_has_learned_is_not_lost():
    """Its loss is near its floor: whatever is too high there ruins it."""
    train, validation, test = data()
    keras.utils.set_random_seed(2)
    dense = [keras.layers.Dense(40, "relu"), keras.layers.Dense(40, "relu")]
    last = keras.layers.Dense(5, "softmax")
    model = keras.Sequential([keras.Input((10,)), *dense, last])
    model.compile(
        keras.optimizers.Adam(3e-3),
        "sparse_categorical_crossentropy",
        jit_compile=False,
    )
    model.fit(*train, epochs=20, verbose=0)
    before = model.evaluate(*test, verbose=0)
    weights = model.get_weights()
    for guess in (1e-3, 1e-2):
        model.set_weights(weights)
        model.compile(
            keras.optimizers.Adam(guess),
            "sparse_categorical_crossentropy",
            jit_compile=False,
        )
        rate = LearnedLearningRate(validation_data=validation)
        model.fit(*train, epochs=10, verbose=0, callbacks=[rate])
        assert model.evaluate(*test, verbose=0) < 1.25 * before


def test_a_guess_a_thousand_times_off_hardly_matters():
    """One line in a script, as a user would write it."""
    good = final_loss(1e-2)
    _, validation, _ = data()
    for guess in (1e-5, 1e-2, 10.0):
        rate = LearnedLearningRate(validation_data=validation)
        learned = final_loss(guess, [rate])
        assert learned < 1.25 * good, (guess, learned, good)
        assert 28 <= len(rate.decisions["step"]) <= 32
    assert final_loss(1e-5) > 1.25 * good and final_loss(10.0) > 1.25 * good
