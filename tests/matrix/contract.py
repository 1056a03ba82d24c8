"""The contract of every row of the matrix: one `fit`, and what must hold after it."""

import dataclasses
import functools
import re
import warnings
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from helpers import ScriptedController

from keras_learned_lr import AnchoredScaleFactor, LearnedLearningRate, load_controller
from keras_learned_lr.control.actions import Width
from keras_learned_lr.control.schedules import GeometricPerRun

LONGEST = 512


@functools.cache
def shipped(decisions=5):
    """The controller that ships, deciding less often than it would."""
    controller = load_controller("default")
    schedule = GeometricPerRun(decisions=decisions, density=2.0)
    form = dataclasses.replace(controller.action_form, schedule=schedule)
    controller.action_form = form
    return controller


def scripted(envelope="trapezoid"):
    """A controller that looks at little, where what it sees is not the question."""
    form = AnchoredScaleFactor(
        schedule=GeometricPerRun(decisions=5, density=2.0),
        envelope=envelope,
        width=Width(0.5, 0.1),
    )
    names = ("log_level", "validation_vs_first")
    return ScriptedController([0.4, -0.6, 0.3], names, form)


class UsedRates:
    """Notes the learning rate that each training step's update was made with.

    It sits in the optimizer, not in the callback: `_backend_update_step` is handed the
    learning rate that goes into the update. Steps without an update (accumulated
    gradients, or skipped for an overflow) stay NaN.

    Attributes:
        default: What the optimizer was compiled with.
    """

    def __init__(self, optimizer):
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        note = {
            "trainable": False,
            "synchronization": tf.VariableSynchronization.ON_READ,
            "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA,
        }
        with inner._distribution_strategy.scope():
            self._calls = tf.Variable(0, **note)
            self._rates = tf.Variable(tf.fill([LONGEST], np.nan), **note)
        self.default = rate_of(optimizer)
        apply, update = optimizer.apply, inner._backend_update_step

        def counting_apply(grads, *args, **kwargs):
            # Not in the step that finds no batch where data of unknown length ends.
            given = [grad for grad in grads if grad is not None]
            given = tf.nest.flatten(given, expand_composites=True)
            with tf.control_dependencies(given):
                self._calls.assign_add(1)
            return apply(grads, *args, **kwargs)

        def noting_update(grads, variables, learning_rate):
            place = [[self._calls.read_value() - 1]]
            rate = [tf.cast(learning_rate, tf.float32)]
            rates = self._rates.read_value()
            self._rates.assign(tf.tensor_scatter_nd_update(rates, place, rate))
            return update(grads, variables, learning_rate)

        optimizer.apply = counting_apply
        inner._backend_update_step = noting_update

    def take(self):
        """The rates of the steps since the last call, NaN where nothing was updated."""
        rates = self._rates.numpy()[: int(self._calls.numpy())]
        self._calls.assign(0)
        self._rates.assign(tf.fill([LONGEST], np.nan))
        return rates


class Run(NamedTuple):
    """What a `fit` left.

    Attributes:
        callback: The callback, with its decisions.
        history: Keras's history, a dict of lists.
        used: The learning rate of every step, float32 `[steps]`.
        told: What the package warned of.
    """

    callback: LearnedLearningRate
    history: dict
    used: np.ndarray
    told: list[str]


def check_run(
    trainee: keras.Model,
    x: Any = None,
    y: Any = None,
    *,
    validation_data: Any = "same",
    evaluated: Any = None,
    callback: LearnedLearningRate | None = None,
    controller: Any = None,
    beside: Any = (),
    before: Any = (),
    told: Any = (),
    accumulated: int = 1,
    skipped: bool = False,
    loss: str | None = "loss",
    rate_options: dict | None = None,
    **fit_options: Any,
) -> Run:
    """Fits with the callback; checks the learning rates and that the loss went down.

    Args:
        trainee: The compiled model.
        x: What `fit` takes.
        y: The same.
        validation_data: What the callback takes; by default the training data.
        evaluated: What `fit` takes as `validation_data`.
        callback: The callback, where it is one that was used before.
        controller: The controller; by default the one that ships.
        beside: Callbacks that come after it.
        before: Callbacks that come before it.
        told: Patterns of what the package is expected to warn of, one each.
        accumulated: Steps whose gradients are accumulated for one update.
        skipped: Whether steps may be skipped for an overflow.
        loss: The name of the loss that has to go down; None if none has to.
        rate_options: Further arguments of the callback.
        fit_options: Further arguments of `fit`.
    """
    if callback is None:
        if isinstance(validation_data, str):
            validation_data = (x, y)
        callback = LearnedLearningRate(
            controller or shipped(),
            validation_data=validation_data,
            validation_size=64,
            **(rate_options or {}),
        )
    optimizers = watched(trainee)
    defaults = [optimizer.used_rates.default for optimizer in optimizers]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = trainee.fit(
            x,
            y,
            callbacks=[*before, callback, *beside],
            validation_data=evaluated,
            **{"verbose": 0, "epochs": 4, "shuffle": False, **fit_options},
        ).history
    run = Run(
        callback,
        history,
        optimizers[0].used_rates.take(),
        [str(w.message) for w in caught if _is_ours(w)],
    )
    assert len(run.told) == len(told), run.told
    assert all(map(re.search, told, run.told)), run.told

    check_rates(run, defaults[0], accumulated, skipped)
    for optimizer, default in zip(optimizers[1:], defaults[1:], strict=True):
        other = optimizer.used_rates.take()
        np.testing.assert_allclose(other, run.used * default / defaults[0], rtol=1e-4)

    # Nothing is left behind.
    assert [rate_of(optimizer) for optimizer in optimizers] == defaults
    assert "train_step" not in trainee.__dict__
    assert "compute_loss" not in trainee.__dict__
    if loss is not None:
        assert history[loss][-1] < history[loss][0], history[loss]
    return run


def check_rates(run, default, accumulated=1, skipped=False):
    """Every update was made with what the last decision before it stands for."""
    form, decided = run.callback._loop._form, run.callback.decisions
    steps, decisions = len(run.used), decided["step"]
    assert steps > 0 and decisions[0] == 0
    assert len(decisions) > 1 and np.all(np.diff(decisions) > 0)
    assert len(set(decided["learning_rate"])) > 1
    assert np.all(np.isfinite(decided["loss"][1:]))
    assert not decided["held"].any()

    def envelope(step):
        # Of a level of 1: the rate is the level under the envelope.
        state = form.initial_state(1.0)
        horizon = int(run.callback._loop._horizon)
        return form.learning_rate(state, tf.cast(step, tf.int64), horizon).numpy()

    last = np.searchsorted(decisions, np.arange(steps), side="right") - 1
    levels = decided["learning_rate"] / envelope(decisions)
    expected = levels[last] * envelope(np.arange(steps))
    updated = np.isfinite(run.used)
    if not skipped:
        assert np.all(np.flatnonzero(updated) % accumulated == accumulated - 1)
        assert updated.sum() == steps // accumulated
    assert updated.any()
    np.testing.assert_allclose(run.used[updated], expected[updated], rtol=1e-4)
    # The first decision counts from the default that the optimizer was compiled with.
    factor = decided["factor"][0]
    np.testing.assert_allclose(levels[0], default * factor, rtol=1e-4)


def watched(trainee):
    """The optimizers of a model, each with a `used_rates`."""
    optimizer = trainee.optimizer
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    several = getattr(inner, "optimizers", None) or [optimizer]
    for one in several:
        if not hasattr(one, "used_rates"):
            one.used_rates = UsedRates(one)
    return several


def rate_of(optimizer):
    """The learning rate of an optimizer now."""
    return float(keras.ops.convert_to_numpy(optimizer.learning_rate))


def _is_ours(warning):
    message = str(warning.message)
    return issubclass(warning.category, UserWarning) and (
        "controller" in message or "LearnedLearningRate" in message
    )


def draws(seed=0):
    """A random generator, the same every time."""
    return np.random.default_rng(seed)


def classes_of(x, classes):
    """Labels that are easy to learn from x: which of its first means is largest."""
    flat = x.reshape(len(x), -1)
    return np.argmax(flat[:, :classes], axis=1)


def sparse():
    """Cross-entropy of logits."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def compiled(model, loss=None, optimizer=None, **options):
    """Compiles, with Adam and cross-entropy of logits if not told otherwise."""
    options.setdefault("jit_compile", False)
    model.compile(
        optimizer or keras.optimizers.Adam(0.01),
        sparse() if loss is None else loss,
        **options,
    )
    return model
