"""The probe: taps `model.train_step` and measures a window's Statistics."""

import warnings
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_learned_lr.observation.layers import (
    check_layer,
    designated_weights,
    is_built,
    moving_statistics,
)
from keras_learned_lr.observation.noted_batch import NotedBatch
from keras_learned_lr.observation.outputs import measure_outputs
from keras_learned_lr.observation.statistics import Statistics, unmeasured
from keras_learned_lr.observation.step_loss import run_and_catch_loss
from keras_learned_lr.observation.tensors import as_float, replica_variable
from keras_learned_lr.observation.validation import Validated, ValidationLoss
from keras_learned_lr.observation.window_losses import (
    LOSSES_KEPT,
    measure_losses,
    place_of,
)


class Probe:
    """Sees what goes through a model's training step.

    Inside every training step it notes the loss and nothing else. `measure` turns that
    into Statistics, with the weights of now and copies of those that the window began
    with. How outputs move shows on validation examples, whose outputs are there once
    their loss is. Without validation data it notes the batch of inputs too, and
    computes outputs for the last one, with the weights of before and of now. The
    user's metrics, random seeds and weights stay as they were.

    Args:
        model: The compiled and built model.
        needs: What to measure, see `Feature.needs`.
        validation_loss: Measures the validation loss, or None.
        designated_layer: The layer for `layer_mean` and `layer_variance`: its name, or
            None for the last layer that has a weight matrix.
        probe_size: Examples of the noted batch that are looked at; a smaller batch is
            repeated to it. Of validation data, `validation_loss` knows how many.
        before_step: Called before every training step, inside its graph, with the
            number of steps taken, int64; also in a step that then finds no batch, in
            which data of unknown length ends.
        when_stale: Called when the tap is found in a model whose run ended in an
            exception.

    Raises:
        ValueError: If there is no such layer.
    """

    def __init__(
        self,
        model: keras.Model,
        needs: frozenset[str],
        validation_loss: ValidationLoss | None = None,
        designated_layer: str | None = None,
        probe_size: int = 32,
        before_step: Callable[[tf.Tensor], None] | None = None,
        when_stale: Callable[[], None] | None = None,
    ) -> None:
        self._model = model
        self._when_stale = when_stale
        self._needs = needs
        self._validation_loss = validation_loss if "validation" in needs else None
        watched = self._validation_loss
        self._watches_outputs = "outputs" in needs and bool(
            watched and watched.tells_outputs
        )
        if self._watches_outputs:
            self._needs = needs - {"outputs"}
        # Shapes are known once they are measured.
        self._outputs = tf.Variable(tf.zeros([1, 1]), False, shape=[None, None])
        self._probe_size = probe_size
        self._before_step = before_step
        self._designated_layer = designated_layer
        if "layer" in needs:
            check_layer(model, designated_layer)
        with model.distribute_strategy.scope():
            self._step = replica_variable(0, tf.int64)
            self._window_start = replica_variable(0, tf.int64)
            self._losses = replica_variable(tf.zeros(LOSSES_KEPT))
        # What is made later is restored when it is put here.
        self._checkpoint = tf.train.Checkpoint(
            step=self._step, window_start=self._window_start, losses=self._losses
        )
        if self._watches_outputs:
            self._checkpoint.outputs = self._outputs
        self._noted: NotedBatch | None = None
        self._layer_weights: list[keras.Variable] = []
        self._seen: list[keras.Variable] = []
        self._weights: list[tf.Variable] = []
        self._updates: list[tf.Variable] = []
        self._knows_weights = is_built(model)
        if self._knows_weights:
            self._find_weights()
        self._tapped_function: Callable | None = None
        self._originals: tuple[Any, Any] | None = None
        self._expected = False

    @property
    def step(self) -> tf.Tensor:
        """Training steps taken since `start`, int64."""
        return self._step.read_value()

    @property
    def variables(self) -> list[tf.Variable]:
        """All that the probe remembers; the noted batch is among it once `ready`."""
        noted = [] if self._noted is None else self._noted.variables
        return [
            *(self._step, self._window_start, self._losses),
            *self._weights,
            *self._updates,
            *([self._outputs] if self._watches_outputs else ()),
            *noted,
        ]

    @property
    def checkpoint(self) -> tf.train.Checkpoint:
        """All that a run which is interrupted goes on from."""
        return self._checkpoint

    @property
    def ready(self) -> bool:
        """Whether everything to measure is known: the first batch tells its shape."""
        knows_batch = self._noted is not None or not self._needs & {"outputs", "inputs"}
        return knows_batch and self._knows_weights

    @property
    def installed(self) -> bool:
        """Whether the tap is in the model's training step."""
        return self._originals is not None

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

    def abandon(self) -> None:
        """Removes the tap of a run that ended in an exception."""
        self.remove()
        if self._when_stale is not None:
            self._when_stale()

    def expect_step(self) -> None:
        """Tells that the next training step is one of the run that is watched."""
        self._expected = True

    def start(self) -> None:
        """Begins a run: no steps taken, weights noted."""
        for variable in (self._step, self._window_start):
            variable.assign(0)
        self.note_weights()

    def note_weights(self) -> None:
        """Notes the weights as those that the window began with."""
        self._copy_weights()
        for copy in self._updates:
            copy.assign(tf.zeros_like(copy))

    def note_validation(self) -> tf.Tensor:
        """Notes outputs as those that the window began with; returns the loss."""
        assert self._validation_loss is not None
        validated = self._validation_loss.measure()
        if self._watches_outputs:
            self._outputs.assign(validated.outputs)
        return validated.loss

    # What happens inside a training step.

    def _make_tap(self, train_step: Callable) -> Callable:
        def tapped_train_step(data: Any) -> Any:
            if self._model.train_function is not self._tapped_function:
                # A `compile` has thrown the guard away: in the run, or after the
                # exception that ended it.
                with tf.init_scope():
                    self.abandon()
                return train_step(data)
            if not self._knows_weights:
                with tf.init_scope():
                    self._build(data)
            if self._before_step is not None:
                self._before_step(self._step.read_value())
            logs, loss = run_and_catch_loss(self._model, train_step, data)
            # Not before there is a loss: data of unknown length ends in a step that
            # finds no batch, and what waits for the batch itself costs more.
            with tf.control_dependencies([loss]):
                if self._needs & {"outputs", "inputs"}:
                    self._note_batch(data)
                self._note_loss(loss)
            return logs

        tapped_train_step.probe = self  # type: ignore[attr-defined]
        return tapped_train_step

    def _build(self, data: Any) -> None:
        """Builds a model that waits for its first batch, before its first step."""
        self._knows_weights = True
        try:
            self._model._symbolic_build(data_batch=data)
        except Exception as error:
            warnings.warn(
                "The controller cannot see the weights of this model, which is not "
                "built before its first step, and goes on without these features. "
                f"Call the model on a batch before `fit`. Building it failed: {error}",
                stacklevel=2,
            )
            self._needs -= {"outputs"}
            return
        self._find_weights()
        self.note_weights()

    def _find_weights(self) -> None:
        if "layer" in self._needs:
            self._layer_weights = designated_weights(
                self._model, self._designated_layer
            )
        trainable = list(self._model.trainable_variables)
        if self._needs & {"update", "outputs"}:
            self._seen = trainable
        if "outputs" in self._needs:
            self._seen = trainable + moving_statistics(self._model)
        # In their own dtypes: outputs are computed with them.
        self._weights = [_copy(v, v.dtype) for v in self._seen]
        if "update_cosine" in self._needs:
            self._updates = [_copy(v, "float32") for v in trainable]
        self._checkpoint.weights = self._weights
        self._checkpoint.updates = self._updates

    def _copy_weights(self) -> None:
        for copy, v in zip(self._weights, self._seen, strict=True):
            copy.assign(tf.convert_to_tensor(v.value))

    def _note_loss(self, loss: tf.Tensor) -> None:
        step = self._step.read_value()
        place = place_of(step)
        if self._model.jit_compile:
            # XLA makes a loop of a scatter, and one pass of this.
            here = tf.range(LOSSES_KEPT, dtype=tf.int64) == place
            self._losses.assign(tf.where(here, loss, self._losses.read_value()))
        else:
            # In place; a variable of a strategy has no method of its own for it.
            tf.raw_ops.ResourceScatterUpdate(
                resource=self._losses.handle, indices=place, updates=loss
            )
        self._step.assign_add(1)

    def _note_batch(self, data: Any) -> None:
        x = keras.utils.unpack_x_y_sample_weight(data)[0]
        try:
            if self._noted is None:
                with tf.init_scope():
                    weights = self._seen if "outputs" in self._needs else None
                    self._noted = NotedBatch(self._model, x, self._probe_size, weights)
            self._noted.note(x)
        except Exception as error:  # A custom train_step may feed the model otherwise.
            self._needs -= {"outputs", "inputs"}
            warnings.warn(
                "The controller cannot see the inputs and outputs of this model's "
                "training step and goes on without these features. Keeping `x` of the "
                f"batch and calling the model on it failed: {error}",
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
        losses = measure_losses(self._losses.read_value(), self._step, steps)
        validation, outputs = self._measure_validation(losses["training_loss"])
        finite = tf.math.is_finite(losses["training_loss"])
        finite &= tf.math.is_finite(validation) | (steps == 0)
        # What they read is of before: in this order.
        batch, weights = self._measure_batch(steps), self._measure_weights()
        self._copy_weights()
        statistics = unmeasured()._replace(
            step=tf.cast(self._step, tf.float32),
            horizon=tf.cast(horizon, tf.float32),
            window_steps=tf.cast(steps, tf.float32),
            learning_rate=learning_rate,
            level=level,
            default_learning_rate=default_learning_rate,
            validation_loss=validation,
            finite=tf.cast(finite, tf.float32),
            **losses,
            **weights,
            **batch,
            **self._measure_outputs(outputs, steps),
        )
        self._window_start.assign(self._step)
        return statistics

    def _measure_validation(self, training_loss: tf.Tensor) -> Validated:
        if self._validation_loss is not None:
            return self._validation_loss.measure()
        # Before step 1 there is no loss at all; NaN says so to the features.
        unknown = tf.equal(self._step, 0)
        return Validated(tf.where(unknown, float("nan"), training_loss), None)

    def _measure_outputs(
        self, outputs: tf.Tensor | None, steps: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        if not self._watches_outputs:
            return {}
        measured = measure_outputs(self._outputs.read_value(), outputs)
        self._outputs.assign(outputs)
        # Before step 1 those of before are of an earlier run, or none at all.
        return {
            name: tf.where(steps > 0, variance, 0.0)
            for name, variance in measured.items()
        }

    def _measure_weights(self) -> dict[str, tf.Tensor]:
        measured: dict[str, tf.Tensor] = {}
        if self._layer_weights:
            flat = tf.concat(
                [tf.reshape(as_float(w), [-1]) for w in self._layer_weights], axis=0
            )
            mean, variance = tf.nn.moments(flat, axes=[0])
            measured |= {"layer_mean": mean, "layer_variance": variance}
        if not self._weights or "update" not in self._needs:
            return measured
        now = [as_float(v) for v in self._model.trainable_variables]
        # The moving statistics come behind them.
        updates = [
            new - as_float(old) for new, old in zip(now, self._weights, strict=False)
        ]
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
        for copy, update in zip(self._updates, updates, strict=False):
            copy.assign(update)
        return measured

    def _measure_batch(self, steps: tf.Tensor) -> dict[str, tf.Tensor]:
        if self._noted is None or not self._needs & {"outputs", "inputs"}:
            return {}
        before = [copy.read_value() for copy in self._weights]
        # Before step 1 what is noted is the batch of an earlier run.
        return {
            name: tf.where(steps > 0, value, 0.0)
            for name, value in self._noted.measure(before).items()
        }


def remove_stale_tap(model: keras.Model) -> bool:
    """Removes the tap of a run that ended in an exception; says if there was one."""
    probe = getattr(model.__dict__.get("train_step"), "probe", None)
    if probe is not None:
        probe.abandon()
    return probe is not None


def _copy(variable: keras.Variable, dtype: str) -> tf.Variable:
    return tf.Variable(tf.zeros(variable.shape, dtype), trainable=False)
