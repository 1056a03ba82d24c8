"""Schedule-Free AdamW: averaging in place of annealing."""

import keras
import tensorflow as tf

from keras_learned_lr.benchmark.quality.methods.averaging import EvaluateAveraged
from keras_learned_lr.benchmark.quality.methods.global_optimizer import decay_of
from keras_learned_lr.benchmark.quality.methods.method import Run, Setup
from keras_learned_lr.benchmark.quality.methods.schedules import WARMUP


def averaged_weights(
    optimizer: keras.optimizers.ScheduleFreeAdamW,
) -> list[tf.Tensor]:
    """Returns x, the averaged weights: the model trains at y = (1 − β₁) z + β₁ x."""
    beta = optimizer.beta_1
    pairs = zip(optimizer._trainable_variables, optimizer._momentums, strict=True)
    return [(y - (1.0 - beta) * z) / beta for y, z in pairs]


def schedule_free(run: Run) -> Setup:
    """Keras's Schedule-Free AdamW at its averaged weights (Defazio et al. 2024)."""
    optimizer = keras.optimizers.ScheduleFreeAdamW(
        run.learning_rate,
        warmup_steps=round(WARMUP * run.steps),
        weight_decay=decay_of(run.task.optimizer(1.0)) or None,
    )
    averaging = EvaluateAveraged(
        lambda: averaged_weights(optimizer),
        run.task.data.train[0],
        run.task.batch_size,
    )
    return Setup(optimizer, averaging=(averaging,))
