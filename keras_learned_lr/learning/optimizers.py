"""Keras's optimizers for a batch of trainees: pure functions on `[batch, parameters]`.

Each row is one trainee with its own settings and learning rate, and each rule rounds
as Keras's does. Where Keras computes with a setting, a Python float, so do we (`exact`,
from float64); where it says `ops.cast(setting, dtype)` it rounds to float32 whatever
the type, and so do we (`rounded`). In one thing we differ: what Keras's `Embedding`
hands to its optimizer is a gradient in slices, and Adam, RMSprop and Adagrad square
them before they sum those of one row. Here they are summed first.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf


class Settings(NamedTuple):
    """Optimizer settings, float64 `[batch]` each. A rule ignores what it does not use.

    Attributes:
        momentum: Of `momentum` and `nesterov`.
        beta_1: Of `adam`, `adamw` and `lion`.
        beta_2: Likewise.
        rho: Of `rmsprop`.
        epsilon: Of `adam`, `adamw`, `rmsprop` and `adagrad`.
        initial_accumulator_value: Of `adagrad`.
        weight_decay: Decoupled decay, of every rule; None skips it for good.
    """

    momentum: tf.Tensor
    beta_1: tf.Tensor
    beta_2: tf.Tensor
    rho: tf.Tensor
    epsilon: tf.Tensor
    initial_accumulator_value: tf.Tensor
    weight_decay: tf.Tensor | None


class OptimizerState(NamedTuple):
    """What an optimizer remembers of a batch of trainees.

    Attributes:
        iterations: Updates made, int64 `[batch]`.
        slots: Tensors like the parameters, `[batch, parameters]`; how many depends on
            the rule.
    """

    iterations: tf.Tensor
    slots: tuple[tf.Tensor, ...]


class Step(NamedTuple):
    """What a rule sees: everything of the parameters' type, settings as columns."""

    gradients: tf.Tensor
    learning_rate: tf.Tensor
    iterations: tf.Tensor
    settings: Settings

    def exact(self, setting: tf.Tensor) -> tf.Tensor:
        """Returns a setting as a `[batch, 1]` column of the gradients' type."""
        return tf.cast(setting, self.gradients.dtype)[:, tf.newaxis]

    def rounded(self, setting: tf.Tensor) -> tf.Tensor:
        """Returns the same, rounded to float32 on the way."""
        return self.exact(tf.cast(setting, tf.float32))


Slots = tuple[tf.Tensor, ...]
Rule = Callable[[Step, Slots], tuple[tf.Tensor, Slots]]


def _sgd(step: Step, slots: Slots) -> tuple[tf.Tensor, Slots]:
    return -step.gradients * step.learning_rate, ()


def _momentum(step: Step, slots: Slots) -> tuple[tf.Tensor, Slots]:
    momentum = step.rounded(step.settings.momentum)
    velocity = slots[0] * momentum - step.gradients * step.learning_rate
    return velocity, (velocity,)


def _nesterov(step: Step, slots: Slots) -> tuple[tf.Tensor, Slots]:
    velocity, slots = _momentum(step, slots)
    momentum = step.rounded(step.settings.momentum)
    return velocity * momentum - step.gradients * step.learning_rate, slots


def _adam(step: Step, slots: Slots) -> tuple[tf.Tensor, Slots]:
    s, g = step.settings, step.gradients
    count = tf.cast(step.iterations + 1, g.dtype)[:, tf.newaxis]
    power_1 = tf.pow(step.rounded(s.beta_1), count)
    power_2 = tf.pow(step.rounded(s.beta_2), count)
    alpha = step.learning_rate * tf.sqrt(1.0 - power_2) / (1.0 - power_1)
    first = slots[0] + (g - slots[0]) * step.exact(1.0 - s.beta_1)
    second = slots[1] + (tf.square(g) - slots[1]) * step.exact(1.0 - s.beta_2)
    change = -(first * alpha) / (tf.sqrt(second) + step.exact(s.epsilon))
    return change, (first, second)


def _rmsprop(step: Step, slots: Slots) -> tuple[tf.Tensor, Slots]:
    s, g = step.settings, step.gradients
    velocity = step.exact(s.rho) * slots[0]
    velocity += step.exact(1.0 - s.rho) * tf.square(g)
    root = tf.sqrt(velocity + step.exact(s.epsilon))
    return -(step.learning_rate * g) / root, (velocity,)


def _adagrad(step: Step, slots: Slots) -> tuple[tf.Tensor, Slots]:
    accumulator = slots[0] + tf.square(step.gradients)
    root = tf.sqrt(accumulator + step.exact(step.settings.epsilon))
    return -(step.learning_rate * step.gradients) / root, (accumulator,)


def _lion(step: Step, slots: Slots) -> tuple[tf.Tensor, Slots]:
    g, (momentum,) = step.gradients, slots
    beta_1 = step.rounded(step.settings.beta_1)
    beta_2 = step.rounded(step.settings.beta_2)
    change = -step.learning_rate * tf.sign(momentum * beta_1 + g * (1.0 - beta_1))
    return change, (momentum * beta_2 + g * (1.0 - beta_2),)


# The rule and its number of slots, by kind.
RULES: dict[str, tuple[Rule, int]] = {
    "sgd": (_sgd, 0),
    "momentum": (_momentum, 1),
    "nesterov": (_nesterov, 1),
    "adam": (_adam, 2),
    "adamw": (_adam, 2),
    "rmsprop": (_rmsprop, 1),
    "adagrad": (_adagrad, 1),
    "lion": (_lion, 1),
}
# Keras's defaults; where its SGD has no momentum, the textbook's 0.9.
DEFAULTS: dict[str, float] = {
    "momentum": 0.9,
    "beta_1": 0.9,
    "beta_2": 0.999,
    "rho": 0.9,
    "epsilon": 1e-7,
    "initial_accumulator_value": 0.1,
}
_DEFAULTS_OF_KIND = {"adamw": {"weight_decay": 0.004}, "lion": {"beta_2": 0.99}}


def make_settings(kind: str, batch_size: int, **values: object) -> Settings:
    """Returns the settings of a batch of trainees.

    Args:
        kind: The optimizer, a key of `RULES`.
        batch_size: Number of trainees.
        **values: Fields of `Settings`, each a number or `[batch]`; Keras's defaults
            stand in for the others.

    Raises:
        ValueError: If the kind or a setting is unknown, or a setting has another
            shape.
    """
    check_kind(kind)
    unknown = sorted(set(values) - set(Settings._fields))
    if unknown:
        raise ValueError(
            f"Unknown optimizer settings: {unknown}. Known: {list(Settings._fields)}"
        )
    chosen: dict[str, Any] = {"weight_decay": None, **DEFAULTS}
    chosen |= _DEFAULTS_OF_KIND.get(kind, {})
    chosen |= values
    columns: dict[str, tf.Tensor | None] = {}
    for name, value in chosen.items():
        if value is None:
            columns[name] = None
            continue
        column = tf.convert_to_tensor(value, tf.float64)
        if column.shape.as_list() not in ([], [batch_size]):
            raise ValueError(
                f"The setting {name!r} must be a number or have one for each of the "
                f"{batch_size} trainees. Received: shape {column.shape}"
            )
        columns[name] = tf.broadcast_to(column, [batch_size])
    return Settings(**columns)


def check_kind(kind: str) -> None:
    """Raises ValueError if there is no such optimizer."""
    if kind not in RULES:
        raise ValueError(f"Unknown optimizer: {kind!r}. Known: {', '.join(RULES)}")


def initial_state(
    kind: str, parameters: tf.Tensor, settings: Settings
) -> OptimizerState:
    """Returns the state before the first update.

    Args:
        kind: The optimizer, a key of `RULES`.
        parameters: `[batch, parameters]`.
        settings: The trainees' settings.
    """
    check_kind(kind)
    start = tf.zeros_like(parameters)
    if kind == "adagrad":
        value = tf.cast(settings.initial_accumulator_value, tf.float32)
        start += tf.cast(value, parameters.dtype)[:, tf.newaxis]
    iterations = tf.zeros(tf.shape(parameters)[:1], tf.int64)
    return OptimizerState(iterations, (start,) * RULES[kind][1])


def update(
    kind: str,
    parameters: tf.Tensor,
    gradients: tf.Tensor,
    state: OptimizerState,
    settings: Settings,
    learning_rate: tf.Tensor,
    active: tf.Tensor,
) -> tuple[tf.Tensor, OptimizerState]:
    """Makes one update of every active trainee.

    Args:
        kind: The optimizer, a key of `RULES`.
        parameters: `[batch, parameters]`, float32 or float64.
        gradients: Of the same shape and type.
        state: What `initial_state` or the update before returned.
        settings: The trainees' settings.
        learning_rate: float32 `[batch]`.
        active: bool `[batch]`. The others stay as they are, whatever their gradients.

    Returns:
        The new parameters and the new state.
    """
    rule, _ = RULES[kind]
    rate = tf.cast(learning_rate, parameters.dtype)[:, tf.newaxis]
    step = Step(gradients, rate, state.iterations, settings)
    decayed = parameters
    if settings.weight_decay is not None:
        decayed -= parameters * step.rounded(settings.weight_decay) * rate
    change, slots = rule(step, state.slots)
    keep = active[:, tf.newaxis]
    new = OptimizerState(
        state.iterations + tf.cast(active, tf.int64),
        tuple(
            tf.where(keep, slot, old)
            for slot, old in zip(slots, state.slots, strict=True)
        ),
    )
    return tf.where(keep, decayed + change, parameters), new
