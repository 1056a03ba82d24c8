"""What a method is: how it turns a learning rate into an optimizer and callbacks."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras

from keras_learned_lr.benchmark.quality.task import Task


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run that a method has to set up.

    Attributes:
        task: What is trained.
        learning_rate: All that the method is told: the task's reference, or the
            method's own default, times the run's multiplier.
        steps: Training steps; the task's own number unless the benchmark is tried out
            on fewer.
        settings: Choices of the method beside the learning rate.
        controller: The controller, for the methods that need one.
        averages: What the controller did on the tuning seed, for its controls.
    """

    task: Task
    learning_rate: float
    steps: int
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    controller: Any = None
    averages: Any = None


class Setup(NamedTuple):
    """What a run is compiled and fitted with.

    Attributes:
        optimizer: For `compile`.
        callbacks: For `fit`.
        averaging: Also for `evaluate`: puts averaged weights in while it lasts.
    """

    optimizer: keras.optimizers.Optimizer
    callbacks: tuple[keras.callbacks.Callback, ...] = ()
    averaging: tuple[keras.callbacks.Callback, ...] = ()


@dataclasses.dataclass(frozen=True)
class Method:
    """A way of choosing learning rates.

    Attributes:
        name: What results call it.
        prepare: Returns what a run is compiled and fitted with.
        default: The learning rate that multipliers refer to, for a method that brings
            its own optimizer; None for the task's reference.
        tuned: Whether its learning rate is also tuned over a grid.
        swept: Whether it is also run from every initial learning rate.
        variants: Settings to tune over where a larger budget allows it.
        needs_controller: Whether runs need one.
        needs_averages: Whether runs need what the controller did on the tuning seed.
    """

    name: str
    prepare: Callable[[Run], Setup]
    default: float | None = None
    tuned: bool = True
    swept: bool = False
    variants: tuple[Mapping[str, Any], ...] = ()
    needs_controller: bool = False
    needs_averages: bool = False
