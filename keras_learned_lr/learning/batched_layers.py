"""Keras layers applied with other weights for each trainee, batched by hand.

A rule takes the layer, a look-up from its variables to their `[batch, ...]` values and
the inputs `[batch, examples, ...]`. It returns the outputs, or None where the layer is
set up in a way that it does not cover; `tf.vectorized_map` serves then. Each rule is
here because it was measured to be faster.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

Lookup = Callable[[keras.Variable], tf.Tensor]
LayerRule = Callable[..., tf.Tensor | None]

# A longer sequence would make the unrolled graph slow to build.
LONGEST_UNROLLED = 64
# A convolution whose banded matrix has more elements is left to TensorFlow's kernel.
LARGEST_BANDED = 10_000
# A larger vocabulary is looked up.
LARGEST_ONE_HOT = 256
# Attention over more pairs of positions than this is left to matrix products.
LARGEST_SUMMED = 256
# The pooling of a window of more elements would be unrolled for too long.
LARGEST_WINDOW = 16


def merged(function: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor) -> tf.Tensor:
    """Applies what treats each example alone to the examples of all trainees at once.

    Args:
        function: Maps `[n, ...]` to `[n, ...]`.
        x: `[batch, examples, ...]`.
    """
    batch, examples = x.shape[:2]
    y = function(tf.reshape(x, [batch * examples, *x.shape[2:]]))
    return tf.reshape(y, [batch, examples, *y.shape[1:]])


def _affine(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor | None) -> tf.Tensor:
    """Returns x @ kernel + bias for `[batch, ..., in]` and `[batch, in, out]`."""
    batch, inner = x.shape[0], x.shape[1:-1]
    y = tf.matmul(tf.reshape(x, [batch, -1, x.shape[-1]]), kernel)
    if bias is not None:
        y += bias[:, tf.newaxis]
    return tf.reshape(y, [batch, *inner, kernel.shape[-1]])


def _dense(layer: Any, value: Lookup, x: tf.Tensor) -> tf.Tensor | None:
    if layer.lora_enabled or layer.quantization_mode is not None:
        return None
    bias = value(layer.bias) if layer.use_bias else None
    y = _affine(x, value(layer.kernel), bias)
    return y if layer.activation is None else layer.activation(y)


def _conv2d(
    layer: Any, value: Lookup, x: tf.Tensor, pool: Any = None
) -> tf.Tensor | None:
    """Convolves, and does the work of a pooling of which `pools_early` holds."""
    if not _usual_convolution(layer):
        return None
    kernel = value(layer.kernel)
    steps = (*layer.strides, *layer.dilation_rate)
    size = _banded_size(x.shape, kernel.shape)
    if steps == (1, 1, 1, 1) and size <= LARGEST_BANDED:
        y = _banded_convolution(x, kernel, layer.padding)
        if pool is not None:
            y = merged(_max_pool(pool), y)
        if layer.use_bias:
            y += value(layer.bias)[:, tf.newaxis, tf.newaxis, tf.newaxis]
        return y if layer.activation is None else layer.activation(y)
    biases = [None] * x.shape[0]
    if layer.use_bias:
        biases = tf.unstack(value(layer.bias))

    def convolve(images: tf.Tensor, filters: tf.Tensor, bias: Any) -> tf.Tensor:
        padding, dilations = layer.padding.upper(), layer.dilation_rate
        y = tf.nn.conv2d(images, filters, layer.strides, padding, dilations=dilations)
        if pool is not None:
            y = _max_pool(pool)(y)
        if bias is not None:
            y = tf.nn.bias_add(y, bias)
        return y if layer.activation is None else layer.activation(y)

    # Vectorised, TensorFlow would loop over the trainees with a slower kernel. One by
    # one, it makes one operation of the convolution, its bias and its activation.
    images, filters = tf.unstack(x), tf.unstack(kernel)
    return tf.stack(
        [convolve(*each) for each in zip(images, filters, biases, strict=True)]
    )


def _usual_convolution(layer: Any) -> bool:
    padding = layer.padding in ("same", "valid")
    usual = layer.data_format == "channels_last" and padding and not layer.lora_enabled
    return usual and layer.groups == 1


def pools_early(conv: Any, pool: Any, shape: Sequence[int | None]) -> bool:
    """Whether a pooling may come before the bias and activation of a convolution.

    Where these do not change which element of a window is the largest, they and their
    gradients are left with a quarter of the elements.

    Args:
        conv: A layer.
        pool: Another, which takes its outputs.
        shape: Of these.
    """
    return (
        type(conv) is keras.layers.Conv2D
        and type(pool) is keras.layers.MaxPooling2D
        and conv.activation in (keras.activations.linear, keras.activations.relu)
        and _usual_convolution(conv)
        and _tiles(pool, shape)
    )


def _banded_size(images: tf.TensorShape, kernel: tf.TensorShape) -> int:
    width, channels, (rows, _, _, filters) = images[3], images[4], kernel[1:]
    return rows * width * channels * width * filters


def _banded_convolution(x: tf.Tensor, kernel: tf.Tensor, padding: str) -> tf.Tensor:
    """Convolves small images as one matrix product a trainee.

    A row of outputs is a linear map of as many rows of inputs as the kernel has: a
    matrix in which the kernel stands again and again, shifted along a diagonal. It is
    mostly zeros, but one dense product is three times as fast as many tiny ones.

    Args:
        x: `[batch, examples, height, width, channels]`.
        kernel: `[batch, rows, columns, channels, filters]`.
        padding: "same" or "valid".
    """
    batch, rows, columns, channels, filters = kernel.shape
    if padding == "same":
        # Where the two sides differ TensorFlow pads the end more.
        sides = [[(n - 1) // 2, n // 2] for n in (rows, columns)]
        x = tf.pad(x, [[0, 0], [0, 0], *sides, [0, 0]])
    _, examples, height, width, _ = x.shape
    down, across = height - rows + 1, width - columns + 1
    lines = tf.reshape(kernel, [batch, rows, columns * channels, filters])
    shifted = [
        tf.pad(
            lines,
            [[0, 0], [0, 0], [j * channels, (across - 1 - j) * channels], [0, 0]],
        )
        for j in range(across)
    ]
    matrix = tf.reshape(
        tf.stack(shifted, axis=3), [batch, rows * width * channels, across * filters]
    )
    x = tf.reshape(x, [batch, examples, height, width * channels])
    x = tf.concat([x[:, :, i : i + down] for i in range(rows)], axis=3)
    y = tf.matmul(tf.reshape(x, [batch, examples * down, -1]), matrix)
    return tf.reshape(y, [batch, examples, down, across, filters])


def _max_pooling2d(layer: Any, value: Lookup, x: tf.Tensor) -> tf.Tensor | None:
    return merged(_max_pool(layer), x) if _tiles(layer, x.shape) else None


def _tiles(pool: Any, shape: Sequence[int | None]) -> bool:
    """Whether the windows are small, side by side and none of them beyond the end.

    Args:
        pool: The pooling.
        shape: Of its inputs, `[..., height, width, channels]`.
    """
    sides, size = shape[-3:-1], pool.pool_size
    whole = all(n and n % by == 0 for n, by in zip(sides, size, strict=True))
    usual = pool.data_format == "channels_last" and math.prod(size) <= LARGEST_WINDOW
    return usual and pool.strides == size and (whole or pool.padding == "valid")


def _max_pool(pool: Any) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the pooling with a gradient of its own: TensorFlow's takes far longer."""

    @tf.custom_gradient
    def apply(x: tf.Tensor) -> Any:
        y = _largest(x, pool.pool_size)
        return y, lambda dy: _to_largest(x, y, dy, pool.pool_size)

    return apply


def _places(x: tf.Tensor, size: tuple[int, int]) -> list[tf.Tensor]:
    """Returns what stands at each place of the windows, row by row."""
    height, width, channels = x.shape[1:]
    rows, columns = size
    down, across = height // rows, width // columns
    x = x[:, : down * rows, : across * columns]
    x = tf.reshape(x, [-1, down, rows, across, columns, channels])
    return [x[:, :, i, :, j] for i in range(rows) for j in range(columns)]


# Each in one pass over memory.
@tf.function(autograph=False, jit_compile=True)
def _largest(x: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    return functools.reduce(tf.maximum, _places(x, size))


@tf.function(autograph=False, jit_compile=True)
def _to_largest(
    x: tf.Tensor, y: tf.Tensor, dy: tf.Tensor, size: tuple[int, int]
) -> tf.Tensor:
    rows, columns = size
    given = []
    for place in _places(x, size):
        # Of equal elements the first takes it all, as in TensorFlow.
        given.append(tf.where(place == y, dy, 0.0))
        dy -= given[-1]
    lines = [
        tf.concat(given[i : i + columns], axis=3) for i in range(0, len(given), columns)
    ]
    down, across, channels = y.shape[1:]
    dx = tf.stack(lines, axis=2)
    dx = tf.reshape(dx, [-1, down * rows, across * columns, channels])
    rest = [[0, x.shape[1] - dx.shape[1]], [0, x.shape[2] - dx.shape[2]]]
    return tf.pad(dx, [[0, 0], *rest, [0, 0]])


def _attention(
    layer: Any, value: Lookup, query: tf.Tensor, source: tf.Tensor, **options: Any
) -> tf.Tensor | None:
    causal = options.pop("use_causal_mask", False)
    odd = layer.dropout or layer._sliding_window is not None or layer._use_gate
    projections = (layer.query_dense, layer.key_dense, layer.value_dense)
    sublayers = (*projections, layer.output_dense)
    if (
        options
        or odd
        or query.shape.rank != 4
        or source.shape.rank != 4
        or len(layer.output_dense.kernel.shape) != 3
        or any(dense.lora_enabled or dense.quantization_mode for dense in sublayers)
    ):
        return None
    batch, examples = query.shape[:2]

    def project(dense: Any, x: tf.Tensor) -> tf.Tensor:
        kernel = value(dense.kernel)
        heads, size = kernel.shape[2:]
        kernel = tf.reshape(kernel, [batch, kernel.shape[1], heads * size])
        bias = None
        if dense.bias is not None:
            bias = tf.reshape(value(dense.bias), [batch, heads * size])
        y = _affine(x, kernel, bias)
        return tf.reshape(y, [batch, examples, x.shape[2], heads, size])

    xs = (query, source, source)
    q, k, v = (project(dense, x) for dense, x in zip(projections, xs, strict=True))
    q *= layer._inverse_sqrt_key_dim
    short = q.shape[2] * k.shape[2] <= LARGEST_SUMMED
    y = (_summed_attention if short else _matmul_attention)(q, k, v, causal)
    y = tf.reshape(y, [*query.shape[:3], -1])
    kernel = value(layer.output_dense.kernel)
    bias = None if layer.output_dense.bias is None else value(layer.output_dense.bias)
    return _affine(y, tf.reshape(kernel, [batch, -1, kernel.shape[-1]]), bias)


def _matmul_attention(
    q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, causal: bool
) -> tf.Tensor:
    """Attends; `[batch, examples, positions, heads, size]` each."""
    q, k, v = (tf.transpose(x, [0, 1, 3, 2, 4]) for x in (q, k, v))
    scores = tf.matmul(q, k, transpose_b=True)
    if causal:
        scores = tf.where(_past(scores), scores, scores.dtype.min)
    return tf.transpose(tf.matmul(tf.nn.softmax(scores), v), [0, 1, 3, 2, 4])


def _summed_attention(
    q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, causal: bool
) -> tf.Tensor:
    """Does the same as sums of products: a matrix product so small costs more to call.

    The examples go last, where XLA computes on many at once.
    """
    q, k, v = (tf.transpose(x, [0, 3, 2, 4, 1]) for x in (q, k, v))
    # [batch, heads, queries, keys, examples]
    scores = tf.reduce_sum(q[:, :, :, tf.newaxis] * k[:, :, tf.newaxis], axis=4)
    if causal:
        past = _past(scores[..., 0])[:, :, tf.newaxis]
        scores = tf.where(past, scores, scores.dtype.min)
    weights = tf.nn.softmax(scores, axis=3)[:, :, :, :, tf.newaxis]
    y = tf.reduce_sum(weights * v[:, :, tf.newaxis], axis=3)
    return tf.transpose(y, [0, 4, 2, 1, 3])


def _past(scores: tf.Tensor) -> tf.Tensor:
    return tf.linalg.band_part(tf.ones(scores.shape[-2:], tf.bool), -1, 0)


def _embedding(layer: Any, value: Lookup, x: tf.Tensor) -> tf.Tensor | None:
    usual = not layer.lora_enabled and layer.quantization_mode is None
    if not usual or layer.input_dim > LARGEST_ONE_HOT:
        return None
    table = value(layer.embeddings)
    # Its gradient is a product too, where that of a look-up adds row by row.
    return _affine(tf.one_hot(x, layer.input_dim, dtype=table.dtype), table, None)


def _layer_normalization(layer: Any, value: Lookup, x: tf.Tensor) -> tf.Tensor | None:
    axes = (layer.axis,) if isinstance(layer.axis, int) else tuple(layer.axis)
    # The layer does not know of the axis of the trainees.
    if layer.rms_scaling or axes not in ((-1,), (x.shape.rank - 2,)):
        return None
    mean = tf.reduce_mean(x, axis=-1, keepdims=True)
    centered = x - mean
    variance = tf.reduce_mean(tf.square(centered), axis=-1, keepdims=True)
    y = centered * tf.math.rsqrt(variance + layer.epsilon)
    place = [x.shape[0], *[1] * (x.shape.rank - 2), x.shape[-1]]
    if layer.scale:
        y *= tf.reshape(value(layer.gamma), place)
    if layer.center:
        y += tf.reshape(value(layer.beta), place)
    return y


def _gru(layer: Any, value: Lookup, x: tf.Tensor) -> tf.Tensor | None:
    cell = layer.cell
    odd = layer.stateful or layer.return_state or layer.go_backwards
    drops = cell.dropout or cell.recurrent_dropout
    usual = cell.reset_after and cell.use_bias and not odd and not drops
    if not usual or x.shape[2] > LONGEST_UNROLLED:
        return None
    kernel, recurrent = value(cell.kernel), value(cell.recurrent_kernel)
    input_bias, recurrent_bias = tf.unstack(value(cell.bias), axis=1)
    steps = tf.unstack(_affine(x, kernel, input_bias), axis=2)
    state = tf.zeros([*x.shape[:2], cell.units], x.dtype)
    outputs = []
    for step in steps:
        inner = tf.matmul(state, recurrent) + recurrent_bias[:, tf.newaxis]
        gates = 2 * cell.units
        opened = cell.recurrent_activation(step[..., :gates] + inner[..., :gates])
        update, reset = tf.split(opened, 2, axis=-1)
        new = cell.activation(step[..., gates:] + reset * inner[..., gates:])
        state = update * state + (1.0 - update) * new
        outputs.append(state)
    return tf.stack(outputs, axis=2) if layer.return_sequences else state


# By exact type: a subclass may do anything.
RULES: dict[type, LayerRule] = {
    keras.layers.Conv2D: _conv2d,
    keras.layers.Dense: _dense,
    keras.layers.Embedding: _embedding,
    keras.layers.GRU: _gru,
    keras.layers.LayerNormalization: _layer_normalization,
    keras.layers.MaxPooling2D: _max_pooling2d,
    keras.layers.MultiHeadAttention: _attention,
}
# Layers without variables that treat each example alone.
MERGED: tuple[type, ...] = (
    keras.layers.Activation,
    keras.layers.Add,
    keras.layers.AveragePooling2D,
    keras.layers.Flatten,
    keras.layers.GlobalAveragePooling1D,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.LeakyReLU,
    keras.layers.MaxPooling2D,
    keras.layers.ReLU,
    keras.layers.Reshape,
    keras.layers.Rescaling,
    keras.layers.Softmax,
)
