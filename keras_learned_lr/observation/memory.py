"""What features remember of earlier windows."""

from typing import NamedTuple

import tensorflow as tf

from keras_learned_lr.observation.log_scale import log_ratio
from keras_learned_lr.observation.statistics import Statistics

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
        kept_validation_loss: Validation loss of the weights that a run which collapses
            goes back to.
        setbacks: Decisions in a row, up to the last one, at which what had been learned
            was undone; see `has_collapsed`.
        retreats: What the level does at this decision where no weights go back; see
            `retreat_of`.
        previous_action: The action of the previous decision, clipped to [-1, 1].
        averages: Running averages of features, `[averages]` or `[batch, averages]`.
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
    kept_validation_loss: tf.Tensor
    setbacks: tf.Tensor
    retreats: tf.Tensor
    previous_action: tf.Tensor
    averages: tf.Tensor


def initial_memory(shape: tuple[int, ...] = (), averages: int = 0) -> Memory:
    """Returns the memory of a run that has not begun.

    Args:
        shape: Of the trainees: () or `(batch,)`.
        averages: How many running averages there are.
    """
    numbers = [tf.zeros(shape) for _ in Memory._fields[:-1]]
    return Memory._make([*numbers, tf.zeros([*shape, averages])])


def training_change(s: Statistics, m: Memory) -> tf.Tensor:
    """Returns the log ratio of the window's training loss to the previous window's."""
    value = log_ratio(s.training_loss, m.previous_training_loss, m.first_training_loss)
    return m.training_seen * value


def validation_change(s: Statistics, m: Memory) -> tf.Tensor:
    """Returns the log ratio of the validation loss to the previous decision's."""
    value = log_ratio(
        s.validation_loss, m.previous_validation_loss, m.first_validation_loss
    )
    return m.validation_seen * value


def _has_training(s: Statistics) -> tf.Tensor:
    return (s.window_steps > 0) & tf.math.is_finite(s.training_loss)


def _has_validation(s: Statistics) -> tf.Tensor:
    return tf.math.is_finite(s.validation_loss)


def with_firsts(s: Statistics, m: Memory) -> Memory:
    """Fills in the references that the first window with a loss brings.

    The trends take this window's changes in, so features see them.
    """
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
    change = _finite_or_zero(training_change(s, m))
    training_step = TREND_MEMORY * m.training_trend + (1 - TREND_MEMORY) * change
    change = _finite_or_zero(validation_change(s, m))
    validation_step = TREND_MEMORY * m.validation_trend + (1 - TREND_MEMORY) * change
    return m._replace(
        training_trend=tf.where(_has_training(s), training_step, m.training_trend),
        validation_trend=tf.where(
            _has_validation(s), validation_step, m.validation_trend
        ),
    )


def with_window(s: Statistics, m: Memory) -> Memory:
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
