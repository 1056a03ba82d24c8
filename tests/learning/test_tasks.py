import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_learned_lr.control.actions import AnchoredScaleFactor
from keras_learned_lr.learning.optimizers import RULES, make_settings
from keras_learned_lr.learning.reference import keras_optimizer
from keras_learned_lr.learning.tasks import (
    FAMILIES,
    MODELS,
    initial,
    read_split,
    sampler,
)
from keras_learned_lr.learning.tasks import task_family as families
from keras_learned_lr.learning.tasks.split import TaskTemplate
from keras_learned_lr.observation.spec import ObservationSpec

SPLIT = read_split()


def of(chosen):
    return [t for name, t in SPLIT.items() if name.startswith(f"{chosen}/")]


def test_the_sets_are_disjoint_in_data_and_architecture():
    sets = [of(chosen) for chosen in ("training", "validation", "test")]
    for part in (
        lambda t: t.family,
        lambda t: (t.model, tuple(sorted(t.options.items()))),
        lambda t: (t.optimizer, t.batch_size),
    ):
        found = [{part(t) for t in templates} for templates in sets]
        assert all(found)
        assert not found[0] & found[1]
        assert not found[0] & found[2]
        assert not found[1] & found[2]


def test_training_meets_every_kind_of_task():
    training = of("training")
    assert {t.model for t in training} == set(MODELS) - {"twins"}
    assert {t.loss for t in training} == {"cross_entropy", "binary", "squared", "huber"}
    # One optimizer is kept for validation alone.
    assert {t.optimizer for t in training} == set(RULES) - {"nesterov"}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_draws_what_it_says(name):
    family = FAMILIES[name]
    inputs, targets = family.draw(np.random.default_rng(1))
    assert inputs.shape == (family.examples, *family.shape)
    assert inputs.dtype == np.float32
    if family.target == "class":
        assert targets.shape == (family.examples,)
        assert 0 <= targets.min() and targets.max() < family.outputs
    else:
        assert targets.shape == (family.examples, family.outputs)
        assert targets.dtype == np.float32
    if family.target == "binary":
        assert set(np.unique(targets)) == {0.0, 1.0}
    assert np.isfinite(inputs).all() and np.isfinite(targets).all()
    again = family.draw(np.random.default_rng(1))
    np.testing.assert_array_equal(again.inputs, inputs)
    other = family.draw(np.random.default_rng(2))
    assert (other.inputs != inputs).any()


@pytest.mark.parametrize("name", FAMILIES)
def test_there_is_something_to_learn_in_every_family(name):
    """A plain model trained for a while beats the best constant answer."""
    family = FAMILIES[name]
    x, y = family.draw(np.random.default_rng(3))
    rows = sampler.Rows.of(family)
    if family.target == "number":  # some are in units of their own
        y = families.standardise(y)
    keras.utils.set_random_seed(0)
    dense = [keras.layers.Dense(64, "gelu") for _ in range(2)]
    hidden = [keras.layers.Flatten(), *dense]
    outputs = keras.layers.Dense(family.outputs)
    model = keras.Sequential([keras.Input(family.shape), *hidden, outputs])
    held = slice(rows.train, None)
    if family.target == "class":
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        shares = np.bincount(y[: rows.train]) / rows.train
        constant = -np.log(np.maximum(shares, 1e-3))[y[held]].mean()
    elif family.target == "binary":
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
        share = y[: rows.train].mean()
        constant = -np.log(np.where(y[held] > 0, share, 1 - share)).mean()
    else:
        loss = "mse"
        constant = ((y[held] - y[: rows.train].mean(0)) ** 2).mean()
    model.compile(keras.optimizers.Adam(0.01), loss, steps_per_execution=20)
    history = model.fit(
        x[: rows.train],
        y[: rows.train],
        epochs=12,
        batch_size=32,
        validation_data=(x[held], y[held]),
        verbose=0,
    )
    assert min(history.history["val_loss"]) < 0.97 * constant


@pytest.fixture(scope="module")
def tasks():
    form = AnchoredScaleFactor()
    return sampler.TaskSampler(ObservationSpec(("log_level",)), form)


def draw(tasks, name, count=3, group=2, seed=0, horizon=30):
    rng = np.random.default_rng(seed)
    offsets = sampler.spread_offsets(count, group, 3.0, rng)
    return tasks.draw(SPLIT[name], count, offsets, horizon, rng)


def test_trainees_of_a_task_differ_in_their_learning_rate_alone(tasks):
    batch = draw(tasks, "training/mixtures_adam")
    members = batch.members
    np.testing.assert_array_equal(batch.task, [0, 0, 1, 1, 2, 2])
    for field in ("order", "validation", "parameters", "mask"):
        values = getattr(members, field).numpy()
        np.testing.assert_array_equal(values[0::2], values[1::2])
        assert (values[0] != values[2]).any()
    for setting in members.settings:
        if setting is not None:
            np.testing.assert_array_equal(setting[0::2], setting[1::2])
    rates = members.learning_rate.numpy()
    assert (rates[0::2] < rates[1::2]).all()
    np.testing.assert_allclose(
        rates, 0.003 * 10.0 ** batch.offset.astype(float), rtol=1e-5
    )
    np.testing.assert_array_equal(rates, members.default_learning_rate)


@pytest.mark.parametrize("name", ["training/digits_adam", "training/cancer_adagrad"])
def test_what_is_trained_on_is_neither_shown_nor_scored(tasks, name):
    batch = draw(tasks, name)
    for index in range(len(batch.task)):
        trained = set(batch.members.order[index].numpy().ravel().tolist())
        shown = set(batch.members.validation[index].numpy().tolist())
        scored = set(batch.scoring[index].numpy().tolist())
        assert not trained & shown and not trained & scored and not shown & scored
        family = batch.template.source
        first = batch.task[index] * family.examples
        for rows in (trained, shown, scored):
            assert min(rows) >= first and max(rows) < first + family.examples


def test_the_same_seed_draws_the_same_trainees(tasks):
    first, second = (draw(tasks, "training/waves_momentum") for _ in range(2))
    for one, other in zip(
        tf.nest.flatten(first.members), tf.nest.flatten(second.members), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_offsets_are_spread_over_the_whole_range():
    offsets = sampler.spread_offsets(50, 8, 3.0, np.random.default_rng(0))
    assert offsets.shape == (50, 8)
    assert np.abs(offsets).max() <= 3.0
    np.testing.assert_array_equal(
        np.floor((offsets + 3.0) / 0.75), np.tile(np.arange(8), (50, 1))
    )


@pytest.mark.parametrize("name", MODELS)
def test_initial_weights_are_spread_like_keras_own(name, monkeypatch):
    monkeypatch.setattr(initial, "SCALES", (("average", 1.0, 1.0),))
    template = next(t for t in SPLIT.values() if t.model == name)
    model = template.make_model()
    rng = np.random.default_rng(0)
    drawn = initial.draw_parameters(model, initial.Widths(None, {}, {}), 60, rng)
    start = 0
    for variable in model.trainable_variables:
        values = np.array(variable)
        size = values.size
        mine = drawn[:, start : start + size]
        start += size
        # Uniform numbers: their deviation is known to 0.45 / √n.
        error = 2.0 / size**0.5
        assert mine.std() == pytest.approx(values.std(), rel=error, abs=1e-6), (
            variable.path
        )
    assert start == drawn.shape[1]


def test_recurrent_weights_are_orthogonal():
    model = SPLIT["training/copying_adam"].make_model()
    rng = np.random.default_rng(0)
    drawn = initial.draw_parameters(model, initial.Widths(None, {}, {}), 2, rng)
    kernel, recurrent = (v.shape for v in model.trainable_variables[:2])
    start = int(np.prod(kernel))
    size = int(np.prod(recurrent))
    for values in drawn[:, start : start + size].reshape(2, *recurrent):
        np.testing.assert_allclose(values @ values.T, np.eye(recurrent[0]), atol=1e-5)


@pytest.mark.parametrize(
    "name", ["training/digits_momentum", "training/mixtures_normalised"]
)
def test_a_narrowed_model_computes_what_a_narrow_one_does(name):
    template = SPLIT[name]
    model = template.make_model()
    rng = np.random.default_rng(0)
    widths = initial.draw_widths(model, 4, rng)
    mask = widths.mask[0]
    drawn = initial.draw_parameters(model, widths, 4, rng)[0] * mask
    kept, start, sizes = [], 0, []
    for variable in model.trainable_variables:
        shape, size = tuple(variable.shape), np.size(variable)
        variable.assign(drawn[start : start + size].reshape(shape))
        there = mask[start : start + size].reshape(shape)
        start += size
        axes = range(len(shape))
        kept.append([there.any(tuple(a for a in axes if a != axis)) for axis in axes])
        if variable.path.endswith("kernel"):
            sizes.append(int(kept[-1][-1].sum()))
    stack = [keras.Input(template.source.shape)]
    left = iter(sizes)
    for layer in model.layers:
        config = layer.get_config()
        for key in {"units", "filters"} & config.keys():
            config[key] = next(left)
        stack.append(type(layer).from_config(config))
    narrow = keras.Sequential(stack)
    assert narrow.count_params() < model.count_params()
    for variable, own, places in zip(
        model.trainable_variables, narrow.trainable_variables, kept, strict=True
    ):
        own.assign(np.array(variable)[np.ix_(*places)])
    x = rng.normal(size=(5, *template.source.shape)).astype("float32")
    np.testing.assert_allclose(model(x), narrow(x), atol=1e-5)


def test_an_optimizer_setting_is_one_that_keras_takes(tasks):
    for template in of("training"):
        settings = sampler._draw_settings(
            template.optimizer, 3, np.random.default_rng(0)
        )
        made = make_settings(template.optimizer, 3, **settings)
        assert isinstance(
            keras_optimizer(template.optimizer, made), keras.optimizers.Optimizer
        )


def test_a_family_needs_a_known_target_and_a_name_of_its_own():
    with pytest.raises(ValueError, match="`target` must be one of"):
        families.family((3,), 1, "label")
    with pytest.raises(ValueError, match="named 'rings' already"):

        @families.family((3,), 1, "number")
        def rings(rng):
            return None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "mixtures"}, "unknown family"),
        ({"model": "resnet"}, "unknown model"),
        ({"optimizer": "adamax"}, "unknown optimizer"),
        ({"loss": "squared"}, r"must be one of \('cross_entropy',\)"),
    ],
)
def test_a_wrong_template_is_refused(change, message):
    settings = {
        "name": "training/new",
        "family": "gaussian_mixtures",
        "model": "mlp",
        "options": {},
        "optimizer": "adam",
        "loss": "cross_entropy",
        "batch_size": 8,
        "learning_rate": 1e-3,
    }
    with pytest.raises(ValueError, match=message):
        TaskTemplate(**(settings | change))


def test_a_sampler_draws_as_few_rows_and_as_many_wrong_labels_as_it_is_told():
    spec, form = ObservationSpec(("log_level",)), AnchoredScaleFactor()
    all_rows = sampler.Rows.of(FAMILIES["parity"]).train
    for fewest, most_wrong in ((64, 0.5), (all_rows, families.LEAST_WRONG)):
        tasks = sampler.TaskSampler(spec, form, 32, fewest, most_wrong)
        batch = draw(tasks, "training/parity_adamw", count=8, group=1, horizon=2000)
        rows = [len(np.unique(order)) for order in batch.members.order.numpy()]
        assert fewest <= min(rows) and max(rows) <= all_rows
        assert (max(rows) < all_rows) == (fewest < all_rows)
        symbols = batch.members.inputs.numpy().argmax(-1).reshape(8, -1, 10)
        labels = batch.members.targets.numpy().reshape(8, -1)
        wrong = [
            min(np.mean(x[:, -n:].sum(1) % 2 != y) for n in (2, 3, 4))
            for x, y in zip(symbols, labels, strict=True)
        ]
        # Half of the labels that are drawn anew are right by chance.
        assert max(wrong) <= 0.55 * most_wrong + 0.01
        assert (max(wrong) > 0.02) == (most_wrong > 0.1)
        # The same tasks for whoever watches them.
        again = tasks.watching(ObservationSpec(("progress",)), form)
        other = draw(again, "training/parity_adamw", count=8, group=1, horizon=2000)
        np.testing.assert_array_equal(other.members.targets, batch.members.targets)
        np.testing.assert_array_equal(other.members.order, batch.members.order)
        assert batch.members.validation.shape == (8, 32)
