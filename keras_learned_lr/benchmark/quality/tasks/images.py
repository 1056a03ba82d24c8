"""Tasks on real images."""

import keras
import numpy as np

from keras_learned_lr.benchmark.quality.task import Data, NotOnThisMachine, Task, split
from keras_learned_lr.benchmark.quality.tasks import pictures
from keras_learned_lr.datasets import fashion_mnist

layers, optimizers = keras.layers, keras.optimizers
CLASSIFICATION = "sparse_categorical_crossentropy"
TEST_IMAGES = 2000


def _fashion() -> Data:
    found = fashion_mnist(train=10_000, validation=1000)
    if found is None:
        raise NotOnThisMachine("needs Fashion-MNIST: apt install dataset-fashion-mnist")
    x, y = found.test
    return Data(found.train, found.validation, (x[:TEST_IMAGES], y[:TEST_IMAGES]))


def _halved(part: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    x, y = part
    return x.reshape(-1, 14, 2, 14, 2, 1).mean(axis=(2, 4)), y


def _fashion_halved() -> Data:
    return Data(*map(_halved, _fashion()))


def _fashion_itself() -> Data:
    return Data(*((x, x) for x, _ in _fashion_halved()))


def _letters() -> Data:
    x, y = pictures.letters(20, copies=12)
    noise = np.random.default_rng(1).normal(scale=0.3, size=x.shape)
    return split((x + noise).astype("float32"), y, 1000, TEST_IMAGES)


def _emoji_in_grey() -> Data:
    x = pictures.emoji(24)
    return split(x.mean(axis=-1, keepdims=True), x, 150, 250)


def _noisy_photographs() -> Data:
    clean = pictures.photograph_patches(16, 6000)
    noise = np.random.default_rng(1).normal(scale=0.2, size=clean.shape)
    return split((clean + noise).astype("float32"), clean, 500, 1000)


def _mlp() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Flatten(),
            layers.Dense(128, "relu"),
            layers.Dense(64, "relu"),
            layers.Dense(10, "softmax"),
        ]
    )


def _cnn() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((14, 14, 1)),
            layers.Conv2D(16, 3, activation="relu"),
            layers.Conv2D(16, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.25),
            layers.Dense(10, "softmax"),
        ]
    )


def _resnet() -> keras.Model:
    """A residual network of two stages (He et al. 2016), 14 and 7 pixels wide."""

    def normalized(x: keras.KerasTensor) -> keras.KerasTensor:
        return layers.BatchNormalization(momentum=0.9)(x)

    def block(x: keras.KerasTensor, filters: int, stride: int) -> keras.KerasTensor:
        y = layers.Conv2D(filters, 3, stride, "same", use_bias=False)(x)
        y = layers.ReLU()(normalized(y))
        y = normalized(layers.Conv2D(filters, 3, 1, "same", use_bias=False)(y))
        if stride > 1:
            x = layers.Conv2D(filters, 1, stride, "same", use_bias=False)(x)
        return layers.ReLU()(x + y)

    inputs = keras.Input((14, 14, 1))
    x = layers.Conv2D(8, 3, 1, "same", use_bias=False)(inputs)
    x = block(layers.ReLU()(normalized(x)), 8, 1)
    x = block(block(x, 16, 2), 16, 1)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10, "softmax")(x))


def _autoencoder() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((14, 14, 1)),
            layers.Flatten(),
            layers.Dense(96, "elu"),
            layers.Dense(12),
            layers.Dense(96, "elu"),
            layers.Dense(14 * 14, "sigmoid"),
            layers.Reshape((14, 14, 1)),
        ]
    )


def _letter_cnn() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((20, 20, 1)),
            layers.Conv2D(12, 5, 2, activation="gelu"),
            layers.GroupNormalization(4),
            layers.Conv2D(24, 3, 2, activation="gelu"),
            layers.Flatten(),
            layers.Dense(62, "softmax"),
        ]
    )


def _colourer() -> keras.Model:
    """A small U-net: down, up, and a way round for the details."""
    inputs = keras.Input((24, 24, 1))
    wide = layers.Conv2D(12, 3, padding="same", activation="relu")(inputs)
    deep = layers.Conv2D(24, 3, 2, "same", activation="relu")(wide)
    deep = layers.Conv2D(24, 3, padding="same", activation="relu")(deep)
    deep = layers.UpSampling2D()(deep)
    both = layers.Concatenate()([wide, deep])
    outputs = layers.Conv2D(3, 3, padding="same", activation="sigmoid")(both)
    return keras.Model(inputs, outputs)


def _denoiser() -> keras.Model:
    """Predicts the noise and takes it off (Zhang et al. 2017)."""
    inputs = keras.Input((16, 16, 1))
    x = layers.Conv2D(12, 3, padding="same", activation="relu")(inputs)
    x = layers.Conv2D(12, 3, padding="same", activation="relu")(x)
    return keras.Model(inputs, inputs - layers.Conv2D(1, 3, padding="same")(x))


TASKS = (
    Task(
        "fashion_mlp",
        _fashion,
        _mlp,
        CLASSIFICATION,
        lambda rate: optimizers.SGD(rate, momentum=0.9, nesterov=True),
        learning_rate=0.03,
        steps=1000,
        batch_size=64,
        accuracy=True,
    ),
    Task(
        "fashion_cnn",
        _fashion_halved,
        _cnn,
        CLASSIFICATION,
        optimizers.Adam,
        learning_rate=0.003,
        steps=600,
        batch_size=32,
        accuracy=True,
    ),
    Task(
        "fashion_resnet",
        _fashion_halved,
        _resnet,
        CLASSIFICATION,
        lambda rate: optimizers.SGD(rate, momentum=0.9, weight_decay=5e-4),
        learning_rate=0.1,
        steps=400,
        batch_size=32,
        accuracy=True,
    ),
    Task(
        "fashion_autoencoder",
        _fashion_itself,
        _autoencoder,
        "mean_squared_error",
        optimizers.RMSprop,
        learning_rate=0.001,
        steps=1500,
        batch_size=64,
    ),
    Task(
        "letters_cnn",
        _letters,
        _letter_cnn,
        CLASSIFICATION,
        optimizers.SGD,
        learning_rate=0.3,
        steps=1000,
        batch_size=32,
        accuracy=True,
    ),
    Task(
        "emoji_colours",
        _emoji_in_grey,
        _colourer,
        "mean_squared_error",
        lambda rate: optimizers.AdamW(rate, weight_decay=0.01),
        learning_rate=0.003,
        steps=300,
        batch_size=16,
    ),
    Task(
        "photograph_noise",
        _noisy_photographs,
        _denoiser,
        "mean_squared_error",
        optimizers.Adam,
        learning_rate=0.003,
        steps=500,
        batch_size=32,
    ),
)
