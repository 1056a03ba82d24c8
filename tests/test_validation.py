"""Which validation examples are looked at, and what their loss is."""

import threading

import keras
import numpy as np
import pandas
import pytest
import tensorflow as tf
from helpers import compiled, data, fit, model, rate

from keras_learned_lr.observation import validation
from keras_learned_lr.observation.validation import (
    ValidationLoss,
    draw_subset,
    draw_subsets,
)


def ordered(batches=10, size=16):
    """Batches of which each has a number of its own, as files sorted by class."""
    x = np.repeat(np.arange(batches), size).astype("float32")[:, np.newaxis]
    return tf.data.Dataset.from_tensor_slices((x, x)).batch(size)


class Files(keras.utils.PyDataset):
    def __init__(self, batches=40, **options):
        super().__init__(**options)
        self.batches = batches

    def __len__(self):
        return self.batches

    def __getitem__(self, index):
        x = np.full((8, 1), index, "float32")
        return x, x


def numbers(subset):
    return np.concatenate([group[0][:, 0] for group in subset.groups])


@pytest.mark.parametrize("size", [20, 25, 128])
def test_examples_come_from_all_of_a_dataset(size):
    chosen = numbers(draw_subset(ordered(), size))
    assert len(chosen) == size
    each = np.bincount(chosen.astype(int), minlength=10)
    assert set(each) <= {size // 10, -(-size // 10)}


def test_and_of_one_of_which_a_batch_is_smaller():
    x = np.arange(50, dtype="float32")[:, np.newaxis]
    uneven = tf.data.Dataset.from_tensor_slices((x, x)).batch(16)
    # A quarter of each, of which the last has two.
    chosen = numbers(draw_subset(uneven, 24))
    assert [((chosen >= i) & (chosen < i + 16)).sum() for i in (0, 16, 32)] == [6] * 3
    assert chosen[18:].tolist() == [48.0, 49.0]
    assert len(numbers(draw_subset(uneven, 128))) == 50
    assert len(numbers(draw_subset(uneven, None))) == 50


def test_of_one_without_a_known_end_they_are_the_first():
    chosen = numbers(draw_subset(ordered().repeat(), 20))
    np.testing.assert_array_equal(chosen, [0.0] * 16 + [1.0] * 4)


def test_padded_batches_are_few_graphs():
    """Of many shapes each would be traced."""
    tokens = [np.ones((8, 4 + index), "int32") for index in range(40)]
    shape = tf.TensorSpec([None, None], tf.int32)
    padded = tf.data.Dataset.from_generator(
        lambda: ((x, x) for x in tokens), output_signature=(shape, shape)
    ).apply(tf.data.experimental.assert_cardinality(40))
    assert len(draw_subset(padded, 16).groups) == 2


def test_workers_end():
    """Also where there is more to read than what is looked at."""
    files = Files(workers=2, use_multiprocessing=False, max_queue_size=2)
    assert len(numbers(draw_subset(files, 40))) == 40
    endless = Files(workers=2, use_multiprocessing=False, max_queue_size=2)
    endless.__class__ = type("Endless", (Files,), {"num_batches": None})
    assert len(numbers(draw_subset(endless, 20))) == 20
    assert not [t for t in threading.enumerate() if t.name.startswith("Worker_")]


def test_a_generator_may_leave_things_out():
    x, y = data(32)

    def batches():
        for start in range(0, 32, 8):
            yield x[start : start + 8], y[start : start + 8], None

    subset = draw_subset(batches(), 16)
    loss = ValidationLoss(model(), subset)
    x, y, weight = subset.unflatten(subset.groups[0])
    assert weight is None
    assert float(loss()) == pytest.approx(model().evaluate(x, y, verbose=0), rel=1e-5)


class Raw(keras.Model):
    """Its loss takes targets as they come, and no `training`."""

    def compute_loss(self, x, y, y_pred, weight):
        return tf.reduce_mean(tf.square(y_pred - y))


def raw():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    return compiled(Raw(inputs, keras.layers.Dense(1)(inputs)), loss=None)


@pytest.mark.parametrize("kind", ["float64", "series"])
def test_a_loss_of_ones_own_gets_what_fit_gives_it(kind):
    x = data()[0].astype("float64")
    y = x[:, :1] - x[:, 1:2]
    if kind == "series":
        y = pandas.Series(y[:, 0])
    trainee, callback = raw(), rate(validation_data=(x, y), validation_size=None)
    expected = trainee.evaluate(x, y, batch_size=96, verbose=0)
    fit(trainee, [callback], x, y)
    assert callback.decisions["loss"][0] == pytest.approx(expected, rel=1e-5)


class TestTheEndOfARun:
    """Looks at more examples than a decision does, which stay on the host."""

    def test_of_arrays_there_are_four_times_as_many(self):
        x = np.arange(1000, dtype="float32")[:, np.newaxis]
        few, more = draw_subsets((x, x), 50, seed=3)
        assert (few.size, more.size) == (50, 200)
        assert set(numbers(few)) < set(numbers(more))
        assert isinstance(more.groups[0][0], np.ndarray)
        np.testing.assert_array_equal(
            numbers(draw_subset((x, x), 200, 3)), numbers(more)
        )
        # Spread over the drawn ones, which are of everywhere.
        assert numbers(few).max() > 900 and numbers(few).min() < 100

    def test_of_batches_both_are_of_all(self):
        few, more = draw_subsets(ordered(batches=20), 20)
        assert (few.size, more.size) == (20, 80)
        np.testing.assert_array_equal(np.unique(numbers(few)), np.arange(20))
        np.testing.assert_array_equal(np.unique(numbers(more)), np.arange(20))

    def test_a_generator_is_read_once(self):
        def batches():
            for index in range(100):
                read.append(index)
                yield np.full((4, 1), index, "float32"), np.zeros(4, "float32")

        read = []
        few, more = draw_subsets(batches(), 20)
        assert (few.size, more.size) == (20, 80)
        assert len(read) == len(set(read)) < 50

    @pytest.mark.parametrize("size", [None, 500, 1000])
    def test_not_more_than_there_are(self, size):
        few, more = draw_subsets(data(300), size)
        assert few.size == more.size == 300

    def test_not_more_than_the_host_may_hold(self, monkeypatch):
        x = np.zeros((1000, 100), "float32")
        monkeypatch.setattr(validation, "MORE_BYTES", 100 * 404)
        for size, held in ((20, 80), (60, 100), (200, 200)):
            few, more = draw_subsets((x, x[:, :1]), size)
            assert (few.size, more.size) == (size, held)

    @pytest.mark.parametrize("run_eagerly", [False, True])
    def test_the_loss_is_that_of_evaluate(self, run_eagerly):
        trainee = model(batch_norm=True, run_eagerly=run_eagerly)
        fit(trainee)
        measure = ValidationLoss(trainee, draw_subset(data(32), None))
        # Two chunks and a rest.
        others = data(150, seed=2)
        _, more = draw_subsets(others, None)
        expected = trainee.evaluate(*others, verbose=0)
        assert measure.over(more) == pytest.approx(expected, rel=1e-5)
        # Of the weights of now, not of when it was traced.
        trainee.set_weights([2 * value for value in trainee.get_weights()])
        expected = trainee.evaluate(*others, verbose=0)
        assert measure.over(more) == pytest.approx(expected, rel=1e-5)

    def test_batches_of_one_size_are_filled(self):
        inputs = keras.Input((6,), batch_size=40)
        outputs = keras.layers.Dense(3, activation="softmax")(inputs)
        trainee = compiled(keras.Model(inputs, outputs))
        x, y = data(80)
        measure = ValidationLoss(trainee, draw_subset((x[:40], y[:40]), None))
        _, more = draw_subsets((x, y), None)
        expected = trainee.evaluate(x, y, batch_size=40, verbose=0)
        assert measure.over(more) == pytest.approx(expected, rel=1e-5)
