"""One trainee inside `model.fit` under the callback, and the same one in the engine."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import trainee_helpers as helpers

from keras_learned_lr import LearnedLearningRate
from keras_learned_lr.control.actions import AnchoredScaleFactor, ScaleFactor, Width
from keras_learned_lr.control.controller import PolicyOutput
from keras_learned_lr.control.schedules import EverySteps
from keras_learned_lr.learning.reference import keras_optimizer
from keras_learned_lr.learning.trainee_state import Template
from keras_learned_lr.learning.trainees import Trainees
from keras_learned_lr.observation.spec import DEFAULT, PUBLISHED, ObservationSpec

LOSS = "sparse_categorical_crossentropy"
EXAMPLES, BATCH_SIZE, EPOCHS = 80, 16, 8
HORIZON = EXAMPLES // BATCH_SIZE * EPOCHS
SLOTS = {
    "adam": ("_momentums", "_velocities"),
    "nesterov": ("momentums",),
    "rmsprop": ("_velocities",),
}
FORMS = {
    "anchored": AnchoredScaleFactor(width=Width(0.3, 0.05)),
    "factor": ScaleFactor(EverySteps(7), width=Width(0.1, 0.1)),
}


class Reader:
    """A controller whose action follows from all that it observes."""

    def __init__(self, form):
        self.observation_spec = ObservationSpec(DEFAULT + PUBLISHED)
        self.action_form = form
        count = len(self.observation_spec.names)
        self._weights = np.linspace(-0.4, 0.6, count, dtype="float32")

    def initial_state(self, batch_size):
        return []

    def act(self, observation, state):
        action = tf.tanh(
            tf.linalg.matvec(tf.clip_by_value(observation, -1, 1), self._weights)
        )
        return PolicyOutput(action, [])


class Recorder(keras.callbacks.Callback):
    """Keeps each step's loss and what the model and its optimizer hold after it."""

    def __init__(self, rate, kind):
        super().__init__()
        self._rate, self._kind = rate, kind
        self.losses, self.states = [], []

    def _note(self):
        optimizer = self.model.optimizer
        flat, moving = helpers.weights(self.model)
        slots = [
            np.concatenate([v.numpy().ravel() for v in getattr(optimizer, name)])
            for name in SLOTS[self._kind]
        ]
        self.states.append((flat, moving, slots))

    def on_train_begin(self, logs=None):
        self._note()

    def on_train_batch_end(self, batch, logs=None):
        # It comes before the callback under test, which closes the window.
        probe = self._rate._loop.probe
        self.losses.append(float(probe._losses[int(probe.step) - 1]))
        self._note()


def _fit_and_build(name, kind, form, rate=0.003):
    """Fits under the callback; returns its trace and the engine of the same trainee."""
    keras.utils.set_random_seed(3)
    controller = Reader(form)
    model = helpers.MAKERS[name]()
    x, y = helpers.data(name, EXAMPLES + 70)
    members = helpers.members(
        [model],
        x,
        y,
        kind,
        BATCH_SIZE,
        EXAMPLES,
        np.arange(EXAMPLES, len(x)),
        rate,
        HORIZON,
    )
    engine = Trainees(Template(model, LOSS, kind), controller.observation_spec, form)
    trainee = helpers.MAKERS[name]()
    trainee.set_weights(model.get_weights())
    trainee.compile(keras_optimizer(kind, members.settings, 0, rate), LOSS)
    trainee.optimizer.build(trainee.trainable_variables)
    callback = LearnedLearningRate(
        controller,
        validation_data=(x[EXAMPLES:], y[EXAMPLES:]),
        validation_size=None,
    )
    recorder = Recorder(callback, kind)
    trainee.fit(
        x[:EXAMPLES],
        y[:EXAMPLES],
        batch_size=BATCH_SIZE,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=[recorder, callback],
    )
    return callback.decisions, recorder, controller, members, engine


def _windows(decisions):
    """Yields each decision's index, its step and the steps until the next one."""
    steps = [*decisions["step"], HORIZON]
    assert len(steps) > 5
    for index, step in enumerate(steps[:-1]):
        yield index, step, steps[index + 1] - step


def _compare_look(look, decisions, index, names, **tolerance):
    for column, name in enumerate(names):
        np.testing.assert_allclose(
            look.observation[0, column],
            decisions["observation"][name][index],
            err_msg=f"{name} at decision {index}",
            **tolerance,
        )


@pytest.mark.parametrize(
    ("name", "kind", "form"),
    [
        ("mlp", "adam", "anchored"),
        ("mlp", "nesterov", "factor"),
        ("cnn", "nesterov", "anchored"),
        ("gru", "rmsprop", "anchored"),
        ("dropout", "adam", "anchored"),
    ],
)
def test_step_by_step_from_the_same_state(name, kind, form):
    run = _fit_and_build(name, kind, FORMS[form])
    decisions, recorder, controller, members, engine = run
    names = controller.observation_spec.names
    state, look = engine.begin(members)
    for index, step, steps in _windows(decisions):
        # Float32 on both sides and a log of 1e-3 resolution: 1e-4 everywhere.
        _compare_look(look, decisions, index, names, rtol=1e-4, atol=1e-4)
        action = tf.constant([decisions["action"][index]], tf.float32)
        before = state.previous_update
        for inside in range(steps):
            # The engine is put where the fit was before each step.
            flat, moving, slots = recorder.states[step + inside]
            placed = state._replace(
                parameters=tf.constant(flat[None]),
                non_trainable=tuple(tf.constant(v[None]) for v in moving),
                optimizer=state.optimizer._replace(
                    iterations=tf.constant([step + inside], tf.int64),
                    slots=tuple(tf.constant(s[None]) for s in slots),
                ),
                step=tf.constant(step + inside, tf.int64),
            )
            if inside == 0:
                start = placed
            _, one = engine.advance(members, placed, action, tf.constant(1, tf.int64))
            np.testing.assert_allclose(
                one.losses[step + inside, 0],
                recorder.losses[step + inside],
                rtol=1e-4,
            )
        start = start._replace(previous_update=before)
        state, look = engine.advance(
            members, start, action, tf.constant(steps, tf.int64)
        )
        rate = FORMS[form].learning_rate(
            state.action, tf.constant(step), members.horizon
        )
        np.testing.assert_allclose(
            rate[0], decisions["learning_rate"][index], rtol=1e-4
        )


@pytest.fixture
def float64():
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(policy)


@pytest.mark.parametrize(
    ("name", "kind", "rate"),
    [
        ("mlp", "rmsprop", 0.003),
        ("cnn", "adam", 0.003),
        ("gru", "nesterov", 0.003),
        ("lstm", "adam", 0.003),
        # These collapse and go back.
        ("mlp", "nesterov", 1.0),
        ("gru", "nesterov", 3.0),
    ],
)
@pytest.mark.filterwarnings("ignore:LearnedLearningRate. The loss rose")
def test_a_whole_run_in_float64(name, kind, rate, float64):
    run = _fit_and_build(name, kind, FORMS["anchored"], rate)
    decisions, recorder, controller, members, engine = run
    assert (decisions["rolled_back"] >= 0).any() == (rate > 0.1)
    names = controller.observation_spec.names
    state, look = engine.begin(members)
    losses = []
    for index, step, steps in _windows(decisions):
        # Weights and losses are float64; what is measured of them is float32.
        _compare_look(look, decisions, index, names, rtol=1e-5, atol=2e-5)
        action = controller.act(look.observation, []).action
        np.testing.assert_allclose(action[0], decisions["action"][index], atol=1e-5)
        state, look = engine.advance(
            members, state, action, tf.constant(steps, tf.int64)
        )
        rate = FORMS["anchored"].learning_rate(
            state.action, tf.constant(step), members.horizon
        )
        np.testing.assert_allclose(
            rate[0], decisions["learning_rate"][index], rtol=1e-5
        )
        losses += list(look.losses[step : step + steps, 0].numpy())
    # Actions agree to 1e-5, so that learning rates and losses do to about as much.
    np.testing.assert_allclose(losses, recorder.losses, rtol=1e-5)
    assert np.isfinite(losses).all()
    flat, moving, _ = recorder.states[-1]
    np.testing.assert_allclose(state.parameters[0], flat, rtol=1e-4, atol=1e-6)
    for ours, theirs in zip(state.non_trainable, moving, strict=True):
        if theirs.dtype.kind == "f":  # seeds of layers that drop nothing may differ
            np.testing.assert_allclose(ours[0], theirs, rtol=1e-4)
