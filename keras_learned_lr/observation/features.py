"""Statistics in, observation out: pure functions, one a feature.

A feature looks at the window's `Statistics` and at a small `Memory` of earlier windows
and returns one number a trainee. All are elementwise, so that the same function serves
one trainee inside `model.fit` and a batch of them in meta-training.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import tensorflow as tf

from keras_learned_lr.observation.statistics import Statistics

SPEC_VERSION = 1
# Below this share of the first loss, the symmetric logarithm turns linear.
LOSS_RESOLUTION = 1e-3
SMALL = 1e-12
TREND_MEMORY = 0.75


class Memory(NamedTuple):
    """What is remembered of earlier windows; float32 scalars or `[batch]`.

    Attributes:
        decisions: Decisions taken so far.
        training_seen: 1 once a finite training loss was seen, else 0.
        first_training_loss: The run's first training loss.
        previous_training_loss: Mean training loss of the window before.
        best_training_loss: Lowest window mean so far.
        training_trend: Running mean of the windows' log changes in training loss.
        validation_seen: 1 once a finite validation loss was seen, else 0.
        first_validation_loss: The run's first validation loss.
        previous_validation_loss: Validation loss at the previous decision.
        best_validation_loss: Lowest validation loss so far.
        validation_trend: Running mean of the log changes in validation loss.
        previous_action: The action of the previous decision, clipped to [-1, 1].
    """

    decisions: tf.Tensor
    training_seen: tf.Tensor
    first_training_loss: tf.Tensor
    previous_training_loss: tf.Tensor
    best_training_loss: tf.Tensor
    training_trend: tf.Tensor
    validation_seen: tf.Tensor
    first_validation_loss: tf.Tensor
    previous_validation_loss: tf.Tensor
    best_validation_loss: tf.Tensor
    validation_trend: tf.Tensor
    previous_action: tf.Tensor


def initial_memory(shape: tuple[int, ...] = ()) -> Memory:
    """Returns the memory of a run that has not begun, for trainees of `shape`."""
    return Memory(*(tf.zeros(shape) for _ in Memory._fields))


@dataclasses.dataclass(frozen=True)
class Feature:
    """One number of the observation.

    Attributes:
        compute: `(statistics, memory) -> float32` tensor of the trainees' shape.
        needs: Which measurements the probe must take for it: any of `window`,
            `validation`, `update`, `update_cosine`, `outputs`, `inputs`, `layer`;
            or `horizon`, the length of the run.
        scale: The value is divided by this constant.
        limit: The scaled value is clipped to ±limit.
    """

    compute: Callable[[Statistics, Memory], tf.Tensor]
    needs: frozenset[str] = frozenset()
    scale: float = 1.0
    limit: float = 5.0


FEATURES: dict[str, Feature] = {}


def _feature(
    *needs: str, scale: float = 1.0, limit: float = 5.0
) -> Callable[[Callable[[Statistics, Memory], tf.Tensor]], Callable]:
    def register(function: Callable[[Statistics, Memory], tf.Tensor]) -> Callable:
        name = function.__name__
        FEATURES[name] = Feature(function, frozenset(needs), scale, limit)
        return function

    return register


def symmetric_log(value: tf.Tensor, reference: tf.Tensor) -> tf.Tensor:
    """Returns a logarithm of `value / |reference|` that is defined for every value.

    `asinh(x / 2r)` equals `log(x / r)` far above the resolution r and is linear around
    0, so that losses at or below 0 (likelihoods, penalties) have a place too and the
    difference of two such logarithms is their log ratio.
    """
    unit = LOSS_RESOLUTION * tf.maximum(tf.abs(reference), SMALL)
    return tf.asinh(value / (2.0 * unit))


def _log_ratio(value: tf.Tensor, other: tf.Tensor, reference: tf.Tensor) -> tf.Tensor:
    return symmetric_log(value, reference) - symmetric_log(other, reference)


def _log10(value: tf.Tensor) -> tf.Tensor:
    return tf.math.log(tf.maximum(value, SMALL)) / tf.math.log(10.0)


# The features of the published system, as they are.


@_feature(limit=1e3)
def learning_rate(s: Statistics, m: Memory) -> tf.Tensor:
    """The learning rate of the last training step."""
    return s.learning_rate


@_feature("window", limit=1e3)
def training_loss(s: Statistics, m: Memory) -> tf.Tensor:
    """Mean training loss of the window."""
    return s.training_loss


@_feature("validation", limit=1e3)
def validation_loss(s: Statistics, m: Memory) -> tf.Tensor:
    """Loss on the validation subset (or the whole set: `validation_size=None`)."""
    return s.validation_loss


@_feature("layer", limit=1e3)
def layer_mean(s: Statistics, m: Memory) -> tf.Tensor:
    """Mean of the designated layer's weights."""
    return s.layer_mean


@_feature("layer", limit=1e3)
def layer_variance(s: Statistics, m: Memory) -> tf.Tensor:
    """Variance of the designated layer's weights."""
    return s.layer_variance


@_feature("outputs", limit=1e3)
def output_variance_after(s: Statistics, m: Memory) -> tf.Tensor:
    """Variance of the outputs for the window's training inputs after the update."""
    return s.output_variance_after


@_feature("outputs", limit=1e3)
def output_variance_before(s: Statistics, m: Memory) -> tf.Tensor:
    """Variance of the same outputs before the update."""
    return s.output_variance_before


@_feature("outputs", limit=1e3)
def output_variance_difference(s: Statistics, m: Memory) -> tf.Tensor:
    """Variance of the difference of the two."""
    return s.output_variance_difference


@_feature("inputs", limit=1e3)
def input_mean(s: Statistics, m: Memory) -> tf.Tensor:
    """Mean of the window's training inputs."""
    return s.input_mean


@_feature("inputs", limit=1e3)
def input_variance(s: Statistics, m: Memory) -> tf.Tensor:
    """Variance of the window's training inputs."""
    return s.input_variance


# Scale-free forms: a controller that sees raw losses does not travel.


@_feature(scale=2.0)
def log_level(s: Statistics, m: Memory) -> tf.Tensor:
    """log10 of the level (the learning rate before the envelope) over the default."""
    return _log10(s.level / s.default_learning_rate)


@_feature(scale=2.0)
def log_learning_rate(s: Statistics, m: Memory) -> tf.Tensor:
    """log10 of the learning rate over the default."""
    return _log10(s.learning_rate / s.default_learning_rate)


@_feature("horizon")
def progress(s: Statistics, m: Memory) -> tf.Tensor:
    """The share of the run that is over, t / T, from -1 to 1."""
    return 2.0 * s.step / s.horizon - 1.0


@_feature("horizon")
def log_horizon(s: Statistics, m: Memory) -> tf.Tensor:
    """log10 of the run's length, 0 at 1000 steps."""
    return _log10(s.horizon) - 3.0


@_feature("horizon")
def log_window(s: Statistics, m: Memory) -> tf.Tensor:
    """log10 of the window's share of the run, 0 at a hundredth."""
    return tf.where(s.window_steps > 0, _log10(s.window_steps / s.horizon) + 2.0, 0.0)


@_feature()
def first_decision(s: Statistics, m: Memory) -> tf.Tensor:
    """1 at the decision before step 1, else 0."""
    return tf.cast(m.decisions < 0.5, tf.float32)


@_feature()
def previous_action(s: Statistics, m: Memory) -> tf.Tensor:
    """The action of the previous decision."""
    return m.previous_action


@_feature("window", "validation")
def nonfinite(s: Statistics, m: Memory) -> tf.Tensor:
    """1 if a loss of the window was not finite, else 0."""
    return 1.0 - s.finite


@_feature("window", scale=2.0)
def training_vs_first(s: Statistics, m: Memory) -> tf.Tensor:
    """Log ratio of the window's training loss to the run's first."""
    value = _log_ratio(s.training_loss, m.first_training_loss, m.first_training_loss)
    return m.training_seen * value


@_feature("window")
def training_vs_previous(s: Statistics, m: Memory) -> tf.Tensor:
    """Log ratio of the window's training loss to the previous window's."""
    value = _log_ratio(s.training_loss, m.previous_training_loss, m.first_training_loss)
    return m.training_seen * value


@_feature("window")
def training_vs_best(s: Statistics, m: Memory) -> tf.Tensor:
    """Log ratio of the window's training loss to the lowest so far."""
    value = _log_ratio(s.training_loss, m.best_training_loss, m.first_training_loss)
    return m.training_seen * value


@_feature("window", scale=0.5)
def training_trend(s: Statistics, m: Memory) -> tf.Tensor:
    """Running mean of `training_vs_previous`."""
    return m.training_trend


@_feature("window", scale=0.5)
def training_noise(s: Statistics, m: Memory) -> tf.Tensor:
    """Deviation of the window's training losses over their mean."""
    return s.training_loss_deviation / (tf.abs(s.training_loss) + SMALL)


@_feature("window")
def training_peak(s: Statistics, m: Memory) -> tf.Tensor:
    """Log ratio of the window's highest training loss to its mean."""
    value = _log_ratio(s.training_loss_highest, s.training_loss, m.first_training_loss)
    return m.training_seen * value


@_feature("validation", scale=2.0)
def validation_vs_first(s: Statistics, m: Memory) -> tf.Tensor:
    """Log ratio of the validation loss to the run's first."""
    value = _log_ratio(
        s.validation_loss, m.first_validation_loss, m.first_validation_loss
    )
    return m.validation_seen * value


@_feature("validation")
def validation_vs_previous(s: Statistics, m: Memory) -> tf.Tensor:
    """Log ratio of the validation loss to the one at the previous decision."""
    value = _log_ratio(
        s.validation_loss, m.previous_validation_loss, m.first_validation_loss
    )
    return m.validation_seen * value


@_feature("validation")
def validation_vs_best(s: Statistics, m: Memory) -> tf.Tensor:
    """Log ratio of the validation loss to the lowest so far."""
    value = _log_ratio(
        s.validation_loss, m.best_validation_loss, m.first_validation_loss
    )
    return m.validation_seen * value


@_feature("validation", scale=0.5)
def validation_trend(s: Statistics, m: Memory) -> tf.Tensor:
    """Running mean of `validation_vs_previous`."""
    return m.validation_trend


@_feature("window", "validation")
def validation_vs_training(s: Statistics, m: Memory) -> tf.Tensor:
    """Log ratio of the validation loss to the window's training loss."""
    value = _log_ratio(s.validation_loss, s.training_loss, m.first_training_loss)
    return m.training_seen * m.validation_seen * value


@_feature("update", scale=2.0)
def log_update_ratio(s: Statistics, m: Memory) -> tf.Tensor:
    """log10 of update norm per step over weight norm, 0 at a thousandth."""
    per_step = s.update_norm / tf.maximum(s.window_steps, 1.0)
    value = _log10((per_step + 1e-8) / (s.weight_norm + SMALL)) + 3.0
    return tf.where(s.window_steps > 0, value, 0.0)


@_feature("update", "update_cosine")
def update_cosine(s: Statistics, m: Memory) -> tf.Tensor:
    """Cosine between this window's change of the weights and the previous one's."""
    return s.update_cosine


@_feature("outputs", scale=2.0)
def log_output_growth(s: Statistics, m: Memory) -> tf.Tensor:
    """log10 of the outputs' variance after the window over that before."""
    ratio = (s.output_variance_after + 1e-8) / (s.output_variance_before + 1e-8)
    return tf.where(s.window_steps > 0, _log10(ratio), 0.0)


@_feature("outputs", scale=2.0)
def log_output_change(s: Statistics, m: Memory) -> tf.Tensor:
    """log10 of the variance of the outputs' change over that of the outputs before."""
    ratio = (s.output_variance_difference + 1e-8) / (s.output_variance_before + 1e-8)
    return tf.where(s.window_steps > 0, _log10(ratio), 0.0)


PUBLISHED = (
    "learning_rate",
    "training_loss",
    "validation_loss",
    "layer_mean",
    "layer_variance",
    "output_variance_after",
    "output_variance_before",
    "output_variance_difference",
    "input_mean",
    "input_variance",
)
DEFAULT = (
    "log_level",
    "progress",
    "log_horizon",
    "log_window",
    "first_decision",
    "previous_action",
    "nonfinite",
    "training_vs_first",
    "training_vs_previous",
    "training_vs_best",
    "training_trend",
    "training_noise",
    "training_peak",
    "validation_vs_first",
    "validation_vs_previous",
    "validation_vs_best",
    "validation_trend",
    "validation_vs_training",
    "log_update_ratio",
    "update_cosine",
    "log_output_growth",
    "log_output_change",
)


class ObservationSpec:
    """Which features a controller sees, in order.

    Args:
        names: Feature names, keys of `FEATURES`. The default is the scale-free set;
            `ObservationSpec(PUBLISHED)` is that of the published system.

    Raises:
        ValueError: If a name is unknown or appears twice, or there is none.

    Attributes:
        names: The feature names, a tuple.
        version: Changes whenever the meaning of a feature does.
    """

    def __init__(self, names: Iterable[str] = DEFAULT) -> None:
        self.names = tuple(names)
        self.version = SPEC_VERSION
        unknown = [name for name in self.names if name not in FEATURES]
        if unknown:
            raise ValueError(
                f"Unknown features: {unknown}. Known: {', '.join(sorted(FEATURES))}"
            )
        if not self.names or len(set(self.names)) != len(self.names):
            raise ValueError(
                "An observation needs at least one feature and each at most once. "
                f"Received: {self.names}"
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObservationSpec) and self.names == other.names

    def __hash__(self) -> int:
        return hash(self.names)

    def __repr__(self) -> str:
        return f"ObservationSpec({self.names})"

    @property
    def needs(self) -> frozenset[str]:
        """The measurements that the probe must take."""
        return frozenset().union(*(FEATURES[name].needs for name in self.names))

    def to_config(self) -> dict[str, Any]:
        """Returns names and version, JSON-ready."""
        return {"version": self.version, "names": list(self.names)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ObservationSpec":
        """Builds the spec that `to_config` described.

        Raises:
            ValueError: If it is of another version, or names a feature that this
                package does not know.
        """
        if config.get("version") != SPEC_VERSION:
            raise ValueError(
                "The controller was made for observations of version "
                f"{config.get('version')!r}; this keras_learned_lr makes version "
                f"{SPEC_VERSION}. Install the version it was made with, or export the "
                "controller again."
            )
        return cls(config.get("names", ()))


def observe(
    spec: ObservationSpec, statistics: Statistics, memory: Memory
) -> tuple[tf.Tensor, Memory]:
    """Turns a window's statistics into the observation.

    Args:
        spec: Which features, in which order.
        statistics: The window's measurements, scalars or `[batch]`.
        memory: What earlier windows left; see `initial_memory`.

    Returns:
        The observation, float32 `[features]` or `[batch, features]`, always finite: a
        feature that cannot be computed is 0. And the memory for the next window, which
        a non-finite loss leaves as it was.
    """
    memory = _with_firsts(statistics, memory)
    features = [FEATURES[name] for name in spec.names]
    values = tf.stack([f.compute(statistics, memory) for f in features], axis=-1)
    values /= tf.constant([f.scale for f in features])
    limits = tf.constant([f.limit for f in features])
    values = tf.clip_by_value(values, -limits, limits)
    values = tf.where(tf.math.is_finite(values), values, 0.0)
    return values, _with_window(statistics, memory)


def _has_training(s: Statistics) -> tf.Tensor:
    return (s.window_steps > 0) & tf.math.is_finite(s.training_loss)


def _has_validation(s: Statistics) -> tf.Tensor:
    return tf.math.is_finite(s.validation_loss)


def _with_firsts(s: Statistics, m: Memory) -> Memory:
    """Fills in the references that the first window with a loss brings."""
    starts = _has_training(s) & (m.training_seen < 0.5)
    begins = _has_validation(s) & (m.validation_seen < 0.5)
    earliest, validation = s.training_loss_earliest, s.validation_loss
    earliest = tf.where(tf.math.is_finite(earliest), earliest, s.training_loss)
    m = m._replace(
        first_training_loss=tf.where(starts, earliest, m.first_training_loss),
        previous_training_loss=tf.where(starts, earliest, m.previous_training_loss),
        best_training_loss=tf.where(starts, earliest, m.best_training_loss),
        training_seen=tf.where(starts, 1.0, m.training_seen),
        first_validation_loss=tf.where(begins, validation, m.first_validation_loss),
        previous_validation_loss=tf.where(
            begins, validation, m.previous_validation_loss
        ),
        best_validation_loss=tf.where(begins, validation, m.best_validation_loss),
        validation_seen=tf.where(begins, 1.0, m.validation_seen),
    )
    change = _finite_or_zero(training_vs_previous(s, m))
    training_step = TREND_MEMORY * m.training_trend + (1 - TREND_MEMORY) * change
    change = _finite_or_zero(validation_vs_previous(s, m))
    validation_step = TREND_MEMORY * m.validation_trend + (1 - TREND_MEMORY) * change
    return m._replace(
        training_trend=tf.where(_has_training(s), training_step, m.training_trend),
        validation_trend=tf.where(
            _has_validation(s), validation_step, m.validation_trend
        ),
    )


def _with_window(s: Statistics, m: Memory) -> Memory:
    """Moves on to the next window."""
    training, validation = _has_training(s), _has_validation(s)
    return m._replace(
        decisions=m.decisions + 1.0,
        previous_training_loss=tf.where(
            training, s.training_loss, m.previous_training_loss
        ),
        best_training_loss=tf.where(
            training,
            tf.minimum(s.training_loss, m.best_training_loss),
            m.best_training_loss,
        ),
        previous_validation_loss=tf.where(
            validation, s.validation_loss, m.previous_validation_loss
        ),
        best_validation_loss=tf.where(
            validation,
            tf.minimum(s.validation_loss, m.best_validation_loss),
            m.best_validation_loss,
        ),
    )


def _finite_or_zero(value: tf.Tensor) -> tf.Tensor:
    return tf.where(tf.math.is_finite(value), value, 0.0)
