"""The training losses of a window: where they are kept, and what is said of them."""

import tensorflow as tf

# Of a longer window, the last so many losses are described.
LOSSES_KEPT = 1024


def place_of(step: tf.Tensor) -> tf.Tensor:
    """Returns where the loss of a step is kept, steps counted from 0."""
    return step % LOSSES_KEPT


def measure_losses(
    kept: tf.Tensor, step: tf.Tensor, steps: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Describes the losses of the window that ends now, by field of `Statistics`.

    Args:
        kept: float32 `[LOSSES_KEPT]` for one trainee, or `[LOSSES_KEPT, batch]`, the
            loss of each step at its `place_of`.
        step: Training steps taken, int64.
        steps: Those of the window, int64; all is 0 where there is none.
    """
    number = tf.minimum(steps, LOSSES_KEPT)
    age = place_of(step - 1 - tf.range(LOSSES_KEPT, dtype=tf.int64))
    inside = tf.reshape(age < number, [-1] + [1] * (kept.shape.rank - 1))
    count = tf.cast(tf.maximum(number, 1), tf.float32)
    losses = tf.where(inside, kept, 0.0)
    mean = tf.reduce_sum(losses, axis=0) / count
    spread = tf.where(inside, tf.square(losses - mean), 0.0)
    highest = tf.reduce_max(tf.where(inside, kept, kept.dtype.min), axis=0)
    return {
        "training_loss": mean,
        "training_loss_deviation": tf.sqrt(tf.reduce_sum(spread, axis=0) / count),
        "training_loss_highest": tf.where(steps > 0, highest, 0.0),
        # Zero where it is not inside.
        "training_loss_earliest": tf.gather(losses, place_of(step - number)),
        "training_loss_latest": tf.gather(losses, place_of(step - 1)),
    }
