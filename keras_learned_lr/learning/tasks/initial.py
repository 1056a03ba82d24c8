"""Initial weights and widths, drawn for many trainees of one model."""

from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers

from keras_learned_lr.learning.tasks.task_family import log_uniform

# Gain and fan of a kernel's initial deviation, √(gain / fan), and how often each is
# drawn: Keras's own (Glorot & Bengio 2010), He et al. 2015, LeCun et al. 1998.
SCALES = (("average", 1.0, 0.6), ("in", 2.0, 0.2), ("in", 1.0, 0.2))
# Largest initial weight of an embedding, Keras's own.
EMBEDDED = 0.05
NARROWEST = 0.35
MASKED = (layers.Dense, layers.Conv2D)


class Widths(NamedTuple):
    """Which units of each task's model are there.

    Attributes:
        mask: `[tasks, parameters]`, 1 where a parameter is and 0 where it is not; None
            where the models are all of full width.
        kept_in: Inputs that a kernel really has, `[tasks]`, by the id of its variable.
        kept_out: The same for its outputs.
    """

    mask: np.ndarray | None
    kept_in: dict[int, np.ndarray]
    kept_out: dict[int, np.ndarray]


def draw_widths(model: keras.Model, tasks: int, rng: np.random.Generator) -> Widths:
    """Draws how many units of each hidden layer a task's model has.

    Only chains of dense and convolution layers are narrowed; other models keep their
    width.

    Args:
        model: A built model.
        tasks: How many models to draw.
        rng: Draws them.
    """
    chain = [layer for layer in model.layers if isinstance(layer, MASKED)]
    known = (
        *MASKED,
        layers.BatchNormalization,
        layers.Activation,
        layers.Flatten,
        layers.MaxPooling2D,
        layers.AveragePooling2D,
    )
    if not isinstance(model, keras.Sequential) or not all(
        isinstance(layer, known) for layer in model.layers
    ):
        return Widths(None, {}, {})
    masks: dict[int, np.ndarray] = {}
    kept_in: dict[int, np.ndarray] = {}
    kept_out: dict[int, np.ndarray] = {}
    units = np.ones((tasks, model.input_shape[-1]), bool)
    for layer in model.layers:
        if isinstance(layer, layers.Flatten):
            units = np.tile(units, (1, int(np.prod(layer.input.shape[1:-1]))))
        elif isinstance(layer, MASKED):
            size = layer.kernel.shape[-1]
            kept = np.full(tasks, size)
            if layer is not chain[-1]:
                kept = log_uniform(rng, NARROWEST * size, size, tasks)
            out = np.arange(size) < np.maximum(np.round(kept), 2)[:, np.newaxis]
            both = units[:, :, np.newaxis] & out[:, np.newaxis]
            while both.ndim <= len(layer.kernel.shape):
                both = both[:, np.newaxis]
            masks[id(layer.kernel)] = np.broadcast_to(
                both, (tasks, *layer.kernel.shape)
            )
            kept_in[id(layer.kernel)] = units.sum(1)
            kept_out[id(layer.kernel)] = out.sum(1)
            units = out
            if layer.use_bias:
                masks[id(layer.bias)] = out
        else:
            for variable in layer.trainable_variables:
                masks[id(variable)] = units
    flat = [masks[id(v)].reshape(tasks, -1) for v in model.trainable_variables]
    return Widths(np.concatenate(flat, axis=1), kept_in, kept_out)


def draw_parameters(
    model: keras.Model, widths: Widths, tasks: int, rng: np.random.Generator
) -> np.ndarray:
    """Draws initial weights as Keras's initializers do.

    Args:
        model: A built model.
        widths: What `draw_widths` drew.
        tasks: How many models to draw.
        rng: Draws them.

    Returns:
        float32 `[tasks, parameters]`; parameters that a narrower model does not have
        are drawn as well.
    """
    chances = [chance for *_, chance in SCALES]
    scale = rng.choice(len(SCALES), size=tasks, p=chances)
    flat = []
    for variable in model.trainable_variables:
        shape = (tasks, *variable.shape)
        if variable.path.endswith("recurrent_kernel"):
            values = _orthogonal(shape, rng)
        elif "embedding" in variable.path:
            values = rng.uniform(-EMBEDDED, EMBEDDED, size=shape)
        elif len(variable.shape) > 1 and variable.path.endswith("kernel"):
            fan_in, fan_out = map(np.asarray, _fans(variable))
            if id(variable) in widths.kept_in:
                places = int(np.prod(variable.shape[:-2]))
                fan_in = places * widths.kept_in[id(variable)]
                fan_out = places * widths.kept_out[id(variable)]
            fans = {"in": fan_in, "average": (fan_in + fan_out) / 2}
            variances = np.select(
                [scale == k for k in range(len(SCALES))],
                [gain / fans[fan] for fan, gain, _ in SCALES],
            )
            limit = np.sqrt(3.0 * np.broadcast_to(variances, tasks))
            values = rng.uniform(-1.0, 1.0, size=shape)
            values *= limit.reshape(tasks, *(1 for _ in variable.shape))
        else:  # offsets and the scales of normalisation: always the same
            values = np.broadcast_to(_now(variable), shape)
        flat.append(values.reshape(tasks, -1))
    return np.concatenate(flat, axis=1).astype("float32")


def non_trainable(model: keras.Model, batch_size: int) -> tuple[np.ndarray, ...]:
    """Returns the other variables' initial values, `[batch, ...]` each."""
    return tuple(
        np.repeat(_now(variable)[np.newaxis], batch_size, axis=0)
        for variable in model.non_trainable_variables
    )


def _fans(variable: Any) -> tuple[int, int]:
    """Returns the inputs and the outputs that a unit of a kernel has."""
    shape = tuple(variable.shape)
    if "multi_head_attention" in variable.path:
        # Heads and their units count as one axis, as Keras flattens them.
        split = 2 if "attention_output" in variable.path else 1
        return int(np.prod(shape[:split])), int(np.prod(shape[split:]))
    places = int(np.prod(shape[:-2]))
    return places * shape[-2], places * shape[-1]


def _now(variable: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(variable)


def _orthogonal(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Draws matrices with orthonormal rows (Saxe et al. 2014)."""
    tasks, rows, columns = shape
    q, r = np.linalg.qr(rng.normal(size=(tasks, columns, rows)))
    q *= np.sign(np.diagonal(r, axis1=1, axis2=2))[:, np.newaxis]
    return np.swapaxes(q, 1, 2)
