"""The models that overhead is measured on, with data that lies ready."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

layers = keras.layers
LOSS = "sparse_categorical_crossentropy"
BATCH_SIZE, BATCHES, CLASSES = 128, 16, 10
VALIDATION = 512
TOKENS, LENGTH, WIDTH = 200, 32, 32


def _cnn() -> keras.Model:
    """244 366 parameters: the two stages of Keras's own first example, and a layer."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(140, "relu"),
            layers.Dense(CLASSES, "softmax"),
        ]
    )


def _transformer() -> keras.Model:
    """Two blocks of four heads over 32 tokens."""
    inputs = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(TOKENS, WIDTH)(inputs)
    x = x + layers.Embedding(LENGTH, WIDTH)(keras.ops.arange(LENGTH))
    for _ in range(2):
        seen = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(4, WIDTH // 4)(seen, seen)
        hidden = layers.Dense(4 * WIDTH, "gelu")(layers.LayerNormalization()(x))
        x = x + layers.Dense(WIDTH)(hidden)
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(CLASSES, "softmax")(x))


def _tiny() -> keras.Model:
    """So small that what is around a training step is all there is."""
    return keras.Sequential([keras.Input((8,)), layers.Dense(CLASSES, "softmax")])


def _images(random: np.random.Generator, count: int) -> np.ndarray:
    return random.normal(size=(count, 28, 28, 1)).astype("float32")


def _texts(random: np.random.Generator, count: int) -> np.ndarray:
    return random.integers(0, TOKENS, (count, LENGTH)).astype("int32")


def _rows(random: np.random.Generator, count: int) -> np.ndarray:
    return random.normal(size=(count, 8)).astype("float32")


@dataclasses.dataclass(frozen=True)
class Workload:
    """A model and the data that it trains on.

    Attributes:
        make: Builds the model.
        inputs: Draws so many inputs.
        batch_size: Examples of a training step.
    """

    make: Callable[[], keras.Model]
    inputs: Callable[[np.random.Generator, int], np.ndarray]
    batch_size: int = BATCH_SIZE

    def compiled(self, jit_compile: bool | str) -> keras.Model:
        """Returns the model, compiled with Adam."""
        model = self.make()
        model.compile("adam", LOSS, jit_compile=jit_compile)
        return model

    def batches(self) -> tf.data.Dataset:
        """Returns batches without end that wait for nobody."""
        # Where tf.data tunes itself, the end of a `fit` may wait seconds for the tuner.
        options = tf.data.Options()
        options.autotune.enabled = False
        x, y = self._labelled(BATCHES * self.batch_size, seed=0)
        parts = (
            part.reshape(BATCHES, self.batch_size, *part.shape[1:]) for part in (x, y)
        )
        data = tf.data.Dataset.from_tensor_slices(tuple(parts)).repeat()
        return data.with_options(options)

    def validation(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns validation data, more than a controller looks at."""
        return self._labelled(VALIDATION, seed=1)

    def _labelled(self, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        x = self.inputs(np.random.default_rng(seed), count)
        flat = x.reshape(count, -1)
        # Something to learn, the same for every draw.
        weights = np.random.default_rng(2).normal(size=(flat.shape[1], CLASSES))
        return x, np.argmax((flat - flat.mean()) @ weights, axis=1)


WORKLOADS = {
    "cnn": Workload(_cnn, _images),
    "transformer": Workload(_transformer, _texts),
}
TINY = Workload(_tiny, _rows, batch_size=8)
