"""The matrix: everything that `fit` takes as data."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from contract import check_run, classes_of, compiled, draws

LAYER = keras.layers


def table(examples=64):
    x = draws().normal(size=(examples, 6)).astype("float32")
    return x, classes_of(x, 3)


def classifier():
    body = [keras.Input((6,)), LAYER.Dense(8, "relu"), LAYER.Dense(3)]
    return compiled(keras.Sequential(body))


def dataset(batch=16):
    return tf.data.Dataset.from_tensor_slices(table()).batch(batch)


def uneven():
    """Batches of 1 to 16 examples; how many there are nobody knows."""
    x, y = table()
    starts = [0, 16, 17, 30, 39, 55, 64]

    def batches():
        for start, end in zip(starts, starts[1:], strict=False):
            yield x[start:end], y[start:end]

    signature = (tf.TensorSpec([None, 6]), tf.TensorSpec([None], tf.int64))
    return tf.data.Dataset.from_generator(batches, output_signature=signature)


def generator(epochs=4):
    x, y = table()
    for _ in range(epochs):
        for start in range(0, 64, 16):
            yield x[start : start + 16], y[start : start + 16]


class Files(keras.utils.PyDataset):
    def __init__(self, batch=16, **options):
        super().__init__(**options)
        self.x, self.y = table()
        self.batch = batch

    def __len__(self):
        return -(-len(self.x) // self.batch)

    def __getitem__(self, index):
        part = slice(index * self.batch, (index + 1) * self.batch)
        return self.x[part], self.y[part]


def test_numpy():
    check_run(classifier(), *table(), batch_size=16)


def test_tensors():
    x, y = table()
    check_run(classifier(), tf.constant(x), tf.constant(y), batch_size=16)


def test_dataset():
    check_run(classifier(), dataset(), validation_data=dataset())


def test_dataset_without_end():
    data = dataset().repeat()
    run = check_run(classifier(), data, validation_data=data, steps_per_epoch=5)
    assert len(run.used) == 20


def test_dataset_batched_unevenly():
    """Its length is unknown, so the run's is told."""
    run = check_run(
        classifier(),
        uneven(),
        validation_data=uneven(),
        rate_options={"total_steps": 24},
    )
    assert len(run.used) == 24


def test_generator():
    run = check_run(
        classifier(), generator(), validation_data=generator(1), steps_per_epoch=4
    )
    assert len(run.used) == 16


@pytest.mark.parametrize("workers", [1, 2])
def test_py_dataset(workers):
    files = Files(workers=workers, use_multiprocessing=False)
    check_run(classifier(), files, validation_data=files)


def test_sample_weights():
    x, y = table()
    weight = np.linspace(0.0, 2.0, 64)
    given = (x, y, weight)
    options = {"sample_weight": weight, "batch_size": 16}
    run = check_run(classifier(), x, y, validation_data=given, **options)
    # The controller's loss is weighted as Keras weighs it.
    plain = classifier()
    plain.set_weights(run.callback.model.get_weights())
    expected = plain.evaluate(x, y, sample_weight=weight, verbose=0)
    assert float(run.callback._loop.probe._validation_loss()) == pytest.approx(
        expected, rel=1e-4
    )


def test_sample_weights_in_a_dataset():
    weighted = dataset().map(lambda x, y: (x, y, tf.cast(y, tf.float32) + 0.5))
    check_run(classifier(), weighted, validation_data=weighted)


def test_class_weights():
    weights = {0: 1.0, 1: 2.0, 2: 0.1}
    check_run(classifier(), *table(), class_weight=weights, batch_size=16)


def test_a_ragged_last_batch():
    """The probe has noted more examples than it holds."""
    run = check_run(classifier(), *table(37), batch_size=32, epochs=6)
    assert len(run.used) == 12


def test_batches_of_one():
    run = check_run(classifier(), *table(24), batch_size=1, epochs=2)
    assert len(run.used) == 48


def test_validation_split():
    """`fit` splits off its own; the controller's is told apart."""
    x, y = table()
    given = (x[48:], y[48:])
    options = {"validation_split": 0.25, "batch_size": 16}
    run = check_run(classifier(), x, y, validation_data=given, **options)
    assert "val_loss" in run.history


@pytest.mark.parametrize("kind", ["sparse", "ragged"])
def test_other_tensors(kind):
    """What Keras trains on, but the probe cannot keep."""
    if kind == "sparse":
        x, y = table()
        x = np.where(x > 0.5, x, 0.0)
        data = tf.data.Dataset.from_tensor_slices((tf.sparse.from_dense(x), y))
        trainee = classifier()
    else:
        rng = draws()
        rows = [rng.integers(1, 9, size) for size in rng.integers(2, 6, 64)]
        y = np.array([row[0] % 3 for row in rows])
        data = tf.data.Dataset.from_tensor_slices((tf.ragged.constant(rows), y))
        body = [LAYER.Embedding(10, 6), LAYER.GlobalAveragePooling1D(), LAYER.Dense(3)]
        trainee = compiled(keras.Sequential(body))
    data = data.batch(16)
    with pytest.raises(ValueError, match="must be dense.*Leave it out"):
        check_run(trainee, data, validation_data=data)
    told = ["no `validation_data`", "goes on without these features"]
    check_run(trainee, data, validation_data=None, told=told)


@pytest.mark.parametrize("validated", [False, True])
@pytest.mark.parametrize("jit", [False, True])
def test_text_of_several_lengths(jit, validated):
    """Padded batch by batch. XLA has no variable for a batch of varying shape."""
    rng = draws()
    tokens = [rng.integers(0, 9, (16, length)) for length in (4, 6, 4, 6)]
    signature = (
        tf.TensorSpec([None, None], tf.int64),
        tf.TensorSpec([None], tf.int64),
    )
    data = tf.data.Dataset.from_generator(
        lambda: ((x, x[:, 0] % 3) for x in tokens), output_signature=signature
    )
    data = data.apply(tf.data.experimental.assert_cardinality(4))
    body = [
        keras.Input((None,), dtype="int32"),
        LAYER.Embedding(9, 6),
        LAYER.GlobalAveragePooling1D(),
        LAYER.Dense(3),
    ]
    trainee = compiled(keras.Sequential(body), jit_compile=jit)
    if validated:  # No batch is kept then.
        check_run(trainee, data, validation_data=data)
        return
    told = ["no `validation_data`"]
    if jit:
        told.append("goes on without these features.*jit_compile=False")
    check_run(trainee, data, validation_data=None, told=told)


def test_an_optional_input_that_is_missing():
    x, y = table()
    given, maybe = keras.Input((6,)), keras.Input((6,), optional=True)

    class Sum(LAYER.Layer):
        def call(self, a, b=None):
            return a if b is None else a + b

    outputs = LAYER.Dense(3)(Sum()(given, maybe))
    trainee = compiled(keras.Model([given, maybe], outputs))
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    data = data.map(lambda x, y: ((x, None), y))
    check_run(trainee, data, validation_data=data)
