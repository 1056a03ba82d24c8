"""What the probe measures, against the same quantities computed outside it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import (
    LAYER,
    GraphController,
    Recorder,
    compiled,
    data,
    every,
    fit,
    model,
    rate,
)

from keras_learned_lr.observation.probe import Probe
from keras_learned_lr.observation.statistics import Statistics
from keras_learned_lr.observation.validation import ValidationLoss, draw_subset
from keras_learned_lr.observation.window_losses import LOSSES_KEPT

ALL = frozenset(
    {"window", "validation", "update", "update_cosine", "outputs", "inputs", "layer"}
)
JIT = pytest.mark.parametrize("jit", [False, True], ids=["", "jit"])


class Watcher(keras.callbacks.Callback):
    """Measures a window every few steps, with the probe alone."""

    def __init__(self, steps=3, needs=ALL, validation_data=None, **options):
        super().__init__()
        self.steps, self.needs, self.options = steps, needs, options
        self.validation_data = validation_data
        self.windows, self.weights = [], []

    def on_train_begin(self, logs=None):
        validation = None
        if self.validation_data is not None:
            validation = ValidationLoss(
                self.model, draw_subset(self.validation_data, None)
            )
        self.probe = Probe(self.model, self.needs, validation, **self.options)
        self.measure = tf.function(self.probe.measure, autograph=False)
        self.probe.install()
        self.probe.start()
        self.weights.append(self.model.get_weights())
        self.taken = 0

    def on_train_batch_begin(self, batch, logs=None):
        self.probe.expect_step()

    def on_train_batch_end(self, batch, logs=None):
        self.taken += self.model.steps_per_execution
        if self.taken % self.steps == 0:
            self.look()

    def look(self):
        rate = tf.constant(0.1)
        window = self.measure(tf.constant(12, tf.int64), rate, rate, rate)
        self.windows.append(Statistics(*(float(v) for v in window)))
        self.weights.append(self.model.get_weights())

    def on_train_end(self, logs=None):
        self.probe.remove()


def by_hand(trainee, x, y, epochs=2, batch=16):
    """Losses of a loop of `train_on_batch`, and the weights after each step."""
    losses, weights = [], [trainee.get_weights()]
    for _ in range(epochs):
        for start in range(0, len(x), batch):
            trainee.reset_metrics()
            xs, ys = x[start : start + batch], y[start : start + batch]
            losses.append(trainee.train_on_batch(xs, ys))
            weights.append(trainee.get_weights())
    return np.array(losses), weights


def flat(weights):
    return np.concatenate([np.ravel(w) for w in weights])


class TestLosses:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"jit_compile": True},
            {"steps_per_execution": 3},
            {"run_eagerly": True},
            {"metrics": ["accuracy"]},
        ],
        ids=str,
    )
    def test_are_those_of_the_steps(self, options):
        # XLA draws other numbers for Dropout.
        jit = options.get("jit_compile", False)
        hand = model(dropout=True, batch_norm=True, jit_compile=jit)
        losses = by_hand(hand, *data())[0]
        watcher = Watcher(3, needs=frozenset({"window"}))
        fit(model(dropout=True, batch_norm=True, **options), [watcher])
        windows = losses.reshape(-1, 3)
        for window, expected in zip(watcher.windows, windows, strict=True):
            got = (window.training_loss, window.training_loss_deviation)
            assert got == pytest.approx((expected.mean(), expected.std()), rel=1e-4)
            assert window.training_loss_highest == pytest.approx(max(expected))
            assert window.training_loss_earliest == pytest.approx(expected[0])
            assert window.window_steps == 3 and window.finite == 1
        assert [w.step for w in watcher.windows] == [3, 6, 9, 12]

    def test_of_a_ragged_last_batch(self):
        x, y = data(examples=40)
        losses = by_hand(model(), x, y)[0]
        watcher = Watcher(3)
        fit(model(), [watcher], x, y)
        got = [w.training_loss for w in watcher.windows]
        assert got == pytest.approx(losses.reshape(2, 3).mean(axis=1), rel=1e-4)

    def test_are_the_last_where_the_window_is_longer_than_what_is_kept(self):
        x = np.ones((LOSSES_KEPT + 40, 1), "float32")
        y = np.arange(LOSSES_KEPT + 40, dtype="float32")[::-1, None]
        trainee = keras.Sequential([keras.Input((1,)), ByX()])
        compiled(trainee, loss="mean_absolute_error", steps_per_execution=133)
        watcher = Watcher(len(x), frozenset({"window"}))
        fit(trainee, [watcher], x, y, batch_size=1, epochs=1)
        kept = y[40:]
        (window,) = watcher.windows
        assert window.training_loss_earliest == kept[0]
        assert window.training_loss_highest == kept.max()
        assert window.training_loss == pytest.approx(kept.mean(), rel=1e-5)
        assert window.training_loss_deviation == pytest.approx(kept.std(), rel=1e-4)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_that_are_not_finite_are_told(self, bad):
        x, y = data()
        y = np.eye(3, dtype="float32")[y]
        y[20] = bad
        watcher = Watcher(1)
        fit(model(loss="mean_absolute_error"), [watcher], x, y, epochs=1)
        # An infinite error has a finite gradient: later steps may recover.
        assert [w.finite for w in watcher.windows][:2] == [1, 0]


class ByX(keras.layers.Layer):
    """Outputs 0 whatever comes in; has a weight so that it can be trained."""

    def build(self, shape):
        self.weight = self.add_weight(shape=(1,), initializer="zeros")

    def call(self, x):
        return x * 0.0 + 0.0 * self.weight


class TestBatchAndWeights:
    """Everything else a window tells, from the weights and batches themselves."""

    @pytest.fixture(scope="class", params=[False, True], ids=["", "jit"])
    def run(self, request):
        x, y = data()
        _, weights = by_hand(model(batch_norm=True), x, y)
        watcher = Watcher(3, designated_layer="first", probe_size=8)
        trainee = model(batch_norm=True, jit_compile=request.param)
        fit(trainee, [watcher], x, y)
        return watcher.windows, weights, x, trainee

    def outputs(self, trainee, weights, x):
        trainee.set_weights(weights)
        return trainee.predict(x, verbose=0)

    def test_output_variances(self, run):
        windows, weights, x, trainee = run
        for i, window in enumerate(windows):
            # The first 8 examples of the window's last batch.
            start = ((3 * i + 2) % 6) * 16
            noted = x[start : start + 8]
            before = self.outputs(trainee, weights[3 * i], noted)
            after = self.outputs(trainee, weights[3 * i + 3], noted)
            expected = [v.var(axis=0).mean() for v in (before, after, after - before)]
            got = [
                window.output_variance_before,
                window.output_variance_after,
                window.output_variance_difference,
            ]
            assert got == pytest.approx(expected, rel=1e-3)

    def test_input_moments(self, run):
        windows, _, x, _ = run
        for i, window in enumerate(windows):
            noted = x[((3 * i + 2) % 6) * 16 :][:8]
            got = (window.input_mean, window.input_variance)
            assert got == pytest.approx((noted.mean(), noted.var()), abs=1e-5)

    def test_layer_moments(self, run):
        windows, weights, *_ = run
        for i, window in enumerate(windows):
            layer = flat(weights[3 * i + 3][:2])  # kernel and bias of "first"
            got = (window.layer_mean, window.layer_variance)
            assert got == pytest.approx((layer.mean(), layer.var()), rel=1e-3)

    def test_norms_and_cosine_of_the_trainable_weights(self, run):
        windows, weights, _, trainee = run
        ids = [id(v) for v in trainee.weights]
        places = [ids.index(id(v)) for v in trainee.trainable_variables]
        assert len(places) < len(ids)
        at = [flat([w[p] for p in places]) for w in weights[::3]]
        previous = None
        for window, old, new in zip(windows, at, at[1:], strict=False):
            update = new - old
            assert window.weight_norm == pytest.approx(np.linalg.norm(new), rel=1e-4)
            assert window.update_norm == pytest.approx(np.linalg.norm(update), rel=1e-3)
            cosine = 0.0
            if previous is not None:
                cosine = update @ previous
                cosine /= np.linalg.norm(update) * np.linalg.norm(previous)
            assert window.update_cosine == pytest.approx(cosine, abs=1e-3)
            previous = update


class TestOutputsOfValidationExamples:
    """In place of those of the batch, where there are some."""

    def watch(self, trainee, size=96, **options):
        validation = data(size, seed=7)
        watcher = Watcher(3, validation_data=validation, designated_layer="first")
        fit(trainee, [watcher], **options)
        return watcher, validation[0]

    @pytest.mark.parametrize("size", [5, 40, 300], ids="{} examples".format)
    @pytest.mark.parametrize(
        "options", [{}, {"jit_compile": True}, {"run_eagerly": True}], ids=str
    )
    def test_move_as_predictions_do(self, options, size):
        watcher, x = self.watch(model(**options), size)
        trainee, noted = watcher.model, x[:32]
        at = []
        for weights in watcher.weights:
            trainee.set_weights(weights)
            at.append(trainee.predict(noted, verbose=0))
        for window, before, after in zip(watcher.windows, at, at[1:], strict=False):
            expected = [v.var(axis=0).mean() for v in (before, after, after - before)]
            got = [
                window.output_variance_before,
                window.output_variance_after,
                window.output_variance_difference,
            ]
            if window is watcher.windows[0]:
                # Nothing was measured before step 1 here.
                got, expected = got[1:2], expected[1:2]
            assert got == pytest.approx(expected, rel=1e-3)

    def test_need_no_batch_and_no_moving_statistics(self):
        watcher, _ = self.watch(model(batch_norm=True))
        trainee, probe = watcher.model, watcher.probe
        moving = len(trainee.non_trainable_variables)
        assert moving
        assert len(probe._weights) == len(trainee.trainable_variables)
        # `ALL` needs inputs; outputs are computed for none of them.
        assert probe._noted._weights is None
        no_inputs = Probe(trainee, ALL - {"inputs"}, validating(trainee))
        assert no_inputs.ready

    def test_are_those_of_the_batch_where_only_test_step_knows_a_loss(self):
        trainee, given = validation_case("test_step")
        watcher = Watcher(3, validation_data=given)
        fit(trainee, [watcher])
        assert not watcher.probe._watches_outputs
        assert watcher.windows[0].output_variance_before > 0

    def test_of_one_example_do_not_vary(self):
        watcher, _ = self.watch(model(), size=1)
        last = watcher.windows[-1]
        assert last.output_variance_before == last.output_variance_difference == 0.0


def validating(trainee):
    return ValidationLoss(trainee, draw_subset(data(8), None))


def test_no_copy_is_kept_of_frozen_weights():
    trainee = model(batch_norm=True)
    trainee.get_layer("first").trainable = False
    probe = Probe(compiled(trainee), ALL)
    frozen = {id(v) for v in trainee.get_layer("first").weights}
    kept = [v for v in trainee.weights if id(v) not in frozen]
    assert len(kept) == len(trainee.weights) - 2
    assert sorted(c.shape.as_list() for c in probe._weights) == sorted(
        list(v.shape) for v in kept
    )


class TestDesignatedLayer:
    def moments(self, trainee, name=None):
        watcher = Watcher(6, frozenset({"layer"}), designated_layer=name)
        fit(trainee, [watcher], epochs=1)
        return watcher.windows[0].layer_mean, trainee

    def test_is_the_last_with_a_weight_matrix_if_not_told(self):
        mean, trainee = self.moments(model(batch_norm=True))
        kernel = trainee.get_layer("last").kernel.numpy()
        assert mean == pytest.approx(kernel.mean(), rel=1e-4)

    def test_is_found_inside_a_nested_model(self):
        inner = keras.Sequential([LAYER.Dense(4, name="deep")], name="inner")
        trainee = keras.Sequential([keras.Input((6,)), inner, LAYER.Dense(3)])
        mean, _ = self.moments(compiled(trainee, loss=sparse()), "deep")
        weights = flat([w.numpy() for w in inner.layers[0].weights])
        assert mean == pytest.approx(weights.mean(), rel=1e-4)

    def test_that_is_unknown_is_refused_with_a_list(self):
        with pytest.raises(ValueError, match=r"no layer 'nope'.*'first', .*'last'"):
            Probe(model(), ALL, designated_layer="nope")


def sparse():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class WithPenalty(keras.layers.Layer):
    def call(self, x):
        self.add_loss(0.3 * keras.ops.mean(keras.ops.square(x)))
        return x


class OwnTestStep(keras.Sequential):
    """Reports twice the usual loss."""

    def test_step(self, data):
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        loss = 2.0 * self.compute_loss(x, y, self(x, training=False), weight)
        self._loss_tracker.update_state(loss, sample_weight=keras.ops.shape(x)[0])
        return self.compute_metrics(x, y, None, weight) | {"extra": loss}

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        return {"loss": self._loss_tracker.result()}


def validation_case(name):
    """A model and validation data; 150 examples are two chunks and a rest."""
    x, y = data(150, seed=4)
    weight = np.linspace(0.0, 2.0, 150).astype("float32")
    dense = [LAYER.Dense(5, activation="relu", kernel_regularizer="l2")]
    head = [LAYER.Dense(3, bias_regularizer=keras.regularizers.L1(0.1))]
    keras.utils.set_random_seed(2)
    body, options, given = [*dense, *head], {}, (x, y)
    build = keras.Sequential
    if name == "penalty":
        body = [*dense, WithPenalty(), *head]
    elif name == "batch norm and dropout":
        body = [*dense, LAYER.BatchNormalization(), LAYER.Dropout(0.5), *head]
    elif name == "weights":
        given = (x, y, weight)
    elif name == "weighted metrics":
        given = (x, y, weight)
        options = {"metrics": ["accuracy"], "weighted_metrics": ["accuracy"]}
    elif name == "test_step":
        build = OwnTestStep
    elif name == "outputs":
        inputs = keras.Input((6,))
        outs = {n: LAYER.Dense(3, name=n)(dense[0](inputs)) for n in ("a", "b")}
        losses = {"a": sparse(), "b": sparse()}
        trainee = keras.Model(inputs, outs)
        options = {"loss": losses, "loss_weights": {"a": 1.0, "b": 0.2}}
        return compiled(trainee, **options), (x, {"a": y, "b": y})
    trainee = build([keras.Input((6,)), *body])
    return compiled(trainee, loss=sparse(), **options), given


class TestValidationLoss:
    @pytest.mark.parametrize(
        "name",
        [
            *("regularizers", "penalty", "batch norm and dropout", "weights"),
            *("weighted metrics", "test_step", "outputs"),
        ],
    )
    def test_is_what_evaluate_says_and_leaves_no_trace(self, name):
        trainee, given = validation_case(name)
        fit(trainee, [], *given[:2], epochs=1)
        measure = ValidationLoss(trainee, draw_subset(given, size=None))
        names = dict(x=given[0], y=given[1])
        if len(given) == 3:
            names["sample_weight"] = given[2]
        state = [np.array(v) for v in everything(trainee)]
        graph = tf.function(measure, autograph=False)
        got = float(graph())
        for before, after in zip(state, everything(trainee), strict=True):
            np.testing.assert_array_equal(before, after)
        expected = trainee.evaluate(**names, verbose=0, return_dict=True)["loss"]
        assert got == pytest.approx(expected, rel=1e-4)
        assert float(measure()) == pytest.approx(expected, rel=1e-4)

    @pytest.mark.parametrize("count", [3, 64, 256, 350])
    def test_is_the_mean_of_few_examples_and_of_many(self, count):
        trainee, _ = validation_case("regularizers")
        given = data(count, seed=5)
        measure = tf.function(
            ValidationLoss(trainee, draw_subset(given, None)), autograph=False
        )
        expected = trainee.evaluate(*given, verbose=0)
        assert float(measure()) == pytest.approx(expected, rel=1e-4)

    def test_follows_the_weights(self):
        trainee, given = validation_case("regularizers")
        measure = tf.function(
            ValidationLoss(trainee, draw_subset(given, None)), autograph=False
        )
        first = float(measure())
        fit(trainee, [], *given, epochs=1)
        expected = trainee.evaluate(*given, verbose=0)
        assert float(measure()) == pytest.approx(expected, rel=1e-4)
        assert first != pytest.approx(expected, rel=1e-3)

    def test_is_on_a_fixed_draw(self):
        trainee, (x, y) = validation_case("regularizers")
        y = y + 0
        measure = ValidationLoss(trainee, draw_subset((x, y), size=20, seed=5))
        assert measure.size == 20
        chosen = np.sort(np.random.default_rng(5).permutation(150)[:20])
        expected = trainee.evaluate(x[chosen], y[chosen], verbose=0)
        assert float(measure()) == pytest.approx(expected, rel=1e-4)

    @pytest.mark.parametrize("kind", ["generator", "infinite"])
    def test_takes_the_first_examples_where_the_end_is_unknown(self, kind):
        trainee, (x, y) = validation_case("regularizers")
        measure = ValidationLoss(trainee, draw_subset(source(kind, x, y), size=40))
        assert measure.size == 40
        expected = trainee.evaluate(x[:40], y[:40], verbose=0)
        assert float(measure()) == pytest.approx(expected, rel=1e-4)

    @pytest.mark.parametrize(("kind", "batch"), [("dataset", 32), ("PyDataset", 30)])
    def test_takes_some_of_each_batch_where_it_is_known(self, kind, batch):
        trainee, (x, y) = validation_case("regularizers")
        measure = ValidationLoss(trainee, draw_subset(source(kind, x, y), size=30))
        batches = np.split(np.arange(150), range(batch, 150, batch))
        chosen = np.concatenate([b[np.arange(6) * len(b) // 6] for b in batches])
        assert measure.size == len(chosen) == 30
        expected = trainee.evaluate(x[chosen], y[chosen], verbose=0)
        assert float(measure()) == pytest.approx(expected, rel=1e-4)

    def test_takes_a_whole_dataset(self):
        trainee, (x, y) = validation_case("regularizers")
        measure = ValidationLoss(
            trainee, draw_subset(source("dataset", x, y), size=None)
        )
        assert measure.size == 150

    def test_of_sequences_of_several_lengths(self):
        """Padded per batch, as text usually is."""
        trainee = compiled(sequence_model(), loss=sparse())
        measure = ValidationLoss(trainee, draw_subset(bucketed(), size=None))
        expected = trainee.evaluate(bucketed(), verbose=0)
        assert float(measure()) == pytest.approx(expected, rel=1e-4)


def source(kind, x, y):
    if kind == "PyDataset":
        return Batches(x, y)
    if kind == "generator":
        return ((x[i : i + 16], y[i : i + 16]) for i in range(0, 96, 16))
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(32)
    return dataset.repeat() if kind == "infinite" else dataset


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return 5

    def __getitem__(self, i):
        return self.x[30 * i :][:30], self.y[30 * i :][:30]


def sequence_model(head=3):
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            LAYER.Embedding(20, 4),
            LAYER.Conv1D(5, 3, activation="relu"),
            LAYER.GlobalAveragePooling1D(),
            LAYER.Dense(head),
        ]
    )


def bucketed(examples=48, batch=8):
    """Batches of token sequences, each batch of a length of its own."""
    rng = np.random.default_rng(0)
    batches = [
        (rng.integers(0, 20, (batch, 5 + i)), rng.integers(0, 3, batch))
        for i in range(examples // batch)
    ]
    signature = (
        tf.TensorSpec([None, None], tf.int64),
        tf.TensorSpec([None], tf.int64),
    )
    dataset = tf.data.Dataset.from_generator(
        lambda: iter(batches), output_signature=signature
    )
    return dataset.apply(tf.data.experimental.assert_cardinality(len(batches)))


def everything(trainee):
    """Weights, seeds, metrics and optimizer state."""
    return [
        *trainee.variables,
        *trainee.metrics_variables,
        *trainee.optimizer.variables,
        *(v for layer in trainee._flatten_layers() for v in layer.variables),
    ]


class TestLeavesTheRunAlone:
    """Action 0 in the published form: the same run, bit for bit."""

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"jit_compile": True},
            {"steps_per_execution": 4},
            {"run_eagerly": True},
        ],
        ids=str,
    )
    def test_bit_for_bit(self, options):
        def run(callbacks):
            trainee = model(
                keras.optimizers.Adam(0.01),
                dropout=True,
                batch_norm=True,
                metrics=["accuracy"],
                **options,
            )
            history = fit(
                trainee,
                callbacks,
                shuffle=True,
                batch_size=13,
                validation_data=data(32, seed=2),
            ).history
            return trainee, history

        plain, history = run([])
        controlled, watched = run([rate(GraphController(0.0, form=every(2)))])
        for name, values in history.items():
            assert watched[name] == values, name
        for a, b in zip(everything(plain), everything(controlled), strict=True):
            np.testing.assert_array_equal(a, b, err_msg=a.name)


class OwnStep(keras.Model):
    """A custom step that calls `compute_loss`."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(
            zip(gradients, self.trainable_variables, strict=True)
        )
        return {"my_loss": loss * 100.0}


class OwnLoss(keras.Model):
    """A custom step that does not."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(
                keras.losses.sparse_categorical_crossentropy(y, self(x, training=True))
            )
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"something": 7.0, "total_loss": loss}


class LostX(OwnStep):
    """The model cannot be called on the `x` that `fit` passes."""

    def train_step(self, data):
        return super().train_step((data[0]["features"], data[1]))


class NoLoss(OwnLoss):
    def train_step(self, data):
        return {"something": 7.0}


class TestCustomSteps:
    @JIT
    @pytest.mark.parametrize("model_class", [OwnStep, OwnLoss])
    def test_losses_are_found(self, model_class, jit):
        losses = by_hand(model(), *data())[0]
        watcher = Watcher(3)
        fit(model(model_class=model_class, jit_compile=jit), [watcher])
        got = [w.training_loss for w in watcher.windows]
        assert got == pytest.approx(losses.reshape(-1, 3).mean(axis=1), rel=1e-4)

    @JIT
    def test_of_a_model_that_x_does_not_fit(self, jit):
        x, y = data()
        losses = by_hand(model(), x, y)[0]
        watcher = Watcher(3)
        trainee = model(model_class=LostX, jit_compile=jit)
        with pytest.warns(UserWarning, match="goes on without these features"):
            fit(trainee, [watcher], {"features": x}, y)
        got = [w.training_loss for w in watcher.windows]
        assert got == pytest.approx(losses.reshape(-1, 3).mean(axis=1), rel=1e-4)
        assert all(w.output_variance_after == 0 for w in watcher.windows)

    def test_without_any_loss_are_refused_before_the_first_step(self):
        trainee = model(model_class=NoLoss)
        weights = trainee.get_weights()
        with pytest.raises(ValueError, match="no loss in this model's `train_step`"):
            fit(trainee, [rate(validation_data=None)])
        assert all(map(np.array_equal, weights, trainee.get_weights()))

    def test_a_compute_loss_of_the_instance_stays(self):
        trainee = model()
        original = trainee.compute_loss

        def doubled(*args, **kwargs):
            return 2.0 * original(*args, **kwargs)

        trainee.compute_loss = doubled
        watcher = Watcher(3)
        fit(trainee, [watcher], epochs=1)
        assert trainee.compute_loss is doubled
        losses = 2 * by_hand(model(), *data())[0][:6]
        got = [w.training_loss for w in watcher.windows]
        assert got == pytest.approx(losses.reshape(-1, 3).mean(axis=1), rel=0.2)

    def test_a_train_step_of_the_instance_stays(self):
        trainee = model()
        original, calls = trainee.train_step, []

        def own(data):
            calls.append(1)
            return original(data)

        trainee.train_step = own
        fit(trainee, [rate(GraphController())])
        assert trainee.train_step is own and calls


class Subclassed(keras.Model):
    """Built at its first call; two inputs in a dict, two outputs."""

    def __init__(self):
        super().__init__()
        self.left, self.right = LAYER.Dense(4), LAYER.Dense(4)
        self.head = LAYER.Dense(3, activation="softmax")

    def call(self, inputs, training=False):
        joined = self.left(inputs["a"]) + self.right(inputs["b"])
        return self.head(joined)


class TestInputs:
    def check(self, trainee, x, y, **options):
        """Everything is measured, without a warning."""
        watcher = Watcher(2)
        fit(trainee, [watcher], x, y, **options)
        assert len(watcher.windows) >= 2
        for window in watcher.windows:
            assert np.all(np.isfinite(window))
            assert window.output_variance_after > 0
            assert window.output_variance_difference > 0
            assert window.update_norm > 0
        return watcher

    @JIT
    @pytest.mark.filterwarnings("error::UserWarning")
    def test_dicts_into_a_subclassed_model(self, jit):
        x, y = data()
        trainee = compiled(Subclassed(), jit_compile=jit)
        watcher = self.check(trainee, {"a": x, "b": 2 * x}, y)
        both = np.concatenate([x[16:32].ravel(), 2 * x[16:32].ravel()])
        # Windows of two steps: the first ends with the second batch.
        assert watcher.windows[0].input_variance == pytest.approx(both.var(), rel=1e-4)

    @pytest.mark.filterwarnings("error::UserWarning")
    def test_sequences_of_several_lengths(self):
        trainee = compiled(sequence_model(), loss=sparse())
        self.check(trainee, bucketed(), None, batch_size=None)

    def test_sequences_of_several_lengths_under_xla(self):
        """XLA keeps no variable of varying shape: the rest is measured."""
        trainee = compiled(sequence_model(), loss=sparse(), jit_compile=True)
        watcher = Watcher(2)
        with pytest.warns(UserWarning, match="goes on without.*jit_compile=False"):
            fit(trainee, [watcher], bucketed(), None, batch_size=None, epochs=1)
        assert all(w.update_norm > 0 for w in watcher.windows)
        assert all(w.output_variance_after == 0 for w in watcher.windows)

    @pytest.mark.filterwarnings("error::UserWarning")
    def test_outputs_of_several_lengths(self):
        trainee = keras.Sequential(
            [
                keras.Input((None,), dtype="int32"),
                LAYER.Embedding(20, 4),
                LAYER.Dense(20),
            ]
        )
        compiled(trainee, loss=sparse())
        tokens = bucketed().map(lambda x, y: (x, x))
        self.check(trainee, tokens, None, batch_size=None)

    @JIT
    @pytest.mark.filterwarnings("error::UserWarning")
    def test_a_ragged_last_batch(self, jit):
        x, y = data(36)
        trainee = model(jit_compile=jit)
        self.check(trainee, x, y)

    @pytest.mark.filterwarnings("error::UserWarning")
    def test_batches_smaller_than_the_probe(self):
        x, y = data(24)
        self.check(model(), x, y, batch_size=3)

    @pytest.mark.filterwarnings("error::UserWarning")
    def test_strings(self):
        words = np.array(["red", "green", "blue", "red"] * 6)
        trainee = keras.Sequential(
            [
                keras.Input((1,), dtype="string"),
                LAYER.StringLookup(vocabulary=["red", "green", "blue"]),
                LAYER.Embedding(4, 4),
                LAYER.Flatten(),
                LAYER.Dense(3),
            ]
        )
        compiled(trainee, loss=sparse())
        watcher = self.check(
            trainee, tf.constant(words[:, None]), np.arange(24) % 3, batch_size=6
        )
        assert all(w.input_mean == 0 for w in watcher.windows)

    @pytest.mark.filterwarnings("error::UserWarning")
    def test_a_state_that_needs_its_batch_size(self):
        trainee = keras.Sequential(
            [
                keras.Input(batch_shape=(16, 3, 2)),
                LAYER.LSTM(4, stateful=True),
                LAYER.Dense(3),
            ]
        )
        x, y = data()
        x = x.reshape(-1, 3, 2)
        compiled(trainee, loss=sparse())
        self.check(trainee, x, y)

    @pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
    def test_other_precisions(self, policy):
        keras.config.set_dtype_policy(policy)
        try:
            trainee = model()
            watcher = Watcher(3)
            fit(trainee, [watcher])
        finally:
            keras.config.set_dtype_policy("float32")
        assert all(np.all(np.isfinite(w)) for w in watcher.windows)
        assert watcher.windows[-1].update_norm > 0


def test_the_first_look_of_a_second_run_is_like_that_of_the_first():
    """Nothing of an earlier run is left in what is measured."""
    callback = rate(
        GraphController(
            0.0, ["output_variance_after", "input_variance", "training_loss"], every(4)
        )
    )
    trainee = model()
    looks = []
    for _ in range(2):
        fit(trainee, [callback])
        seen = callback.decisions["observation"]
        looks.append([float(v[0]) for v in seen.values()])
    assert looks[0] == looks[1] == [0.0, 0.0, 0.0]


def test_later_callbacks_see_the_metrics_of_a_plain_run():
    plain, controlled = Recorder(), Recorder()
    fit(model(metrics=["accuracy"]), [plain])
    fit(model(metrics=["accuracy"]), [rate(), controlled])
    for a, b in zip(plain.batch_logs, controlled.batch_logs, strict=True):
        assert a == {k: v for k, v in b.items() if k != "learning_rate"}
