"""The loss on a validation subset, measured without a trace in the user's metrics."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras.src.trainers.data_adapters import get_data_adapter

# As many examples as go through the model at once: bounds memory for big models.
CHUNK = 64


class ValidationLoss:
    """Loss of a model on a fixed subset of validation data.

    The subset is drawn once and lies on the model's device. Measuring updates neither
    metrics nor seeds nor normalisation statistics: it runs in a `StatelessScope`.

    Args:
        model: The compiled and built model.
        data: Whatever `fit` takes as `validation_data`: `(x, y)` or
            `(x, y, sample_weight)` of arrays, a `tf.data.Dataset`, a `PyDataset` or a
            generator.
        size: Examples in the subset; None takes all.
        seed: Seeds the draw from arrays. Of other sources the first examples are taken.

    Raises:
        ValueError: If the data is empty, or the model cannot compute a loss on it.
    """

    def __init__(
        self, model: keras.Model, data: Any, size: int | None = 256, seed: int = 0
    ) -> None:
        self._model = model
        subset = _gather(data, size, seed)
        count = len(subset.leaves[0])
        # As tensors now: captured by the graph once, not copied at every decision.
        tensors = [tf.convert_to_tensor(leaf) for leaf in subset.leaves]
        full = count // CHUNK * CHUNK
        self._chunks = [
            tf.reshape(leaf[:full], [-1, CHUNK, *leaf.shape[1:]]) for leaf in tensors
        ]
        self._rest = [leaf[full:] for leaf in tensors]
        self._full, self._count = full, count
        self._unflatten = subset.unflatten
        self._loss = self._choose_loss()
        self._check(tensors)

    @property
    def size(self) -> int:
        """Examples in the subset."""
        return self._count

    def __call__(self) -> tf.Tensor:
        """Returns the mean loss over the subset, a float32 scalar."""
        total = tf.zeros(())
        if self._full:
            losses = tf.map_fn(
                self._chunk_loss, self._chunks, fn_output_signature=tf.float32
            )
            total += CHUNK * tf.reduce_sum(losses)
        rest = self._count - self._full
        if rest:
            total += rest * self._chunk_loss(self._rest)
        return total / self._count

    def _chunk_loss(self, leaves: list[tf.Tensor]) -> tf.Tensor:
        x, y, weight = keras.utils.unpack_x_y_sample_weight(self._unflatten(leaves))
        # Inside the scope a variable that is not mapped has no value for regularizers.
        mapping = [
            (v, v.value)
            for v in self._model.trainable_variables
            if v.regularizer is not None
        ]
        # Metrics start from zero there, so that `test_step` reports this chunk alone.
        mapping += [(v, tf.zeros(v.shape)) for v in self._model.metrics_variables]
        with keras.StatelessScope(state_mapping=mapping, collect_losses=True):
            return tf.reshape(tf.cast(self._loss(x, y, weight), tf.float32), [])

    def _choose_loss(self) -> Callable:
        if type(self._model).test_step is keras.Model.test_step:
            return self._compute_loss
        return self._test_step

    def _compute_loss(self, x: Any, y: Any, weight: Any) -> tf.Tensor:
        y_pred = self._model(x, training=False)
        return self._model.compute_loss(
            x=x, y=y, y_pred=y_pred, sample_weight=weight, training=False
        )

    def _test_step(self, x: Any, y: Any, weight: Any) -> tf.Tensor:
        logs = self._model.test_step(keras.utils.pack_x_y_sample_weight(x, y, weight))
        if "loss" not in logs:
            raise ValueError(
                f"The model's `test_step` reports no 'loss'. Received: {sorted(logs)}."
            )
        return logs["loss"]

    def _check(self, tensors: list[tf.Tensor]) -> None:
        few = [leaf[:2] for leaf in tensors]
        run = self._chunk_loss
        if not self._model.run_eagerly:
            # Only traced: a wrong structure is told before the first step, for free.
            run = tf.function(self._chunk_loss, autograph=False).get_concrete_function
        try:
            run(few)
        except Exception as error:
            shapes = tf.nest.map_structure(
                lambda leaf: f"{leaf.dtype.name}{tuple(leaf.shape)}",
                self._unflatten(tensors),
            )
            raise ValueError(
                "The model cannot compute a loss on `validation_data`. Received: "
                f"{shapes}. Pass data of the structure that `fit` trains on, as "
                "`(x, y)`, `(x, y, sample_weight)` or a dataset of these, or leave it "
                f"out to watch the training loss. The model said: {error}"
            ) from error


class _Subset(NamedTuple):
    """Examples without their structure, and the structure: 0 a leaf, None for None."""

    leaves: list
    structure: Any

    def unflatten(self, leaves: list) -> Any:
        rest = iter(leaves)
        filled = [
            None if mark is None else next(rest)
            for mark in keras.tree.flatten(self.structure)
        ]
        return keras.tree.pack_sequence_as(self.structure, filled)


def _gather(data: Any, size: int | None, seed: int) -> _Subset:
    if isinstance(data, list):
        data = tuple(data)
    if _is_arrays(data):
        leaves = [np.asarray(leaf) for leaf in _leaves(data)]
        counts = {len(leaf) for leaf in leaves}
        if len(counts) > 1:
            raise ValueError(
                "All arrays of `validation_data` need the same number of examples. "
                f"Received: {[leaf.shape for leaf in leaves]}"
            )
        count = counts.pop()
        if size is not None and size < count:
            # A generator of our own: the user's random state stays untouched.
            chosen = np.random.default_rng(seed).permutation(count)[:size]
            leaves = [leaf[np.sort(chosen)] for leaf in leaves]
        structure = _structure(data)
    else:
        leaves, structure = _gather_batches(data, size)
    if not leaves or not len(leaves[0]):
        raise ValueError("`validation_data` is empty. Pass at least one example.")
    return _Subset(leaves, structure)


def _gather_batches(data: Any, size: int | None) -> tuple[list[np.ndarray], Any]:
    adapter = get_data_adapter(data)
    if size is None and adapter.num_batches is None:
        unlimited = "`validation_size=None` needs validation data of known length"
        raise ValueError(f"{unlimited}. Received: {data!r}. Pass `validation_size`.")
    parts: list[list[np.ndarray]] = []
    taken, structure = 0, None
    for batch in adapter.get_tf_dataset():
        leaves = [np.asarray(leaf) for leaf in _leaves(batch)]
        structure = _structure(batch)
        parts.append(leaves)
        taken += len(leaves[0])
        if size is not None and taken >= size:
            break
    joined = [np.concatenate(leaf)[:size] for leaf in zip(*parts, strict=True)]
    return joined, structure


def _is_arrays(data: Any) -> bool:
    return isinstance(data, tuple) and all(
        hasattr(leaf, "__array__") and hasattr(leaf, "shape") for leaf in _leaves(data)
    )


def _leaves(data: Any) -> list:
    return [leaf for leaf in keras.tree.flatten(data) if leaf is not None]


def _structure(data: Any) -> Any:
    return keras.tree.map_structure(lambda leaf: None if leaf is None else 0, data)
