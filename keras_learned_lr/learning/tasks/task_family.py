"""What a task family is: one function that draws a data set."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

# Rows of a data set that costs nothing to draw: enough for a run that sees no example
# twice, as most of those that matter do. Orders of examples may use far fewer of them.
PLENTY = 4608

# Deviation of noise over that of what it is added to, and share of wrong labels, where
# there is next to none. Never none at all: ratios of losses that end at 0 are noise.
LEAST_NOISE = 0.02
LEAST_WRONG = 0.01

# What the targets are; each goes with some losses.
TARGETS = {
    "class": ("cross_entropy",),
    "binary": ("binary",),
    "number": ("squared", "huber"),
}


class Data(NamedTuple):
    """A drawn data set.

    Attributes:
        inputs: float32 `[examples, *shape]`, in random order.
        targets: int32 `[examples]` for classes, float32 `[examples, outputs]` else.
    """

    inputs: np.ndarray
    targets: np.ndarray


def log_uniform(
    rng: np.random.Generator, least: float, most: float, size: int | None = None
) -> Any:
    """Draws a number between two, any of its factors as likely: one, or `[size]`."""
    return np.exp(rng.uniform(np.log(least), np.log(most), size))


def draw_noise(
    rng: np.random.Generator, most: float, least: float = LEAST_NOISE
) -> float:
    """Draws how noisy a data set is: log-uniform between `least` and `most`.

    A learning rate that is too low costs a few percent where the noise is most of the
    loss, and a multiple of it where there is next to none. Users have both.
    """
    return float(log_uniform(rng, least, most))


@dataclasses.dataclass(frozen=True)
class TaskFamily:
    """A source of tasks that differ in their data.

    Attributes:
        name: What the split file calls it.
        draw: Draws a data set of `examples` rows.
        shape: Of one input.
        outputs: Units of a model's last layer.
        target: A key of `TARGETS`.
        examples: Rows of a data set: to train on, to validate and to score.
        scaled: Whether inputs may be scaled and their axes stretched at random; not
            for one-hot inputs.
    """

    name: str
    draw: Callable[[np.random.Generator], Data]
    shape: tuple[int, ...]
    outputs: int
    target: str
    examples: int
    scaled: bool


FAMILIES: dict[str, TaskFamily] = {}


def family(
    shape: tuple[int, ...],
    outputs: int,
    target: str,
    examples: int = 1536,
    scaled: bool = True,
) -> Callable[[Callable[[np.random.Generator], Data]], TaskFamily]:
    """Makes a family of a function that draws a data set, under the function's name.

    Args:
        shape: Of one input.
        outputs: Units of a model's last layer.
        target: A key of `TARGETS`.
        examples: Rows that the function returns, always as many.
        scaled: See `TaskFamily`.

    Raises:
        ValueError: If the target is unknown or the name is taken.
    """
    if target not in TARGETS:
        raise ValueError(
            f"`target` must be one of {list(TARGETS)}. Received: {target!r}"
        )

    def register(draw: Callable[[np.random.Generator], Data]) -> TaskFamily:
        name = getattr(draw, "__name__", "")
        if name in FAMILIES:
            raise ValueError(f"There is a task family named {name!r} already.")
        made = TaskFamily(name, draw, shape, outputs, target, examples, scaled)
        FAMILIES[name] = made
        return made

    return register


def pad_features(inputs: np.ndarray, features: int) -> np.ndarray:
    """Returns `[examples, features]`: standardised columns, then columns of zeros."""
    deviation = inputs.std(0)
    inputs = (inputs - inputs.mean(0)) / np.where(deviation > 0, deviation, 1.0)
    return np.pad(inputs, [(0, 0), (0, features - inputs.shape[1])]).astype("float32")


def one_hot(chosen: np.ndarray, size: int) -> np.ndarray:
    """Returns float32 `[..., size]`, 1 at what is chosen."""
    return np.eye(size, dtype="float32")[chosen]


def zipf(rank: np.ndarray, steepness: float) -> np.ndarray:
    """Returns shares of a few that are seen all the time and of many that hardly are.

    Args:
        rank: Of each, from 0.
        steepness: Exponent of Zipf's law.
    """
    share = 1.0 / (1 + rank) ** steepness
    return share / share.sum()


def standardise(values: np.ndarray) -> np.ndarray:
    """Returns targets `[examples, outputs]` of mean 0 and overall deviation 1."""
    values = values.reshape(len(values), -1)
    values = values - values.mean(0)
    return (values / max(float(values.std()), 1e-6)).astype("float32")


def noisy(rng: np.random.Generator, values: np.ndarray, most: float) -> np.ndarray:
    """Returns standardised targets with noise of a drawn deviation, up to `most`."""
    y = standardise(values)
    y += draw_noise(rng, most) * rng.normal(size=y.shape)
    return y
