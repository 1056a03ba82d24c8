"""`rollback`: back to the weights of before, where a window has ruined them."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    GraphController,
    Poison,
    ScriptedController,
    compiled,
    data,
    every,
    fit,
    learning_rate,
    model,
    rate,
    state_of,
)

from keras_learned_lr.control.rollback import PATIENCE, has_collapsed
from keras_learned_lr.observation.layers import moving_statistics
from keras_learned_lr.observation.memory import initial_memory
from keras_learned_lr.observation.statistics import unmeasured

X, Y = data()


def is_finite(trainee):
    return all(np.all(np.isfinite(value)) for value in state_of(trainee))


def poisoned(step, value=np.nan, optimizer="adam", form=None, epochs=4, **options):
    """24 steps, decisions every 3; the weights break after `step`."""
    options = {"rollback": True} | options
    callback = rate(GraphController(0.3, form=form or every(3)), **options)
    trainee, poison = model(optimizer, batch_norm=True), Poison(step, value)
    # Before ours: at a decision the weights are broken already.
    history = fit(trainee, [poison, callback], epochs=epochs)
    return trainee, callback, poison, history.history


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_statistics_and_optimizer_are_back(value):
    with pytest.warns(UserWarning, match="weights and the optimizer's") as caught:
        trainee, callback, _, history = poisoned(8, value)
    told = [str(w.message) for w in caught if "optimizer's" in str(w.message)]
    # The last decision before was at step 6.
    assert len(told) == 1 and "those of step 6 again" in told[0]
    assert is_finite(trainee)
    decisions = callback.decisions
    assert decisions["step"].tolist() == [0, 3, 6, 9, 12, 15, 18, 21]
    assert not decisions["held"].any()
    assert decisions["rolled_back"].tolist() == [-1] * 3 + [6] + [-1] * 4
    # The level that was under way is halved, whatever the action, which raises it.
    rates = decisions["learning_rate"]
    assert rates[3] == pytest.approx(0.5 * rates[2])
    assert rates[4] > rates[3]
    assert np.isfinite(history["loss"][-1])


def test_to_exactly_what_was_there():
    class AtDecision(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            states.append(state_of(self.model))
            rates.append(learning_rate(self.model))

    states, rates = [], []
    callback = rate(GraphController(0.3, form=every(3)), rollback=True)
    trainee = model("adam", batch_norm=True)
    with pytest.warns(UserWarning, match="those of step 6 again"):
        fit(trainee, [Poison(8), callback, AtDecision()], epochs=3)
    # states[i] is that after step i + 1 and whatever was decided there.
    for now, then in zip(states[8], states[5], strict=True):
        np.testing.assert_array_equal(now, then)
    assert any(map(np.any, (np.isnan(value) for value in states[7])))
    # The learning rate alone is not that of then, but the one decided now.
    decided = callback.decisions["learning_rate"]
    assert rates[8] == pytest.approx(decided[3])
    assert rates[8] != pytest.approx(rates[5])


def test_outputs_of_before_are_those_of_the_weights_that_are_back():
    class AtDecision(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            outputs.append(self.model(X[:32], training=False).numpy())

    outputs = []
    controller = GraphController(0.3, form=every(3))
    callback = rate(controller, rollback=True, validation_data=(X[:32], Y[:32]))
    with pytest.warns(UserWarning, match="those of step 6 again"):
        fit(model("adam"), [Poison(8), callback, AtDecision()], epochs=3)
    growth = callback.decisions["observation"]["log_output_growth"]
    # From step 9, where those of step 6 came back, to step 12.
    before, after = (outputs[i].var(axis=0).mean() for i in (5, 11))
    assert growth[4] == pytest.approx(np.log10(after / before) / 2.0, rel=1e-3)


@pytest.mark.parametrize(
    ("first", "best", "now", "collapsed"),
    [
        (2.0, 1.0, 1.24, False),
        (2.0, 1.0, 1.26, True),
        # Little has fallen yet: a tenth of the first loss.
        (2.0, 1.99, 2.18, False),
        (2.0, 1.99, 2.2, True),
        # The same, three lower.
        (-1.0, -2.0, -1.76, False),
        (-1.0, -2.0, -1.74, True),
        (2.0, 1.0, np.nan, True),
        (2.0, 1.0, np.inf, True),
    ],
)
def test_what_counts_as_collapse(first, best, now, collapsed):
    memory = remembering(
        first_validation_loss=first,
        best_validation_loss=best,
    )
    # Before there was a loss, nothing can be undone.
    assert not judged(memory, validation=now)[0]
    memory = memory._replace(validation_seen=tf.constant(1.0))
    found, after = judged(memory, validation=now)
    assert found == collapsed
    # As often as it takes, where it is not finite.
    assert after.setbacks == (collapsed and np.isfinite(now))


def remembering(**numbers):
    """A memory of which these are not 0."""
    tensors = {name: tf.constant(number) for name, number in numbers.items()}
    return initial_memory()._replace(**tensors)


def judged(memory, validation, training=0.0, step=50, lags=False, outputs=(0.0, 0.0)):
    """What is said of a window of a run of 100 steps."""
    statistics = unmeasured()._replace(
        validation_loss=tf.constant(validation, tf.float32),
        training_loss=tf.constant(training, tf.float32),
        step=tf.constant(step, tf.float32),
        horizon=tf.constant(100.0),
        output_variance_before=tf.constant(outputs[0]),
        output_variance_after=tf.constant(outputs[1]),
    )
    collapsed, memory = has_collapsed(statistics, memory, lags)
    return bool(collapsed), memory


@pytest.mark.parametrize(
    ("before", "after", "died"),
    [
        (1.0, 0.0, True),
        # Rounding, where a model says much the same of all: of 1000, say.
        (1.0, 1e-9, True),
        (1.0, 1e-7, False),
        (1e-12, 1e-21, True),
        # It has been so, or nobody looks at outputs.
        (0.0, 0.0, False),
        (0.0, 1.0, False),
    ],
)
def test_a_model_that_says_the_same_of_every_example_has_died(before, after, died):
    memory = remembering(
        first_validation_loss=2.0,
        best_validation_loss=2.0,
        validation_seen=1.0,
    )
    # The loss is lower than it was: an average is better than what it said at first.
    found, memory = judged(memory, 1.9, outputs=(before, after))
    assert found == died
    assert memory.setbacks == died
    assert not judged(memory, 1.9, lags=True, outputs=(before, after))[0]


@pytest.mark.parametrize(
    ("training", "step", "collapsed"),
    [
        (1.0, 50, False),
        (1.24, 50, False),
        (1.26, 50, True),
        (np.nan, 50, True),
        # What a bad step does to the averages of a young run stays for long.
        (1.0, 1, True),
    ],
)
def test_where_averages_lag_the_training_loss_has_to_rise_too(
    training, step, collapsed
):
    memory = remembering(
        first_validation_loss=2.0,
        best_validation_loss=1.0,
        validation_seen=1.0,
        first_training_loss=2.0,
        best_training_loss=1.0,
        training_seen=1.0,
    )
    found, after = judged(memory, 1.5, training, step, lags=True)
    assert found == collapsed
    # Only what is counted is held against the next.
    assert after.setbacks == collapsed
    assert judged(memory, 1.5, training, step)[0]
    assert not judged(memory, 1.0, training, step, lags=True)[0]
    # The update after the window's last loss may have been the fatal one.
    assert judged(memory, np.nan, training, step, lags=True)[0]


@pytest.mark.parametrize(
    ("now", "kept", "again"),
    [(2.3, 1.1, True), (2.3, 2.1, False), (2.1, 1.1, False)],
)
def test_after_three_times_the_level_comes_down_while_a_run_is_worse_than_nothing(
    now, kept, again
):
    memory = remembering(
        first_validation_loss=2.0,
        best_validation_loss=1.0,
        validation_seen=1.0,
        kept_validation_loss=kept,
        setbacks=3.0,
    )
    found, after = judged(memory, now)
    # Higher than at the decision before, at which it was 0 here.
    assert not found and after.retreats == 2 * again
    falls = memory._replace(previous_validation_loss=tf.constant(9.0))
    assert judged(falls, now)[1].retreats == again
    assert judged(memory._replace(setbacks=tf.constant(2.0)), now)[0]
    assert not judged(memory, 1.1)[1].retreats
    # Where losses lag the training loss tells.
    memory = memory._replace(
        first_training_loss=tf.constant(2.0),
        best_training_loss=tf.constant(1.0),
        training_seen=tf.constant(1.0),
    )
    found, after = judged(memory, now, training=2.3, lags=True)
    assert not found and after.retreats == 2 * (now > 2.2)
    assert not judged(memory, now, training=2.1, lags=True)[1].retreats
    # What a run goes back to is of its last sound decision.
    for loss, step, remembered in ((1.2, 50, 1.2), (1.5, 50, kept), (1.2, 1, kept)):
        after = judged(memory, loss, step=step)[1]
        assert float(after.kept_validation_loss) == pytest.approx(remembered)


@pytest.mark.parametrize("normalised", [False, True])
def test_what_ruins_a_model_that_had_learned_does_not_go_on(normalised):
    """A controller that raises the level all along, from a loss near its floor."""
    trainee = model("adam", batch_norm=normalised)
    x, y = data(512)
    trainee.fit(x, y, epochs=40, verbose=0)
    before = trainee.evaluate(x, y, verbose=0)
    learned = rate(GraphController(0.5, form=every(8, decades=1.0)))
    learned_from = {"batch_size": 32, "epochs": 20, "shuffle": True}
    with pytest.warns(UserWarning, match="The loss rose to"):
        fit(trainee, [learned], x, y, **learned_from)
    rates = learned.decisions["learning_rate"]
    assert rates.max() < 1.0
    assert trainee.evaluate(x, y, verbose=0) < 20 * before


def test_a_weight_that_is_not_finite_takes_the_weights_back():
    """An activation hides it, as ReLU does on some processors: losses are finite."""

    class Hidden(keras.callbacks.Callback):
        taken = 0

        def on_train_batch_end(self, batch, logs=None):
            self.taken += 1
            if self.taken == 4:
                kernel = self.model.layers[0].kernel
                kernel.assign(float("nan") * kernel)

    trainee = model(batch_norm=True)
    trainee.layers[0].activation = lambda x: tf.where(x > 0.0, x, 0.0)
    callback = rate(GraphController(0.1, form=every(3)))
    with pytest.warns(UserWarning, match="weights and the optimizer's"):
        fit(trainee, [Hidden(), callback], epochs=3)
    assert np.isfinite(callback.decisions["loss"]).all()
    assert callback.decisions["rolled_back"].tolist() == [-1, -1, 3, -1, -1, -1]
    assert is_finite(trainee)


def test_one_example_that_is_repeated_is_no_model_that_died():
    """The last batch of an epoch may be of one."""
    x, y = data(65)
    callback = rate(GraphController(0.0, form=every(3)))
    fit(model("adam"), [callback], x, y, batch_size=32, epochs=8)
    seen = callback.decisions["observation"]["log_output_change"]
    assert np.isfinite(seen).all() and len(seen) == 8
    assert (callback.decisions["rolled_back"] == -1).all()


def test_a_loss_that_begins_at_nothing_may_rise():
    memory = remembering(validation_seen=1.0)
    assert not judged(memory, 1e-4)[0]
    assert judged(memory, np.nan)[0]


def test_validation_data_without_a_loss_is_told_of():
    weights = np.full(32, np.nan)
    validation = (*data(32, seed=1), weights)
    callback = rate(GraphController(0.3, form=every(3)), validation_data=validation)
    with pytest.warns(UserWarning, match="not finite before step 1"):
        fit(model(), [callback])
    assert callback.decisions["held"][1:].all()


class Rises(keras.callbacks.Callback):
    """Raises what a loss takes from it, after six steps."""

    def __init__(self):
        super().__init__()
        self.by = tf.Variable(0.0)

    def on_train_batch_end(self, batch, logs=None):
        if self.model.optimizer.iterations == 6:
            self.by.assign(2.0)


@pytest.mark.parametrize("normalised", [False, True])
def test_fit_knows_whose_averages_lag(normalised):
    """A validation loss that rises alone takes only weights back that it tells of."""
    rises = Rises()

    trainee = model(batch_norm=normalised)
    compute_loss = trainee.compute_loss

    def with_rise(*args, training=True, **kwargs):
        found = compute_loss(*args, training=training, **kwargs)
        return found if training else found + rises.by

    trainee.compute_loss = with_rise
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        callback = rate(GraphController(0.3, form=every(3)))
        fit(trainee, [rises, callback], epochs=6)
    back = callback.decisions["rolled_back"].tolist()
    assert back == [-1] * 12 if normalised else back[:5] == [-1, -1, 3, 3, 3]


def test_three_times_in_a_row_and_no_more():
    """As where moving averages lag: the loss is high whatever the weights are."""
    rises = Rises()

    def loss(y, outputs):
        return keras.losses.sparse_categorical_crossentropy(y, outputs) + rises.by

    callback = rate(GraphController(0.3, form=every(3)))
    with pytest.warns(UserWarning, match="The loss rose to"):
        fit(model(loss=loss), [rises, callback], epochs=6)
    back = callback.decisions["rolled_back"]
    assert back.tolist() == [-1, -1, 3, 3, 3] + [-1] * 7
    # Then the controller is followed again.
    factors = callback.decisions["factor"]
    np.testing.assert_allclose(factors[2:5], 0.5, rtol=1e-5)
    np.testing.assert_allclose(factors[5:], factors[0], rtol=1e-5)


@pytest.mark.parametrize("loud", [False, True])
def test_a_loss_that_rises_takes_the_weights_back(loud):
    """As where a learning rate is too high: every loss is finite."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainee, callback, *_ = poisoned(8, value=-30.0 if loud else 0.0, epochs=6)
    told = [str(w.message) for w in caught if "The loss rose to" in str(w.message)]
    back = callback.decisions["rolled_back"]
    losses = callback.decisions["loss"]
    assert np.isfinite(losses).all() and not callback.decisions["held"].any()
    if loud:
        assert losses[3] > 2 * losses[0]
        assert len(told) == 1 and back.tolist() == [-1, -1, -1, 6] + [-1] * 8
        # On as if nothing had been.
        assert losses[4] < 1.1 * losses[2]
    else:
        # With weights of 0 the loss is what it is at chance: not a tenth above.
        assert not told and (back == -1).all()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("opened", [False, True])
def test_a_dead_model_is_brought_back_to_life(opened):
    """Its loss does not rise, as it had not learned a thing."""

    class Dies(keras.callbacks.Callback):
        taken = 0

        def on_train_batch_end(self, batch, logs=None):
            self.taken += 1
            if self.taken == 2:
                first = self.model.get_layer("first")
                first.bias.assign(tf.fill([8], -1e4))

    trainee = model(keras.optimizers.SGD(0.3))
    names = ("training_vs_first", "validation_vs_first", "log_output_growth")
    callback = rate(
        GraphController(0.0, names if opened else names[:2], every(3)),
        rollback=True,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(trainee, [Dies(), callback], epochs=6)
    decisions = callback.decisions
    losses = decisions["loss"]
    assert losses[1] < 1.1 * losses[0]
    if opened:
        assert decisions["rolled_back"].tolist() == [-1, 0] + [-1] * 10
        assert losses[-1] < 0.7 * losses[0]
    else:
        # Nobody looks at its outputs, and it stays dead.
        assert (decisions["rolled_back"] == -1).all()
        assert losses[-1] > 0.95 * losses[1]


def test_before_the_first_window_there_are_the_initial_weights():
    with pytest.warns(UserWarning, match="those of step 0 again"):
        trainee, *_ = poisoned(1, validation_data=None)
    assert is_finite(trainee)


def test_a_young_run_goes_back_to_its_beginning():
    with pytest.warns(UserWarning, match="those of step 0 again"):
        # The 204 steps are young up to the decision at 4.
        poisoned(3, form=every(2), epochs=34)
    with pytest.warns(UserWarning, match="those of step 2 again"):
        # As 24 are not.
        poisoned(3, form=every(2))


def test_an_update_that_breaks_the_weights_after_a_finite_loss_is_not_kept():
    """Without validation data the window before it looks healthy."""
    with pytest.warns(UserWarning, match="those of step 3 again"):
        # At step 6 the losses were finite and the weights are not.
        trainee, *_ = poisoned(6, validation_data=None)
    assert is_finite(trainee)


@pytest.mark.parametrize("validated", [True, False])
def test_a_rate_that_ruins_every_window_comes_down_until_none_is_ruined(validated):
    """Each time the level is half of the last, at most."""
    x = 10.0 * data()[0]
    given = (x[:32], x[:32, :3]) if validated else None
    # Without, a window that ends with an excessive loss is as good as any.
    action, epochs = (0.0, 60) if validated else (-1.0, 300)
    form = every(2, decades=0.3 if validated else 1.0)
    callback = rate(GraphController(action, form=form), validation_data=given)
    body = [keras.layers.Dense(8, "relu"), keras.layers.Dense(3)]
    trainee = keras.Sequential([keras.Input((6,)), *body])
    compiled(trainee, keras.optimizers.SGD(100.0), loss="mse")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(trainee, [callback], x, x[:, :3], epochs=epochs)
    decisions = callback.decisions
    assert (decisions["rolled_back"] >= 0).sum() >= 3
    assert decisions["learning_rate"][-1] < 0.1
    assert is_finite(trainee)
    assert np.isfinite(decisions["loss"][-10:]).all()


def test_a_layer_that_the_model_never_calls_is_in_nobodys_way():
    class Spare(keras.Model):
        def __init__(self):
            super().__init__()
            self.first = keras.layers.Dense(8, activation="relu")
            self.spare = keras.layers.Dense(5)
            self.last = keras.layers.Dense(3, activation="softmax")

        def call(self, x):
            return self.last(self.first(x))

    trainee = compiled(Spare(), keras.optimizers.SGD(0.1))
    callback = rate(GraphController(0.0, ("validation_vs_first",), every(3)))
    with pytest.warns(UserWarning, match="those of step 6 again"):
        fit(trainee, [Poison(8), callback], epochs=4)
    assert is_finite(trainee)


def test_averages_that_do_not_move_do_not_lag():
    frozen = keras.layers.BatchNormalization(trainable=False)
    columns = keras.layers.Normalization()
    columns.adapt(X)
    moving = keras.layers.BatchNormalization()
    for layers, moved in (([columns, frozen], 0), ([columns, frozen, moving], 2)):
        body = [keras.Input((6,)), *layers, keras.layers.Dense(3)]
        assert len(moving_statistics(keras.Sequential(body))) == moved


def test_without_it_the_weights_stay_broken():
    with pytest.warns(UserWarning, match="not finite"):
        trainee, callback, *_ = poisoned(8, rollback=False)
    assert not is_finite(trainee)
    assert callback._loop._rollback is None


def test_as_often_as_it_takes_and_told_once():
    class Again(Poison):
        def on_train_batch_end(self, batch, logs=None):
            super().on_train_batch_end(batch, logs)
            if self.taken == 20:
                self.taken = self.step - 1

    callback = rate(GraphController(0.0, form=every(2)), rollback=True)
    trainee = model("adam")
    with pytest.warns(UserWarning) as caught:
        fit(trainee, [Again(5), callback], epochs=6)
    told = [w for w in caught if "optimizer's variables" in str(w.message)]
    assert len(told) == 1
    back = [r.rolled_back for r in callback._records if r.rolled_back is not None]
    assert len(back) == 2
    assert is_finite(trainee)


def test_fewer_windows_do_not():
    class Mended(Poison):
        def on_train_batch_end(self, batch, logs=None):
            super().on_train_batch_end(batch, logs)
            if self.taken == self.step + 3 * (PATIENCE - 1):
                for variable, value in zip(
                    self.model.weights, self.before, strict=False
                ):
                    variable.assign(value)

    # Without validation data, one loss that is not finite may be of a bad batch.
    callback = rate(
        GraphController(0.0, form=every(3)), validation_data=None, rollback=True
    )
    with pytest.warns(UserWarning, match="not finite"):
        fit(model(keras.optimizers.SGD(0.1)), [Mended(3), callback], epochs=4)
    # Two windows without a finite loss, and the third was finite again.
    held = callback.decisions["held"].tolist()
    assert held == [False, False, True, True] + [False] * 4
    assert all(r.rolled_back is None for r in callback._records)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_validation_data_that_were_never_finite_take_nothing_back(bad):
    weights = np.ones(32, "float32")
    weights[5] = bad
    with pytest.warns(UserWarning) as caught:
        given = (*data(32, seed=1), weights)
        callback = rate(form_of_three(), validation_data=given, rollback=True)
        trainee, plain = model(), model()
        fit(trainee, [callback], epochs=4)
    assert not [w for w in caught if "optimizer's variables" in str(w.message)]
    # Held at the default all along after the first decision, it trains as without.
    assert callback.decisions["held"].tolist() == [False] + [True] * 7
    fit(plain, epochs=4)
    for a, b in zip(trainee.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def form_of_three():
    return ScriptedController([0.0], ["validation_loss"], every(3))


def test_losses_that_are_not_finite_beside_a_finite_validation_loss_take_nothing_back():
    """As with one corrupt example whose updates a loss scaler skips."""

    class Skipping(keras.Model):
        def train_step(self, data):
            logs = super().train_step(data)
            return logs | {"loss": logs["loss"]}

        def compute_loss(self, *args, training=True, **kwargs):
            loss = super().compute_loss(*args, training=training, **kwargs)
            if not training:
                return loss
            # The value is not finite, the gradient is.
            return loss + tf.stop_gradient(tf.constant(np.nan))

    callback = rate(form_of_three(), rollback=True)
    trainee, plain = model(model_class=Skipping), model()
    with pytest.warns(UserWarning, match="not finite"):
        fit(trainee, [callback], epochs=4)
    assert callback.decisions["held"].tolist() == [False] + [True] * 7
    assert np.all(np.isfinite(callback.decisions["loss"]))
    fit(plain, epochs=4)
    for a, b in zip(trainee.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_loss_scaling_goes_back_too():
    trainee = model(keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01)))
    callback = rate(form_of_three(), rollback=True)
    with pytest.warns(UserWarning, match="those of step 6 again"):
        fit(trainee, [Poison(8), callback], epochs=4)
    assert is_finite(trainee)
