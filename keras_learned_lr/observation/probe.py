"""The probe: taps `model.train_step` and measures a window's Statistics."""

import warnings
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_learned_lr.observation.statistics import Statistics

# A window's loss statistics cover at most its last so many steps.
LOSSES_KEPT = 1024
# Output units looked at, evenly spread over a model's outputs.
UNITS_KEPT = 256


class Probe:
    """Sees what goes through a model's training step.

    Inside every training step it notes the loss; at the first step of a window also a
    batch of inputs and the model's outputs for it. `measure` turns that into
    Statistics. The user's metrics, random seeds and weights stay as they were.

    Args:
        model: The compiled and built model.
        needs: What to measure, see `Feature.needs`.
        validation_loss: Measures the validation loss, or None.
        designated_layer: The layer for `layer_mean` and `layer_variance`: its name, or
            None for the last layer that has a weight matrix.
        probe_size: Examples of the noted batch; a smaller batch is repeated to it.
        before_step: Called at the start of every training step, inside its graph,
            with the number of steps taken.

    Raises:
        ValueError: If there is no such layer.
    """

    def __init__(
        self,
        model: keras.Model,
        needs: frozenset[str],
        validation_loss: Callable[[], tf.Tensor] | None = None,
        designated_layer: str | None = None,
        probe_size: int = 32,
        before_step: Callable[[tf.Tensor], None] | None = None,
    ) -> None:
        self._model = model
        self._needs = needs
        self._validation_loss = validation_loss if "validation" in needs else None
        self._probe_size = probe_size
        self._before_step = before_step
        self._layer_weights = (
            _designated_weights(model, designated_layer) if "layer" in needs else []
        )
        with model.distribute_strategy.scope():
            self._step = _variable(0, tf.int64)
            self._window_start = _variable(0, tf.int64)
            self._losses = _variable(tf.zeros(LOSSES_KEPT))
        self._noted: _NotedBatch | None = None
        trainable = model.trainable_variables if "update" in needs else []
        self._weights = [_copy(v) for v in trainable]
        self._updates = [_copy(v) for v in trainable if "update_cosine" in needs]
        self._tapped_function: Callable | None = None
        self._originals: tuple[Any, Any] | None = None
        self._expected = False

    @property
    def step(self) -> tf.Tensor:
        """Training steps taken since `start`, int64."""
        return self._step.read_value()

    @property
    def ready(self) -> bool:
        """Whether everything to measure is known: the first batch tells its shape."""
        return self._noted is not None or not self._needs & {"outputs", "inputs"}

    def install(self) -> None:
        """Puts the tap into the model's training step; removes a stale one."""
        model = self._model
        remove_stale_tap(model)
        own = model.__dict__.get("train_step")
        self._originals = (own, model.train_function)
        model.train_step = self._make_tap(model.train_step)
        if self._tapped_function is None:
            model.make_train_function(force=True)
            self._tapped_function = self._guard(model.train_function)
        model.train_function = self._tapped_function

    def remove(self) -> None:
        """Leaves the model as it was before `install`."""
        if self._originals is None:
            return
        train_step, train_function = self._originals
        self._originals = None
        if train_step is None:
            del self._model.__dict__["train_step"]
        else:
            self._model.train_step = train_step
        # A `compile` since then has already thrown the tapped one away.
        if self._model.train_function is self._tapped_function:
            self._model.train_function = train_function

    def expect_step(self) -> None:
        """Tells that the next training step is one of the run that is watched."""
        self._expected = True

    def start(self) -> None:
        """Begins a run: no steps taken, weights noted."""
        self._step.assign(0)
        self._window_start.assign(0)
        for copy, v in zip(self._weights, self._model.trainable_variables):
            copy.assign(v)
        for copy in self._updates:
            copy.assign(tf.zeros_like(copy))

    # What happens inside a training step.

    def _make_tap(self, train_step: Callable) -> Callable:
        def tapped_train_step(data: Any) -> Any:
            if self._before_step is not None:
                self._before_step(self._step.read_value())
            self._note_batch(data)
            logs, loss = _run_and_catch_loss(self._model, train_step, data)
            self._note_loss(loss)
            return logs

        tapped_train_step.probe = self  # type: ignore[attr-defined]
        return tapped_train_step

    def _note_loss(self, loss: tf.Tensor) -> None:
        place = (self._step - self._window_start) % LOSSES_KEPT
        # Not a scatter on the variable: under MirroredStrategy there is none.
        losses = tf.tensor_scatter_nd_update(
            self._losses.read_value(), [[place]], [loss]
        )
        self._losses.assign(losses)
        self._step.assign_add(1)

    def _note_batch(self, data: Any) -> None:
        if not self._needs & {"outputs", "inputs"}:
            return
        x = keras.utils.unpack_x_y_sample_weight(data)[0]
        try:
            if self._noted is None:
                with tf.init_scope():
                    self._noted = _NotedBatch(
                        self._model, x, self._probe_size, "outputs" in self._needs
                    )
            tf.cond(
                tf.equal(self._step, self._window_start),
                lambda: self._noted.note(x),  # type: ignore[union-attr]
                lambda: None,
            )
        except Exception as error:  # A custom train_step may feed the model otherwise.
            self._needs -= {"outputs", "inputs"}
            warnings.warn(
                "The controller cannot see the inputs and outputs of this model's "
                "training step and goes on without these features. Calling the model "
                f"on `x` of the batch failed: {error}",
                stacklevel=2,
            )

    # The guard: a tap outlives a `fit` that ended in an exception.

    def _guard(self, train_function: Callable) -> Callable:
        def guarded_train_function(iterator: Any) -> Any:
            if not self._expected:
                remove_stale_tap(self._model)
                self._model.make_train_function()
                return self._model.train_function(iterator)
            self._expected = False
            return train_function(iterator)

        return guarded_train_function

    # What is measured at a decision.

    def measure(
        self,
        horizon: tf.Tensor,
        learning_rate: tf.Tensor,
        level: tf.Tensor,
        default_learning_rate: tf.Tensor,
    ) -> Statistics:
        """Measures the window that ends now and begins the next one.

        Runs inside a graph. All arguments and results are float32 scalars but
        `horizon`, which is int64.

        Args:
            horizon: Training steps of the whole run.
            learning_rate: What the last training step used.
            level: The same before the envelope.
            default_learning_rate: What the optimizer was compiled with.
        """
        steps = self._step - self._window_start
        losses = self._window_losses(steps)
        validation = self._measure_validation(losses["training_loss"])
        finite = tf.math.is_finite(losses["training_loss"])
        finite &= tf.math.is_finite(validation) | (steps == 0)
        zero = tf.zeros(())
        statistics = Statistics(*(zero for _ in Statistics._fields))._replace(
            step=tf.cast(self._step, tf.float32),
            horizon=tf.cast(horizon, tf.float32),
            window_steps=tf.cast(steps, tf.float32),
            learning_rate=learning_rate,
            level=level,
            default_learning_rate=default_learning_rate,
            validation_loss=validation,
            finite=tf.cast(finite, tf.float32),
            **losses,
            **self._measure_weights(),
            **self._measure_batch(),
        )
        self._window_start.assign(self._step)
        return statistics

    def _window_losses(self, steps: tf.Tensor) -> dict[str, tf.Tensor]:
        kept = tf.minimum(steps, LOSSES_KEPT)
        inside = tf.range(LOSSES_KEPT, dtype=tf.int64) < kept
        count = tf.cast(tf.maximum(kept, 1), tf.float32)
        losses = tf.where(inside, self._losses, 0.0)
        mean = tf.reduce_sum(losses) / count
        spread = tf.where(inside, tf.square(losses - mean), 0.0)
        highest = tf.reduce_max(tf.where(inside, losses, losses.dtype.min))
        return {
            "training_loss": mean,
            "training_loss_deviation": tf.sqrt(tf.reduce_sum(spread) / count),
            "training_loss_highest": tf.where(steps > 0, highest, 0.0),
            "training_loss_earliest": losses[0],
        }

    def _measure_validation(self, training_loss: tf.Tensor) -> tf.Tensor:
        if self._validation_loss is not None:
            return self._validation_loss()
        # Before step 1 there is no loss at all; NaN says so to the features.
        unknown = tf.equal(self._step, 0)
        return tf.where(unknown, float("nan"), training_loss)

    def _measure_weights(self) -> dict[str, tf.Tensor]:
        measured: dict[str, tf.Tensor] = {}
        if self._layer_weights:
            flat = tf.concat(
                [tf.reshape(_float(w), [-1]) for w in self._layer_weights], axis=0
            )
            mean, variance = tf.nn.moments(flat, axes=[0])
            measured |= {"layer_mean": mean, "layer_variance": variance}
        if not self._weights:
            return measured
        now = [_float(v) for v in self._model.trainable_variables]
        updates = [new - old for new, old in zip(now, self._weights, strict=True)]
        norm = tf.linalg.global_norm(updates)
        measured |= {"weight_norm": tf.linalg.global_norm(now), "update_norm": norm}
        if self._updates:
            before = [copy.read_value() for copy in self._updates]
            products = [
                tf.reduce_sum(a * b) for a, b in zip(updates, before, strict=True)
            ]
            norms = norm * tf.linalg.global_norm(before)
            cosine = tf.math.divide_no_nan(tf.add_n(products), norms)
            measured["update_cosine"] = cosine
        for copy, update in zip(self._updates, updates):
            copy.assign(update)
        for copy, new in zip(self._weights, now, strict=True):
            copy.assign(new)
        return measured

    def _measure_batch(self) -> dict[str, tf.Tensor]:
        if self._noted is None or not self._needs & {"outputs", "inputs"}:
            return {}
        return self._noted.measure()


class _NotedBatch:
    """A batch of training inputs and the outputs that the model had for it."""

    def __init__(self, model: keras.Model, x: Any, size: int, outputs: bool) -> None:
        self._model = model
        known = [leaf.shape[0] for leaf in keras.tree.flatten(x)]
        self._size = min([size, *(batch for batch in known if batch is not None)])
        self._x = keras.tree.map_structure(self._variable_like, x)
        self._outputs = None
        if outputs:
            units = self._units()
            self._outputs = tf.Variable(
                tf.zeros_like(units), shape=[self._size, None], trainable=False
            )

    def note(self, x: Any) -> None:
        """Keeps the first examples of `x` and the model's outputs for them."""

        def keep(variable: tf.Variable, leaf: tf.Tensor) -> None:
            # A ragged last batch may be smaller: its examples are repeated.
            index = tf.range(self._size) % tf.shape(leaf)[0]
            variable.assign(tf.gather(leaf, index))

        keras.tree.map_structure(keep, self._x, x)
        if self._outputs is not None:
            self._outputs.assign(self._units())

    def measure(self) -> dict[str, tf.Tensor]:
        """Measures the kept inputs, and the outputs of before and of now."""
        numeric = [
            tf.reshape(_float(leaf), [-1])
            for leaf in keras.tree.flatten(self._x)
            if leaf.dtype.is_floating or leaf.dtype.is_integer
        ]
        measured = {}
        if numeric:
            mean, variance = tf.nn.moments(tf.concat(numeric, axis=0), axes=[0])
            measured = {"input_mean": mean, "input_variance": variance}
        if self._outputs is not None:
            before, after = self._outputs.read_value(), self._units()
            measured |= {
                "output_variance_before": _variance(before),
                "output_variance_after": _variance(after),
                "output_variance_difference": _variance(after - before),
            }
        return measured

    def _variable_like(self, leaf: tf.Tensor) -> tf.Variable:
        # Sequences may differ in length from batch to batch.
        shape = [self._size, *leaf.shape[1:]]
        start = tf.zeros([1 if size is None else size for size in shape], leaf.dtype)
        return tf.Variable(start, shape=shape, trainable=False)

    def _units(self) -> tf.Tensor:
        """Returns the model's outputs now, float32 `[examples, units]`."""
        x = keras.tree.map_structure(lambda leaf: leaf.read_value(), self._x)
        with keras.StatelessScope():
            outputs = self._model(x, training=False)
        flat = [
            tf.reshape(_float(leaf), [self._size, -1])
            for leaf in keras.tree.flatten(outputs)
        ]
        units = tf.concat(flat, axis=1)
        stride = 1 + (tf.shape(units)[1] - 1) // UNITS_KEPT
        return units[:, ::stride]


def remove_stale_tap(model: keras.Model) -> None:
    """Removes the tap of a run that ended in an exception, if there is one."""
    probe = getattr(model.__dict__.get("train_step"), "probe", None)
    if probe is not None:
        probe.remove()


def _run_and_catch_loss(
    model: keras.Model, train_step: Callable, data: Any
) -> tuple[Any, tf.Tensor]:
    """Runs a training step; returns its logs and the loss of this batch.

    `logs["loss"]` is the epoch's running mean, so the loss is caught where the step
    computes it. A custom step that never calls `compute_loss` leaves only the logs.
    """
    caught: list[tf.Tensor] = []
    compute_loss = model.compute_loss

    def catching_compute_loss(*args: Any, **kwargs: Any) -> tf.Tensor:
        loss = compute_loss(*args, **kwargs)
        caught.append(loss)
        return loss

    model.compute_loss = catching_compute_loss
    try:
        logs = train_step(data)
    finally:
        del model.__dict__["compute_loss"]
    loss = caught[-1] if caught and _usable_here(caught[-1]) else _logged_loss(logs)
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    return logs, tf.reshape(tf.cast(loss, tf.float32), []) * replicas


def _usable_here(tensor: tf.Tensor) -> bool:
    # A step may compute its loss inside a tf.function of its own.
    if tf.inside_function():
        return getattr(tensor, "graph", None) is tf.compat.v1.get_default_graph()
    return True


def _logged_loss(logs: Any) -> tf.Tensor:
    if isinstance(logs, dict):
        for name in ["loss", *(key for key in logs if key.endswith("loss"))]:
            if name in logs:
                return logs[name]
    raise ValueError(
        "The controller finds no loss in this model's `train_step`: it neither calls "
        f"`self.compute_loss` nor returns a 'loss'. Received logs: {logs}"
    )


def _designated_weights(model: keras.Model, name: str | None) -> list[keras.Variable]:
    layers = [layer for layer in model._flatten_layers() if layer.weights]
    if name is not None:
        named = [layer for layer in layers if layer.name == name]
        if not named:
            raise ValueError(
                f"The model has no layer {name!r} with weights. Layers with weights: "
                f"{[layer.name for layer in layers if layer is not model]}"
            )
        return named[0].trainable_weights or named[0].weights
    leaves = [layer for layer in layers if not list(layer._layers)]
    for layer in reversed(leaves):
        matrices = [w for w in layer.trainable_weights if len(w.shape) > 1]
        if matrices:
            return matrices
    return model.trainable_variables


def _variable(value: Any, dtype: tf.DType | None = None) -> tf.Variable:
    # On several replicas each notes its own; the first one is what is measured.
    return tf.Variable(
        value,
        trainable=False,
        dtype=dtype,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )


def _copy(variable: keras.Variable) -> tf.Variable:
    return tf.Variable(tf.zeros(variable.shape), trainable=False)


def _float(value: Any) -> tf.Tensor:
    return tf.cast(keras.ops.convert_to_tensor(value), tf.float32)


def _variance(units: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.math.reduce_variance(units, axis=0))
