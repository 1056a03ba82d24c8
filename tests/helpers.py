"""Tiny models, data and controllers that the tests share."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_learned_lr import LearnedLearningRate, ObservationSpec, ScaleFactor
from keras_learned_lr.control.actions import Width
from keras_learned_lr.control.controller import PolicyOutput
from keras_learned_lr.control.export import export_controller
from keras_learned_lr.control.schedules import EverySteps

ROOT = Path(__file__).parents[1]
LAYER = keras.layers


class GraphController:
    """A controller whose action is a function of the observation."""

    def __init__(self, act=0.0, names=None, form=None):
        self.observation_spec = (
            ObservationSpec() if names is None else ObservationSpec(names)
        )
        self.action_form = form or every(5)
        self.variables = []
        self._act = act

    def initial_state(self, batch_size):
        return []

    def act(self, observation, state):
        if callable(self._act):
            return PolicyOutput(self._act(observation), [])
        return PolicyOutput(tf.fill([tf.shape(observation)[0]], self._act), [])


class ScriptedController(GraphController):
    """Plays a list of actions in turn; counts in its recurrent state."""

    def __init__(self, actions, names=("learning_rate",), form=None):
        super().__init__(0.0, names, form)
        self._actions = tf.constant(actions, tf.float32)

    def initial_state(self, batch_size):
        return [tf.zeros([batch_size, 1])]

    def act(self, observation, state):
        turn = tf.cast(state[0][:, 0], tf.int32) % tf.shape(self._actions)[0]
        return PolicyOutput(tf.gather(self._actions, turn), [state[0] + 1.0])


class MLPController(GraphController):
    """A small network with weights of its own."""

    def __init__(self, names=None, form=None, seed=0):
        super().__init__(0.0, names, form)
        rng = np.random.default_rng(seed)
        features = len(self.observation_spec.names)
        self.variables = [
            tf.Variable(rng.normal(size=shape).astype("float32"))
            for shape in ([features, 8], [8, 1])
        ]

    def act(self, observation, state):
        hidden = tf.tanh(observation @ self.variables[0])
        return PolicyOutput(tf.tanh(hidden @ self.variables[1])[:, 0], [])


class RecurrentController(MLPController):
    """The same, fed with its own last hidden state."""

    def initial_state(self, batch_size):
        return [tf.zeros([batch_size, 8]), tf.zeros([batch_size, 2, 3])]

    def act(self, observation, state):
        hidden = tf.tanh(observation @ self.variables[0] + 0.5 * state[0])
        action = tf.tanh(hidden @ self.variables[1])[:, 0]
        action += 0.1 * tf.reduce_sum(state[1], axis=[1, 2])
        return PolicyOutput(action, [hidden, state[1] + 0.1])


def every(steps, decades=0.3):
    """The published form, deciding every `steps` steps."""
    return ScaleFactor(schedule=EverySteps(steps), width=Width(decades, decades))


def exported(path, controller=None):
    """Writes a controller as a SavedModel."""
    return export_controller(controller or MLPController(), path)


def data(examples=96, features=6, classes=3, seed=0):
    """A small classification task: float32 x, integer y."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(examples, features)).astype("float32")
    return x, np.argmax(x[:, :classes], axis=1)


def layers(*, dropout=False, batch_norm=False):
    """The layers of a small classifier."""
    return [
        LAYER.Dense(8, activation="relu", name="first"),
        *([LAYER.BatchNormalization()] if batch_norm else []),
        *([LAYER.Dropout(0.3, seed=3)] if dropout else []),
        LAYER.Dense(3, activation="softmax", name="last"),
    ]


def model(optimizer=None, *, seed=1, model_class=keras.Sequential, **options):
    """A compiled classifier for `data()`, the same for the same seed.

    Keras would compile it with XLA; most tests do not, for speed.
    """
    keras.utils.set_random_seed(seed)
    parts = {k: options.pop(k) for k in ("dropout", "batch_norm") if k in options}
    body = layers(**parts)
    inputs = keras.Input((6,))
    if model_class is keras.Sequential:
        built = keras.Sequential([inputs, *body])
    else:
        outputs = inputs
        for layer in body:
            outputs = layer(outputs)
        built = model_class(inputs, outputs)
    return compiled(built, optimizer, **options)


def compiled(built, optimizer=None, **options):
    """Compiles, with SGD and cross-entropy if not told otherwise."""
    options.setdefault("jit_compile", False)
    options.setdefault("loss", "sparse_categorical_crossentropy")
    built.compile(optimizer or keras.optimizers.SGD(0.1), **options)
    return built


def fit(trainee, callbacks=(), x=None, y=None, **options):
    """Fits on `data()` in batches of 16, 6 steps an epoch."""
    if x is None:
        x, y = data()
    options = {"batch_size": 16, "epochs": 2, "verbose": 0, "shuffle": False} | options
    callbacks = callbacks if isinstance(callbacks, list) else [*callbacks]
    return trainee.fit(x, y, callbacks=callbacks, **options)


def rate(controller=None, **options):
    """A callback with a validation set."""
    options.setdefault("validation_data", data(32, seed=1))
    return LearnedLearningRate(controller or GraphController(), **options)


class Recorder(keras.callbacks.Callback):
    """Notes, at every step, what a later callback sees."""

    def on_train_begin(self, logs=None):
        self.batch_logs, self.epoch_logs, self.weights = [], [], [self._weights()]

    def on_train_batch_end(self, batch, logs=None):
        self.batch_logs.append(dict(logs))
        self.weights.append(self._weights())

    def on_epoch_end(self, epoch, logs=None):
        self.epoch_logs.append(dict(logs))

    def _weights(self):
        return [np.array(w) for w in self.model.get_weights()]


class Interrupter(keras.callbacks.Callback):
    """Raises at the end of a batch."""

    def __init__(self, batch):
        super().__init__()
        self.batch = batch

    def on_train_batch_end(self, batch, logs=None):
        if batch >= self.batch:
            raise KeyboardInterrupt


class Poison(keras.callbacks.Callback):
    """Breaks the weights, once, after so many steps: multiplies some."""

    def __init__(self, step, value=np.nan):
        super().__init__()
        self.step, self.value, self.taken = step, value, 0
        self.before = None

    def on_train_batch_end(self, batch, logs=None):
        self.taken += 1
        if self.taken == self.step:
            self.before = state_of(self.model)
            # The first feeds a relu, which turns NaN into 0.
            kernel = self.model.layers[-1].kernel
            kernel.assign(self.value * kernel)


def state_of(trainee):
    kept = [*trainee.weights, *trainee.optimizer.variables]
    return [np.array(v) for v in kept if "learning_rate" not in v.path]


def learning_rate(trainee):
    """The optimizer's learning rate now."""
    return float(keras.ops.convert_to_numpy(trainee.optimizer.learning_rate))


def run_python(code, **environment):
    """Runs code in a fresh Python; returns the finished process."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=180,
    )
