"""The rivals' schedules against their formulas, and their optimizers against optax."""

import jax
import keras
import numpy as np
import optax.contrib
import pytest
import tensorflow as tf
from helpers import GraphController, ScriptedController, every

from keras_learned_lr.benchmark.quality.methods import METHODS, learned
from keras_learned_lr.benchmark.quality.methods.d_adaptation import DAdaptAdam
from keras_learned_lr.benchmark.quality.methods.dog import DoG
from keras_learned_lr.benchmark.quality.methods.hypergradient import (
    STRENGTH,
    with_hypergradient,
)
from keras_learned_lr.benchmark.quality.methods.method import Run
from keras_learned_lr.benchmark.quality.methods.prodigy import Prodigy
from keras_learned_lr.benchmark.quality.methods.schedule_free import ScheduleFreeAdamW
from keras_learned_lr.benchmark.quality.task import Data, Task

STEPS, PEAK = 200, 0.3
PART = (np.zeros((8, 2), "float32"), np.zeros((8, 1), "float32"))
TASK = Task(
    "none",
    lambda: Data(PART, PART, PART),
    lambda: keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]),
    "mean_squared_error",
    keras.optimizers.SGD,
    learning_rate=0.1,
    steps=STEPS,
    batch_size=4,
)


def schedule(name, **options):
    """The learning rate at every step, as the optimizer has it."""
    setup = METHODS[name].prepare(Run(TASK, PEAK, STEPS, **options))
    rates = []
    for step in range(STEPS):
        setup.optimizer.iterations.assign(step)
        rates.append(float(setup.optimizer.learning_rate))
    return np.array(rates)


def test_constant():
    np.testing.assert_allclose(schedule("constant"), PEAK)


@pytest.mark.parametrize("warmup", [0.05, 0.0])
def test_cosine(warmup):
    rising = round(warmup * STEPS)
    t = np.arange(STEPS)
    progress = (t - rising) / (STEPS - rising)
    expected = np.where(
        t < rising,
        PEAK * t / max(rising, 1),
        PEAK * 0.5 * (1 + np.cos(np.pi * progress)),
    )
    rates = schedule("cosine", settings={"warmup": warmup})
    np.testing.assert_allclose(rates, expected, rtol=1e-4, atol=1e-7)


def test_step():
    rates = schedule("step")
    expected = np.repeat([PEAK, PEAK / 10, PEAK / 100], [100, 50, 50])
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_one_cycle():
    rates = schedule("1cycle")
    assert rates[0] == pytest.approx(PEAK / 25)
    assert np.argmax(rates) == 60 and rates[60] == pytest.approx(PEAK)
    assert (np.diff(rates[:61]) > 0).all() and (np.diff(rates[60:]) < 0).all()
    # Half of the way up and down, a cosine is at the mean of its ends.
    assert rates[30] == pytest.approx((PEAK / 25 + PEAK) / 2, rel=1e-4)
    assert rates[130] == pytest.approx((PEAK + PEAK / 25e4) / 2, rel=1e-4)
    assert rates[-1] < 1e-3 * PEAK


def test_plateau_halves_after_two_epochs_without_improvement():
    setup = METHODS["plateau"].prepare(Run(TASK, PEAK, STEPS))
    (callback,) = setup.callbacks
    model = TASK.build()
    model.compile(setup.optimizer, TASK.loss)
    callback.set_model(model)
    callback.on_train_begin()
    rates = []
    for epoch, loss in enumerate([3.0, 2.0, 2.0, 2.0, 1.0, 1.5, 1.5]):
        callback.on_epoch_end(epoch, {"val_loss": loss})
        rates.append(float(setup.optimizer.learning_rate))
    np.testing.assert_allclose(np.divide(rates, PEAK), [1, 1, 1, 0.5, 0.5, 0.5, 0.25])


def descend(optimizer, steps, gradient, start=(1.0, -2.0, 0.5)):
    """Weights after each step; two variables, as norms are over all of them."""
    weights = [keras.Variable(start[:1]), keras.Variable(start[1:])]
    optimizer.build(weights)

    @tf.function
    def step():
        slope = gradient(tf.concat([w.value for w in weights], axis=0))
        optimizer.apply([slope[:1], slope[1:]], weights)
        return tf.concat([w.value for w in weights], axis=0)

    return np.array([step().numpy() for _ in range(steps)])


SCALES = np.float32([1.0, 10.0, 0.1])


def quadratic(values):
    return SCALES * (values - 3.0)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(Prodigy, "prodigy"), (DAdaptAdam, "dadapt_adamw"), (DoG, "dog")],
)
def test_learning_rate_free_optimizers_equal_optax(ours, theirs):
    reference = getattr(optax.contrib, theirs)(learning_rate=0.7, weight_decay=0.01)
    # A pytree of two leaves, as ours has two variables.
    params = [np.float32([1.0]), np.float32([-2.0, 0.5])]
    state, update = reference.init(params), jax.jit(reference.update)
    expected = []
    for _ in range(150):
        wanted = quadratic(np.concatenate(params))
        updates, state = update([wanted[:1], wanted[1:]], state, params)
        params = [np.asarray(p) for p in optax.apply_updates(params, updates)]
        expected.append(np.concatenate(params))
    found = descend(ours(0.7, decay=0.01), 150, quadratic)
    assert np.abs(expected[-1] - expected[0]).max() > 0.1  # it got somewhere
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("kind", [Prodigy, DAdaptAdam, DoG])
def test_they_find_the_minimum_without_a_learning_rate(kind):
    weights = descend(kind(1.0), 400, lambda values: values - 3.0)
    assert np.abs(weights[-1] - 3.0).max() < 0.3


def test_dog_averages_polynomially():
    optimizer = DoG(1.0)
    seen = descend(optimizer, 50, quadratic)
    average = seen[0]
    for t, weights in enumerate(seen[1:], start=2):
        share = 9.0 / (t + 8.0)  # γ = 8
        average = (1 - share) * average + share * weights
    found = np.concatenate([part.numpy() for part in optimizer.averaged()])
    np.testing.assert_allclose(found, average, rtol=1e-4)


def test_hypergradient_follows_its_rule_under_momentum():
    optimizer = with_hypergradient(keras.optimizers.SGD(0.01, momentum=0.9))
    start = np.array([1.0, -2.0, 0.5])
    seen = np.vstack([start, descend(optimizer, 30, lambda values: values - 3.0)])
    rate = 0.01
    for step in range(1, 30):
        change, slope = seen[step] - seen[step - 1], seen[step] - 3.0
        norms = np.linalg.norm(change) * np.linalg.norm(slope)
        rate *= 1.0 - STRENGTH * (change @ slope) / norms
    assert rate != pytest.approx(0.01, rel=0.05)
    assert float(optimizer.learning_rate) == pytest.approx(rate, rel=1e-4)


def test_schedule_free_equals_optax_and_is_evaluated_at_its_average():
    reference = optax.contrib.schedule_free_adamw(0.1, weight_decay=0.01)
    params = np.float32([1.0, -2.0, 0.5])
    state, update = reference.init(params), jax.jit(reference.update)
    for _ in range(60):
        updates, state = update(quadratic(params), state, params)
        params = np.asarray(optax.apply_updates(params, updates))
    optimizer = ScheduleFreeAdamW(0.1, decay=0.01)
    found = descend(optimizer, 60, quadratic)[-1]
    np.testing.assert_allclose(found, params, rtol=2e-3, atol=2e-4)
    average = np.concatenate([part.numpy() for part in optimizer.averaged()])
    expected = optax.contrib.schedule_free_eval_params(state, params)
    np.testing.assert_allclose(average, expected, rtol=2e-3, atol=2e-4)
    assert np.abs(average - found).max() > 0.01


def test_schedule_free_weighs_iterates_by_its_warm_up():
    optimizer = ScheduleFreeAdamW(0.1, warmup=10)
    weights = [keras.Variable([1.0, -2.0])]
    iterates, rates = [], []
    for step in range(20):
        optimizer.apply([tf.constant(weights[0].numpy() - 3.0)], weights)
        iterates.append(optimizer._z[0].numpy())
        rates.append(0.1 * min(1.0, (step + 1) / 10))
    expected = np.average(iterates, axis=0, weights=np.square(rates))
    np.testing.assert_allclose(optimizer.averaged()[0], expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["dog", "schedule_free"])
def test_averaged_weights_are_in_place_only_while_evaluating(name):
    setup = METHODS[name].prepare(Run(TASK, 1.0, STEPS))
    (averaging,) = setup.averaging
    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.BatchNormalization(), keras.layers.Dense(1)]
    )
    model.compile(setup.optimizer, TASK.loss, jit_compile=False)
    x = np.random.default_rng(0).normal(size=(8, 2)).astype("float32")
    model.fit(x, x[:, :1], batch_size=2, epochs=3, verbose=0)
    averaging.set_model(model)
    before = model.get_weights()
    wanted = [np.array(value) for value in averaging._averaged()]
    averaging.on_test_begin()
    during = [v.numpy() for v in model.trainable_variables]
    for found, value in zip(during, wanted, strict=True):
        np.testing.assert_array_equal(found, value)
    assert any((a != b).any() for a, b in zip(model.get_weights(), before, strict=True))
    averaging.on_test_end()
    for found, value in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(found, value)


def test_open_loop_sees_the_clock_and_else_averages():
    shown = []

    class Spy(GraphController):
        def act(self, observation, state):
            shown.append(observation.numpy())
            return super().act(observation, state)

    names = ("validation_loss", "progress", "progress@0.5", "nonfinite@0.5")
    blind = learned.Blind(Spy(0.0, names), dict.fromkeys(names, 7.0))
    blind.act(tf.constant([[1.0, 0.25, 0.5, 2.0]]), [])
    np.testing.assert_allclose(shown, [[[7.0, 0.25, 0.5, 7.0]]])


def test_the_average_schedule_is_replayed_from_another_guess():
    def record(level, rate):
        # Decisions at 0, 50 and 100 of 200 steps; no envelope.
        return {
            "observation": {"progress": 0.25 * level},
            "decisions": {
                "step": [0, 50, 100],
                "learning_rate": [rate, rate * level, rate / level],
            },
            "learning_rate": rate,
            "steps": 200,
        }

    averages = learned.average([record(10.0, 0.1), record(1000.0, 2.0)], "constant")
    assert averages.observation == {"progress": pytest.approx(126.25)}
    replayed = learned.Replayed(0.5, 40, averages.log_level, "constant")
    rates = [float(replayed(tf.constant(step))) for step in (0, 9, 10, 19, 20, 39, 40)]
    expected = [0.5, 0.5, 50.0, 50.0, 0.005, 0.005, 0.005]
    np.testing.assert_allclose(rates, expected, rtol=1e-3)


def test_the_untrained_twin_sees_and_acts_as_the_controller_does():
    controller = ScriptedController([0.0], ("progress", "validation_loss"), every(7))
    twin = learned.untrained_twin(controller)
    assert twin.observation_spec.names == controller.observation_spec.names
    assert twin.action_form == controller.action_form
