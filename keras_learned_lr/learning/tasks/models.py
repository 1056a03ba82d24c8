"""The small models that trainees are, by name."""

from collections.abc import Callable
from typing import Any

import keras
from keras import layers

from keras_learned_lr.learning.tasks.initial import EMBEDDED

Maker = Callable[..., keras.Model]


def mlp(
    shape: tuple[int, ...],
    outputs: int,
    depth: int = 2,
    width: int = 32,
    activation: str = "relu",
    normalise: float | None = None,
) -> keras.Model:
    """Returns dense layers, with batch normalisation between them if asked for.

    Args:
        shape: Of the input.
        outputs: Units of the last layer.
        depth: Hidden layers.
        width: Units of each.
        activation: After each.
        normalise: The momentum of the moving averages; None for no normalisation.
    """
    stack: list[Any] = [keras.Input(shape)]
    if len(shape) > 1:
        stack.append(layers.Flatten())
    for _ in range(depth):
        if normalise is not None:
            stack.append(layers.Dense(width, use_bias=False))
            stack.append(layers.BatchNormalization(momentum=normalise))
            stack.append(layers.Activation(activation))
        else:
            stack.append(layers.Dense(width, activation))
    return keras.Sequential([*stack, layers.Dense(outputs)])


def _embedding(size: int, name: str = "embedding") -> keras.Layer:
    """Returns what `layers.Embedding` is to one-hot inputs, and begins like it."""
    start = keras.initializers.RandomUniform(-EMBEDDED, EMBEDDED)
    return layers.Dense(size, use_bias=False, kernel_initializer=start, name=name)


def bag(
    shape: tuple[int, ...],
    outputs: int,
    size: int = 16,
    width: int = 16,
    activation: str = "relu",
) -> keras.Model:
    """Returns the mean of a text's embeddings, and a hidden layer on it."""
    return keras.Sequential(
        [
            keras.Input(shape),
            _embedding(size),
            layers.Dense(width, activation),
            layers.Dense(outputs),
        ]
    )


def factors(
    shape: tuple[int, ...], outputs: int, first: int = 40, size: int = 8
) -> keras.Model:
    """Returns the product of two embeddings, and an offset of each (Koren et al. 2009).

    Args:
        shape: Of the input.
        outputs: Units of the last layer.
        first: Inputs that say which the first thing is; the others say the second.
        size: Of the embeddings.
    """
    inputs = keras.Input(shape)
    parts = {"first": inputs[:, :first], "second": inputs[:, first:]}
    embedded = [_embedding(size, f"{k}_embedding")(x) for k, x in parts.items()]
    product = layers.Multiply()(embedded)
    both = layers.Concatenate()([product, _embedding(1, "offset_embedding")(inputs)])
    return keras.Model(inputs, layers.Dense(outputs)(both))


def twins(
    shape: tuple[int, ...],
    outputs: int,
    size: int = 6,
    width: int = 16,
    activation: str = "silu",
) -> keras.Model:
    """Returns a hidden layer on two embeddings out of one table."""
    inputs = keras.Input(shape)
    half = shape[0] // 2
    table = _embedding(size)
    parts = [table(inputs[:, :half]), table(inputs[:, half:])]
    x = layers.Concatenate()([layers.Multiply()(parts), layers.Add()(parts)])
    x = layers.Dense(width, activation)(x)
    return keras.Model(inputs, layers.Dense(outputs)(x))


def bottleneck(
    shape: tuple[int, ...],
    outputs: int,
    width: int = 24,
    code: int = 4,
    activation: str = "relu",
) -> keras.Model:
    """Returns an autoencoder with two hidden layers around a narrow one."""
    return keras.Sequential(
        [
            keras.Input(shape),
            layers.Dense(width, activation),
            layers.Dense(code),
            layers.Dense(width, activation),
            layers.Dense(outputs),
        ]
    )


def cnn(
    shape: tuple[int, ...],
    outputs: int,
    filters: int = 4,
    activation: str = "relu",
    pooling: str = "max",
    normalise: float | None = None,
) -> keras.Model:
    """Returns two 3×3 convolutions with pooling between them.

    Args:
        shape: Of the images.
        outputs: Units of the last layer.
        filters: Of the first convolution; the second has twice as many.
        activation: After each.
        pooling: "max" or "average".
        normalise: The momentum of the moving averages of batch normalisation; None for
            none.
    """
    pool = {"max": layers.MaxPooling2D, "average": layers.AveragePooling2D}[pooling]
    stack: list[Any] = [keras.Input(shape)]
    for size in (filters, 2 * filters):
        if normalise is not None:
            stack.append(layers.Conv2D(size, 3, padding="same", use_bias=False))
            stack.append(layers.BatchNormalization(momentum=normalise))
            stack.append(layers.Activation(activation))
        else:
            stack.append(layers.Conv2D(size, 3, padding="same", activation=activation))
        stack.append(pool(2))
    return keras.Sequential([*stack, layers.Flatten(), layers.Dense(outputs)])


def residual(
    shape: tuple[int, ...],
    outputs: int,
    width: int = 24,
    blocks: int = 2,
    activation: str = "relu",
) -> keras.Model:
    """Returns dense residual blocks with layer normalisation before each."""
    x = inputs = keras.Input(shape)
    if len(shape) > 1:
        x = layers.Flatten()(x)
    x = layers.Dense(width)(x)
    for _ in range(blocks):
        y = layers.LayerNormalization()(x)
        y = layers.Dense(width, activation)(y)
        x = layers.Add()([x, layers.Dense(width)(y)])
    return keras.Model(inputs, layers.Dense(outputs)(x))


def residual_cnn(
    shape: tuple[int, ...],
    outputs: int,
    filters: int = 4,
    blocks: int = 1,
    normalise: float = 0.99,
) -> keras.Model:
    """Returns residual blocks of 3×3 convolutions (He et al. 2016).

    Args:
        shape: Of the images.
        outputs: Units of the last layer.
        filters: Of every convolution.
        blocks: Of two convolutions each.
        normalise: The momentum of the moving averages of batch normalisation.
    """

    def convolved(x: Any) -> Any:
        x = layers.BatchNormalization(momentum=normalise)(x)
        x = layers.Activation("relu")(x)
        return layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)

    inputs = keras.Input(shape)
    x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(inputs)
    x = layers.MaxPooling2D(2)(x)
    for _ in range(blocks):
        x = layers.Add()([x, convolved(convolved(x))])
    x = layers.BatchNormalization(momentum=normalise)(x)
    x = layers.Activation("relu")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(outputs)(x))


def gru(shape: tuple[int, ...], outputs: int, units: int = 12) -> keras.Model:
    """Returns one GRU and a dense layer."""
    return keras.Sequential(
        [keras.Input(shape), layers.GRU(units), layers.Dense(outputs)]
    )


def attention(
    shape: tuple[int, ...], outputs: int, width: int = 16, heads: int = 2
) -> keras.Model:
    """Returns one transformer block and a dense layer on what is left of it."""
    inputs = keras.Input(shape)
    # Normalised over the whole sequence, so that its offset has a value for each
    # place: a learned position.
    x = layers.LayerNormalization(axis=(1, 2))(layers.Dense(width)(inputs))
    y = layers.MultiHeadAttention(heads, width // heads)(x, x)
    x = layers.LayerNormalization()(layers.Add()([x, y]))
    y = layers.Dense(width)(layers.Dense(2 * width, "gelu")(x))
    x = layers.LayerNormalization()(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(outputs)(x))


MODELS: dict[str, Maker] = {
    "mlp": mlp,
    "bag": bag,
    "factors": factors,
    "twins": twins,
    "bottleneck": bottleneck,
    "cnn": cnn,
    "residual": residual,
    "residual_cnn": residual_cnn,
    "gru": gru,
    "attention": attention,
}
