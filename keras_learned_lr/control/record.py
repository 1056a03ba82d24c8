"""What passes between the steps of a decision, and what is kept of it."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf


class Look(NamedTuple):
    """What the controller is shown, and what the record keeps of it; float32 tensors.

    Attributes:
        observation: `[features]`, finite.
        step: Training steps taken.
        loss: Validation loss now (training loss where there is no validation data).
        first_loss: The first such loss of the run.
        finite: 1 if every loss of the window was finite, else 0.
        back_to: The step whose weights are put back; -1 where none are.
    """

    observation: tf.Tensor
    step: tf.Tensor
    loss: tf.Tensor
    first_loss: tf.Tensor
    finite: tf.Tensor
    back_to: tf.Tensor


class Record(NamedTuple):
    """One decision, on the host.

    Attributes:
        step: Training steps taken before it.
        learning_rate: What it set for the next step.
        factor: New level over old level.
        action: The controller's number, unclipped.
        loss: Validation loss now (training loss where there is no validation data).
        first_loss: The first such loss of the run.
        finite: Whether every loss of the window was finite.
        held: Whether the action was overruled because a number was not finite.
        contested: Whether something else has set the learning rate in this run too.
        observation: float32 `[features]`.
        info: What the controller's policy said beside the action.
        failure: Why the controller gave no answer, or None.
        rolled_back: The step whose weights are back since this decision, or None.
    """

    step: int
    learning_rate: float
    factor: float
    action: float
    loss: float
    first_loss: float
    finite: bool
    held: bool
    contested: bool
    observation: np.ndarray
    info: Any
    failure: str | None = None
    rolled_back: int | None = None

    def remarks(self) -> Iterator[tuple[str, str]]:
        """Returns what a user should know of it: kinds of remark, and sentences."""
        if self.failure is not None:
            yield (
                "failure",
                f"The controller did not answer: {self.failure} The learning rate "
                f"stays at {self.learning_rate:g} until it does.",
            )
        elif self.held:
            yield (
                "held",
                "A loss or an action was not finite. The learning rate stays at "
                f"{self.learning_rate:g}, the last under which losses were finite.",
            )
        if self.rolled_back is not None:
            known = math.isfinite(self.loss)
            what = "is not finite any more"
            if known:
                what = (
                    f"rose to {self.loss:.4g}, or a weight is not finite, or the model "
                    "came to say the same of every example"
                )
            yield (
                "rollback",
                f"The loss {what}. The weights and the optimizer's variables are those "
                f'of step {self.rolled_back} again. `decisions["rolled_back"]` '
                "tells where this happened, `rollback=False` leaves it out.",
            )


def as_table(records: Sequence[Record], features: Sequence[str]) -> dict[str, Any]:
    """Returns decisions as arrays with one entry each, by name.

    Args:
        records: The decisions.
        features: Names of the observation's features.

    Returns:
        `step`, `learning_rate`, `factor`, `action`, `loss`, `held`, `rolled_back` (-1
        where nothing was), and `observation`, a dict of arrays by feature.
    """
    fields = ("step", "learning_rate", "factor", "action", "loss", "held")
    table: dict[str, Any] = {
        field: np.array([getattr(record, field) for record in records])
        for field in fields
    }
    back = [-1 if r.rolled_back is None else r.rolled_back for r in records]
    table["rolled_back"] = np.array(back, int)
    observations = np.reshape([r.observation for r in records], [-1, len(features)])
    table["observation"] = dict(zip(features, observations.T, strict=True))
    return table


def pack(
    look: Look,
    learning_rate: tf.Tensor,
    factor: tf.Tensor,
    action: tf.Tensor,
    held: tf.Tensor,
    contested: tf.Tensor,
) -> tf.Tensor:
    """Returns a decision as one tensor: one copy from the device, however much it is.

    Args:
        look: What the controller was shown.
        learning_rate: See `Record`; a scalar, like the others.
        factor: See `Record`.
        action: See `Record`.
        held: See `Record`; bool.
        contested: See `Record`; bool.
    """
    numbers = [
        *(look.step, learning_rate, factor, action),
        *(look.loss, look.first_loss, look.finite),
        *(tf.cast(held, tf.float32), tf.cast(contested, tf.float32)),
        look.back_to,
    ]
    return tf.concat([tf.stack(numbers), look.observation], axis=0)


def unpack(packed: tf.Tensor, info: Any) -> Record:
    """Returns what `pack` packed.

    Args:
        packed: What it returned.
        info: What the policy said beside the action, tensors of batch size 1.
    """
    values = packed.numpy()
    info = tf.nest.map_structure(lambda leaf: leaf.numpy()[0], info)
    return Record(
        step=int(values[0]),
        learning_rate=float(values[1]),
        factor=float(values[2]),
        action=float(values[3]),
        loss=float(values[4]),
        first_loss=float(values[5]),
        finite=bool(values[6]),
        held=bool(values[7]),
        contested=bool(values[8]),
        observation=values[10:],
        info=info,
        rolled_back=None if values[9] < 0 else int(values[9]),
    )
