"""Reads the split file: which tasks train a controller, which choose it, which test."""

import dataclasses
import functools
import importlib.resources
import tomllib
from collections.abc import Collection, Sequence
from typing import Any

import keras

from keras_learned_lr.learning.optimizers import RULES
from keras_learned_lr.learning.tasks.models import MODELS
from keras_learned_lr.learning.tasks.task_family import FAMILIES, TARGETS, TaskFamily

SETS = ("training", "validation", "test")


@dataclasses.dataclass(frozen=True)
class TaskTemplate:
    """What all trainees of a batch share.

    Attributes:
        name: What the split file calls it, after the name of its set: "training/...".
        family: A key of `FAMILIES`.
        model: A key of `MODELS`.
        options: Keyword arguments of the model.
        optimizer: A key of `optimizers.RULES`.
        loss: One of those that go with the family's targets, see `TARGETS`.
        batch_size: Examples a training step.
        learning_rate: The middle of initial learning rates and of tuning grids.
        weight: How often it is drawn in meta-training, relative to the others: less
            where it takes long.

    Raises:
        ValueError: If a part is unknown or the loss does not go with the targets.
    """

    name: str
    family: str
    model: str
    options: dict[str, Any]
    optimizer: str
    loss: str
    batch_size: int
    learning_rate: float
    weight: float = 1.0

    def __post_init__(self) -> None:
        known_parts: dict[str, Collection[str]] = {
            "family": FAMILIES,
            "model": MODELS,
            "optimizer": RULES,
        }
        for part, known in known_parts.items():
            value = getattr(self, part)
            if value not in known:
                raise ValueError(
                    f"{self.name}: unknown {part}. Known: {', '.join(known)}. "
                    f"Received: {value!r}"
                )
        fitting = TARGETS[self.source.target]
        if self.loss not in fitting:
            raise ValueError(
                f"{self.name}: the loss of {self.family} must be one of {fitting}. "
                f"Received: {self.loss!r}"
            )

    @property
    def source(self) -> TaskFamily:
        """The family."""
        return FAMILIES[self.family]

    def make_model(self) -> keras.Model:
        """Returns the model, built."""
        make = MODELS[self.model]
        return make(self.source.shape, self.source.outputs, **self.options)

    def make_loss(self) -> keras.losses.Loss:
        """Returns the loss; models end with logits."""
        return {
            "cross_entropy": keras.losses.SparseCategoricalCrossentropy(
                from_logits=True
            ),
            "binary": keras.losses.BinaryCrossentropy(from_logits=True),
            "squared": keras.losses.MeanSquaredError(),
            "huber": keras.losses.Huber(),
        }[self.loss]


@functools.cache
def read_split() -> dict[str, TaskTemplate]:
    """Returns the templates of all sets by name: "training/...", "validation/..."."""
    source = importlib.resources.files(__package__).joinpath("split.toml")
    content = tomllib.loads(source.read_text(encoding="utf-8"))
    rates = content["learning_rates"]
    return {
        f"{chosen}/{name}": _as_template(f"{chosen}/{name}", dict(entry), rates)
        for chosen in SETS
        for name, entry in content[chosen].items()
    }


def choose_templates(chosen: str, names: Sequence[str] = ()) -> list[TaskTemplate]:
    """Returns templates of "training", "validation" or "test".

    Args:
        chosen: Which of the sets.
        names: Which of its templates; all of them where empty.

    Raises:
        ValueError: If the set has none of that name.
    """
    split = read_split()
    known = [name for name in split if name.startswith(f"{chosen}/")]
    wanted = [f"{chosen}/{name}" for name in names] or known
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        raise ValueError(
            f"Unknown {chosen} tasks: {unknown}. Known: {', '.join(known)}"
        )
    return [split[name] for name in wanted]


def _as_template(
    name: str, entry: dict[str, Any], rates: dict[str, float]
) -> TaskTemplate:
    own = {
        key: entry.pop(key)
        for key in ("family", "model", "optimizer", "loss", "batch_size")
    }
    weight = entry.pop("weight", 1.0)
    rate = rates[own["optimizer"]]
    return TaskTemplate(
        name=name, options=entry, learning_rate=rate, weight=weight, **own
    )
