"""One Keras model, called with other weights for each trainee of a batch."""

import collections
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_learned_lr.learning.batched_layers import (
    MERGED,
    RULES,
    merged,
    pools_early,
)


class Layout:
    """How the variables of a model lie in one `[batch, parameters]` tensor.

    Args:
        variables: The variables, in order.
    """

    def __init__(self, variables: Sequence[keras.Variable]) -> None:
        self._shapes = [tuple(v.shape) for v in variables]
        self._sizes = [int(np.prod(shape)) for shape in self._shapes]

    @property
    def size(self) -> int:
        """Parameters of one trainee."""
        return sum(self._sizes)

    def split(self, flat: tf.Tensor) -> list[tf.Tensor]:
        """Returns the variables' values, `[batch, *shape]` each."""
        parts = tf.split(flat, self._sizes, axis=1)
        return [
            tf.reshape(part, [flat.shape[0], *shape])
            for part, shape in zip(parts, self._shapes, strict=True)
        ]

    def join(self, values: Sequence[tf.Tensor]) -> tf.Tensor:
        """Returns `[batch, parameters]` from the variables' `[batch, *shape]`."""
        flat = [
            tf.reshape(value, [value.shape[0], size])
            for value, size in zip(values, self._sizes, strict=True)
        ]
        return tf.concat(flat, axis=1)


class Called(NamedTuple):
    """What a call returned.

    Attributes:
        outputs: `[batch, examples, ...]`.
        non_trainable: New values of the model's non-trainable variables, `[batch, ...]`
            each: normalisation statistics, seeds.
        penalty: The model's own losses (regularisation) by trainee, `[batch]`.
    """

    outputs: tf.Tensor
    non_trainable: list[tf.Tensor]
    penalty: tf.Tensor


class BatchedModel:
    """Calls a Keras model for many trainees at once, each with its own weights.

    The graph of a Sequential or functional model is walked layer by layer: by a rule
    of `batched_layers` where there is one, else through `stateless_call` under
    `tf.vectorized_map`. Any other model goes through that as a whole.

    Args:
        model: A built model with one input and one output tensor.

    Raises:
        ValueError: If the model is not built, masks its inputs, or computes in another
            type than its variables have.
    """

    def __init__(self, model: keras.Model) -> None:
        _check(model)
        self._model = model
        self._graph = _graph_of(model)
        self._pools = {} if self._graph is None else _pools_of(self._graph)

    @property
    def walked(self) -> bool:
        """Whether the model is called layer by layer and not as a whole."""
        return self._graph is not None

    @property
    def largest_output(self) -> int:
        """Elements of the largest output of a layer for one example; 0 if not known."""
        layers = self._graph.layers if self.walked else []
        outputs = keras.tree.flatten([layer.output for layer in layers])
        return max((math.prod(x.shape[1:]) for x in outputs), default=0)

    def __call__(
        self,
        trainable: Sequence[tf.Tensor],
        non_trainable: Sequence[tf.Tensor],
        x: tf.Tensor,
        training: bool,
    ) -> Called:
        """Calls the model.

        Args:
            trainable: A value `[batch, ...]` for each of the model's trainable
                variables.
            non_trainable: The same for its non-trainable ones.
            x: Inputs, `[batch, examples, ...]`, of static shape.
            training: Whether to call it in training mode.
        """
        if self._graph is None:
            return self._call_whole(trainable, non_trainable, x, training)
        variables = [*self._model.trainable_variables]
        variables += self._model.non_trainable_variables
        values = {
            id(variable): value
            for variable, value in zip(
                variables, [*trainable, *non_trainable], strict=True
            )
        }

        def batched(operation: Any) -> Any:
            if operation in self._pools.values():
                return lambda x: x  # the convolution has pooled already

            def call(*args: Any, **kwargs: Any) -> Any:
                kwargs["pool"] = self._pools.get(operation)
                return _call_operation(operation, values, training, args, kwargs)

            return call

        outputs = self._graph._run_through_graph(x, operation_fn=batched)
        return Called(
            keras.tree.flatten(outputs)[0],
            [values[id(v)] for v in self._model.non_trainable_variables],
            self._penalty(trainable, x),
        )

    def _penalty(self, trainable: Sequence[tf.Tensor], x: tf.Tensor) -> tf.Tensor:
        penalty = tf.zeros([x.shape[0]], keras.config.floatx())
        for variable, value in zip(
            self._model.trainable_variables, trainable, strict=True
        ):
            if variable.regularizer is not None:
                penalty += tf.vectorized_map(variable.regularizer, value)
        return penalty

    def _call_whole(
        self,
        trainable: Sequence[tf.Tensor],
        non_trainable: Sequence[tf.Tensor],
        x: tf.Tensor,
        training: bool,
    ) -> Called:
        options = training_option(self._model, training)

        def call(one: Any) -> Any:
            outputs, new, losses = self._model.stateless_call(
                *one, **options, return_losses=True
            )
            zero = tf.zeros((), keras.config.floatx())
            return keras.tree.flatten(outputs)[0], new, tf.add_n([zero, *losses])

        arguments = (list(trainable), list(non_trainable), x)
        outputs, new, penalty = tf.vectorized_map(call, arguments, warn=False)
        return Called(outputs, new, penalty)


def _call_operation(
    operation: Any,
    values: dict[int, tf.Tensor],
    training: bool,
    args: tuple,
    kwargs: dict[str, Any],
) -> Any:
    """Calls one node of the graph and notes its new non-trainable values."""
    kwargs = {k: v for k, v in kwargs.items() if v is not None and k != "training"}
    tensors = [leaf for leaf in keras.tree.flatten((args, kwargs)) if _is_tensor(leaf)]
    rule = RULES.get(type(operation))
    if rule is not None and all(map(_is_tensor, args)) and len(tensors) == len(args):
        y = rule(operation, lambda variable: values[id(variable)], *args, **kwargs)
        if y is not None:
            return y
    if type(operation) in MERGED and len(tensors) == 1:
        return merged(lambda x: operation(x), tensors[0])
    if isinstance(operation, keras.layers.Add):
        return tf.add_n(tensors)

    def refill(leaves: Sequence[tf.Tensor]) -> tuple[tuple, dict[str, Any]]:
        rest = iter(leaves)
        return keras.tree.map_structure(
            lambda leaf: next(rest) if _is_tensor(leaf) else leaf, (args, kwargs)
        )

    if not isinstance(operation, keras.Layer):

        def apply(leaves: list[tf.Tensor]) -> Any:
            refilled, options = refill(leaves)
            return operation(*refilled, **options)

        return tf.vectorized_map(apply, tensors, warn=False)

    kwargs |= training_option(operation, training)
    trainable = [values[id(v)] for v in operation.trainable_variables]
    moving = operation.non_trainable_variables

    def call(one: Any) -> Any:
        own, other, leaves = one
        refilled, options = refill(leaves)
        return operation.stateless_call(own, other, *refilled, **options)

    arguments = (trainable, [values[id(v)] for v in moving], tensors)
    outputs, new = tf.vectorized_map(call, arguments, warn=False)
    values.update({id(v): value for v, value in zip(moving, new, strict=True)})
    return outputs


def training_option(layer: keras.Layer, training: bool) -> dict[str, bool]:
    """Returns the keyword that tells `call` the mode, if it wants to know."""
    return {"training": training} if layer._call_has_training_arg else {}


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, tf.Tensor)


def _graph_of(model: keras.Model) -> Any:
    """Returns the graph to walk, or None where the model must be called as a whole."""
    graph = model._functional if isinstance(model, keras.Sequential) else model
    if not isinstance(graph, keras.src.models.functional.Functional):
        return None
    for layer in model._flatten_layers(include_self=False):
        # A layer of the user's own, or one that adds a loss of its outputs.
        foreign = not type(layer).__module__.startswith("keras.")
        if foreign or layer.activity_regularizer is not None:
            return None
    return graph


def _pools_of(graph: Any) -> dict[keras.Layer, keras.Layer]:
    """Returns by convolution the pooling that it can do on the way."""
    nodes = [node for nodes in graph._nodes_by_depth.values() for node in nodes]
    calls = collections.Counter(node.operation for node in nodes)
    takers = collections.Counter(id(x) for node in nodes for x in node.input_tensors)
    pools = {}
    for node in nodes:
        for parent in node.parent_nodes:
            conv, pool, between = parent.operation, node.operation, parent.outputs[0]
            once = calls[conv] == calls[pool] == takers[id(between)] == 1
            if once and pools_early(conv, pool, between.shape):
                pools[conv] = pool
    return pools


def _check(model: keras.Model) -> None:
    if not model.built:
        raise ValueError(
            "The model must be built: give it an `Input`, or call it on some data."
        )
    for layer in model._flatten_layers(include_self=False):
        masks = getattr(layer, "mask_zero", False)
        if masks or isinstance(layer, keras.layers.Masking):
            raise ValueError(
                f"Masks are not carried through a batch of trainees. Received: the "
                f"layer {layer.name!r}."
            )
        if layer.compute_dtype != layer.variable_dtype:
            raise ValueError(
                "Trainees compute in the type of their variables. Received: the layer "
                f"{layer.name!r} with dtype policy {layer.dtype_policy.name!r}."
            )
