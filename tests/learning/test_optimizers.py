"""Each batched optimizer against Keras's own."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_learned_lr.learning import optimizers
from keras_learned_lr.learning.reference import keras_optimizer

# One value a trainee; the second batch member differs from Keras's defaults.
SETTINGS = {
    "sgd": {},
    "momentum": {"momentum": [0.9, 0.5]},
    "nesterov": {"momentum": [0.9, 0.99]},
    "adam": {"beta_1": [0.9, 0.5], "beta_2": [0.999, 0.98], "epsilon": [1e-7, 1e-3]},
    "adamw": {"weight_decay": [0.004, 0.1], "beta_2": [0.999, 0.95]},
    "rmsprop": {"rho": [0.9, 0.99]},
    "adagrad": {"initial_accumulator_value": [0.1, 0.001], "epsilon": [1e-7, 1e-4]},
    "lion": {"beta_1": [0.9, 0.95], "beta_2": [0.99, 0.98]},
}
DECAYED = [("sgd", 0.01), ("nesterov", 0.1), ("lion", 0.03), ("rmsprop", 0.01)]
CASES = [(kind, None) for kind in SETTINGS] + DECAYED
SHAPES = [(3, 4), (4,), (2, 2, 3)]
RATES = np.array([1e-2, 3e-3], "float32")


def _settings(kind, decay):
    values = dict(SETTINGS[kind])
    if decay is not None:
        values["weight_decay"] = [decay, 10 * decay]
    return optimizers.make_settings(kind, 2, **values)


def _flat(arrays):
    return np.concatenate([np.reshape(a, -1) for a in arrays])


def _gradients(rng, step, dtype):
    # Some are exactly zero and scales differ widely, as in real nets.
    scales = 10.0 ** rng.uniform(-4, 1, size=(2, sum(map(np.prod, SHAPES))))
    gradients = scales * rng.normal(size=scales.shape)
    gradients[:, step % 5] = 0.0
    return gradients.astype(dtype)


def _split(row):
    sizes = np.cumsum([np.prod(s) for s in SHAPES])[:-1]
    return [np.reshape(a, s) for a, s in zip(np.split(row, sizes), SHAPES, strict=True)]


def _keras_state(kind, optimizer):
    """Slots of Keras's optimizer, flat, in the order of the batched one."""
    per_slot = {
        "adam": ("_momentums", "_velocities"),
        "adamw": ("_momentums", "_velocities"),
        "rmsprop": ("_velocities",),
        "adagrad": ("_accumulators",),
        "lion": ("_momentums",),
        "sgd": (),
    }.get(kind, ("momentums",))
    return [_flat([v.numpy() for v in getattr(optimizer, name)]) for name in per_slot]


def _run(kind, decay, steps, dtype, every_step):
    """Yields after each step Keras's parameters and slots and the batched ones."""
    rng = np.random.default_rng(3)
    start = rng.normal(size=(2, sum(map(np.prod, SHAPES)))).astype(dtype)
    settings = _settings(kind, decay)
    kerases = []
    for member in range(2):
        variables = [keras.Variable(a, dtype=dtype) for a in _split(start[member])]
        optimizer = keras_optimizer(kind, settings, member, float(RATES[member]))
        optimizer.build(variables)
        kerases.append((optimizer, variables))
    parameters = tf.constant(start)
    state = optimizers.initial_state(kind, parameters, settings)
    update = tf.function(optimizers.update, autograph=False, jit_compile=True)
    for step in range(steps):
        gradients = _gradients(rng, step, dtype)
        parameters, state = update(
            kind,
            parameters,
            tf.constant(gradients),
            state,
            settings,
            tf.constant(RATES),
            tf.constant([True, True]),
        )
        for member, (optimizer, variables) in enumerate(kerases):
            optimizer.apply(
                [tf.constant(g) for g in _split(gradients[member])], variables
            )
        if every_step or step == steps - 1:
            yield (
                np.stack([_flat([v.numpy() for v in vs]) for _, vs in kerases]),
                np.array([_keras_state(kind, o) for o, _ in kerases]),
                parameters.numpy(),
                np.array([s.numpy() for s in state.slots]),
            )
            if every_step and dtype == "float32":
                # From the same state: rounding must not add up over the steps.
                theirs = np.stack([_flat([v.numpy() for v in vs]) for _, vs in kerases])
                slots = np.array([_keras_state(kind, o) for o, _ in kerases])
                parameters = tf.constant(theirs)
                if state.slots:
                    moved = tuple(tf.constant(s) for s in slots.swapaxes(0, 1))
                    state = state._replace(slots=moved)


@pytest.mark.parametrize(("kind", "decay"), CASES)
def test_one_step_from_the_same_state_equals_keras(kind, decay):
    before = None
    for theirs, their_slots, ours, our_slots in _run(kind, decay, 12, "float32", True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-9)
        if our_slots.size:
            np.testing.assert_allclose(
                # Lion's terms may cancel; float64 below has the small ones.
                our_slots,
                their_slots.swapaxes(0, 1),
                rtol=1e-5,
                atol=1e-9,
            )
        if before is not None:
            # The changes too: next to a big parameter a wrong one would not show.
            scale = np.abs(theirs - before) + 3e-7 * np.abs(theirs)
            assert np.max(np.abs(ours - theirs) / scale) < 0.5
        before = theirs


@pytest.fixture
def float64():
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    yield
    keras.config.set_floatx(before)


@pytest.mark.parametrize(("kind", "decay"), CASES)
def test_two_hundred_steps_in_float64_equal_keras(kind, decay, float64):
    ((theirs, their_slots, ours, our_slots),) = _run(kind, decay, 200, "float64", False)
    np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)
    if our_slots.size:
        np.testing.assert_allclose(
            our_slots, their_slots.swapaxes(0, 1), rtol=1e-10, atol=1e-14
        )


@pytest.mark.parametrize("kind", SETTINGS)
def test_an_inactive_trainee_stays_and_its_neighbour_does_not_notice(kind):
    settings = _settings(kind, 0.01)
    rng = np.random.default_rng(0)
    start = tf.constant(rng.normal(size=(2, 5)).astype("float32"))
    gradients = rng.normal(size=(2, 5)).astype("float32")
    broken = gradients.copy()
    broken[0] = np.nan
    state = optimizers.initial_state(kind, start, settings)

    def updated(gradients, active):
        return optimizers.update(
            kind, start, tf.constant(gradients), state, settings, RATES, active
        )

    plain, plain_state = updated(gradients, tf.constant([True, True]))
    held, held_state = updated(broken, tf.constant([False, True]))
    np.testing.assert_array_equal(held[0], start[0])
    np.testing.assert_array_equal(held[1], plain[1])
    for slot, before, other in zip(
        held_state.slots, state.slots, plain_state.slots, strict=True
    ):
        np.testing.assert_array_equal(slot[0], before[0])
        np.testing.assert_array_equal(slot[1], other[1])
    np.testing.assert_array_equal(held_state.iterations, [0, 1])


def test_wrong_settings_are_told():
    with pytest.raises(ValueError, match="Unknown optimizer: 'adamm'"):
        optimizers.make_settings("adamm", 2)
    with pytest.raises(ValueError, match="betas"):
        optimizers.make_settings("adam", 2, betas=0.1)
    with pytest.raises(ValueError, match=r"'beta_1'.*2 trainees.*\(3,\)"):
        optimizers.make_settings("adam", 2, beta_1=[0.1, 0.2, 0.3])
