"""Tasks on tables: patients, terrain, ratings, and functions that are hard to learn."""

from typing import Any

import keras
import numpy as np

from keras_learned_lr.benchmark.quality.task import Data, NotOnThisMachine, Task, split

layers, optimizers = keras.layers, keras.optimizers
USERS, ITEMS = 400, 300
SIGNS = 30
COLUMNS = 12


def _diabetes() -> Data:
    """Disease progression of 442 patients (Efron et al. 2004), standardised."""
    try:
        from sklearn.datasets import load_diabetes
    except ImportError as error:
        raise NotOnThisMachine(
            "needs scikit-learn: pip install scikit-learn"
        ) from error
    x, y = load_diabetes(return_X_y=True)
    x = x / x.std(axis=0)
    y = (y - y.mean()) / y.std()
    return split(x.astype("float32"), y[:, np.newaxis].astype("float32"), 80, 120)


def _terrain() -> Data:
    """The height of the land at Jacksboro, which comes with matplotlib."""
    try:
        from matplotlib.cbook import get_sample_data
    except ImportError as error:
        raise NotOnThisMachine("needs matplotlib: pip install matplotlib") from error
    file: Any = get_sample_data("jacksboro_fault_dem.npz")
    height = file["elevation"].astype("float32")[::2, ::2]
    grid = np.meshgrid(
        *(np.linspace(-1.7, 1.7, n) for n in height.shape), indexing="ij"
    )
    x = np.stack([axis.ravel() for axis in grid], axis=-1).astype("float32")
    y = ((height - height.mean()) / height.std()).reshape(-1, 1)
    return split(x, y, 1000, 2000)


def _ratings() -> Data:
    """Ratings as users × items of rank 4 with noise; a few items are rated by most."""
    random = np.random.default_rng(0)
    count, rank = 24_000, 4
    user = random.integers(0, USERS, count)
    item = np.minimum(random.geometric(0.012, count) - 1, ITEMS - 1)
    tastes = random.normal(size=(USERS, rank))
    kinds = random.normal(size=(ITEMS, rank))
    rating = (tastes[user] * kinds[item]).sum(-1) / rank**0.5
    rating += 0.5 * random.normal(size=USERS)[user] + 0.5 * random.normal(size=count)
    x = np.stack([user, item], axis=-1)
    return split(x, rating[:, np.newaxis].astype("float32"), 1500, 3000)


def _staircase() -> Data:
    """Products of ever more signs: each step is invisible until the one before is done.

    The merged staircase of Abbe, Boix-Adsera & Misiakiewicz 2022, with noise.
    """
    random = np.random.default_rng(0)
    x = random.choice([-1.0, 1.0], (60_000, SIGNS))
    y = np.cumprod(x[:, :5], axis=1).sum(axis=1) / 2.0
    y += random.normal(scale=0.3, size=len(x))
    return split(x.astype("float32"), y[:, np.newaxis].astype("float32"), 1000, 2000)


def _random_trees() -> Data:
    """Classes voted for by random decision trees; one label in ten is random."""
    random = np.random.default_rng(0)
    count, depth, classes = 30_000, 4, 4
    x = random.uniform(-1.7, 1.7, (count, COLUMNS))
    votes = np.zeros((count, classes))
    for _ in range(12):
        leaf = np.zeros(count, int)
        for _ in range(depth):
            columns = random.integers(0, COLUMNS, 2**depth)
            bounds = random.uniform(-1.0, 1.0, 2**depth)
            leaf = 2 * leaf + (x[np.arange(count), columns[leaf]] > bounds[leaf])
            leaf %= 2**depth
        votes += random.normal(size=(2**depth, classes))[leaf]
    y = votes.argmax(axis=1)
    y = np.where(random.random(count) < 0.1, random.integers(0, classes, count), y)
    return split(x.astype("float32"), y, 1000, 3000)


def _multiplexer() -> Data:
    """Three bits say which one of eight is the answer; one label in ten is random.

    A task of Wilson's (1987, Classifier systems and the animat problem).
    """
    random = np.random.default_rng(0)
    count = 30_000
    bits = random.integers(0, 2, (count, 11))
    asked = bits[:, :3] @ (4, 2, 1)
    y = bits[np.arange(count), 3 + asked]
    y = np.where(random.random(count) < 0.1, random.integers(0, 2, count), y)
    return split((2.0 * bits - 1.0).astype("float32"), y, 1000, 3000)


def _perceptron(inputs: int, units: tuple[int, ...], activation: str) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((inputs,)),
            *(layers.Dense(n, activation) for n in units),
            layers.Dense(1),
        ]
    )


def _recommender() -> keras.Model:
    """Products of embeddings and biases (Koren, Bell & Volinsky 2009)."""
    inputs = keras.Input((2,), dtype="int32")
    user, item = inputs[:, 0], inputs[:, 1]
    of_user = layers.Embedding(USERS, 8, keras.initializers.RandomNormal(0.0, 0.3))(
        user
    )
    of_item = layers.Embedding(ITEMS, 8, keras.initializers.RandomNormal(0.0, 0.3))(
        item
    )
    match = layers.Dot(-1)([of_user, of_item])
    biases = (
        layers.Embedding(USERS, 1, "zeros")(user),
        layers.Embedding(ITEMS, 1, "zeros")(item),
    )
    return keras.Model(inputs, match + biases[0] + biases[1])


def _residual_mlp() -> keras.Model:
    inputs = keras.Input((COLUMNS,))
    x = layers.Dense(48)(inputs)
    for _ in range(2):
        y = layers.Dense(96, "gelu")(layers.LayerNormalization()(x))
        x = x + layers.Dense(48)(layers.Dropout(0.1)(y))
    return keras.Model(inputs, layers.Dense(4, "softmax")(x))


def _wide_and_narrow() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((11,)),
            layers.Dense(48, "tanh"),
            layers.Dense(24, "tanh"),
            layers.Dense(2, "softmax"),
        ]
    )


TASKS = (
    Task(
        "diabetes_mlp",
        _diabetes,
        lambda: _perceptron(10, (16,), "softplus"),
        "mean_squared_error",
        optimizers.SGD,
        learning_rate=0.03,
        steps=300,
        batch_size=16,
    ),
    Task(
        "terrain_mlp",
        _terrain,
        lambda: _perceptron(2, (48, 48, 48), "tanh"),
        "mean_squared_error",
        optimizers.Adam,
        learning_rate=0.003,
        steps=3000,
        batch_size=64,
    ),
    Task(
        "ratings_embeddings",
        _ratings,
        _recommender,
        "mean_squared_error",
        optimizers.Adagrad,
        learning_rate=3.0,
        steps=2000,
        batch_size=64,
    ),
    Task(
        "staircase_plateaus",
        _staircase,
        lambda: _perceptron(SIGNS, (128,), "relu"),
        "mean_squared_error",
        lambda rate: optimizers.SGD(rate, momentum=0.9),
        learning_rate=0.03,
        steps=1200,
        batch_size=32,
    ),
    Task(
        "trees_residual_mlp",
        _random_trees,
        _residual_mlp,
        "sparse_categorical_crossentropy",
        lambda rate: optimizers.AdamW(rate, weight_decay=0.01),
        learning_rate=0.003,
        steps=5000,
        batch_size=64,
        accuracy=True,
        steps_per_execution=5,
    ),
    Task(
        "multiplexer_long",
        _multiplexer,
        _wide_and_narrow,
        "sparse_categorical_crossentropy",
        lambda rate: optimizers.SGD(rate, momentum=0.9),
        learning_rate=0.1,
        steps=10_000,
        batch_size=64,
        accuracy=True,
        steps_per_execution=10,
    ),
)
