"""The batched trainees against plain ones, and what must hold of a batch."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import trainee_helpers as helpers

from keras_learned_lr.control.actions import AnchoredScaleFactor, ScaleFactor
from keras_learned_lr.learning import batched_layers, reference, shards
from keras_learned_lr.learning.batched_model import BatchedModel, Layout
from keras_learned_lr.learning.optimizers import make_settings
from keras_learned_lr.learning.shards import (
    InShards,
    number_of_plain_shards,
    number_of_shards,
)
from keras_learned_lr.learning.trainee_state import Template
from keras_learned_lr.learning.trainees import Trainees
from keras_learned_lr.observation.spec import DEFAULT, PUBLISHED, ObservationSpec

LOSS = "sparse_categorical_crossentropy"
SPEC = ObservationSpec(DEFAULT + PUBLISHED)
RATES = [1e-2, 1e-3, 3e-2]
MAX, MEAN = keras.layers.MaxPooling2D, keras.layers.AveragePooling2D


def _steps(number):
    return tf.constant(number, tf.int64)


def _engine(name, kind="adam", models=3, spec=SPEC, form=None, way="auto", **options):
    keras.utils.set_random_seed(1)
    models = [helpers.MAKERS[name]() for _ in range(models)]
    x, y = helpers.data(name, 100)
    rows = {"validation_rows": np.arange(30, 100), "rates": RATES} | options
    members = helpers.members(models, x, y, kind, **rows)
    form = form or AnchoredScaleFactor()
    template = Template(models[0], LOSS, kind, way=way)
    return models, (x, y), members, Trainees(template, spec, form)


def _same(one, other, member):
    """Whether all that belongs to a member is the same to the last bit."""
    for a, b in zip(tf.nest.flatten(one), tf.nest.flatten(other), strict=True):
        if a.shape.rank:
            np.testing.assert_array_equal(a[member], b[member])


@pytest.mark.parametrize(
    ("name", "way"),
    [(name, "auto") for name in helpers.MAKERS]
    + [("cnn", "looped"), ("dropout", "looped"), ("cnn", "compiled")]
    + [("mlp", "batched"), ("attention", "batched")],
)
def test_losses_and_weights_equal_a_plain_run(name, way):
    models, (x, y), members, engine = _engine(name, way=way)
    state, _ = engine.begin(members)
    state, look = engine.advance(
        members, state, tf.constant([0.1, 0.0, -0.1]), _steps(6)
    )
    for index, model in enumerate(models):
        optimizer = reference.keras_optimizer("adam", members.settings, index)
        model.compile(optimizer, LOSS)
        order = members.order.numpy()[index]
        rates = [
            engine.form.learning_rate(state.action, tf.constant(t), members.horizon)
            for t in range(6)
        ]
        run = reference.train(
            model, x, y, order[np.arange(6) % len(order)], np.array(rates)[:, index]
        )
        np.testing.assert_allclose(look.losses[:6, index], run.losses, rtol=1e-4)
        flat, moving = helpers.weights(model)
        np.testing.assert_allclose(state.parameters[index], flat, rtol=1e-3, atol=1e-4)
        for ours, theirs in zip(state.non_trainable, moving, strict=True):
            np.testing.assert_allclose(ours[index], theirs, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "training"),
    [(name, True) for name in helpers.MAKERS] + [("cnn", False), ("dropout", False)],
)
def test_the_batched_call_equals_each_model(name, training):
    models, (x, _), members, _ = _engine(name)
    batched = BatchedModel(models[0])
    layout = Layout(models[0].trainable_variables)
    weights = layout.split(members.parameters)
    np.testing.assert_array_equal(layout.join(weights), members.parameters)
    x = tf.constant(x[:12].reshape(3, 4, *x.shape[1:]))
    called = tf.function(batched)(weights, members.non_trainable, x, training=training)
    for index, model in enumerate(models):
        outputs = model(x[index], training=training)
        np.testing.assert_allclose(called.outputs[index], outputs, rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(
            called.penalty[index], sum(map(float, model.losses)), rtol=1e-5
        )
        moving = [v.numpy() for v in model.non_trainable_variables]
        for ours, theirs in zip(called.non_trainable, moving, strict=True):
            np.testing.assert_allclose(ours[index], theirs, rtol=1e-5)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("size", [(3, 3), (2, 4), (1, 1)])
def test_small_convolutions_as_a_banded_product(size, padding):
    random = np.random.default_rng(0)
    x = tf.constant(random.normal(size=(2, 3, 6, 5, 2)).astype("float32"))
    kernel = tf.constant(random.normal(size=(2, *size, 2, 4)).astype("float32"))
    banded = batched_layers._banded_convolution(x, kernel, padding)
    for index in range(2):
        plain = tf.nn.conv2d(x[index], kernel[index], 1, padding.upper())
        np.testing.assert_allclose(banded[index], plain, rtol=1e-4, atol=1e-5)


def _equal_each_model(model, x):
    """Compares outputs and gradients of two trainees with those of `model`."""
    weights = [tf.stack([v.value, -2.0 * v.value]) for v in model.trainable_variables]
    with tf.GradientTape() as tape:
        tape.watch([x, *weights])
        outputs = tf.function(BatchedModel(model))(weights, [], x, training=True)[0]
        loss = tf.reduce_sum(tf.math.sin(outputs))
    gradients = tape.gradient(loss, [x, *weights])
    for index in range(2):
        model.set_weights([w[index] for w in weights])
        one = x[index]
        with tf.GradientTape() as tape:
            tape.watch(one)
            expected = model(one)
            loss = tf.reduce_sum(tf.math.sin(expected))
        np.testing.assert_allclose(outputs[index], expected, rtol=1e-5, atol=1e-5)
        theirs = tape.gradient(loss, [one, *model.trainable_variables])
        for ours, gradient in zip(gradients, theirs, strict=True):
            np.testing.assert_allclose(ours[index], gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("size", [2, (3, 2), (1, 3)])
@pytest.mark.parametrize("strides", [None, 1])
@pytest.mark.parametrize("shape", [(6, 6, 2), (7, 8, 1), (5, 3, 3)])
def test_max_pooling_equals_the_layer(shape, strides, size, padding):
    model = keras.Sequential([keras.Input(shape), MAX(size, strides, padding)])
    # So few values that windows have several maxima.
    x = np.random.default_rng(0).integers(-2, 2, size=(2, 3, *shape))
    _equal_each_model(model, tf.constant(x, tf.float32))


@pytest.mark.parametrize(
    ("conv", "pooling", "pool", "early"),
    [
        ({"activation": "relu"}, MAX, {}, True),
        ({"use_bias": False}, MAX, {"pool_size": (2, 3)}, True),
        ({"activation": "relu", "padding": "same"}, MAX, {"pool_size": 3}, True),
        ({"activation": "relu", "kernel_size": 2}, MAX, {"padding": "same"}, True),
        ({"activation": "relu"}, MAX, {"padding": "same"}, False),
        ({"activation": "relu"}, MAX, {"strides": 1}, False),
        ({"activation": "relu"}, MAX, {"pool_size": 5}, False),
        ({"activation": "relu"}, MEAN, {"pool_size": 2}, False),
        ({"activation": "tanh"}, MAX, {}, False),
    ],
)
@pytest.mark.parametrize("banded", [0, 10**6])
def test_pooling_before_bias_and_activation(
    monkeypatch, conv, pooling, pool, early, banded
):
    monkeypatch.setattr(batched_layers, "LARGEST_BANDED", banded)
    keras.utils.set_random_seed(5)
    options = {"kernel_size": 3, "bias_initializer": "normal"} | conv
    layer, pool = keras.layers.Conv2D(4, **options), pooling(**pool)
    model = keras.Sequential([keras.Input((9, 9, 2)), layer, pool])
    assert BatchedModel(model)._pools == ({layer: pool} if early else {})
    _equal_each_model(model, tf.random.stateless_normal([2, 3, 9, 9, 2], [0, 1]))


@pytest.mark.parametrize("twice", ["taken", "called", "pooled"])
def test_pooling_stays_where_something_else_is_in_between(twice):
    keras.utils.set_random_seed(6)
    conv, pool = keras.layers.Conv2D(2, 3, padding="same", activation="relu"), MAX()
    inputs = keras.Input((6, 6, 2))
    x = conv(inputs)
    y = pool(x)
    other = {
        "taken": lambda: MAX()(keras.layers.ReLU()(x)),
        "called": lambda: pool(conv(x)),
        "pooled": lambda: pool(inputs),
    }[twice]
    model = keras.Model(inputs, keras.layers.Add()([y, other()]))
    assert not BatchedModel(model)._pools
    _equal_each_model(model, tf.random.stateless_normal([2, 3, 6, 6, 2], [0, 1]))


@pytest.mark.parametrize("positions", [5, 17])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_equals_the_layer(positions, causal):
    keras.utils.set_random_seed(4)
    layer = keras.layers.MultiHeadAttention(
        3, 4, value_dim=2, bias_initializer="normal"
    )
    inputs = keras.Input((positions, 6))
    model = keras.Model(
        inputs, layer(inputs, keras.layers.Dense(5)(inputs), use_causal_mask=causal)
    )
    x = tf.random.stateless_normal([2, 3, positions, 6], [0, 1])
    weights = [tf.stack([v.value, 2.0 * v.value]) for v in model.trainable_variables]
    called = BatchedModel(model)(weights, [], x, training=True)
    for index in range(2):
        model.set_weights([w[index] for w in weights])
        np.testing.assert_allclose(
            called.outputs[index], model(x[index]), rtol=1e-4, atol=1e-5
        )


def test_shards_are_compiled_once_and_return_all():
    def double(shared, own):
        values, scalar, missing = own
        assert missing is None
        return values * shared, scalar + 1

    in_shards = InShards(double)
    values = tf.reshape(tf.range(12.0), [6, 2])
    for scalar in (1, 2):
        own = (values, tf.constant(scalar), None)
        doubled, after = in_shards(tf.constant(2.0), own, 3)
        np.testing.assert_array_equal(doubled, 2.0 * values)
        assert after == scalar + 1
    assert in_shards.traces == 1


def test_shards_divide_the_trainees_and_fit_a_cache():
    assert number_of_shards(128, 100_000) == 16
    assert number_of_shards(1, 10**9) == 1
    assert number_of_shards(64, 10**6) == 64
    for trainees in (3, 7, 30):
        assert trainees % number_of_shards(trainees, 100) == 0
    assert number_of_plain_shards(128, 1000) == 1
    assert number_of_plain_shards(128, 10**7) == 8
    assert number_of_plain_shards(5, 10**7) == 5


def test_one_large_trainee_at_a_time(monkeypatch):
    results = []
    for limit, traces in ((shards.SHARD_BYTES, 0), (1000, 1)):
        monkeypatch.setattr(shards, "SHARD_BYTES", limit)
        _, _, members, engine = _engine("cnn")
        state, _ = engine.begin(members)
        state, _ = engine.advance(members, state, tf.zeros(3), _steps(4))
        assert engine._in_shards.traces == traces
        results.append(state.parameters)
    np.testing.assert_allclose(*results, rtol=1e-4, atol=1e-5)


def test_a_masked_trainee_is_a_narrower_model():
    wide, narrow = 8, 5
    keras.utils.set_random_seed(2)

    def make(units):
        return keras.Sequential(
            [
                keras.Input((6,)),
                keras.layers.Dense(units, "relu", name="hidden"),
                keras.layers.Dense(3, "softmax"),
            ]
        )

    small, big = make(narrow), make(wide)
    values = [v.numpy() for v in big.trainable_variables]
    masks = [np.ones_like(v) for v in values]
    masks[0][:, narrow:] = masks[1][narrow:] = masks[2][narrow:] = 0.0
    small_values = [values[0][:, :narrow], values[1][:narrow], values[2][:narrow]]
    small.set_weights([*small_values, values[3]])
    mask = tf.constant(np.concatenate([m.ravel() for m in masks])[None])
    x, y = helpers.data("mlp", 100)
    looks = []
    for model, own in ((small, None), (big, mask)):
        members = helpers.members(
            [model],
            x,
            y,
            validation_rows=np.arange(64, 100),
            mask=own,
            weight_decay=0.1,
        )
        template = Template(model, LOSS, designated_layer="hidden")
        engine = Trainees(template, SPEC, AnchoredScaleFactor())
        state, look = engine.begin(members)
        for steps in (3, 9):
            state, look = engine.advance(members, state, tf.zeros(1), _steps(steps))
        looks.append(look)
        if own is not None:
            outside = state.parameters * (1.0 - mask)
            np.testing.assert_array_equal(outside, tf.zeros_like(outside))
    for field, one, other in zip(
        SPEC.names, *(x.observation[0] for x in looks), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5, err_msg=field)


def _beside_a_wild_one(name, rate=1e-3, poison=0.0):
    """Trains three, the middle one sane and then wild, and compares the others."""
    runs = []
    for wild in (False, True):
        rates = [1e-2, rate if wild else 1e-3, 3e-2]
        _, _, members, engine = _engine(
            name, "sgd", form=ScaleFactor(), rates=rates, horizon=100
        )
        if wild:
            broken = tf.constant([[0.0], [poison], [0.0]])
            members = members._replace(parameters=members.parameters + broken)
        states = [engine.begin(members)]
        for steps in (1, 6, 5, 30):
            state, _ = states[-1]
            states.append(engine.advance(members, state, tf.zeros(3), _steps(steps)))
        runs.append(states)
    for sane, wild in zip(*runs, strict=True):
        for member in (0, 2):
            _same(sane[0], wild[0], member)
            _same(sane[1][:2], wild[1][:2], member)
            np.testing.assert_array_equal(
                sane[1].losses[:, member], wild[1].losses[:, member]
            )
    state, look = runs[1][-1]
    np.testing.assert_array_equal(state.alive, [True, False, True])
    np.testing.assert_array_equal(look.statistics.finite, [1.0, 0.0, 1.0])
    assert np.isfinite(look.observation).all()
    assert np.isnan(look.statistics.validation_loss[1])
    states, looks = zip(*runs[1], strict=True)
    return engine, states, looks


@pytest.mark.parametrize("name", ["mlp", "cnn", "dropout"])
def test_a_trainee_that_never_had_a_loss_is_frozen_and_its_neighbours_untouched(name):
    _, states, _ = _beside_a_wild_one(name, poison=np.nan)
    after, before = states[-1], states[-2]
    assert not after.collapsed.numpy().any()
    _same(
        (after.parameters, after.optimizer, after.non_trainable),
        (before.parameters, before.optimizer, before.non_trainable),
        1,
    )
    # Its level went back to the last one under which its losses were finite.
    assert after.action.level[1] == after.action.good[1]


def test_a_trainee_that_diverges_goes_back_and_its_neighbours_are_untouched():
    engine, states, looks = _beside_a_wild_one("mlp", rate=1e18)
    start = states[0]
    # Outputs of before are those of the weights that are back.
    expected = start.outputs[1].numpy().var(axis=0).mean()
    for look in looks[1:]:
        before = float(look.statistics.output_variance_before[1])
        assert before == pytest.approx(expected)
    # It dies in every window, from the same weights, at half of the level each time.
    for count, state in enumerate(states[1:]):
        np.testing.assert_array_equal(state.collapsed, [False, True, False])
        assert state.action.level[1] == np.float32(1e18) * np.float32(0.5**count)
        assert np.isfinite(state.parameters).all()
        assert np.any(state.parameters[1] != start.parameters[1])
        back = engine.roll_back(state, _steps(100))
        assert back.alive.numpy().all()
        _same(
            (back.parameters, back.optimizer, back.non_trainable),
            (start.parameters, start.optimizer, start.non_trainable),
            1,
        )
        for member in (0, 2):
            _same(back[1:4], state[1:4], member)
            # In the first 2 steps of 100 the beginning stays.
            kept = np.all(back.kept[0][member] == state.kept[0][member])
            assert kept == (state.step < 2)


def test_nothing_retraces_once_running():
    _, _, members, engine = _engine("mlp")
    state, _ = engine.begin(members)
    state, _ = engine.advance(members, state, tf.zeros(3), _steps(2))
    traces = engine.traces
    again = members._replace(horizon=_steps(300), parameters=members.parameters + 1.0)
    again = again._replace(settings=make_settings("adam", 3, beta_1=[0.5, 0.6, 0.7]))
    state, _ = engine.begin(again)
    for steps in (1, 5, 40):
        state, _ = engine.advance(again, state, tf.ones(3) * 0.3, _steps(steps))
    assert engine.traces == traces == 2


def test_windows_may_be_cut_anywhere():
    _, _, members, engine = _engine("mlp")
    form = engine.form
    whole, _ = engine.begin(members)
    cut = whole
    whole, look = engine.advance(members, whole, tf.zeros(3), _steps(9))
    for steps in (4, 5):
        # An action of 0 leaves the level, so that a cut is only a look in between.
        cut, part = engine.advance(members, cut, tf.zeros(3), _steps(steps))
    np.testing.assert_array_equal(whole.parameters, cut.parameters)
    np.testing.assert_array_equal(look.losses[4:9], part.losses[4:9])
    expected = form.learning_rate(whole.action, tf.constant(8), members.horizon)
    np.testing.assert_array_equal(whole.learning_rate, expected)


def test_a_window_longer_than_the_losses_kept():
    _, _, members, engine = _engine("mlp", models=3, horizon=2000)
    state, _ = engine.begin(members)
    state, look = engine.advance(members, state, tf.zeros(3), _steps(1100))
    assert look.losses.shape == (1024, 3)
    kept = look.losses.numpy()
    np.testing.assert_allclose(look.statistics.training_loss, kept.mean(0), rtol=1e-4)
    np.testing.assert_array_equal(look.statistics.window_steps, [1100.0] * 3)
    # The loss of step 77, counted from 1, is the oldest of the last 1024.
    np.testing.assert_array_equal(look.statistics.training_loss_earliest, kept[76])


def test_without_validation_data_the_training_loss_is_seen():
    _, _, members, engine = _engine("mlp", validation_rows=())
    state, look = engine.begin(members)
    assert np.isnan(look.statistics.validation_loss).all()
    _, look = engine.advance(members, state, tf.zeros(3), _steps(4))
    np.testing.assert_array_equal(
        look.statistics.validation_loss, look.statistics.training_loss
    )


def test_what_no_feature_needs_is_not_measured():
    _, _, members, engine = _engine("mlp", spec=ObservationSpec(["progress"]))
    state, _ = engine.begin(members)
    state, look = engine.advance(members, state, tf.zeros(3), _steps(4))
    assert look.observation.shape == (3, 1)
    assert state.previous_update.shape == (3, 0)
    np.testing.assert_array_equal(look.statistics.weight_norm, tf.zeros(3))


def test_what_a_batch_cannot_carry_is_told():
    masked = keras.Sequential(
        [keras.Input((4,)), keras.layers.Embedding(5, 2, mask_zero=True)]
    )
    with pytest.raises(ValueError, match="Masks are not carried"):
        BatchedModel(masked)
    with pytest.raises(ValueError, match="must be built"):
        BatchedModel(keras.Sequential([keras.layers.Dense(1)]))
    with pytest.raises(ValueError, match="'summed'"):
        Template(helpers.mlp(), LOSS, way="summed")
    loss = keras.losses.MeanSquaredError(reduction="sum")
    with pytest.raises(ValueError, match="mean over its examples"):
        Trainees(Template(helpers.mlp(), loss), SPEC, AnchoredScaleFactor())
