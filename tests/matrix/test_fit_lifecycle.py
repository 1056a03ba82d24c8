"""The matrix: what becomes of a model, and of a callback, between and after fits."""

import json
import zipfile

import h5py
import keras
import numpy as np
import pytest
from contract import check_run, classes_of, compiled, draws, rate_of, scripted, watched
from helpers import Interrupter

from keras_learned_lr import LearnedLearningRate

LAYER = keras.layers

X = draws().normal(size=(64, 6)).astype("float32")
Y = classes_of(X, 3)


def classifier(optimizer=None, **options):
    body = [keras.Input((6,)), LAYER.Dense(8, "relu"), LAYER.Dense(3)]
    return compiled(keras.Sequential(body), optimizer=optimizer, **options)


def generator(batches=4):
    """Gives its examples once."""
    for start in range(0, 16 * batches, 16):
        yield X[start : start + 16], Y[start : start + 16]


class Wrapped(keras.Model):
    """Does what another model does."""

    def call(self, x):
        return self.inner(x)


def check(trainee, **options):
    options = {"controller": scripted(), "batch_size": 16, **options}
    return check_run(trainee, X, Y, **options)


class TestSeveralFits:
    def test_of_one_model(self):
        trainee = classifier()
        first = check(trainee)
        second = check(trainee, callback=first.callback)
        assert second.callback is first.callback
        # The same start; it has learned since.
        assert second.history["loss"][0] < first.history["loss"][0]

    @pytest.mark.parametrize("compiles", [False, True])
    @pytest.mark.parametrize("built", ["functional", "subclassed"])
    def test_on_longer_and_on_shorter_examples(self, built, compiles):
        inputs = keras.Input((None,))
        hidden = LAYER.Embedding(20, 4)(inputs)
        hidden = LAYER.GlobalAveragePooling1D()(
            LAYER.MultiHeadAttention(2, 2)(hidden, hidden)
        )
        trainee = keras.Model(inputs, LAYER.Dense(1)(hidden))
        if built == "subclassed":
            inner, trainee = trainee, Wrapped()
            trainee.inner = inner
        trainee.compile("adam", "mse", jit_compile=compiles)
        callback = LearnedLearningRate()
        for length in (10, 15, 7):
            x = draws().integers(0, 20, (64, length))
            y = x.mean(1, keepdims=True) / 20.0
            with pytest.warns(UserWarning, match="no `validation_data`") as caught:
                trainee.fit(
                    x, y, epochs=2, batch_size=16, verbose=0, callbacks=[callback]
                )
            assert not [w for w in caught if "cannot see" in str(w.message)]
            seen = callback.decisions["observation"]["log_output_change"]
            assert np.isfinite(seen).all() and seen[-1] != 0

    def test_of_one_model_with_another_callback(self):
        trainee = classifier()
        check(trainee)
        check(trainee)

    @pytest.mark.parametrize("change", ["nothing", "compile", "model"])
    def test_with_a_validation_generator(self, change):
        """It is used up by the first; what was drawn from it serves the second."""
        trainee = classifier()
        callback = check(trainee, validation_data=generator()).callback
        if change == "compile":
            compiled(trainee)
        elif change == "model":
            trainee = classifier()
        before = trainee.evaluate(X, Y, verbose=0)
        run = check(trainee, callback=callback)
        assert run.callback.decisions["loss"][0] == pytest.approx(before, rel=1e-4)

    def test_of_two_models_with_one_callback(self):
        one, other = classifier(), classifier(keras.optimizers.SGD(0.1))
        callback = check(one).callback
        check(other, callback=callback)
        check(one, callback=callback)

    def test_with_a_compile_between(self):
        trainee = classifier()
        callback = check(trainee).callback
        compiled(trainee, optimizer=keras.optimizers.SGD(0.1, momentum=0.9))
        check(trainee, callback=callback)

    def test_of_a_clone(self):
        trainee = classifier()
        callback = check(trainee).callback
        clone = compiled(keras.models.clone_model(trainee))
        check(clone, callback=callback)
        assert not any(map(np.array_equal, clone.get_weights(), trainee.get_weights()))

    def test_after_an_exception(self):
        trainee = classifier()
        callback = LearnedLearningRate(scripted(), validation_data=(X, Y))
        watched(trainee)
        with pytest.raises(KeyboardInterrupt):
            trainee.fit(
                *(X, Y), batch_size=8, verbose=0, callbacks=[callback, Interrupter(5)]
            )
        watched(trainee)[0].used_rates.take()
        check(trainee, callback=callback)

    def test_that_are_plain_after_an_exception(self):
        trainee = classifier()
        callback = LearnedLearningRate(scripted(), validation_data=(X, Y))
        default = rate_of(trainee.optimizer)
        with pytest.raises(KeyboardInterrupt):
            trainee.fit(
                *(X, Y), batch_size=8, verbose=0, callbacks=[callback, Interrupter(5)]
            )
        used = watched(trainee)[0].used_rates
        # The step is traced again: the tap is gone, the probe of this test is in.
        trainee.fit(X, Y, batch_size=8, verbose=0)
        np.testing.assert_array_equal(used.take(), np.full(8, np.float32(default)))


class TestOneFit:
    def test_from_an_initial_epoch(self):
        run = check(classifier(), epochs=7, initial_epoch=3)
        assert len(run.used) == 16

    def test_that_another_callback_stops(self):
        stop = keras.callbacks.EarlyStopping("loss", patience=0, min_delta=10.0)
        run = check(classifier(), epochs=8, beside=[stop], loss=None)
        assert len(run.used) == 8

    def test_that_is_stopped_in_mid_epoch(self):
        def stop(batch, logs):
            trainee.stop_training = batch == 2

        trainee = classifier()
        stopper = keras.callbacks.LambdaCallback(on_train_batch_end=stop)
        run = check(trainee, beside=[stopper], loss=None)
        assert len(run.used) == 3

    @pytest.mark.parametrize(("freq", "times"), [(1, 4), (2, 2), ([3], 1)])
    def test_with_validation_of_its_own(self, freq, times):
        """Keras's is for the user, the callback's for the controller."""

        class OwnValidation(keras.callbacks.Callback):
            losses = []

            def on_test_end(self, logs=None):
                self.losses = [*self.losses, logs["loss"]]

        own = OwnValidation()
        run = check(
            classifier(),
            beside=[own],
            evaluated=(X[:16], Y[:16]),
            validation_freq=freq,
        )
        assert run.history["val_loss"] == own.losses
        assert len(own.losses) == times


def contents(path):
    """What a saved model says of itself, and which arrays it holds."""
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
        with archive.open("model.weights.h5") as file, h5py.File(file) as arrays:
            names = []
            arrays.visit(names.append)
    return config, names


def test_a_saved_model_shows_no_trace(tmp_path):
    trainee = classifier()
    trainee.fit(X, Y, batch_size=16, verbose=0)
    trainee.save(tmp_path / "before.keras")
    check(trainee)
    trainee.save(tmp_path / "after.keras")
    assert contents(tmp_path / "after.keras") == contents(tmp_path / "before.keras")
    loaded = keras.saving.load_model(tmp_path / "after.keras")
    assert rate_of(loaded.optimizer) == rate_of(trainee.optimizer)
    np.testing.assert_array_equal(
        loaded.predict(X, verbose=0), trainee.predict(X, verbose=0)
    )
    check(loaded)


def test_an_exported_model_shows_no_trace(tmp_path):
    trainee = classifier()
    check(trainee)
    trainee.export(tmp_path / "exported", verbose=False)
    served = keras.layers.TFSMLayer(tmp_path / "exported", call_endpoint="serve")
    np.testing.assert_allclose(
        served(X), trainee.predict(X, verbose=0), rtol=1e-4, atol=1e-6
    )
