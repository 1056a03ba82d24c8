"""Character text: which of the commonest characters comes next."""

import functools
import importlib.resources
import inspect

import numpy as np
from keras.src.layers import layer
from keras.src.models import functional
from keras.src.trainers import compile_utils

from keras_learned_lr.learning.tasks.task_family import PLENTY, Data, family, one_hot

CONTEXT, ALPHABET = 8, 24


@functools.cache
def _encoded(source: str) -> np.ndarray:
    """Returns a text as ranks of its characters by frequency, rare ones as the last."""
    if source == "code":
        # Not the standard library's, which the benchmark tests on.
        modules = (layer, functional, compile_utils)
        text = "".join(map(inspect.getsource, modules))
    else:
        folder = importlib.resources.files("sklearn.datasets.descr")
        files = sorted(f.name for f in folder.iterdir() if f.name.endswith(".rst"))
        text = "".join(folder.joinpath(f).read_text(encoding="utf-8") for f in files)
    text = " ".join(text.lower().split())
    characters, counts = np.unique(list(text), return_counts=True)
    ranked = characters[np.argsort(-counts, kind="stable")]
    rank = {c: min(i, ALPHABET - 1) for i, c in enumerate(ranked)}
    return np.array([rank[c] for c in text])


def _windows(rng: np.random.Generator, source: str, count: int) -> Data:
    text = _encoded(source)
    # A stretch of its own for each task; the windows in it may overlap.
    stretch = int(rng.integers(0, len(text) - 20_000))
    starts = stretch + rng.choice(20_000 - CONTEXT - 1, size=count, replace=False)
    places = starts[:, np.newaxis] + np.arange(CONTEXT + 1)
    symbols = text[places]
    inputs = one_hot(symbols[:, :-1], ALPHABET)
    return Data(inputs, symbols[:, -1].astype("int32"))


@family((CONTEXT, ALPHABET), ALPHABET, "class", PLENTY, scaled=False)
def source_code(rng: np.random.Generator) -> Data:
    """Draws from the source of three modules of Keras."""
    return _windows(rng, "code", PLENTY)


@family((CONTEXT, ALPHABET), ALPHABET, "class", scaled=False)
def descriptions(rng: np.random.Generator) -> Data:
    """Draws from scikit-learn's descriptions of its data sets, in English."""
    return _windows(rng, "descriptions", 1536)
