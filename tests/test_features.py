"""Features: one contract for all, and the values of some by hand."""

import math

import numpy as np
import pytest
import tensorflow as tf

from keras_learned_lr.observation.features import FEATURES
from keras_learned_lr.observation.log_scale import symmetric_log
from keras_learned_lr.observation.memory import Memory, initial_memory
from keras_learned_lr.observation.spec import (
    DEFAULT,
    PUBLISHED,
    ObservationSpec,
    observe,
)
from keras_learned_lr.observation.statistics import Statistics

HOSTILE = [0.0, -0.0, 1.0, -1.0, 1e-30, 1e30, -1e30, math.inf, -math.inf, math.nan]
HEALTHY = Statistics(
    step=20.0,
    horizon=100.0,
    window_steps=10.0,
    learning_rate=0.05,
    level=0.1,
    default_learning_rate=0.01,
    training_loss=2.0,
    training_loss_deviation=0.5,
    training_loss_highest=3.0,
    training_loss_earliest=2.5,
    training_loss_latest=1.8,
    validation_loss=1.5,
    finite=1.0,
    weight_norm=4.0,
    update_norm=0.08,
    update_cosine=0.25,
    output_variance_before=0.5,
    output_variance_after=0.6,
    output_variance_difference=0.01,
    input_mean=0.1,
    input_variance=0.9,
    layer_mean=-0.2,
    layer_variance=0.3,
)


def tensors(statistics):
    return Statistics(*(tf.constant(v, tf.float32) for v in statistics))


def hostile_windows(windows=4, trainees=50):
    """Statistics in which any field may be anything, `[windows, fields, trainees]`."""
    rng = np.random.default_rng(0)
    shape = (windows, len(Statistics._fields), trainees)
    healthy = np.array(HEALTHY)[:, None]
    values = np.where(rng.random(shape) < 0.5, healthy, rng.choice(HOSTILE, shape))
    return values.astype("float32")


def played(names, windows):
    """The observation of each window, and the memory at the end."""
    spec = ObservationSpec(names)
    memory, seen = spec.initial_memory(np.shape(windows[0])[1:]), []
    for window in windows:
        observation, memory = observe(
            spec, Statistics(*map(tf.constant, window)), memory
        )
        seen.append(observation.numpy())
    return np.array(seen), memory


@pytest.mark.parametrize("name", FEATURES)
class TestContract:
    def test_is_documented(self, name):
        assert len(FEATURES[name].compute.__doc__) > 10

    def test_is_finite_and_bounded_whatever_was_measured(self, name):
        seen, memory = played([name], hostile_windows())
        assert np.all(np.abs(seen) <= FEATURES[name].limit)
        assert all(np.all(np.isfinite(field)) for field in memory)

    def test_is_finite_where_one_statistic_is_hostile(self, name):
        windows = [
            HEALTHY._replace(**{field: value})
            for field in Statistics._fields
            for value in HOSTILE
        ]
        batch = np.array(windows, "float32").T
        seen, _ = played([name], [batch, batch])
        assert np.all(np.isfinite(seen))

    def test_a_batch_gives_what_scalars_give(self, name):
        runs = hostile_windows(windows=3, trainees=2)
        batched, _ = played([name], runs)
        for trainee in range(2):
            alone, _ = played([name], runs[..., trainee])
            np.testing.assert_allclose(batched[:, trainee], alone, rtol=1e-6)

    def test_moves_when_its_statistics_do(self, name):
        """No feature is constant: each tells two histories apart."""
        rng = np.random.default_rng(1)
        windows = np.array([HEALTHY] * 4, "float32")
        windows *= rng.uniform(0.5, 1.5, windows.shape).astype("float32")
        windows[:, Statistics._fields.index("finite")] = [1, 0, 1, 0]
        memory = initial_memory()
        seen = []
        for turn, window in enumerate(windows):
            observation, memory = observe(
                ObservationSpec([name]), Statistics(*map(tf.constant, window)), memory
            )
            memory = memory._replace(previous_action=tf.constant(0.1 * turn))
            seen.append(float(observation[0]))
        assert len(set(seen)) > 1


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_features_are_the_raw_statistics(name):
    seen, _ = played([name], [np.array(HEALTHY, "float32")])
    np.testing.assert_allclose(seen[0, 0], getattr(HEALTHY, name), rtol=1e-6)


def test_everything_the_published_system_sees_is_there():
    assert set(PUBLISHED) == {
        *("learning_rate", "training_loss", "validation_loss"),
        *("layer_mean", "layer_variance", "input_mean", "input_variance"),
        *("output_variance_after", "output_variance_before"),
        "output_variance_difference",
    }
    assert ObservationSpec().names == DEFAULT


def symlog(value, first):
    return math.asinh(value / (2 * 1e-3 * first))


class TestByHand:
    """Three windows: before step 1, steps 1-10, steps 11-30 with worse losses."""

    @pytest.fixture(scope="class")
    def seen(self):
        empty = tensors([0.0] * len(Statistics._fields))
        start = empty._replace(
            horizon=tf.constant(100.0),
            learning_rate=tf.constant(0.01),
            level=tf.constant(0.01),
            default_learning_rate=tf.constant(0.01),
            validation_loss=tf.constant(4.0),
            finite=tf.constant(1.0),
        )
        second = tensors(HEALTHY)._replace(step=tf.constant(10.0))
        third = second._replace(
            step=tf.constant(30.0),
            window_steps=tf.constant(20.0),
            training_loss=tf.constant(3.0),
            training_loss_earliest=tf.constant(9.0),
            validation_loss=tf.constant(2.0),
            finite=tf.constant(0.0),
        )
        memory, rows = initial_memory(), []
        for window in (start, second, third):
            observation, memory = observe(ObservationSpec(FEATURES), window, memory)
            memory = memory._replace(previous_action=tf.constant(0.4))
            rows.append(dict(zip(FEATURES, observation.numpy(), strict=True)))
        return rows

    def check(self, seen, name, expected):
        scaled = np.array(expected) / FEATURES[name].scale
        np.testing.assert_allclose([r[name] for r in seen], scaled, atol=2e-5)

    @pytest.mark.parametrize(
        ("name", "expected"),
        {
            "log_level": [0.0, 1.0, 1.0],
            "log_learning_rate": [0.0, math.log10(5), math.log10(5)],
            "progress": [-1.0, -0.8, -0.4],
            "log_horizon": [-1.0] * 3,
            "log_window": [0.0, 1.0, math.log10(0.2) + 2],
            "first_decision": [1.0, 0.0, 0.0],
            "previous_action": [0.0, 0.4, 0.4],
            "nonfinite": [0.0, 0.0, 1.0],
            # The first training loss is that of step 1, 2.5; not the window's mean.
            "training_vs_first": [
                0.0,
                symlog(2, 2.5) - symlog(2.5, 2.5),
                symlog(3, 2.5) - symlog(2.5, 2.5),
            ],
            "training_vs_previous": [
                0.0,
                symlog(2, 2.5) - symlog(2.5, 2.5),
                symlog(3, 2.5) - symlog(2, 2.5),
            ],
            "training_vs_best": [
                0.0,
                symlog(2, 2.5) - symlog(2.5, 2.5),
                symlog(3, 2.5) - symlog(2, 2.5),
            ],
            "training_noise": [0.0, 0.25, 0.5 / 3],
            "training_peak": [0.0, symlog(3, 2.5) - symlog(2, 2.5), 0.0],
            "validation_vs_first": [
                0.0,
                symlog(1.5, 4) - symlog(4, 4),
                symlog(2, 4) - symlog(4, 4),
            ],
            "validation_vs_previous": [
                0.0,
                symlog(1.5, 4) - symlog(4, 4),
                symlog(2, 4) - symlog(1.5, 4),
            ],
            "validation_vs_best": [
                0.0,
                symlog(1.5, 4) - symlog(4, 4),
                symlog(2, 4) - symlog(1.5, 4),
            ],
            "validation_vs_training": [
                0.0,
                symlog(1.5, 2.5) - symlog(2, 2.5),
                symlog(2, 2.5) - symlog(3, 2.5),
            ],
            "log_update_ratio": [0.0, math.log10(2), 0.0],
            "update_cosine": [0.0, 0.25, 0.25],
            "log_output_growth": [0.0, math.log10(1.2), math.log10(1.2)],
            "log_output_change": [0.0, math.log10(0.02), math.log10(0.02)],
        }.items(),
    )
    def test_value(self, seen, name, expected):
        self.check(seen, name, expected)

    def test_trends_are_running_means_of_the_changes(self, seen):
        for kind, first in (("training", 2.5), ("validation", 4.0)):
            values = {"training": (2.5, 2, 3), "validation": (4, 1.5, 2)}[kind]
            trend, expected = 0.0, [0.0]
            for old, new in zip(values, values[1:], strict=False):
                change = symlog(new, first) - symlog(old, first)
                trend = 0.75 * trend + 0.25 * change
                expected.append(trend)
            self.check(seen, f"{kind}_trend", expected)


def test_losses_at_and_below_zero_have_a_place():
    losses = tf.constant([2.0, 1.0, 0.1, 1e-4, 0.0, -0.1, -1.0])
    logarithms = symmetric_log(losses, tf.constant(-1.0)).numpy()
    assert np.all(np.diff(logarithms) < 0)
    assert logarithms[0] - logarithms[1] == pytest.approx(math.log(2), abs=1e-5)


def test_a_nonfinite_loss_leaves_the_memory_as_it_was():
    _, healthy = played(DEFAULT, [np.array(HEALTHY, "float32")])
    for bad in (math.nan, math.inf):
        hurt = HEALTHY._replace(training_loss=bad, validation_loss=bad, finite=0.0)
        _, memory = played(DEFAULT, np.array([HEALTHY, hurt], "float32"))
        for name, before, after in zip(Memory._fields, healthy, memory, strict=True):
            if name not in ("decisions", "averages"):
                assert float(before) == float(after), name


class TestAverages:
    def test_are_those_of_what_was_seen(self):
        names = ["progress", "log_update_ratio@0.5", "progress@0.9", "nonfinite@0.9"]
        seen, memory = played(names, hostile_windows(windows=5, trainees=3))
        plain, _ = played(
            ["log_update_ratio", "progress", "nonfinite"],
            hostile_windows(windows=5, trainees=3),
        )
        decays = np.array([0.5, 0.9, 0.9])
        average = np.zeros((3, 3))
        for window in range(5):
            average = decays * average + (1 - decays) * plain[window]
            np.testing.assert_allclose(seen[window][:, 1:], average, atol=1e-6)
        np.testing.assert_array_equal(memory.averages, seen[-1][:, 1:])
        assert np.abs(average).min() > 0

    def test_need_what_their_feature_needs(self):
        spec = ObservationSpec(["progress", "layer_mean@0.5"])
        assert spec.needs == {"horizon", "layer"}
        assert spec.scales == [1.0, 1.0]

    @pytest.mark.parametrize("decay", ["", "0", "1", "nan", "slow"])
    def test_a_decay_that_is_none_is_refused(self, decay):
        with pytest.raises(ValueError, match=f"between 0 and 1.*progress@{decay}"):
            ObservationSpec([f"progress@{decay}"])

    def test_only_features_have_them(self):
        with pytest.raises(ValueError, match=r"Unknown features: \['progres'\]"):
            ObservationSpec(["progres@0.5"])


class TestSpec:
    def test_unknown_features_are_named(self):
        with pytest.raises(ValueError, match=r"\['losss'\].*Known: .*training_loss"):
            ObservationSpec(["progress", "losss"])

    @pytest.mark.parametrize("names", [(), ("progress", "progress")])
    def test_none_or_twice_is_refused(self, names):
        with pytest.raises(ValueError, match="at least one feature and each at most"):
            ObservationSpec(names)

    def test_round_trip(self):
        spec = ObservationSpec(PUBLISHED)
        assert ObservationSpec.from_config(spec.to_config()) == spec
        assert hash(ObservationSpec.from_config(spec.to_config())) == hash(spec)
        assert spec != ObservationSpec()

    @pytest.mark.parametrize("version", [0, 4, None, "2"])
    def test_another_version_is_refused(self, version):
        config = ObservationSpec().to_config() | {"version": version}
        with pytest.raises(ValueError, match=f"version {version!r}.*Install"):
            ObservationSpec.from_config(config)

    @pytest.mark.parametrize("version", [1, 2])
    def test_versions_before_are_read(self, version):
        spec = ObservationSpec()
        config = spec.to_config() | {"version": version}
        assert ObservationSpec.from_config(config) == spec

    def test_needs_are_those_of_its_features(self):
        assert ObservationSpec(["progress", "layer_mean"]).needs == {"horizon", "layer"}
        assert ObservationSpec(["log_level"]).needs == frozenset()
