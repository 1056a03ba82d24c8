"""Who likes what, and who knows whom: pairs of things that are seen one by one."""

import numpy as np

from keras_learned_lr.learning.tasks.task_family import (
    PLENTY,
    Data,
    family,
    noisy,
    one_hot,
    zipf,
)

USERS, ITEMS, PEOPLE = 40, 24, 32


def _popular(rng: np.random.Generator, size: int) -> np.ndarray:
    return zipf(rng.permutation(size), rng.uniform(0.2, 1.2))


@family((USERS + ITEMS,), 1, "number", PLENTY, scaled=False)
def ratings(rng: np.random.Generator) -> Data:
    """Draws a user and an item, one-hot; how much the one likes the other."""
    rank = int(rng.integers(1, 5))
    taste, kind = rng.normal(size=(USERS, rank)), rng.normal(size=(ITEMS, rank))
    user = rng.choice(USERS, PLENTY, p=_popular(rng, USERS))
    item = rng.choice(ITEMS, PLENTY, p=_popular(rng, ITEMS))
    liked = (taste[user] * kind[item]).sum(1) / rank**0.5
    liked += rng.uniform(0.0, 1.5) * rng.normal(size=ITEMS)[item]
    liked += rng.uniform(0.0, 0.7) * rng.normal(size=USERS)[user]
    inputs = np.concatenate([one_hot(user, USERS), one_hot(item, ITEMS)], axis=1)
    return Data(inputs, noisy(rng, liked, 0.7))


@family((2 * PEOPLE,), 1, "binary", PLENTY, scaled=False)
def friends(rng: np.random.Generator) -> Data:
    """Draws two people, one-hot, who know each other where they live close by."""
    home = rng.normal(size=(PEOPLE, int(rng.integers(2, 4))))
    one, other = rng.choice(PEOPLE, (2, PLENTY), p=_popular(rng, PEOPLE))
    apart = np.linalg.norm(home[one] - home[other], axis=1)
    near = np.quantile(apart, rng.uniform(0.15, 0.5)) - apart
    knows = rng.random(PLENTY) < 1 / (1 + np.exp(-rng.uniform(2.0, 6.0) * near))
    inputs = np.concatenate([one_hot(one, PEOPLE), one_hot(other, PEOPLE)], axis=1)
    return Data(inputs, knows[:, np.newaxis].astype("float32"))
