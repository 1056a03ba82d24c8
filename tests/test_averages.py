"""Validation losses by what moving averages have seen, not by what they begin with."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import GraphController, Poison, compiled, data, every, fit, model, rate

from keras_learned_lr.observation.averages import Average, averages

VALIDATION = data(32, seed=1)


@pytest.mark.parametrize("initial", [0.0, 1.0])
def test_unbiased_is_the_mean_of_what_was_seen(initial):
    seen = np.array([2.0, 5.0, 3.0, 4.0])
    value, weights = initial, np.zeros(0)
    for x in seen:
        value = 0.9 * value + 0.1 * x
        weights = np.append(0.9 * weights, 0.1)
    average = Average(None, initial, 0.9)
    found = average.unbiased(tf.constant([value, 0.2]), tf.constant(4))
    assert float(found[0]) == pytest.approx(np.average(seen, weights=weights), rel=1e-5)
    # Nothing seen: what it is. And no variance is below 0.
    assert average.unbiased(tf.constant(initial), tf.constant(0)) == initial
    assert average.unbiased(tf.constant(0.2), tf.constant(1)) >= 0.0 or not initial


def test_only_averages_that_training_changes():
    normalised = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.BatchNormalization(momentum=0.7),
            keras.layers.LayerNormalization(),
            keras.layers.Normalization(mean=0.0, variance=1.0),
            keras.layers.BatchNormalization(trainable=False),
        ]
    )
    found = averages(normalised)
    first = normalised.layers[0]
    assert [a.variable for a in found] == [first.moving_mean, first.moving_variance]
    assert [a.momentum for a in found] == [0.7, 0.7]
    assert averages(model()) == []


class Measures(keras.callbacks.Callback):
    """Measures the loss by hand after every step, raw and with unbiased averages."""

    def __init__(self):
        super().__init__()
        self.raw, self.unbiased = [], []

    def _loss(self, twin):
        return float(twin.evaluate(*VALIDATION, verbose=0))

    def _note(self):
        twin = compiled(keras.models.clone_model(self.model))
        twin.set_weights(self.model.get_weights())
        self.raw.append(self._loss(twin))
        steps = int(self.model.optimizer.iterations)
        if steps == 0:
            # Before step 1 it looks at the examples that the loss is measured on.
            twin(VALIDATION[0], training=True)
        left = 0.99 ** max(1, steps)
        kinds = keras.layers.BatchNormalization
        layer = next(layer for layer in twin.layers if isinstance(layer, kinds))
        layer.moving_mean.assign(layer.moving_mean / (1 - left))
        layer.moving_variance.assign((layer.moving_variance - left) / (1 - left))
        self.unbiased.append(self._loss(twin))

    def on_train_begin(self, logs=None):
        self._note()

    def on_train_batch_end(self, batch, logs=None):
        self._note()


def run(trainee, *others, **options):
    """Returns the decisions, and the losses by hand at each: raw and unbiased."""
    callback = rate(GraphController(0.0, form=every(4)), validation_size=None)
    measures = Measures()
    # Before ours: at a decision nothing is put back yet.
    fit(trainee, [*others, measures, callback], **options)
    at = callback.decisions["step"]
    chosen = (np.array(losses)[at] for losses in (measures.raw, measures.unbiased))
    return callback.decisions, *chosen


def test_a_new_model_is_judged_by_what_its_averages_have_seen():
    decisions, raw, unbiased = run(model(batch_norm=True))
    np.testing.assert_allclose(decisions["loss"], unbiased, rtol=1e-4)
    assert (abs(raw / unbiased - 1) > 1e-3).all()


def test_a_model_that_was_trained_before_by_what_they_are():
    trainee = model(batch_norm=True)
    fit(trainee)
    decisions, raw, unbiased = run(trainee)
    np.testing.assert_allclose(decisions["loss"], raw, rtol=1e-4)
    assert (abs(raw / unbiased - 1)[1:] > 1e-3).all()
    # Its weights alone in a new model, with a new optimizer: no less.
    copy = model(batch_norm=True)
    copy.set_weights(trainee.get_weights())
    decisions, raw, _ = run(copy)
    np.testing.assert_allclose(decisions["loss"], raw, rtol=1e-4)


def with_loss_scaler():
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))
    return model(optimizer, batch_norm=True)


def with_own_step():
    class Own(keras.Model):
        def train_step(self, data):
            self(data[0], training=True)
            return super().train_step(data)

    return model(model_class=Own, batch_norm=True)


def with_layer_in_two_places():
    inputs = keras.Input((6,))
    normalise = keras.layers.BatchNormalization()
    x = normalise(keras.layers.Dense(6, "relu")(normalise(inputs)))
    outputs = keras.layers.Dense(3, "softmax")(x)
    return compiled(keras.Model(inputs, outputs))


@pytest.mark.parametrize(
    "make", [with_loss_scaler, with_own_step, with_layer_in_two_places]
)
def test_where_nobody_knows_how_often_they_moved(make):
    decisions, raw, _ = run(make())
    np.testing.assert_allclose(decisions["loss"], raw, rtol=1e-4)


def test_weights_that_are_put_back_bring_their_number_of_steps():
    trainee = model(batch_norm=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        decisions, _, unbiased = run(trainee, Poison(6), epochs=3)
    assert decisions["rolled_back"].tolist() == [-1, -1, 4, -1, -1]
    assert trainee.optimizer.iterations == 14
    good = [0, 1, 3, 4]
    np.testing.assert_allclose(decisions["loss"][good], unbiased[good], rtol=1e-4)
