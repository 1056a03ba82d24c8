"""Rare events among categories: who clicks on what."""

import numpy as np

from keras_learned_lr.learning.tasks.task_family import (
    PLENTY,
    Data,
    family,
    one_hot,
    zipf,
)

FIELDS, VALUES = 4, 8


@family((FIELDS * VALUES,), 1, "binary", PLENTY, scaled=False)
def clicks(rng: np.random.Generator) -> Data:
    """Draws one-hot fields; some values, and pairs of them, make a click likelier."""
    share = zipf(np.arange(VALUES), rng.uniform(0.3, 1.5))
    chosen = rng.choice(VALUES, (PLENTY, FIELDS), p=share)
    alone = rng.normal(size=(FIELDS, VALUES))
    score = rng.uniform(0.3, 1.5) * alone[np.arange(FIELDS), chosen].sum(1)
    pairs = rng.normal(size=(VALUES, VALUES))
    score += rng.uniform(0.5, 2.0) * pairs[chosen[:, 0], chosen[:, 1]]
    # As many clicks as this, about.
    score -= np.quantile(score, 1 - rng.uniform(0.05, 0.4))
    clicked = rng.random(PLENTY) < 1 / (1 + np.exp(-2 * score))
    inputs = one_hot(chosen, VALUES).reshape(PLENTY, -1)
    return Data(inputs, clicked[:, np.newaxis].astype("float32"))
