"""What a model is built of: its weights, and the batch that it is made for."""

import keras
import tensorflow as tf


def is_built(model: keras.Model) -> bool:
    """Returns whether every layer has its weights."""
    return all(layer.built for layer in model._flatten_layers())


def moving_statistics(model: keras.Model) -> list[keras.Variable]:
    """Returns what training changes without a gradient, as normalisation's averages.

    Those of frozen layers are not among them, nor what `Normalization` has adapted to,
    nor the states of random generators.
    """
    return [
        v
        for layer in model._flatten_layers()
        if layer.trainable and not isinstance(layer, keras.layers.Normalization)
        for v in layer._non_trainable_variables
        if tf.as_dtype(v.dtype).is_floating
    ]


def room_for(variables: list[keras.Variable]) -> list[tf.Variable]:
    """Returns a variable of zeros like each of these, on its device."""
    room = []
    for variable in variables:
        # Of one that is spread over devices a copy on the default one is enough.
        spread = isinstance(variable.value, tf.distribute.DistributedValues)
        with tf.device(None if spread else variable.value.device):
            value = tf.zeros(variable.shape, variable.dtype)
            room.append(tf.Variable(value, trainable=False))
    return room


def bytes_of(variables: list[tf.Variable]) -> int:
    """Returns the memory of variables, in bytes."""
    return sum(v.dtype.size * v.shape.num_elements() for v in variables)


def fixed_batch_size(model: keras.Model) -> int | None:
    """Returns how many examples the model is built to take at once; None for any."""
    sizes = [tensor.shape[0] for tensor in getattr(model, "inputs", None) or []]
    return next((size for size in sizes if size is not None), None)


def check_layer(model: keras.Model, name: str | None) -> None:
    """Checks that a layer can be designated.

    Raises:
        ValueError: If there is no layer of this name, or it has no weights.
    """
    # A layer that is not built has its weights yet to come.
    layers = [
        layer
        for layer in model._flatten_layers(include_self=False)
        if layer.weights or not layer.built
    ]
    if name is not None and name not in [layer.name for layer in layers]:
        raise ValueError(
            f"The model has no layer {name!r} with weights. Layers with weights: "
            f"{[layer.name for layer in layers]}"
        )


def designated_weights(model: keras.Model, name: str | None) -> list[keras.Variable]:
    """Returns the weights of a layer; None means the last that has a matrix."""
    layers = [layer for layer in model._flatten_layers() if layer.weights]
    named = [layer for layer in layers if layer.name == name]
    if named:
        return named[0].trainable_weights or named[0].weights
    leaves = [layer for layer in layers if not list(layer._layers)]
    for layer in reversed(leaves):
        matrices = [w for w in layer.trainable_weights if len(w.shape) > 1]
        if matrices:
            return matrices
    return model.trainable_variables
