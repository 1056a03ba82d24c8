"""Whatever goes wrong, the run goes on and the learning rate is a sane number."""

import math
import warnings

import hypothesis
import hypothesis.strategies as st
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    GraphController,
    compiled,
    data,
    every,
    fit,
    learning_rate,
    model,
    rate,
)

from keras_learned_lr import (
    AnchoredScaleFactor,
    DirectLearningRate,
    LearnedLearningRate,
    LogLearningRate,
    ObservationSpec,
    ScaleFactor,
)
from keras_learned_lr.control.actions import ENVELOPES, SMALLEST, Width
from keras_learned_lr.control.controller import PolicyOutput
from keras_learned_lr.control.schedules import EverySteps
from keras_learned_lr.observation.features import FEATURES
from keras_learned_lr.observation.memory import initial_memory
from keras_learned_lr.observation.spec import observe
from keras_learned_lr.observation.statistics import Statistics

WINDOW, DECISIONS = 3, 6
RATE, LOW, HIGH = 0.01, 1e-3, 1.0
BAD = [math.nan, math.inf, -math.inf]


class Poisoned:
    """One run after another of one model, with a poison at a chosen decision.

    What is poisoned reads a variable that is 0, so that every run uses the same graphs.
    """

    def __init__(self, rollback):
        self.rollback = rollback
        self.poisons = {
            place: tf.Variable(0.0)
            for place in ("loss", "validation", "observation", "action")
        }
        controller = GraphController(self._act, list(FEATURES), every(WINDOW))
        self.callback = rate(
            controller,
            designated_layer="first",
            min_learning_rate=LOW,
            max_learning_rate=HIGH,
            rollback=rollback,
        )
        self.model = model(keras.optimizers.Adam(RATE), loss=self._loss)
        self._start = self.model.get_weights()
        fit(self.model, [self.callback], epochs=1)  # builds the loop
        self._poison_probe(self.callback._loop.probe)
        self._empty = [np.zeros_like(v) for v in self.model.optimizer.variables]

    def _act(self, observation):
        action = tf.fill([tf.shape(observation)[0]], 0.5)
        return action + self.poisons["action"]

    def _loss(self, y, outputs):
        loss = keras.losses.sparse_categorical_crossentropy(y, outputs)
        return loss + self.poisons["loss"] * tf.reduce_sum(outputs)

    def _poison_probe(self, probe):
        measure, validation = probe.measure, probe._validation_loss
        validate = validation.measure
        poison = self.poisons["observation"]

        def poisoned_measure(*arguments):
            statistics = measure(*arguments)
            # Of losses that are not finite the flag tells; these are the rest.
            names = [n for n in Statistics._fields if "_variance" in n or "_norm" in n]
            values = {n: getattr(statistics, n) + poison for n in names}
            return statistics._replace(**values)

        def poisoned_validate():
            validated = validate()
            return validated._replace(loss=validated.loss + self.poisons["validation"])

        probe.measure = poisoned_measure
        validation.measure = poisoned_validate
        loop = self.callback._loop
        loop.decide_function = tf.function(loop._decide, autograph=False)

    def run(self, place, at, value):
        """Trains with a poison from the decision `at` to the next."""
        self.model.set_weights(self._start)
        for variable, empty in zip(
            self.model.optimizer.variables, self._empty, strict=True
        ):
            variable.assign(empty)
        self.model.optimizer.learning_rate = RATE
        switch = Switch(self.poisons.get(place), at * WINDOW, value)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            history = fit(self.model, [switch, self.callback], epochs=3)
        told = [str(w.message) for w in caught if "Learned" in str(w.message)]
        return self.callback.decisions, history.history, told


class Switch(keras.callbacks.Callback):
    """Turns a poison on before a decision, and off before the next."""

    def __init__(self, variable, step, value):
        super().__init__()
        self.variable, self.step, self.value = variable, step, value
        self.taken = 0

    def on_train_begin(self, logs=None):
        self._set()

    def on_train_batch_end(self, batch, logs=None):
        self.taken += 1
        self._set()

    def _set(self):
        if self.variable is not None:
            on = self.step <= self.taken < self.step + WINDOW
            self.variable.assign(self.value if on else 0.0)
        elif self.taken == self.step:
            # The first feeds a relu, which turns NaN into 0.
            kernel = self.model.layers[-1].kernel
            kernel.assign(tf.fill(kernel.shape, self.value))


@pytest.fixture(
    scope="module", name="poisoned", params=[False, True], ids=["", "rollback"]
)
def _poisoned(request):
    return Poisoned(request.param)


def held_at(place, at, rollback):
    """Which decisions are overruled when `place` is poisoned at the decision `at`."""
    if place == "action":
        return {at}
    if rollback and at and place != "observation":
        # The weights of before are back, and the action is followed.
        return set()
    if place == "validation":
        # Before step 1 nothing has gone wrong that the learning rate could be blamed
        # for.
        return {at} - {0}
    if place == "observation":
        return set()
    # The loss on validation data is of the same function. Weights never recover.
    return set(range(max(at, 1), DECISIONS))


@pytest.mark.parametrize("at", range(DECISIONS))
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "place", ["loss", "weights", "validation", "observation", "action"]
)
def test_a_number_that_is_not_finite(poisoned, place, value, at):
    decisions, history, told = poisoned.run(place, at, value)
    assert len(history["loss"]) == 3 and len(decisions["step"]) == DECISIONS
    rates = decisions["learning_rate"]
    assert np.all(np.isfinite(rates))
    assert np.all((LOW * 0.999 <= rates) & (rates <= HIGH * 1.001))
    for name, values in decisions["observation"].items():
        assert np.all(np.isfinite(values)), name
    held = held_at(place, at, poisoned.rollback)
    assert set(np.flatnonzero(decisions["held"])) == held
    # Said once, however long it lasts.
    assert len([t for t in told if "was not finite" in t]) == bool(held)
    back = set(np.flatnonzero(decisions["rolled_back"] >= 0))
    ruined, said = place in ("loss", "weights", "validation"), "not finite any more"
    if place == "observation" and math.isnan(value):
        # The norm of the weights is among what is observed.
        ruined, said = True, "a weight is not finite"
    assert bool(back) == (ruined and at > 0 and poisoned.rollback)
    assert len([t for t in told if said in t]) == bool(back)
    if back:
        assert min(back) == at and np.isfinite(decisions["loss"][max(back) + 1 :]).all()
        # There is no decision after the last window.
        if at < DECISIONS - 1:
            assert all(map(np.all, map(np.isfinite, poisoned.model.get_weights())))
    followed = [i for i in range(DECISIONS) if i not in held | back]
    np.testing.assert_array_less(1.0, decisions["factor"][followed][:2])
    if place in ("loss", "weights") and held:
        # The last under which losses were finite, not the one that was under way.
        good = RATE if min(held) == 1 else rates[min(held) - 2]
        np.testing.assert_allclose(rates[sorted(held)], good, rtol=1e-5)
    assert learning_rate(poisoned.model) == pytest.approx(RATE)


@pytest.mark.parametrize("action", [1.0, -1.0, 1e30, -1e30])
@pytest.mark.parametrize("bounds", [(None, None), (LOW, HIGH)], ids=["range", "bounds"])
def test_always_the_largest_or_the_smallest_action(action, bounds):
    form = ScaleFactor(schedule=EverySteps(2), width=Width(3.0, 3.0), range_decades=6.0)
    low, high = bounds
    callback = rate(
        GraphController(action, ["validation_loss"], form),
        # It would not let the largest stand.
        rollback=False,
        min_learning_rate=low,
        max_learning_rate=high,
    )
    trainee = model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        history = fit(trainee, [callback]).history
    assert len(history["loss"]) == 2
    low, high = low or 0.1 * 1e-6, high or 0.1 * 1e6
    rates = callback.decisions["learning_rate"]
    assert np.all((low * 0.999 <= rates) & (rates <= high * 1.001))
    reached = rates[-1] if action < 0 else max(rates)
    assert reached == pytest.approx(low if action < 0 else high, rel=1e-3)


class Broken(keras.utils.PyDataset):
    """Validation data of which some cannot be read."""

    def __init__(self, good):
        super().__init__()
        self.good = good

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index >= self.good:
            raise OSError("unreadable file")
        x, y = data(8, seed=index)
        return x, y


def generator(good):
    for index in range(good):
        yield data(8, seed=index)
    raise OSError("unreadable file")


class TestValidationDataThatRaise:
    @pytest.mark.parametrize("make", [Broken, generator])
    def test_midway_are_used_up_to_there(self, make):
        # One is read to see what they are like.
        callback = rate(validation_data=make(2))
        with pytest.warns(UserWarning, match="(?s)for 2 batches only.*unreadable"):
            fit(model(), [callback])
        expected = rate(
            validation_data=tuple(
                map(np.concatenate, zip(data(8, seed=0), data(8, seed=1), strict=True))
            )
        )
        fit(model(), [expected])
        np.testing.assert_allclose(
            callback.decisions["loss"], expected.decisions["loss"], rtol=1e-5
        )

    def test_at_once_are_refused(self):
        with pytest.raises(Exception, match="unreadable file"):
            fit(model(), [rate(validation_data=Broken(0))])

    def test_at_a_later_decision_end_the_decisions_and_not_the_run(self):
        class Fragile(keras.Model):
            def test_step(self, data):
                updates = tf.cast(self.optimizer.iterations, tf.int32)
                check = tf.debugging.assert_less(updates, 5, "gone")
                with tf.control_dependencies([check]):
                    return super().test_step(data)

        callback = rate(GraphController(form=every(2)))
        trainee = model(model_class=Fragile)
        with pytest.warns(UserWarning, match="(?s)A decision failed.*gone"):
            history = fit(trainee, [callback]).history
        assert len(history["loss"]) == 2
        assert callback.decisions["step"].tolist() == [0, 2, 4]
        assert learning_rate(trainee) == pytest.approx(0.1)


@pytest.mark.parametrize("eager", [False, True])
def test_an_optimizer_replaced_during_the_run(eager):
    class Replace(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                self.model.optimizer = other

    other = keras.optimizers.SGD(0.02)
    trainee = model(run_eagerly=eager)
    first = trainee.optimizer
    callback = rate(GraphController(0.5, ["validation_loss"], every(2)))
    with pytest.warns(UserWarning, match="optimizer was replaced") as caught:
        history = fit(trainee, [callback, Replace()], epochs=3).history
    assert len([w for w in caught if "replaced" in str(w.message)]) == 1
    assert len(history["loss"]) == 3
    # In the middle of epoch 1 it is seen.
    assert callback.decisions["step"].tolist() == [0, 2, 4, 6]
    for optimizer, default in ((first, 0.1), (other, 0.02)):
        value = float(keras.ops.convert_to_numpy(optimizer.learning_rate))
        assert value == pytest.approx(default)
    compiled(trainee, other)
    fit(trainee, [callback])
    assert callback.decisions["learning_rate"][0] == pytest.approx(0.02 * 10**0.15)


def test_a_controller_that_raises_and_one_that_answers_nonsense():
    class Nonsense(GraphController):
        """From its second decision on."""

        asked = 0

        def act(self, observation, state):
            self.asked += 1
            if self.asked == 1:
                return super().act(observation, state)
            return PolicyOutput(tf.zeros([7, 7]), [])

    callback = LearnedLearningRate(
        Nonsense(0.5, form=every(2)), validation_data=data(32, seed=1)
    )
    # A graph would ask it once for all decisions.
    trainee = model(run_eagerly=True)
    with pytest.warns(UserWarning, match="A decision failed"):
        history = fit(trainee, [callback]).history
    assert len(history["loss"]) == 2
    assert callback.decisions["step"].tolist() == [0]


NUMBERS = st.floats(width=32, allow_nan=True, allow_infinity=True)
SIZES = st.floats(1e-3, 1e3)
SETTINGS = {
    "range_decades": st.floats(1e-2, 1e3),
    "envelope": st.sampled_from(list(ENVELOPES)),
}
WIDTHS = st.builds(Width, initial=SIZES, final=SIZES, decay=st.floats(1e-6, 1e3))
FORMS = st.one_of(
    st.builds(ScaleFactor, width=WIDTHS, **SETTINGS),
    st.builds(AnchoredScaleFactor, width=WIDTHS, **SETTINGS),
    st.builds(LogLearningRate, **SETTINGS),
    st.builds(DirectLearningRate, largest=SIZES, **SETTINGS),
)
BOUND = st.none() | st.floats(1e-20, 1e20)


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(
    form=FORMS,
    default=st.floats(1e-20, 1e20),
    bounds=st.tuples(BOUND, BOUND),
    turns=st.lists(st.tuples(NUMBERS, st.booleans()), min_size=1, max_size=6),
)
def test_the_learning_rate_is_finite_positive_and_in_its_bounds(
    form, default, bounds, turns
):
    low, high = bounds
    if None not in bounds and low > high:
        low, high = high, low
    state, slack = form.initial_state(default, low, high), 1 + 1e-5
    for turn, (action, finite) in enumerate(turns):
        state = form.settle(state, tf.constant(finite))
        step = tf.constant(turn * 20, tf.int64)
        state, value = form.step(
            state, tf.constant(action, tf.float32), step, tf.constant(100, tf.int64)
        )
        value, level = float(value), float(state.level)
        assert 0 < value < math.inf and SMALLEST / slack <= level < math.inf
        assert low is None or value >= low / slack
        assert high is None or value <= high * slack
        assert float(state.low) / slack <= level <= float(state.high) * slack


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
    names=st.lists(st.sampled_from(list(FEATURES)), min_size=1, unique=True),
    windows=st.lists(
        st.lists(
            NUMBERS,
            min_size=len(Statistics._fields),
            max_size=len(Statistics._fields),
        ),
        min_size=1,
        max_size=3,
    ),
)
def test_the_observation_is_finite_whatever_was_measured(names, windows):
    spec, memory = ObservationSpec(names), initial_memory()
    for numbers in windows:
        statistics = Statistics(*(tf.constant(n, tf.float32) for n in numbers))
        observation, memory = observe(spec, statistics, memory)
        assert observation.shape == (len(names),)
        assert np.all(np.isfinite(observation.numpy()))
