"""Tasks on real text: what comes with every Python."""

import collections
import pydoc_data.topics
import re
import sysconfig
import zlib
from pathlib import Path

import keras
import numpy as np

from keras_learned_lr.benchmark.quality.task import Data, NotOnThisMachine, Task

layers, optimizers = keras.layers, keras.optimizers
CLASSIFICATION = "sparse_categorical_crossentropy"
CHARACTERS = 64
CHARACTERS_A_WINDOW = 32
HASHED_WORDS = 4096
WORDS_A_WINDOW = 24
# Of ten consecutive blocks of windows, one is validated on and one tested on.
BLOCK = 32
PACKAGES = (
    *("asyncio", "ctypes", "email", "http", "importlib"),
    *("logging", "multiprocessing", "unittest", "urllib", "xml"),
)


def _in_blocks(x: np.ndarray, y: np.ndarray, train: int, held_out: int) -> Data:
    """Splits by blocks of neighbours, so that no sentence is in two parts.

    Of windows that occur twice, as in the head of many files, the first is kept.
    """
    once = np.sort(np.unique(x, axis=0, return_index=True)[1])
    x, y = x[once], y[once]
    place = np.arange(len(x)) // BLOCK % 10
    random = np.random.default_rng(0)

    def draw(kept: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = random.permutation(np.flatnonzero(kept))[:count]
        return x[chosen], y[chosen]

    return Data(
        draw(place < 8, train), draw(place == 8, held_out), draw(place == 9, held_out)
    )


def _next_characters(text: str, train: int = 20_000, held_out: int = 400) -> Data:
    common = collections.Counter(text).most_common(CHARACTERS - 1)
    # 0 stands for all rarer ones.
    number = {character: 1 + index for index, (character, _) in enumerate(common)}
    codes = np.array([number.get(character, 0) for character in text])
    windows = (len(codes) - 1) // CHARACTERS_A_WINDOW
    shape = (windows, CHARACTERS_A_WINDOW)
    x = codes[: windows * CHARACTERS_A_WINDOW].reshape(shape)
    y = codes[1 : 1 + windows * CHARACTERS_A_WINDOW].reshape(shape)
    return _in_blocks(x, y, train, held_out)


def _documentation() -> Data:
    """The help texts of Python's own `help()`."""
    topics = pydoc_data.topics.topics
    return _next_characters("\n".join(topics[name] for name in sorted(topics)))


def _standard_library() -> Path:
    folder = Path(sysconfig.get_path("stdlib"))
    if not (folder / "asyncio").is_dir():
        raise NotOnThisMachine("needs the standard library's sources")
    return folder


def _source_code() -> Data:
    files = sorted(_standard_library().glob("*.py"))
    return _next_characters(
        "\n".join(path.read_text("utf-8", "ignore") for path in files)[:1_500_000]
    )


def _packages() -> Data:
    """Which package do these words come from?"""
    x, y = [], []
    for label, package in enumerate(PACKAGES):
        files = sorted((_standard_library() / package).rglob("*.py"))
        text = "\n".join(path.read_text("utf-8", "ignore") for path in files)
        words = re.findall(r"[a-z]{2,}", text.lower())
        codes = np.array([zlib.crc32(word.encode()) % HASHED_WORDS for word in words])
        windows = len(codes) // WORDS_A_WINDOW
        x.append(codes[: windows * WORDS_A_WINDOW].reshape(windows, WORDS_A_WINDOW))
        y.append(np.full(windows, label))
    return _in_blocks(np.concatenate(x), np.concatenate(y), 20_000, 1500)


def _transformer() -> keras.Model:
    """Two pre-norm blocks with causal attention (Vaswani et al. 2017)."""
    width = 48
    inputs = keras.Input((CHARACTERS_A_WINDOW,), dtype="int32")
    places = layers.Embedding(CHARACTERS_A_WINDOW, width)(
        keras.ops.arange(CHARACTERS_A_WINDOW)
    )
    x = layers.Embedding(CHARACTERS, width)(inputs) + places
    for _ in range(2):
        y = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(4, width // 4)(y, y, use_causal_mask=True)
        y = layers.Dense(2 * width, "gelu")(layers.LayerNormalization()(x))
        x = x + layers.Dense(width)(y)
    x = layers.LayerNormalization()(x)
    return keras.Model(inputs, layers.Dense(CHARACTERS, "softmax")(x))


def _gru() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((CHARACTERS_A_WINDOW,), dtype="int32"),
            layers.Embedding(CHARACTERS, 24),
            layers.GRU(64, return_sequences=True),
            layers.Dense(CHARACTERS, "softmax"),
        ]
    )


def _bag_of_words() -> keras.Model:
    """The mean of the words' embeddings, classified (Joulin et al. 2017)."""
    return keras.Sequential(
        [
            keras.Input((WORDS_A_WINDOW,), dtype="int32"),
            layers.Embedding(HASHED_WORDS, 16),
            layers.GlobalAveragePooling1D(),
            layers.Dense(len(PACKAGES), "softmax"),
        ]
    )


TASKS = (
    Task(
        "documentation_transformer",
        _documentation,
        _transformer,
        CLASSIFICATION,
        lambda rate: optimizers.AdamW(rate, weight_decay=0.1),
        learning_rate=0.003,
        steps=500,
        batch_size=32,
        accuracy=True,
    ),
    Task(
        "source_gru",
        _source_code,
        _gru,
        CLASSIFICATION,
        optimizers.RMSprop,
        learning_rate=0.003,
        steps=400,
        batch_size=32,
        accuracy=True,
    ),
    Task(
        "packages_bag_of_words",
        _packages,
        _bag_of_words,
        CLASSIFICATION,
        optimizers.Adagrad,
        learning_rate=0.3,
        steps=3000,
        batch_size=32,
        accuracy=True,
    ),
)
