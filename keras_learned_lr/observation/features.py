"""Features: pure functions of a window's statistics, one number each.

A feature looks at the window's `Statistics` and at a small `Memory` of earlier windows
and returns one number a trainee. All are elementwise, so that the same function serves
one trainee inside `model.fit` and a batch of them in meta-training.
"""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from keras_learned_lr.observation.log_scale import SMALL, log10, log_ratio
from keras_learned_lr.observation.memory import (
    Memory,
    training_change,
    validation_change,
)
from keras_learned_lr.observation.statistics import Statistics


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
    return log10(s.level / s.default_learning_rate)


@_feature(scale=2.0)
def log_learning_rate(s: Statistics, m: Memory) -> tf.Tensor:
    """log10 of the learning rate over the default."""
    return log10(s.learning_rate / s.default_learning_rate)


@_feature("horizon")
def progress(s: Statistics, m: Memory) -> tf.Tensor:
    """The share of the run that is over, t / T, from -1 to 1."""
    return 2.0 * s.step / s.horizon - 1.0


@_feature("horizon")
def log_horizon(s: Statistics, m: Memory) -> tf.Tensor:
    """log10 of the run's length, 0 at 1000 steps."""
    return log10(s.horizon) - 3.0


@_feature("horizon")
def log_window(s: Statistics, m: Memory) -> tf.Tensor:
    """log10 of the window's share of the run, 0 at a hundredth."""
    return tf.where(s.window_steps > 0, log10(s.window_steps / s.horizon) + 2.0, 0.0)


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
    value = log_ratio(s.training_loss, m.first_training_loss, m.first_training_loss)
    return m.training_seen * value


@_feature("window")
def training_vs_previous(s: Statistics, m: Memory) -> tf.Tensor:
    """Log ratio of the window's training loss to the previous window's."""
    return training_change(s, m)


@_feature("window")
def training_vs_best(s: Statistics, m: Memory) -> tf.Tensor:
    """Log ratio of the window's training loss to the lowest so far."""
    value = log_ratio(s.training_loss, m.best_training_loss, m.first_training_loss)
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
    value = log_ratio(s.training_loss_highest, s.training_loss, m.first_training_loss)
    return m.training_seen * value


@_feature("validation", scale=2.0)
def validation_vs_first(s: Statistics, m: Memory) -> tf.Tensor:
    """Log ratio of the validation loss to the run's first."""
    value = log_ratio(
        s.validation_loss, m.first_validation_loss, m.first_validation_loss
    )
    return m.validation_seen * value


@_feature("validation")
def validation_vs_previous(s: Statistics, m: Memory) -> tf.Tensor:
    """Log ratio of the validation loss to the one at the previous decision."""
    return validation_change(s, m)


@_feature("validation")
def validation_vs_best(s: Statistics, m: Memory) -> tf.Tensor:
    """Log ratio of the validation loss to the lowest so far."""
    value = log_ratio(
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
    value = log_ratio(s.validation_loss, s.training_loss, m.first_training_loss)
    return m.training_seen * m.validation_seen * value


@_feature("update", scale=2.0)
def log_update_ratio(s: Statistics, m: Memory) -> tf.Tensor:
    """log10 of update norm per step over weight norm, 0 at a thousandth."""
    per_step = s.update_norm / tf.maximum(s.window_steps, 1.0)
    value = log10((per_step + 1e-8) / (s.weight_norm + SMALL)) + 3.0
    return tf.where(s.window_steps > 0, value, 0.0)


@_feature("update", "update_cosine")
def update_cosine(s: Statistics, m: Memory) -> tf.Tensor:
    """Cosine between this window's change of the weights and the previous one's."""
    return s.update_cosine


@_feature("outputs", scale=2.0)
def log_output_growth(s: Statistics, m: Memory) -> tf.Tensor:
    """log10 of the outputs' variance after the window over that before."""
    ratio = (s.output_variance_after + 1e-8) / (s.output_variance_before + 1e-8)
    return tf.where(s.window_steps > 0, log10(ratio), 0.0)


@_feature("outputs", scale=2.0)
def log_output_change(s: Statistics, m: Memory) -> tf.Tensor:
    """log10 of the variance of the outputs' change over that of the outputs before."""
    ratio = (s.output_variance_difference + 1e-8) / (s.output_variance_before + 1e-8)
    return tf.where(s.window_steps > 0, log10(ratio), 0.0)
