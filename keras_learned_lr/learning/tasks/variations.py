"""Other tasks like those of the split: the same data, learned in other ways.

What a controller learned on some templates it does better on those than on others; the
more combinations of data, architecture and optimizer it meets, the less it can learn
them by heart.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from keras_learned_lr.learning.tasks.split import (
    SETS,
    TaskTemplate,
    read_learning_rates,
    read_split,
    read_variations,
)
from keras_learned_lr.learning.tasks.task_family import TARGETS


def vary(template: TaskTemplate, number: int) -> TaskTemplate:
    """Returns a variation of a training template: always the same for a number.

    Optimizer, batch size, loss and the options of the model are drawn from what the
    split file's `variations` name; none has the architecture of a template that is for
    validation or for the test.

    Args:
        template: One of the training set.
        number: Which of its variations.

    Example:
        ```python
        from keras_learned_lr.learning.tasks.split import choose_templates
        from keras_learned_lr.learning.tasks.variations import vary

        (template,) = choose_templates("training", ["mixtures_adam"])
        other = vary(template, 1)
        print(other.optimizer, other.options)
        ```
    """
    choices = read_variations()
    rng = np.random.default_rng([number, *template.name.encode()])

    def draw(values: Any) -> Any:
        return values[rng.integers(len(values))]

    while True:
        options = dict(template.options)
        for name, values in choices.get(template.model, {}).items():
            options[name] = draw(values)
        optimizer = draw(choices["optimizer"])
        varied = dataclasses.replace(
            template,
            name=f"{template.name}/{number}",
            variation=number,
            options=options,
            optimizer=optimizer,
            learning_rate=read_learning_rates()[optimizer],
            batch_size=draw(choices["batch_size"]),
            loss=draw(TARGETS[template.source.target]),
        )
        if architecture(varied) not in _held_out():
            return varied


def architecture(template: TaskTemplate) -> tuple[str, tuple[tuple[str, Any], ...]]:
    """Returns a template's model and its options, those that do nothing left out."""
    options = {key: value for key, value in template.options.items() if value}
    return template.model, tuple(sorted(options.items()))


@functools.cache
def _held_out() -> frozenset[Any]:
    held_out = tuple(f"{name}/" for name in SETS if name != "training")
    split = read_split().items()
    return frozenset(architecture(t) for name, t in split if name.startswith(held_out))
