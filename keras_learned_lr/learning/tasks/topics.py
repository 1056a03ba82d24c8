"""Bags of words: what a text is about, from how often each word is in it."""

import numpy as np

from keras_learned_lr.learning.tasks.task_family import PLENTY, Data, family

WORDS, TOPICS, LONGEST = 64, 6, 30


@family((WORDS,), TOPICS, "class", PLENTY, scaled=False)
def topics(rng: np.random.Generator) -> Data:
    """Draws texts of a few words each, some words likelier under some topics.

    The input is the share of each word, so that a dense layer without offset on it is
    the mean of the embeddings of a text's words.
    """
    used = int(rng.integers(2, TOPICS + 1))
    topic = rng.integers(0, used, PLENTY)
    # Zipf's law, and each topic has its own favourites.
    common = -rng.uniform(0.5, 1.2) * np.log(1 + np.arange(WORDS))
    favoured = rng.uniform(0.6, 1.5) * rng.normal(size=(used, WORDS))
    share = np.exp(common + favoured)
    share /= share.sum(1, keepdims=True)
    length = rng.integers(4, LONGEST + 1, PLENTY)
    counts = rng.multinomial(length, share[topic])
    inputs = (counts / length[:, np.newaxis]).astype("float32")
    return Data(inputs, topic.astype("int32"))
