"""What trainees are, where they stand, and what is seen of them."""

import dataclasses
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_learned_lr.control.actions import ActionState
from keras_learned_lr.control.rollback import retreat_of
from keras_learned_lr.learning import optimizers
from keras_learned_lr.learning.gradients import WAYS
from keras_learned_lr.observation.memory import Memory
from keras_learned_lr.observation.statistics import Statistics


@dataclasses.dataclass(frozen=True, eq=False)
class Template:
    """What all trainees of a batch share.

    Attributes:
        model: A built Keras model with one input and one output tensor. Its own
            weights are not used.
        loss: What `compile` takes as `loss`; averaged over the batch's examples.
        optimizer: A key of `optimizers.RULES`.
        probe_size: See `Probe`.
        designated_layer: See `Probe`.
        way: How the gradients of a batch are taken, a key of `gradients.WAYS`, or
            "auto".
    """

    model: keras.Model
    loss: str | keras.losses.Loss
    optimizer: str = "adam"
    probe_size: int = 32
    designated_layer: str | None = None
    way: str = "auto"

    def __post_init__(self) -> None:
        optimizers.check_kind(self.optimizer)
        if self.way not in ("auto", *WAYS):
            raise ValueError(
                f"`way` must be 'auto' or one of {list(WAYS)}. Received: {self.way!r}"
            )


class Members(NamedTuple):
    """The trainees of a batch.

    Attributes:
        inputs: Examples of all trainees, `[rows, ...]`; several may share rows.
        targets: Their targets, `[rows, ...]`.
        order: int32 `[batch, orders, batch_size]`: the rows of each step's batch. Step
            t (from 0) takes `order[:, t % orders]`.
        validation: int32 `[batch, validation_size]`, the rows of the validation
            subset; None where the controller sees the training loss in its place.
        parameters: Initial weights, `[batch, parameters]`; see `Layout`.
        non_trainable: Initial values of the model's non-trainable variables,
            `[batch, ...]` each.
        mask: `[batch, parameters]`, 1 where a parameter is part of the trainee and 0
            where it stays 0: hidden units whose weights in and out are masked make a
            narrower model. None for 1 everywhere.
        settings: The optimizers' settings.
        default_learning_rate: float32 `[batch]`, what each optimizer was compiled with.
        learning_rate: float32 `[batch]`, the level before the first decision.
        horizon: Training steps of the whole run, int64.
    """

    inputs: tf.Tensor
    targets: tf.Tensor
    order: tf.Tensor
    validation: tf.Tensor | None
    parameters: tf.Tensor
    non_trainable: tuple[tf.Tensor, ...]
    mask: tf.Tensor | None
    settings: optimizers.Settings
    default_learning_rate: tf.Tensor
    learning_rate: tf.Tensor
    horizon: tf.Tensor


class TraineesState(NamedTuple):
    """Where the trainees of a batch stand; all that changes while they train.

    Attributes:
        step: Training steps taken, int64.
        parameters: Weights, `[batch, parameters]`.
        non_trainable: Values of the model's non-trainable variables.
        optimizer: What the optimizers remember.
        alive: bool `[batch]`, False once a loss was not finite: frozen from there until
            the weights go back.
        finite: bool `[batch]`, whether every loss of the last window was.
        collapsed: bool `[batch]`, whether the weights go back before the next window;
            see `has_collapsed`.
        kept: Parameters, non-trainable variables and what the optimizers remember, as
            the last window began with.
        action: Where the learning rates stand.
        learning_rate: float32 `[batch]`, of the last training step.
        memory: What earlier windows left.
        previous_update: The last window's change of the weights, float32
            `[batch, parameters]`; `[batch, 0]` where no feature needs it.
        outputs: What the model made of the first validation examples as the window
            began, float32 `[batch, examples, units]`; `[batch, 0, 0]` where no feature
            needs it, or there is no validation data.
    """

    step: tf.Tensor
    parameters: tf.Tensor
    non_trainable: tuple[tf.Tensor, ...]
    optimizer: optimizers.OptimizerState
    alive: tf.Tensor
    finite: tf.Tensor
    collapsed: tf.Tensor
    kept: Any
    action: ActionState
    learning_rate: tf.Tensor
    memory: Memory
    previous_update: tf.Tensor
    outputs: tf.Tensor

    @property
    def retreats(self) -> tf.Tensor:
        """See `retreat_of`, float32 `[batch]`."""
        return retreat_of(self.collapsed, self.memory)


class Look(NamedTuple):
    """What one look at the trainees shows.

    Attributes:
        observation: float32 `[batch, features]`.
        statistics: The measurements behind it.
        losses: The losses of the window's last steps, float32 `[kept, batch]`, as
            `window.note_losses` keeps them.
    """

    observation: tf.Tensor
    statistics: Statistics
    losses: tf.Tensor
