"""One training run under control: observe, decide, set."""

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from keras_learned_lr.control.actions import ActionForm, ActionState
from keras_learned_lr.control.average import WeightAverage
from keras_learned_lr.control.controller import (
    Controller,
    LearningController,
    PolicyOutput,
    RemoteController,
    ServingError,
)
from keras_learned_lr.control.graph import Packed, Traced
from keras_learned_lr.control.optimizer import OptimizerLearningRate
from keras_learned_lr.control.plan import RatePlan
from keras_learned_lr.control.record import Look, Record, pack, unpack
from keras_learned_lr.control.rollback import (
    Rollback,
    has_broken,
    has_collapsed,
    retreat_of,
)
from keras_learned_lr.observation.layers import moving_statistics
from keras_learned_lr.observation.memory import Memory
from keras_learned_lr.observation.probe import Probe
from keras_learned_lr.observation.spec import observe
from keras_learned_lr.observation.statistics import Statistics
from keras_learned_lr.observation.tensors import first_replica
from keras_learned_lr.observation.validation import Subset, ValidationLoss


class ControlLoop:
    """Lets a controller steer the learning rate of a model that trains.

    `start` a run, `decide` before its first step and whenever `next_decision` is due,
    `stop` at its end. The callback does this inside `model.fit`.

    A decision has three steps, `observe`, `ask` and `set`. `decide` takes them in one
    graph, or one by one where the controller is behind a server; so may anybody else:
    `loop.set(look, loop.ask(look))` with `look = loop.observe()`.

    Args:
        model: The compiled and built model.
        controller: What decides.
        form: The action form; the controller's, perhaps with another schedule.
        validation_loss: Measures the validation loss, or None.
        designated_layer: See `Probe`.
        probe_size: See `Probe`.
        default_learning_rate: Replaces the one that the optimizer was compiled with.
        minimum: Smallest learning rate, or None.
        maximum: Largest learning rate, or None.
        rollback: Whether to keep the last good weights and go back to them; see
            `Rollback`.
        last_look: Validation examples by which a run makes its last step, where the
            form asks for one; None makes none. See `WeightAverage`.
    """

    def __init__(
        self,
        model: keras.Model,
        controller: Controller,
        form: ActionForm,
        validation_loss: ValidationLoss | None = None,
        designated_layer: str | None = None,
        probe_size: int = 32,
        default_learning_rate: float | None = None,
        minimum: float | None = None,
        maximum: float | None = None,
        rollback: bool = False,
        last_look: Subset | None = None,
    ) -> None:
        self._model = model
        self._optimizer = OptimizerLearningRate(model.optimizer)
        self._controller = controller
        self._form = form
        self._spec = controller.observation_spec
        self._default = default_learning_rate
        self._bounds = (minimum, maximum)
        with tf.device(_device_of(model)):
            beginning = self._beginning()
            self._action_state = Packed(beginning)
            self._learning_rate = _variable(beginning.level)
            # How often something else had set the learning rate.
            self._contested = _variable(tf.constant(0.0))
            self._memory = Packed(self._spec.initial_memory())
            self._policy_state = [_variable(s) for s in controller.initial_state(1)]
            self._horizon = tf.Variable(1, dtype=tf.int64, trainable=False)
            self._horizon_told = 1
            self._plan = RatePlan(form, model.steps_per_execution)
        needs = self._spec.needs
        if isinstance(controller, LearningController):
            # Its reward is the validation loss, whether it looks at it or not.
            needs |= {"validation"}
        self._needs = needs
        self._probe = Probe(
            model,
            needs,
            validation_loss,
            designated_layer,
            probe_size,
            before_step=self._follow_plan if self._plan.moves else None,
            when_stale=self._take_back,
        )
        self._validation_loss = validation_loss
        self._rollback = Rollback(model) if rollback else None
        self._average = None
        self._last_look = last_look
        # An optimizer that averages ends the run with its own.
        if last_look is not None and form.average and not _averages_itself(model):
            self._average = WeightAverage(model, form.average)
        self._device = _device_of(model)
        self._remote = isinstance(controller, RemoteController)
        self.decide_function = Traced(self._decide)
        self._observe_function = Traced(self._observe)
        self._set_function = Traced(self._apply)
        self._plan_function = Traced(self._write_plan)
        self._keep_function = Traced(self._keep)
        self._eager = model.run_eagerly

    @property
    def probe(self) -> Probe:
        """What sees the model train."""
        return self._probe

    @property
    def validates(self) -> bool:
        """Whether the losses that it looks at are of validation data."""
        return self._validation_loss is not None and "validation" in self._needs

    @property
    def steps_per_update(self) -> int:
        """Training steps whose gradients are accumulated for one update."""
        return self._optimizer.steps_per_update

    @property
    def optimizer_was_replaced(self) -> bool:
        """Whether the model has another optimizer than when the run began."""
        return self._model.optimizer is not self._began_with

    @property
    def updates(self) -> int:
        """Training steps that the model's optimizer has counted, in all runs together.

        Those whose gradients are accumulated count too.
        """
        return int(keras.ops.convert_to_numpy(self._model.optimizer._iterations))

    @property
    def defaults(self) -> list[float]:
        """Learning rates that the optimizers get back when the run ends."""
        return self._optimizer.defaults

    def start(self, horizon: int, defaults: Sequence[float] | None = None) -> None:
        """Begins a run and taps the model.

        Args:
            horizon: Training steps of the whole run.
            defaults: What the optimizers were compiled with, where their learning rates
                are others by now.
        """
        self._take_optimizer(defaults)
        beginning = self._beginning()
        self._action_state.assign(beginning)
        self._set(beginning.level)
        self._contested.assign(0.0)
        self._memory.assign(self._spec.initial_memory())
        _assign_all(self._policy_state, self._controller.initial_state(1))
        self.set_horizon(horizon)
        if self._rollback is not None:
            self._rollback.start()
        if self._average is not None:
            self._average.start()
        if self._validation_loss is not None:
            self._validation_loss.averages.start()
        self._probe.install()
        self._probe.start()

    @property
    def contested(self) -> bool:
        """Whether something else has set the learning rate in this run too."""
        now = self._optimizer.differs(self._learning_rate)
        found = bool(tf.greater(self._contested, 0.0) | now)
        return found or self._optimizer.was_replaced

    def save(self, path: Path) -> None:
        """Writes all that `resume` goes on from, as a TensorFlow checkpoint."""
        self._checkpoint().write(str(path))

    def resume(self, horizon: int, defaults: Sequence[float], path: Path) -> None:
        """Goes on with an interrupted run, in place of `start`.

        Args:
            horizon: Training steps of the whole run.
            defaults: What `defaults` was in it.
            path: What `save` wrote. The model's weights and its optimizer's variables
                are not in it.
        """
        self._take_optimizer(defaults)
        if self._rollback is not None:
            # They may be needed before another window is finite.
            self._rollback.make_copies()
        status = self._checkpoint().read(str(path))
        status.assert_existing_objects_matched()
        # The user may have set other bounds since.
        state = self._action_state.read()
        bounds = self._form.initial_state(state.default, *self._bounds)
        self._action_state.assign(
            state._replace(low=bounds.low, high=bounds.high, floor=bounds.floor)
        )
        self.set_horizon(horizon)
        self._optimizer.assign(self._learning_rate)
        self.plan(int(self._probe.step))
        self._probe.install()

    def stop(self) -> None:
        """Ends the run: takes the tap out and puts the learning rate back."""
        self._probe.remove()
        self._optimizer.restore()

    def abandon(self) -> None:
        """Does the same after a run that ended in an exception."""
        self._probe.abandon()

    def set_horizon(self, horizon: int) -> None:
        """Sets the number of training steps of the whole run."""
        # Asked for at every decision, where it takes 0.2 ms, and next to never another.
        if horizon != self._horizon_told:
            self._horizon.assign(horizon)
            self._horizon_told = horizon

    def plan(self, step: int) -> None:
        """Computes the learning rates of the coming steps again.

        Args:
            step: Training steps taken.
        """
        if self._plan.moves:
            write: Any = self._write_plan if self._eager else self._plan_function
            write()
            self._plan.note(step)

    def go_on(self, step: int) -> None:
        """Tells that so many training steps are taken, after each execution."""
        # Long windows, and those after the last decision, outlast a plan.
        if self._plan.is_over(step):
            self.plan(step)

    def average(self, step: int, horizon: int) -> float:
        """Averages weights towards the end, and makes the last step along it.

        Args:
            step: Training steps taken; tell it after each execution.
            horizon: Training steps of the whole run, as far as is known by now.

        Returns:
            What `WeightAverage.last_step` does at the end of the run; 0 before.
        """
        if self._average is None:
            return 0.0
        self._average.go_on(step, horizon)
        if step < horizon:
            return 0.0
        assert self._validation_loss is not None and self._last_look is not None
        measure = functools.partial(self._validation_loss.over, self._last_look)
        return self._average.last_step(measure)

    def next_decision(self, step: int, horizon: int) -> int:
        """Returns the step at which the decision after the one at `step` is due."""
        return self._form.schedule.next_step(step, horizon)

    def logs(self, learning_rate: float | None = None) -> dict[str, float]:
        """Returns the learning rates as named in Keras's logs.

        Args:
            learning_rate: What was set last, where it is known; else it is read.
        """
        return self._optimizer.logs(learning_rate)

    def decide(self) -> Record:
        """Observes the window that ends now, asks the controller, sets the rate."""
        if self._remote:
            look = self.observe()
            return self.set(look, self.ask(look))
        packed, info = self.decide_function() if self._graph else self._decide()
        return self._close_window(unpack(packed, info))

    def observe(self) -> Look:
        """Measures the window that ends now; the next one begins."""
        return self._observe_function() if self._graph else self._observe()

    def ask(self, look: Look) -> PolicyOutput:
        """Asks the controller for an action.

        Returns:
            Its answer to the one observation, batch size 1. Where a served controller
            does not answer, the action is NaN, which `set` takes as "hold", and
            `failure` says why.
        """
        try:
            return self._ask(look)
        except ServingError as error:
            # Before step 1 too: it did answer when it was connected to.
            state = [v.read_value() for v in self._policy_state]
            return PolicyOutput(tf.constant([float("nan")]), state, failure=str(error))

    def set(self, look: Look, output: PolicyOutput) -> Record:
        """Sets the learning rate that the answer stands for.

        Args:
            look: What `observe` returned.
            output: What `ask` returned. An action that is not finite leaves the
                learning rate at its last good value.
        """
        state = [tf.convert_to_tensor(value) for value in output.state]
        action = tf.convert_to_tensor(output.action)
        apply: Any = self._apply if self._eager else self._set_function
        record = unpack(apply(look, action, state), output.info)
        return self._close_window(record._replace(failure=output.failure))

    def _take_optimizer(self, defaults: Sequence[float] | None) -> None:
        # Read again: it may have been changed since the last run.
        self._began_with = self._model.optimizer
        self._optimizer = OptimizerLearningRate(self._began_with, defaults)

    def _beginning(self) -> ActionState:
        default = self._default or self._optimizer.default
        return self._form.initial_state(default, *self._bounds)

    def _close_window(self, record: Record) -> Record:
        self._plan.note(record.step)
        # The traced step goes on with the variable and cannot tell.
        if self._optimizer.was_replaced:
            record = record._replace(contested=True)
        if self._rollback is None:
            return record
        # Where a validation loss is not even finite before step 1, it tells nothing.
        known = math.isfinite(record.loss) or not self.validates
        if record.finite and not known:
            return record
        if record.rolled_back is not None:
            self._rollback.put_back()
            self._optimizer.assign(self._learning_rate)
            self._probe.note_weights()
            self._remember_kept()
            if self._average is not None:
                self._average.start()
        elif record.finite and self._rollback.make_copies(record.step > 0):
            self._keep_function()
        return record

    def _keep(self) -> None:
        # In one graph: read from the host, part by part, the memory alone takes as long
        # as copying the weights of a small model.
        assert self._rollback is not None
        setbacks = self._memory.read().setbacks
        self._rollback.keep(self._probe.step, self._horizon.read_value(), setbacks)

    def _remember_kept(self) -> None:
        """Measures what the weights that are back are worth now.

        A loss that is another by now (a term whose weight grows, a target that moves)
        is as high with them, and no reason to keep the level down.
        """
        if not self.validates:
            return
        loss, memory = self._probe.note_validation(), self._memory.read()
        loss = tf.where(tf.math.is_finite(loss), loss, memory.kept_validation_loss)
        self._memory.assign(memory._replace(kept_validation_loss=loss))

    def _checkpoint(self) -> tf.train.Checkpoint:
        # Anew each time: a model that its first batch builds gets its seeds late.
        checkpoint = tf.train.Checkpoint(
            action_state=self._action_state.variable,
            learning_rate=self._learning_rate,
            contested=self._contested,
            memory=self._memory.variable,
            policy_state=self._policy_state,
            probe=self._probe.checkpoint,
            seeds=_seeds(self._model),
        )
        if self._validation_loss is not None:
            checkpoint.averages = self._validation_loss.averages.checkpoint
        if self._rollback is not None:
            checkpoint.rollback = self._rollback.checkpoint
        if self._average is not None:
            checkpoint.average = self._average.checkpoint
        return checkpoint

    @property
    def _graph(self) -> bool:
        # Before the first batch its shape is unknown: the one decision that comes
        # earlier runs eagerly, so that the graph is traced once.
        return self._probe.ready and not self._eager

    def _decide(self) -> tuple[tf.Tensor, Any]:
        look = self._observe()
        output = self._ask(look)
        return self._apply(look, output.action, output.state), output.info

    def _observe(self) -> Look:
        with tf.device(self._device):
            state = self._action_state.read()
            statistics = self._probe.measure(
                self._horizon.read_value(),
                self._learning_rate.read_value(),
                state.level,
                state.default,
            )
            back_to, memory = self._back_to(statistics, self._memory.read())
            observation, memory = observe(self._spec, statistics, memory)
            self._memory.assign(memory)
            return Look(
                observation,
                statistics.step,
                statistics.validation_loss,
                memory.first_validation_loss,
                statistics.finite,
                back_to,
            )

    def _back_to(
        self, statistics: Statistics, memory: Memory
    ) -> tuple[tf.Tensor, Memory]:
        if self._rollback is None:
            return tf.constant(-1.0), memory
        # Of before this decision: where nothing is kept yet, -1 as well.
        kept = tf.cast(self._rollback.kept_step, tf.float32)
        if self.validates:
            lags = bool(moving_statistics(self._model))
            collapsed, memory = has_collapsed(statistics, memory, lags)
        else:
            collapsed, memory = has_broken(statistics, memory)
        return tf.where(collapsed, kept, -1.0), memory

    def _ask(self, look: Look) -> PolicyOutput:
        with tf.device(self._device):
            state = [v.read_value() for v in self._policy_state]
            return self._controller.act(tf.expand_dims(look.observation, 0), state)

    def _apply(
        self, look: Look, action: tf.Tensor, new_state: list[tf.Tensor]
    ) -> tf.Tensor:
        with tf.device(self._device):
            state = self._action_state.read()
            policy_state = [v.read_value() for v in self._policy_state]
            action = tf.reshape(action, [])
            collapsed = look.back_to >= 0.0
            # Where a number is not finite the action is overruled, unless the weights
            # of before are back.
            follow = (look.finite > 0.5) | collapsed
            settled = self._form.settle(state, follow, collapsed)
            memory = self._memory.read()
            follow &= tf.math.is_finite(action)
            moved, rate = self._form.step(
                settled,
                tf.where(follow, action, float("nan")),
                self._probe.step,
                self._horizon.read_value(),
                retreat_of(collapsed, memory),
            )
            done = tf.where(follow, tf.clip_by_value(action, -1.0, 1.0), 0.0)
            self._action_state.assign(moved)
            self._set(rate)
            if self._plan.moves:
                self._write_plan()
            self._memory.assign(memory._replace(previous_action=done))
            _assign_all(self._policy_state, map(_where_finite, new_state, policy_state))
            factor = moved.level / state.level
            contested = tf.greater(self._contested, 0.0)
            return pack(look, rate, factor, action, ~follow, contested)

    def _write_plan(self) -> None:
        with tf.device(self._device):
            state = self._action_state.read()
            self._plan.write(state, self._probe.step, self._horizon.read_value())

    def _follow_plan(self, step: tf.Tensor) -> None:
        self._set(self._plan.rate(step))

    def _take_back(self) -> None:
        # What the user has set by hand since the exception stays.
        if not self._optimizer.differs(self._learning_rate):
            self._optimizer.restore()

    def _set(self, rate: tf.Tensor) -> None:
        # What is compared is of the first replica, as is what the optimizer takes.
        if first_replica():
            contested = self._optimizer.differs(self._learning_rate)
            self._contested.assign_add(tf.cast(contested, tf.float32))
            self._learning_rate.assign(rate)
        self._optimizer.assign(rate)


def _device_of(model: keras.Model) -> str | None:
    weights = model.trainable_variables
    # Where a strategy spreads the weights over devices, TensorFlow places.
    if not weights or model.distribute_strategy.num_replicas_in_sync > 1:
        return None
    return weights[0].value.device


def _averages_itself(model: keras.Model) -> bool:
    inner = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    return bool(getattr(inner, "use_ema", False))


def _seeds(model: keras.Model) -> list[Any]:
    """Returns the states of random generators, which no backup of Keras's holds."""
    known = {id(v) for v in [*model.weights, *model.metrics_variables]}
    return [v.value for v in model.variables if id(v) not in known]


def _variable(value: tf.Tensor) -> tf.Variable:
    return tf.Variable(value, trainable=False)


def _assign_all(variables: Any, values: Any) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _where_finite(new: tf.Tensor, old: tf.Tensor) -> tf.Tensor:
    return tf.where(tf.reduce_all(tf.math.is_finite(new)), new, old)
