"""The loss on a validation subset, measured without a trace in the user's metrics."""

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras.src.trainers.data_adapters import get_data_adapter
from keras.src.trainers.data_adapters.data_adapter import DataAdapter

from keras_learned_lr.observation.averages import UnbiasedAverages
from keras_learned_lr.observation.layers import fixed_batch_size, is_built
from keras_learned_lr.observation.outputs import output_units
from keras_learned_lr.observation.tensors import flat_leaves

# As many examples as go through the model at once: bounds memory for big models.
CHUNK = 64
# Up to so many chunks are written out: a loop slows down the graph around it.
UNROLLED = 4
NOT_DENSE = (tf.SparseTensor, tf.RaggedTensor)
EMPTY = "`validation_data` is empty. Pass at least one example."


# How many times as many examples as a decision looks at are for the end of a run, and
# what these may take on the host.
MORE, MORE_BYTES = 4, 2**28


class Subset(NamedTuple):
    """Examples without their structure, and the structure: 0 a leaf, None for None.

    Sequences that are padded batch by batch differ in shape: one group for each shape.

    Attributes:
        groups: For each shape the leaves, tensors or arrays of `[examples, ...]`.
        structure: What the leaves are packed as.
    """

    groups: list[list[Any]]
    structure: Any

    @property
    def size(self) -> int:
        """How many examples there are."""
        return sum(len(leaves[0]) for leaves in self.groups)

    def unflatten(self, leaves: list) -> Any:
        """Returns a chunk of a group's leaves in the structure of the data."""
        rest = iter(leaves)
        filled = [
            None if mark is None else next(rest)
            for mark in keras.tree.flatten(self.structure)
        ]
        return keras.tree.pack_sequence_as(self.structure, filled)


class Validated(NamedTuple):
    """What the validation subset tells.

    Attributes:
        loss: The mean loss, a float32 scalar.
        outputs: `output_units` of the first examples; None where only the model's own
            `test_step` knows the outputs, or they are not one for each example.
    """

    loss: tf.Tensor
    outputs: tf.Tensor | None


class ValidationLoss:
    """Loss of a model on a fixed subset of validation data.

    The subset is drawn once and lies on the model's device. Measuring updates neither
    metrics nor seeds nor normalisation statistics: it runs in a `StatelessScope`. For
    a model that is built for batches of one size, examples are repeated to fill the
    last.

    Args:
        model: The compiled and built model.
        subset: What `draw_subset` took from the validation data.
        probe_size: How many of the first examples' outputs are told, at most.

    Raises:
        ValueError: If the model cannot compute a loss on it.

    Attributes:
        tells_outputs: Whether `measure` tells outputs.
    """

    def __init__(
        self, model: keras.Model, subset: Subset, probe_size: int = 32
    ) -> None:
        self._model = model
        # Not more than there are: between an example and itself, which fills a batch
        # below, nothing varies but rounding.
        self._probe_size = min(probe_size, len(subset.groups[0][0]))
        fixed = self._fixed = fixed_batch_size(model)
        self._chunk = fixed or CHUNK
        self._groups = subset.groups
        if fixed is not None:
            self._groups = [_filled(leaves, fixed) for leaves in subset.groups]
        self._count = sum(len(leaves[0]) for leaves in self._groups)
        self._unflatten = subset.unflatten
        self.averages = UnbiasedAverages(model)
        self._loss = self._choose_loss()
        self._measure: Any = self._mean_loss
        self._measure_chunk: Any = self._chunk_loss
        if not model.run_eagerly:
            # Of its own, so that it is traced once for the check, for the decision
            # before step 1 and for those in a graph.
            self._measure = tf.function(self._mean_loss, autograph=False)
            # And for all chunks: a large model takes seconds.
            self._measure_chunk = tf.function(self._chunk_loss, autograph=False)
        self.tells_outputs = self._check()

    @property
    def size(self) -> int:
        """Examples in the subset."""
        return self._count

    @property
    def nbytes(self) -> int:
        """What the subset takes on the device."""
        return sum(
            leaf.dtype.size * int(tf.size(leaf))
            for leaves in self._groups
            for leaf in leaves
        )

    def __call__(self) -> tf.Tensor:
        """Returns the mean loss over the subset, a float32 scalar."""
        return self.measure().loss

    def measure(self) -> Validated:
        """Returns the loss, and outputs that were computed on the way."""
        return self._measure()

    def over(self, others: Subset) -> float:
        """Returns the mean loss over other examples, which may lie on the host.

        Args:
            others: Examples of the same structure.
        """
        # Nothing waits for a chunk: only the sum comes to the host.
        total, count = tf.zeros(()), 0
        for leaves in others.groups:
            if self._fixed is not None:
                leaves = _filled(leaves, self._fixed)
            for start in range(0, len(leaves[0]), self._chunk):
                chunk = [leaf[start : start + self._chunk] for leaf in leaves]
                chunk = [tf.convert_to_tensor(leaf) for leaf in chunk]
                total += len(chunk[0]) * self._measure_chunk(chunk).loss
                count += len(chunk[0])
        return float(total) / count

    def _mean_loss(self) -> Validated:
        sums = [self._summed_loss(leaves) for leaves in self._groups]
        total = tf.add_n([each.loss for each in sums])
        return Validated(total / self._count, sums[0].outputs)

    def _summed_loss(self, leaves: list[tf.Tensor]) -> Validated:
        count = len(leaves[0])
        full = count // self._chunk * self._chunk
        total, outputs = tf.zeros(()), None
        if full:
            chunks = [
                tf.reshape(leaf[:full], [-1, self._chunk, *leaf.shape[1:]])
                for leaf in leaves
            ]
            losses, outputs = self._chunk_losses(chunks)
            total += self._chunk * tf.reduce_sum(losses)
        if count > full:
            rest = self._measure_chunk([leaf[full:] for leaf in leaves])
            total += (count - full) * rest.loss
            outputs = outputs if full else rest.outputs
        return Validated(total, outputs)

    def _chunk_losses(
        self, chunks: list[tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Returns the losses of all chunks, and outputs of the first."""
        count, measure = chunks[0].shape[0], self._measure_chunk
        first = measure([leaf[0] for leaf in chunks])
        if count > UNROLLED:
            losses = tf.map_fn(
                lambda leaves: measure(leaves).loss,
                [leaf[1:] for leaf in chunks],
                fn_output_signature=tf.float32,
            )
        else:
            rest = range(1, count)
            losses = [measure([leaf[i] for leaf in chunks]).loss for i in rest]
        return tf.concat([[first.loss], losses], axis=0), first.outputs

    def _chunk_loss(self, leaves: list[tf.Tensor]) -> Validated:
        x, y, weight = keras.utils.unpack_x_y_sample_weight(self._unflatten(leaves))
        # Inside the scope a variable that is not mapped has no value for regularizers.
        mapping = [
            (v, v.value)
            for v in self._model.trainable_variables
            if v.regularizer is not None
        ]
        if self._loss == self._compute_loss:
            mapping += self.averages.mapping(x)
        # Metrics start from zero there, so that `test_step` reports this chunk alone.
        mapping += [(v, tf.zeros(v.shape)) for v in self._model.metrics_variables]
        with keras.StatelessScope(state_mapping=mapping, collect_losses=True):
            loss, y_pred = self._loss(x, y, weight)
        outputs = self._first_outputs(y_pred, leaves[0].shape[0])
        return Validated(tf.reshape(tf.cast(loss, tf.float32), []), outputs)

    def _first_outputs(self, y_pred: Any, count: int) -> tf.Tensor | None:
        known = keras.tree.flatten(y_pred)
        if not known or any(
            not tf.is_tensor(leaf) or not leaf.shape.rank or leaf.shape[0] != count
            for leaf in known
        ):
            return None
        first = min(self._probe_size, count)
        return output_units([leaf[:first] for leaf in known], first)

    def _choose_loss(self) -> Callable:
        if type(self._model).test_step is keras.Model.test_step:
            return self._compute_loss
        return self._test_step

    def _compute_loss(self, x: Any, y: Any, weight: Any) -> tuple[tf.Tensor, Any]:
        y_pred = self._model(x, training=False)
        # Not the public one, of which there are overrides without `training`.
        loss = self._model._compute_loss(x, y, y_pred, weight, training=False)
        return loss, y_pred

    def _test_step(self, x: Any, y: Any, weight: Any) -> tuple[tf.Tensor, Any]:
        logs = self._model.test_step(keras.utils.pack_x_y_sample_weight(x, y, weight))
        if "loss" not in logs:
            raise ValueError(
                f"The model's `test_step` reports no 'loss'. Received: {sorted(logs)}."
            )
        return logs["loss"], None

    def _check(self) -> bool:
        """Measures once, or traces it; returns whether outputs are told."""
        tensors = self._groups[0]
        few = [leaf[: fixed_batch_size(self._model) or 2] for leaf in tensors]
        try:
            if not is_built(self._model):
                # Weights that are new inside the scope have no value for regularizers.
                x, _, _ = keras.utils.unpack_x_y_sample_weight(self._unflatten(few))
                self._model(x, training=False)
            if self._model.run_eagerly:
                return self._chunk_loss(few).outputs is not None
            # Only traced: a wrong structure is told before the first step.
            traced = self._measure.get_concrete_function()
            return traced.structured_outputs.outputs is not None
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


def draw_subset(data: Any, size: int | None, seed: int = 0) -> Subset:
    """Takes the examples that `ValidationLoss` looks at.

    Of arrays they are drawn. Of batches of a known number and one shape they are spread
    evenly over all, which are read once: files are often sorted by class. Of any other
    source they are the first. A generator gives its examples once, so whoever measures
    them on several models keeps what this returns.

    Args:
        data: Whatever `fit` takes as `validation_data`: `(x, y)` or
            `(x, y, sample_weight)` of arrays, a `tf.data.Dataset`, a `PyDataset` or a
            generator.
        size: How many examples, at most; None takes all.
        seed: Seeds the draw from arrays.

    Raises:
        ValueError: If there are none, or the data is not what `fit` takes.
    """
    return _on_device(_draw(data, size, seed))


def draw_subsets(data: Any, size: int | None, seed: int = 0) -> tuple[Subset, Subset]:
    """Takes more examples than a decision looks at, and of these what it does.

    Args:
        data: See `draw_subset`.
        size: How many a decision looks at, at most; None takes all.
        seed: Seeds the draw from arrays.

    Returns:
        Those that a decision looks at, as `draw_subset` returns them; and `MORE` times
        as many, but no more than `MORE_BYTES` hold, which stay on the host.

    Raises:
        ValueError: As `draw_subset` does.
    """
    drawn = _draw(data, size if size is None else MORE * size, seed)
    count = drawn.size
    size = count if size is None else min(size, count)
    each = sum(leaf.nbytes for leaves in drawn.groups for leaf in leaves) / count
    more = min(count, max(size, int(MORE_BYTES / max(each, 1.0))))
    return _on_device(_spread(drawn, size)), _spread(drawn, more)


def _on_device(drawn: Subset) -> Subset:
    # As tensors now: captured by the graph once, not copied at every decision.
    groups = [
        [tf.convert_to_tensor(leaf) for leaf in leaves] for leaves in drawn.groups
    ]
    return drawn._replace(groups=groups)


def _spread(drawn: Subset, size: int) -> Subset:
    """Returns so many of the examples, spread evenly over all."""
    counts = [len(leaves[0]) for leaves in drawn.groups]
    chosen = np.arange(size) * drawn.size // size
    groups, first = [], 0
    for leaves, count in zip(drawn.groups, counts, strict=True):
        own = chosen[(first <= chosen) & (chosen < first + count)] - first
        if len(own):
            groups.append([leaf[own] for leaf in leaves])
        first += count
    return drawn._replace(groups=groups)


def _draw(data: Any, size: int | None, seed: int) -> Subset:
    if isinstance(data, list):
        data = tuple(data)
    if not flat_leaves(data):
        raise ValueError(f"{EMPTY} Received: {data!r}")
    if _is_arrays(data):
        leaves = [_as_fit_does(leaf) for leaf in flat_leaves(data)]
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
        groups, structure = [leaves], _structure(data)
    else:
        groups, structure = _gather_batches(data, size)
    if not groups or not len(groups[0][0]):
        raise ValueError(EMPTY)
    return Subset(groups, structure)


def _as_fit_does(leaf: Any) -> np.ndarray:
    """Returns what `fit` makes of an array; losses of the user's own may rely on it."""
    values = np.atleast_1d(leaf)
    if values.dtype.kind == "f":
        values = values.astype(keras.config.floatx())
    # Only a Series of pandas, which nobody needs to have, becomes a frame.
    return values[:, np.newaxis] if hasattr(leaf, "to_frame") else values


def _filled(leaves: list[tf.Tensor], size: int) -> list[tf.Tensor]:
    count = len(leaves[0])
    index = np.arange(-(-count // size) * size) % count
    return [tf.gather(leaf, index) for leaf in leaves]


def _gather_batches(data: Any, size: int | None) -> tuple[list, Any]:
    adapter = _adapter(data)
    if size is None and adapter.num_batches is None:
        unlimited = "`validation_size=None` needs validation data of known length"
        raise ValueError(f"{unlimited}. Received: {data!r}. Pass `validation_size`.")
    groups: dict[tuple, list[list[np.ndarray]]] = {}
    taken, structure = 0, None
    batches = adapter.get_tf_dataset()
    number = None if _is_padded(batches.element_spec) else adapter.num_batches
    for index, batch in enumerate(_readable(batches, adapter)):
        odd = [leaf for leaf in flat_leaves(batch) if isinstance(leaf, NOT_DENSE)]
        if odd:
            raise ValueError(
                "`validation_data` must be dense. Received: "
                f"{sorted({type(leaf).__name__ for leaf in odd})}. Leave it out to "
                "watch the training loss."
            )
        leaves = [np.asarray(leaf) for leaf in flat_leaves(batch)]
        shapes = tuple(leaf.shape for leaf in leaves)
        if () in shapes or len({shape[0] for shape in shapes}) > 1:
            raise ValueError(
                "`validation_data` must yield batches, arrays with the same number of "
                f"examples in front. Received shapes: {list(shapes)}. Is `.batch()` "
                "missing?"
            )
        structure, count = _structure(batch), shapes[0][0]
        if size is not None:
            due = math.ceil(size * (index + 1) / number) if number else size
            wanted = min(count, due - taken)
            if not wanted:
                continue
            # Spread within the batch as over the batches.
            chosen = np.arange(wanted) * (count if number else wanted) // wanted
            leaves = [leaf[chosen] for leaf in leaves]
        groups.setdefault(tuple(s[1:] for s in shapes), []).append(leaves)
        taken += len(leaves[0])
        if taken == size:
            break
    joined = [
        [np.concatenate(leaf) for leaf in zip(*parts, strict=True)]
        for parts in groups.values()
    ]
    return joined, structure


def _is_padded(specs: Any) -> bool:
    """Returns whether shapes vary from batch to batch: each is a graph of its own."""
    shapes = [getattr(spec, "shape", None) for spec in keras.tree.flatten(specs)]
    return any(
        shape is not None and (shape.rank is None or None in shape[1:])
        for shape in shapes
    )


def _readable(batches: tf.data.Dataset, adapter: DataAdapter) -> Iterator[Any]:
    """Yields batches up to the first that cannot be read; there must be one."""
    count = 0
    try:
        for batch in batches:
            yield keras.tree.map_structure(_none_for_nothing, batch)
            count += 1
    except Exception as error:
        if not count:
            raise
        warnings.warn(
            f"`validation_data` could be read for {count} batches only, and the "
            f"controller watches the loss on these. What came then: {error}",
            stacklevel=2,
        )
    finally:
        # A `PyDataset` of which there is more to read has workers that wait.
        workers = getattr(adapter, "enqueuer", None)
        if workers is not None:
            workers.stop()


def _none_for_nothing(leaf: Any) -> Any:
    # What a generator's None has become on its way.
    return None if isinstance(leaf, tf.experimental.Optional) else leaf


def _adapter(data: Any) -> DataAdapter:
    try:
        return get_data_adapter(data)
    except Exception as error:
        raise ValueError(
            "`validation_data` must be what `fit` takes: `(x, y)` or `(x, y, "
            "sample_weight)` of arrays, a dataset, or a generator of batches. "
            f"Received: {str(data)[:200]} (of type {type(data)}). {error}"
        ) from error


def _is_arrays(data: Any) -> bool:
    return isinstance(data, tuple) and all(
        hasattr(leaf, "__array__") and hasattr(leaf, "shape")
        for leaf in flat_leaves(data)
    )


def _structure(data: Any) -> Any:
    return keras.tree.map_structure(lambda leaf: None if leaf is None else 0, data)
