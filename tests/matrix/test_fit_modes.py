"""The matrix: precisions, compilation, executions of several steps, replicas."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from contract import check_run, classes_of, compiled, draws
from helpers import ROOT, run_python

LAYER = keras.layers

X = draws().normal(size=(64, 6)).astype("float32")
Y = classes_of(X, 3)


def classifier(optimizer=None, **options):
    body = [keras.Input((6,)), LAYER.Dense(8, "relu"), LAYER.BatchNormalization()]
    trainee = keras.Sequential([*body, LAYER.Dense(3, dtype="float32")])
    return compiled(trainee, optimizer=optimizer, **options)


@contextlib.contextmanager
def policy(name):
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy("float32")


def tokens():
    return draws().integers(0, 9, (64, 5)).astype("int32")


def text_classifier(**options):
    """Its gradients come as slices of the embedding."""
    body = [keras.Input((5,), dtype="int32"), LAYER.Embedding(9, 4), LAYER.LSTM(4)]
    trainee = keras.Sequential([*body, LAYER.Dense(3, dtype="float32")])
    return compiled(trainee, **options)


class TestPrecision:
    @pytest.mark.parametrize("name", ["mixed_float16", "mixed_bfloat16", "float64"])
    def test_policy(self, name):
        with policy(name):
            check_run(classifier(), X, Y, batch_size=16)

    def test_float16_with_its_first_steps_skipped(self):
        """They overflow, so nothing is updated; decisions go on all the same."""
        with policy("mixed_float16"):
            # From a higher one, the learning rate ends where late steps overflow too.
            inner = keras.optimizers.SGD(0.01)
            scaled = keras.optimizers.LossScaleOptimizer(inner, initial_scale=2.0**40)
            trainee = classifier(scaled)
            run = check_run(trainee, X, Y, batch_size=4, epochs=6, skipped=True)
        skipped = np.isnan(run.used)
        assert skipped[:5].all() and not skipped[-20:].any()
        assert int(trainee.optimizer.iterations) == (~skipped).sum() < len(run.used)
        assert np.sum(run.callback.decisions["step"] < np.argmin(skipped)) > 1

    @pytest.mark.parametrize("name", ["mixed_float16", "mixed_bfloat16"])
    def test_embeddings(self, name):
        x = tokens()
        with policy(name):
            check_run(text_classifier(), x, x[:, 0] % 3, batch_size=16)

    @pytest.mark.parametrize("jit", [True, False])
    def test_float16_with_several_optimizers(self, jit):
        with policy("mixed_float16"):
            slow, fast = keras.optimizers.SGD(0.02), keras.optimizers.Adam(0.01)
            mapped = keras.optimizers.OptimizerMap(slow, {".*kernel": fast})
            trainee = classifier(
                keras.optimizers.MultiOptimizer(mapped), jit_compile=jit
            )
            check_run(trainee, X, Y, batch_size=16)


class TestExecution:
    @pytest.mark.parametrize("options", [{"jit_compile": True}, {"run_eagerly": True}])
    def test_mode(self, options):
        run = check_run(classifier(**options), X, Y, batch_size=16)
        assert run.callback.model.run_eagerly is options.get("run_eagerly", False)

    def test_xla_with_an_embedding_and_a_recurrent_layer(self):
        x = tokens()
        check_run(text_classifier(jit_compile=True), x, x[:, 0] % 3, batch_size=16)

    @pytest.mark.parametrize("jit", [True, False])
    @pytest.mark.parametrize("steps", [1, 7, 50])
    def test_several_steps_an_execution(self, steps, jit):
        """7 does not divide the 8 steps of an epoch, and 50 are more than it has."""
        trainee = classifier(steps_per_execution=steps, jit_compile=jit)
        run = check_run(trainee, X, Y, batch_size=8, epochs=4)
        assert len(run.used) == 32
        ends = {1: range(32), 7: [0, 7, 8, 15, 16, 23, 24, 31], 50: [0, 8, 16, 24]}
        assert set(run.callback.decisions["step"]) <= set(ends[steps])

    def test_xla_and_eager_give_what_a_graph_gives(self):
        weights, runs = classifier().get_weights(), []
        for options in ({}, {"jit_compile": True}, {"run_eagerly": True}):
            trainee = classifier(keras.optimizers.SGD(0.1), **options)
            trainee.set_weights(weights)
            runs.append(check_run(trainee, X, Y, batch_size=16, shuffle=False).used)
        np.testing.assert_allclose(runs[1], runs[0], rtol=1e-2)
        np.testing.assert_allclose(runs[2], runs[0], rtol=1e-2)


MIRRORED = """
import os, sys
os.chdir({root!r})
sys.path[:0] = ["tests", "tests/matrix"]
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)
import keras
import test_fit_modes as modes

keras.utils.set_random_seed(0)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert strategy.num_replicas_in_sync == 2
modes.{what}(strategy)
print("done")
"""


def fit_on_replicas(strategy):
    with strategy.scope():
        trainee = classifier()
    check_run(trainee, X, Y, batch_size=16)


def what_keras_cannot(strategy):
    """These fail in Keras itself, without the callback (keras#19246 is the first)."""
    for options in ({"steps_per_execution": 2}, {"jit_compile": True}):
        with strategy.scope():
            trainee = classifier(**options)
        with pytest.raises((RuntimeError, ValueError, tf.errors.InvalidArgumentError)):
            trainee.fit(X, Y, batch_size=16, verbose=0)


@pytest.mark.parametrize("what", ["fit_on_replicas", "what_keras_cannot"])
def test_mirrored_strategy(what):
    """In a process of its own: logical devices come before everything else."""
    finished = run_python(MIRRORED.format(root=str(ROOT), what=what))
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "done" in finished.stdout
