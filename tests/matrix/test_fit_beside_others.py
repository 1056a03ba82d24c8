"""The matrix: Keras's own callbacks in the same `fit`."""

import csv

import keras
import numpy as np
import pytest
import tensorflow as tf
from contract import (
    check_run,
    classes_of,
    compiled,
    draws,
    rate_of,
    scripted,
    watched,
)
from helpers import GraphController, every

from keras_learned_lr import LearnedLearningRate

LAYER = keras.layers
CALLBACKS = keras.callbacks
CONTESTED = "Something else sets the learning rate.*ReduceLROnPlateau.*train_step"

X = draws().normal(size=(64, 6)).astype("float32")
Y = classes_of(X, 3)


def classifier(optimizer=None, **options):
    body = [keras.Input((6,)), LAYER.Dense(8, "relu"), LAYER.Dense(3)]
    return compiled(keras.Sequential(body), optimizer=optimizer, **options)


def check(trainee=None, **options):
    trainee = classifier() if trainee is None else trainee
    options = {"controller": scripted(), "batch_size": 16, **options}
    return check_run(trainee, X, Y, **options)


def test_early_stopping_that_restores_the_best_weights():
    stop = CALLBACKS.EarlyStopping("loss", patience=2, restore_best_weights=True)
    check(beside=[stop], epochs=6)


def test_a_callback_that_trains_on_a_batch_of_its_own():
    """Which nobody can tell from one that comes after a `fit` that broke off."""

    class Replays(CALLBACKS.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                self.model.train_on_batch(X[:8], Y[:8])

    trainee = classifier()
    compiled_with = rate_of(trainee.optimizer)
    callback = LearnedLearningRate(
        GraphController(0.3, ("log_level",), every(3)), validation_data=(X, Y)
    )
    rates = []

    class Notes(CALLBACKS.Callback):
        def on_train_batch_end(self, batch, logs=None):
            rates.append(rate_of(self.model.optimizer))

    with pytest.warns(UserWarning) as caught:
        trainee.fit(
            *(X, Y),
            batch_size=16,
            epochs=4,
            callbacks=[Replays(), callback, Notes()],
            verbose=0,
        )
    told = [str(w.message) for w in caught if "LearnedLearningRate:" in str(w.message)]
    assert len(told) == 1 and "step was made anew during the run" in told[0]
    assert not [w for w in caught if "Something else sets" in str(w.message)]
    assert callback.decisions["step"].tolist() == [0, 3, 6]
    assert rates[7] > compiled_with
    assert rates[8:] == [compiled_with] * 8


@pytest.mark.parametrize("freq", ["epoch", 5])
def test_model_checkpoint(tmp_path, freq):
    path = tmp_path / "model.keras"
    check(beside=[CALLBACKS.ModelCheckpoint(path, save_freq=freq)])
    loaded = keras.saving.load_model(path)
    assert "train_step" not in loaded.__dict__
    loaded.optimizer.learning_rate = 0.01
    check(loaded)


def test_model_checkpoint_of_the_best(tmp_path):
    path = tmp_path / "best.weights.h5"
    options = {"monitor": "loss", "save_best_only": True, "save_weights_only": True}
    trainee = classifier()
    check(trainee, beside=[CALLBACKS.ModelCheckpoint(path, **options)])
    trainee.load_weights(path)


@pytest.mark.parametrize("freq", ["epoch", "batch"])
def test_tensorboard(tmp_path, freq):
    pytest.importorskip("tensorboard")
    board = CALLBACKS.TensorBoard(tmp_path, histogram_freq=1, update_freq=freq)
    run = check(beside=[board])
    (file,) = (tmp_path / "train").glob("events*")
    logged = [
        float(tf.make_ndarray(value.tensor))
        for event in tf.compat.v1.train.summary_iterator(str(file))
        for value in event.summary.value
        if value.tag == "epoch_learning_rate"
    ]
    np.testing.assert_allclose(logged, run.history["learning_rate"], rtol=1e-5)


def test_csv_logger(tmp_path):
    path = tmp_path / "log.csv"
    run = check(beside=[CALLBACKS.CSVLogger(path)])
    with open(path) as file:
        logged = [float(row["learning_rate"]) for row in csv.DictReader(file)]
    np.testing.assert_allclose(logged, run.history["learning_rate"], rtol=1e-5)
    # What is logged at an epoch's end is what its last step used.
    np.testing.assert_allclose(logged[:-1], run.used[3:-1:4], rtol=1e-4)


def test_terminate_on_nan():
    check(beside=[CALLBACKS.TerminateOnNaN()])


@pytest.mark.filterwarnings("ignore:.*not finite")
def test_terminate_on_nan_that_does():
    # Not `classifier()`: where a ReLU is fast it turns NaN into 0.
    trainee = compiled(keras.Sequential([keras.Input((6,)), LAYER.Dense(3)]))
    x = X.copy()
    x[24] = np.nan
    callback = LearnedLearningRate(scripted(), validation_data=(X, Y))
    beside = [callback, CALLBACKS.TerminateOnNaN()]
    history = trainee.fit(
        *(x, Y), batch_size=16, shuffle=False, epochs=4, verbose=0, callbacks=beside
    )
    assert len(history.epoch) == 1
    assert "train_step" not in trainee.__dict__
    assert rate_of(trainee.optimizer) == pytest.approx(0.01)


@pytest.mark.parametrize("on_epoch", [False, True])
def test_swap_ema_weights(on_epoch):
    optimizer = keras.optimizers.Adam(0.02, use_ema=True, ema_momentum=0.5)
    swap = CALLBACKS.SwapEMAWeights(swap_on_epoch=on_epoch)
    callback = LearnedLearningRate(scripted(), validation_data=(X, Y))
    # While an evaluation swaps the weights no decision falls.
    run = check(classifier(optimizer), callback=callback, beside=[swap], epochs=6)
    assert run.callback.decisions["loss"][-1] < run.callback.decisions["loss"][0]


def test_backup_and_restore(tmp_path):
    """A run that nothing interrupts; the others are in the tests of resuming."""
    check(beside=[CALLBACKS.BackupAndRestore(tmp_path / "backup")])


def test_a_progress_bar(capsys):
    check(verbose=2)
    assert "learning_rate: " in capsys.readouterr().out


class TestAnotherLearnedLearningRate:
    def test_is_refused(self):
        trainee = classifier()
        weights = trainee.get_weights()
        both = [
            LearnedLearningRate(scripted(), validation_data=(X, Y)) for _ in range(2)
        ]
        with pytest.raises(ValueError, match="Two LearnedLearningRate.*Pass one"):
            trainee.fit(X, Y, batch_size=16, verbose=0, callbacks=both)
        assert all(map(np.array_equal, weights, trainee.get_weights()))
        assert "train_step" not in trainee.__dict__
        assert rate_of(trainee.optimizer) == pytest.approx(0.01)
        check(trainee, callback=both[0])

    def test_in_the_next_fit_is_welcome(self):
        trainee = classifier()
        check(trainee)
        check(trainee)


def plateau():
    # No loss is ever good enough: it acts at the end of every epoch.
    return CALLBACKS.ReduceLROnPlateau("loss", patience=0, factor=0.5, min_delta=1e6)


def scheduler():
    return CALLBACKS.LearningRateScheduler(lambda epoch, rate: 0.02 / (1 + epoch))


class ByTheBatch(keras.callbacks.Callback):
    """A warm-up as many a script has it."""

    def __init__(self, at):
        super().__init__()
        self.at, self.taken = at, 0

    def on_train_batch_begin(self, batch, logs=None):
        self.taken += 1
        self.set_at("begin")

    def on_train_batch_end(self, batch, logs=None):
        self.set_at("end")

    def set_at(self, moment):
        if moment == self.at:
            self.model.optimizer.learning_rate = 1e-3 * self.taken


OTHERS = {
    "ReduceLROnPlateau": plateau,
    "LearningRateScheduler": scheduler,
    "at a batch's begin": lambda: ByTheBatch("begin"),
    "at a batch's end": lambda: ByTheBatch("end"),
}


def fit_and_be_told(beside, decide, epochs):
    """Fits beside another that sets the rate, which is told once; returns the model."""
    trainee = classifier()
    callback = LearnedLearningRate(
        GraphController(0.1, form=every(decide)), validation_data=(X, Y)
    )
    with pytest.warns(UserWarning, match=CONTESTED) as told:
        trainee.fit(
            *(X, Y),
            batch_size=16,
            epochs=epochs,
            verbose=0,
            callbacks=[callback, beside],
        )
    assert len([w for w in told if "Something else" in str(w.message)]) == 1
    return trainee


class TestAnotherSchedule:
    """It is told, once; where an envelope moves, the rates are the controller's."""

    @pytest.mark.parametrize("name", OTHERS)
    def test_after_it(self, name):
        moving = scripted(envelope="cosine")
        check(controller=moving, beside=[OTHERS[name]()], told=[CONTESTED])

    @pytest.mark.parametrize("name", list(OTHERS)[1:])
    def test_before_it(self, name):
        """The scheduler's first word, before the run, is the default it starts from."""
        trainee = classifier()
        if name == "LearningRateScheduler":
            watched(trainee)[0].used_rates.default = float(np.float32(0.02))
        moving = scripted(envelope="cosine")
        check(trainee, controller=moving, before=[OTHERS[name]()], told=[CONTESTED])

    @pytest.mark.parametrize("name", OTHERS)
    def test_where_the_rate_is_constant_between_decisions(self, name):
        fit_and_be_told(OTHERS[name](), decide=6, epochs=4)

    def test_where_there_is_one_decision_only(self):
        fit_and_be_told(plateau(), decide=99, epochs=3)

    @pytest.mark.parametrize("epochs", [3, 9])
    def test_that_is_assigned_inside_the_run(self, epochs):
        """The traced step does not see it: the rates stay the controller's."""
        schedule = keras.optimizers.schedules.ExponentialDecay(0.05, 10, 0.5)

        class Assigns(CALLBACKS.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                if epoch == 2:
                    self.model.optimizer.learning_rate = schedule

        trainee = fit_and_be_told(Assigns(), decide=20, epochs=epochs)
        assert trainee.optimizer._learning_rate is schedule

    def test_of_the_model_itself(self):
        class WarmsUp(keras.Sequential):
            def train_step(self, data):
                steps = tf.cast(self.optimizer.iterations, tf.float32)
                self.optimizer.learning_rate.assign(1e-3 * (1.0 + steps))
                return super().train_step(data)

        trainee = WarmsUp([keras.Input((6,)), LAYER.Dense(3)])
        callback = LearnedLearningRate(scripted(), validation_data=(X, Y))
        with pytest.warns(UserWarning, match=CONTESTED):
            compiled(trainee).fit(
                X, Y, batch_size=16, epochs=2, verbose=0, callbacks=[callback]
            )

    def test_that_never_acts_is_none(self):
        patient = CALLBACKS.ReduceLROnPlateau("loss", patience=99)
        check(beside=[patient])
