"""The learning rate of an optimizer, whatever is wrapped around it."""

import functools
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf


class OptimizerLearningRate:
    """Reads and sets the learning rate of a compiled model's optimizer.

    A `LossScaleOptimizer` is looked through. The optimizers inside a
    `MultiOptimizer` move together and keep the ratios they were compiled with.

    Args:
        optimizer: `model.optimizer`.
        defaults: What it was compiled with, one learning rate an optimizer, where
            something has set others since.

    Raises:
        ValueError: If there is no optimizer, or its learning rate is a
            `LearningRateSchedule` or a callable, which cannot be set, or is not
            positive, which no factor can change; or `defaults` are as many as the
            optimizers are not.
    """

    def __init__(
        self,
        optimizer: keras.optimizers.Optimizer | None,
        defaults: Sequence[float] | None = None,
    ) -> None:
        if optimizer is None:
            raise ValueError(
                "The model has no optimizer. Call "
                "`model.compile(optimizer=..., loss=...)` before `fit`."
            )
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        self._optimizers = list(getattr(optimizer, "optimizers", [optimizer]))
        if not self._optimizers:
            raise ValueError(
                "The `MultiOptimizer` has no optimizers yet: made from a function, it "
                "creates them when it is built. Call "
                "`model.optimizer.build(model.trainable_variables)` before `fit`."
            )
        self._variables = [_variable(inner) for inner in self._optimizers]
        self._defaults = [_value(variable) for variable in self._variables]
        if defaults is not None:
            if len(defaults) != len(self._defaults):
                raise ValueError(
                    f"There are {len(self._defaults)} optimizers. Received: "
                    f"defaults={defaults}"
                )
            self._defaults = list(defaults)
        if not all(0.0 < value < float("inf") for value in self._defaults):
            raise ValueError(
                "The optimizer's learning rate must be positive and finite for a "
                f"controller to scale it. Received: learning_rate={self._defaults}. "
                "Compile with a positive one; any guess will do."
            )

    @property
    def default(self) -> float:
        """The learning rate when this object was made; the first of several."""
        return self._defaults[0]

    @property
    def defaults(self) -> list[float]:
        """Each optimizer's learning rate when this object was made."""
        return list(self._defaults)

    @property
    def shares(self) -> tuple[float, ...]:
        """Each optimizer's learning rate over the first one's."""
        return tuple(value / self.default for value in self._defaults)

    @property
    def steps_per_update(self) -> int:
        """Training steps whose gradients are accumulated for one update."""
        return max(o.gradient_accumulation_steps or 1 for o in self._optimizers)

    def assign(self, learning_rate: tf.Tensor | float) -> None:
        """Sets the learning rate; works inside a graph."""
        for variable, share in zip(self._variables, self.shares, strict=True):
            variable.assign(tf.cast(_scaled(learning_rate, share), variable.dtype))

    def differs(self, learning_rate: tf.Tensor | float) -> tf.Tensor:
        """Whether one is no longer what `assign` was given; works inside a graph."""
        changed = [
            tf.not_equal(
                keras.ops.convert_to_tensor(variable),
                tf.cast(_scaled(learning_rate, share), variable.dtype),
            )
            for variable, share in zip(self._variables, self.shares, strict=True)
        ]
        # This is in every training step: no operation more than it takes.
        return functools.reduce(tf.logical_or, changed)

    @property
    def was_replaced(self) -> bool:
        """Whether one has a schedule in place of the variable that `assign` sets."""
        found = zip(self._optimizers, self._variables, strict=True)
        return any(inner._learning_rate is not variable for inner, variable in found)

    def restore(self) -> None:
        """Puts the learning rate back to what it was compiled with."""
        for variable, default in zip(self._variables, self._defaults, strict=True):
            variable.assign(default)

    def logs(self, learning_rate: float | None = None) -> dict[str, float]:
        """Returns the learning rates, named as in Keras's logs.

        Args:
            learning_rate: What `assign` was given last, where it is known; else the
                variables are read, which waits for the device.
        """
        if learning_rate is None:
            rates = [_value(variable) for variable in self._variables]
        else:
            rates = [learning_rate * share for share in self.shares]
        if len(rates) == 1:
            return {"learning_rate": rates[0]}
        names = [f"learning_rate_{optimizer.name}" for optimizer in self._optimizers]
        return dict(zip(names, rates, strict=True))


def _variable(optimizer: keras.optimizers.Optimizer) -> keras.Variable:
    # The property evaluates schedules and callables; only the attribute tells them.
    rate = getattr(optimizer, "_learning_rate", None)
    if isinstance(rate, keras.Variable):
        return rate
    kind = (
        "a `LearningRateSchedule`"
        if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule)
        else "a callable"
    )
    raise ValueError(
        f"The optimizer was created with {kind} as its learning rate, so that it "
        f"cannot be set. Received: learning_rate={rate!r}. Instantiate the optimizer "
        "with a float `learning_rate`: the controller replaces the schedule."
    )


def _scaled(learning_rate: Any, share: float) -> Any:
    # Most have one optimizer, and this is in every training step.
    return learning_rate if share == 1.0 else learning_rate * share


def _value(variable: keras.Variable) -> float:
    # float() on the variable itself fails under MirroredStrategy.
    return float(keras.ops.convert_to_numpy(variable))
