"""Schedules of the learning rate for the task's own optimizer."""

import math

import keras
from keras import ops
from keras.optimizers import schedules

from keras_learned_lr.benchmark.quality.methods.method import Run, Setup

WARMUP = 0.05
# Where step decay divides by ten (He et al. 2016: at a half and three quarters).
STEPS_DOWN = (0.5, 0.75)


def constant(run: Run) -> Setup:
    """The learning rate it was compiled with, throughout."""
    return Setup(run.task.optimizer(run.learning_rate))


def cosine_schedule(
    peak: float, steps: int, warmup: float = WARMUP
) -> schedules.LearningRateSchedule:
    """Returns half a cosine from `peak` to 0 after a linear warm-up.

    Loshchilov & Hutter 2017, equation 5, without restarts.

    Args:
        peak: The largest learning rate.
        steps: Training steps of the run.
        warmup: Share of them in which it rises from 0.
    """
    rising = round(warmup * steps)
    if not rising:
        return schedules.CosineDecay(peak, steps)
    return schedules.CosineDecay(
        0.0, steps - rising, warmup_target=peak, warmup_steps=rising
    )


def cosine(run: Run) -> Setup:
    """Half a cosine to 0 after a warm-up (Loshchilov & Hutter 2017)."""
    warmup = run.settings.get("warmup", WARMUP)
    schedule = cosine_schedule(run.learning_rate, run.steps, warmup)
    return Setup(run.task.optimizer(schedule))


def step_schedule(peak: float, steps: int) -> schedules.LearningRateSchedule:
    """Returns `peak`, a tenth of it after half the run, a hundredth after 3/4."""
    # Keras changes the value behind a boundary, not at it.
    boundaries = [round(share * steps) - 1 for share in STEPS_DOWN]
    return schedules.PiecewiseConstantDecay(boundaries, [peak, peak / 10, peak / 100])


def step_decay(run: Run) -> Setup:
    """Divides by ten at a half and at three quarters of the run (He et al. 2016)."""
    return Setup(run.task.optimizer(step_schedule(run.learning_rate, run.steps)))


class OneCycle(schedules.LearningRateSchedule):
    """Up in 30 % of the run and down to nearly nothing, each half a cosine.

    Smith & Topin 2018, with the cosines and constants of fastai: from `peak / 25` up
    to `peak`, down to `peak / 250 000`. Momentum is left to the optimizer.

    Args:
        peak: The largest learning rate.
        steps: Training steps of the run.
    """

    def __init__(self, peak: float, steps: int) -> None:
        self.peak, self.steps = peak, steps

    def __call__(self, step: keras.KerasTensor) -> keras.KerasTensor:
        """Returns the learning rate at `step`, counted from 0."""
        rising = 0.3 * self.steps
        first, last = self.peak / 25.0, self.peak / 25e4
        step = ops.cast(step, "float32")
        up = step / rising
        down = ops.minimum((step - rising) / (self.steps - rising), 1.0)
        return ops.where(
            step < rising,
            first + (self.peak - first) * 0.5 * (1.0 - ops.cos(math.pi * up)),
            last + (self.peak - last) * 0.5 * (1.0 + ops.cos(math.pi * down)),
        )

    def get_config(self) -> dict[str, float]:
        """Returns the arguments."""
        return {"peak": self.peak, "steps": self.steps}


def one_cycle(run: Run) -> Setup:
    """1cycle, the compiled learning rate being its peak (Smith & Topin 2018)."""
    return Setup(run.task.optimizer(OneCycle(run.learning_rate, run.steps)))


def reduce_on_plateau(run: Run) -> Setup:
    """Keras's ReduceLROnPlateau on the validation loss.

    A run is 20 epochs for it, so it halves after 2 without improvement; Keras's
    defaults are meant for runs of hundreds.
    """
    callback = keras.callbacks.ReduceLROnPlateau(
        monitor="val_loss", factor=0.5, patience=2, min_delta=0.0
    )
    return Setup(run.task.optimizer(run.learning_rate), (callback,))
