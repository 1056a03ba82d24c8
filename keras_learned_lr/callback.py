"""LearnedLearningRate: when to decide inside `model.fit`, and nothing about how."""

import copy
import dataclasses
import math
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_learned_lr.arguments import check_count, check_rates, check_update_freq
from keras_learned_lr.backup import Progress, Saved, make_backup
from keras_learned_lr.control.actions import ActionForm
from keras_learned_lr.control.controller import (
    Controller,
    Decision,
    LearningController,
    RemoteController,
)
from keras_learned_lr.control.optimizer import OptimizerLearningRate
from keras_learned_lr.control.record import Record, as_table
from keras_learned_lr.control.schedules import EverySteps
from keras_learned_lr.control_loop import ControlLoop
from keras_learned_lr.controllers import as_controller
from keras_learned_lr.observation.probe import remove_stale_tap
from keras_learned_lr.observation.validation import (
    Subset,
    ValidationLoss,
    draw_subset,
    draw_subsets,
)

# Most of what a decision costs: see docs/cost.md.
VALIDATION_SIZE = 128
PROBE_SIZE = 32
# Steps that an epoch of unknown length is taken to have at least.
SHORTEST_EPOCH = 100


class LearnedLearningRate(keras.callbacks.Callback):
    """Lets a controller set the learning rate while a model trains.

    The controller decides before the first training step and then every so many steps;
    what it sets is `default learning rate × level`, annealed where its action form
    says so. When the run ends, the optimizer's learning rate is what it was before.

    Example:
    ```python
    import keras
    from keras_learned_lr import LearnedLearningRate

    model.compile("adam", "sparse_categorical_crossentropy")
    rate = LearnedLearningRate("path/to/controller", validation_data=(x_val, y_val))
    model.fit(x, y, epochs=10, callbacks=[rate])
    ```

    Callbacks that log, such as `CSVLogger` and `TensorBoard`, find the learning rate
    in `logs["learning_rate"]` if they come after this one: at the end of an epoch the
    one in force, after a batch that of the last decision. A callback that sets the
    learning rate, such as `ReduceLROnPlateau`, is overruled, with one warning.

    Args:
        controller: The name of a shipped controller, a path, a `Controller`, a
            `RestController` or `GrpcController`, a TF-Agents `TFPolicy` or
            `PolicySaver` folder, a checkpoint of a learner, or a `ControllerLearner`,
            which then learns during `fit`.
        validation_data: What `fit` takes as `validation_data`. Without it the
            controller watches the training loss.
        validation_size: Examples of it that are looked at, chosen at the first `fit`
            and kept for later ones: drawn from arrays, spread over all batches where
            their number is known, else the first; None for all.
        update_freq: Training steps between decisions, or "auto" for the schedule that
            the controller carries.
        total_steps: Training steps of the whole run; needed only where `fit` cannot
            tell, as with a generator of unknown length and one epoch.
        default_learning_rate: Starts from this in place of the learning rate that the
            optimizer was compiled with.
        min_learning_rate: Smallest learning rate; by default the controller's range
            around the default.
        max_learning_rate: Largest learning rate, likewise.
        designated_layer: Name of the layer whose weights are watched, where the
            controller watches one; by default the last with a weight matrix.
        probe_size: Validation examples whose outputs are watched; training examples
            of each window where there is no validation data.
        rollback: Whether to go back to the weights and the optimizer's variables of
            the decision before, where a validation loss is not finite any more or has
            lost a quarter of all that it had fallen; without validation data, after
            three windows in a row whose last loss was not finite. It keeps a copy of
            them for that.
        average: Whether a run that is trained to its end may make a last step, where
            the controller asks for it: towards the average of its last weights or away
            from it, to where the validation loss is lowest, on four times as many
            examples as are looked at before; see `averaged`. It takes a copy of the
            weights.
        backup_dir: A local folder for what an interrupted run goes on from, best that
            of a `keras.callbacks.BackupAndRestore` in the same list, which keeps the
            weights. Saved at the end of every epoch, deleted at the end of the run.
        seed: Seeds the draw of validation examples.
        verbose: 1 prints every decision.

    Raises:
        ValueError: If an argument is out of its range, or the controller is unknown.
        TypeError: If `controller` is of no known kind, or `backup_dir` no path.
    """

    def __init__(
        self,
        controller: Any = "default",
        *,
        validation_data: Any = None,
        validation_size: int | None = VALIDATION_SIZE,
        update_freq: int | str = "auto",
        total_steps: int | None = None,
        default_learning_rate: float | None = None,
        min_learning_rate: float | None = None,
        max_learning_rate: float | None = None,
        designated_layer: str | None = None,
        probe_size: int = PROBE_SIZE,
        rollback: bool = True,
        average: bool = True,
        backup_dir: str | Path | None = None,
        seed: int | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__()
        if keras.config.backend() != "tensorflow":
            raise ValueError(
                "LearnedLearningRate needs Keras's TensorFlow backend. Received: "
                f"KERAS_BACKEND={keras.config.backend()!r}. Set "
                "KERAS_BACKEND=tensorflow before Keras is imported."
            )
        for name, count in (
            ("validation_size", validation_size),
            ("total_steps", total_steps),
        ):
            if count is not None:
                check_count(name, count)
        check_count("probe_size", probe_size)
        check_update_freq(update_freq)
        check_rates(default_learning_rate, min_learning_rate, max_learning_rate)
        self.controller: Controller = as_controller(controller)
        learns = isinstance(self.controller, LearningController)
        self._learner: Any = self.controller if learns else None
        self._validation_data = validation_data
        self._validation_size = validation_size
        self._subsets: tuple[Subset, Subset | None] | None = None
        self._update_freq = update_freq
        self._total_steps = total_steps
        self._default_learning_rate = default_learning_rate
        self._bounds = (min_learning_rate, max_learning_rate)
        self._designated_layer = designated_layer
        self._probe_size = probe_size
        self._rollback = rollback
        self._average = average
        self._averaged = 0.0
        self._backup = None
        if backup_dir is not None:
            self._backup = make_backup(backup_dir, self._learner)
        self._seed = 0 if seed is None else seed
        self._verbose = verbose
        self._loop: ControlLoop
        self._loop_key: tuple = ()
        self._records: list[Record] = []
        self._rewards: list[float] = []
        self._running = False
        self._told: list[str] = []

    def __getstate__(self) -> dict[str, Any]:
        state = {k: v for k, v in self.__dict__.items() if k != "_loop"}
        own = {"_records": [*self._records], "_rewards": [*self._rewards]}
        ended = {"_loop_key": (), "_running": False, "_model": None, "_told": []}
        return {**state, **own, **ended}

    def __deepcopy__(self, memo: dict) -> "LearnedLearningRate":
        # As tuners do for each trial: settings of its own, and the data shared.
        return copy.copy(self)

    @property
    def decisions(self) -> dict[str, Any]:
        """The decisions of the last run, as arrays with one entry a decision.

        Keys are `step` (training steps taken before it), `learning_rate`, `factor`,
        `action`, `loss` (validation loss; training loss where there is no validation
        data or the controller does not look at it), `held`, `rolled_back` (the step
        whose weights are back since, or -1), and `observation`, a dict of arrays by
        feature name. After a run in which the controller learned,
        `reward` holds what each decision earned, NaN for one that the run's end left
        open.
        """
        names = self.controller.observation_spec.names
        table = as_table(self._records, names)
        if self._learner is not None:
            open_ended = [math.nan] * (len(self._records) - len(self._rewards))
            table["reward"] = np.array(self._rewards + open_ended)
        return table

    @property
    def averaged(self) -> float:
        """Where the last run has ended between its last weights and their average.

        0: with the last weights; 1: with the average; below 0: beyond the last ones,
        away from it.
        """
        return self._averaged

    # The hooks of fit.

    def set_model(self, model: keras.Model) -> None:
        """Takes the model, and looks after Keras's backup before Keras reads it."""
        super().set_model(model)
        self._told = []
        if self._backup is not None:
            for message in self._backup.mend():
                self._tell(message, message)

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Checks the set-up; nothing of the model is touched before all of it holds."""
        self._break_off()
        remove_stale_tap(self.model)
        if not self.model.compiled:
            raise ValueError(
                "The model is not compiled. Call `model.compile(optimizer=..., "
                "loss=...)` before `fit`."
            )
        if isinstance(self.controller, RemoteController):
            self.controller.connect()
        form = self._form()
        if not self.params:
            raise ValueError(
                "The callback was not told how long the run is. Pass `fit` a list of "
                "callbacks, or give the `CallbackList` its `epochs` and `steps`."
            )
        self._steps = self.params.get("steps")
        if self._validation_data is None:
            warnings.warn(
                "LearnedLearningRate has no `validation_data`: the controller watches "
                "the training loss in its place. What `fit` has it does not see: pass "
                "`LearnedLearningRate(validation_data=...)`.",
                stacklevel=2,
            )
        self._prepare_loop(form)
        self._records, self._rewards = [], []
        self._begun, self._broken, self._contested = False, False, False
        self._averaged, self._averages = 0.0, self._average
        self._updates = -1
        self._compiled_with: list[float] | None = None
        if self._backup is not None:
            self._tell("epoch", self._backup.mend_epoch(self.model))
            self._resume_finished()

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Begins the run at its first epoch: only here `initial_epoch` is known."""
        self._epoch = epoch
        if self._begun:
            return
        self._refuse_another()
        if not self._resume(epoch):
            self._first_epoch = epoch
            self._epochs = self.params["epochs"] - epoch
            self._step = self._epoch_start = 0
            self._check_horizon()
            self._begun = self._running = True
            try:
                self._loop.start(self._horizon(), self._compiled_with)
                self._updates = self._loop.updates
                if self._learner is not None:
                    self._learner.begin_episode()
                self._decide()
            except Exception:
                self._break_off()
                raise

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        """Tells the probe that the coming step belongs to this run."""
        self._loop.probe.expect_step()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Decides where a decision is due."""
        # With `steps_per_execution` the last index of an epoch may overshoot.
        done = batch + 1 if self._steps is None else min(batch + 1, self._steps)
        self._step = self._epoch_start + done
        if self._step >= self._due and self._step < self._horizon():
            self._decide()
        self._loop.go_on(self._step)
        self._average_weights()
        if logs is not None:
            logs.update(self._logs)
        if done == self._steps:
            # Before any callback's `on_epoch_end`: whatever is in Keras's backup, the
            # state that belongs to it is there.
            self._save(self._epoch + 1)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Logs the learning rate in force."""
        if self._steps is None:
            self._step = int(self._loop.probe.step)
            self._steps = self._step - self._epoch_start
            self._loop.set_horizon(self._horizon())
            self._loop.plan(self._step)
        self._epoch_start += self._steps
        self._step = self._epoch_start
        if epoch == self._first_epoch:
            self._check_optimizer()
        if logs is not None:
            logs.update(self._loop.logs())
        self._save(epoch + 1)

    def on_train_end(self, logs: dict | None = None) -> None:
        """Closes the run and leaves the model as it was before."""
        if not self._begun and self._backup is not None:
            self._resume_finished()
        if not self._running:
            return
        try:
            if self._learner is not None:
                # A last look tells what the last action earned; its own action is
                # never applied.
                look = None if self._broken else _decision(self._loop.decide())
                self._note_reward(self._learner.end_episode(look))
        except Exception as error:
            self._tell("end", f"The controller could not learn from the end: {error}")
        self._running = False
        contested = self._loop.contested and not self._broken
        self._loop.stop()
        self._tell_if_contested(contested)
        if self._backup is not None:
            self._backup.delete()

    # How the parts are put together.

    def _refuse_another(self) -> None:
        # A tap that is there now is of this `fit`: older ones went in `on_train_begin`.
        if remove_stale_tap(self.model):
            raise ValueError(
                "Two LearnedLearningRate callbacks in one `fit` would overrule each "
                "other. Pass one."
            )

    def _form(self) -> ActionForm:
        form = self.controller.action_form
        if self._update_freq == "auto":
            return form
        return dataclasses.replace(form, schedule=EverySteps(int(self._update_freq)))

    def _check_horizon(self) -> None:
        told = self._total_steps or self._steps or self._epochs > 1
        needs = self.controller.observation_spec.needs
        if told or not (self._form().needs_horizon or "horizon" in needs):
            return
        raise ValueError(
            "The length of this run is unknown: the data has no known number of "
            "batches and there is one epoch only, but the controller plans for a whole "
            f"run. Received: steps=None, epochs={self._epochs}. Pass "
            "`LearnedLearningRate(total_steps=...)`, or `steps_per_epoch` to `fit`."
        )

    def _check_optimizer(self) -> None:
        """Tells where no learning rate that is set can matter."""
        back = any(record.rolled_back is not None for record in self._records)
        # All steps of a short epoch may be skipped until a loss scale fits.
        skips = hasattr(self.model.optimizer, "inner_optimizer")
        if self._step and not (back or skips) and self._loop.updates == self._updates:
            self._tell(
                "no updates",
                "The model's optimizer has made no update in this epoch, so that the "
                "learning rates set on it change nothing: its own `train_step` may use "
                "other optimizers. Compile the model with the one that trains it.",
            )

    def _prepare_loop(self, form: ActionForm) -> None:
        model = self.model
        # What a `compile` renews; while it stays, graphs traced before serve again.
        key = (
            model,
            model.optimizer,
            model._loss_tracker,
            # A server may have loaded another controller since.
            *(form, self.controller.observation_spec),
            OptimizerLearningRate(model.optimizer).shares,
            *(model.steps_per_execution, model.jit_compile, model.run_eagerly),
            *(id(v) for v in model.trainable_variables),
        )
        same = len(key) == len(self._loop_key) and all(
            new is old or new == old
            for new, old in zip(key, self._loop_key, strict=True)
        )
        if same:
            return
        validation_loss, more = None, None
        if self._validation_data is not None:
            few, more = self._draw(self._average and form.average > 0)
            validation_loss = ValidationLoss(model, few, self._probe_size)
        self._loop = ControlLoop(
            model,
            self.controller,
            form,
            validation_loss,
            self._designated_layer,
            self._probe_size,
            self._default_learning_rate,
            *self._bounds,
            rollback=self._rollback,
            last_look=more,
        )
        self._loop_key = key

    def _draw(self, more: bool) -> tuple[Subset, Subset | None]:
        """Returns the examples that are looked at by decisions and at the end."""
        if self._subsets is None or more and self._subsets[1] is None:
            given = (self._validation_data, self._validation_size, self._seed)
            if more:
                self._subsets = draw_subsets(*given)
            else:
                self._subsets = (draw_subset(*given), None)
        return self._subsets

    def _horizon(self) -> int:
        if self._total_steps:
            return self._total_steps
        if self._steps is not None:
            return self._steps * self._epochs
        # Inside a first epoch of unknown length we are taken to be half through it.
        return self._epochs * max(SHORTEST_EPOCH, 2 * self._step)

    def _check_charge(self) -> None:
        """Ends the decisions of a run that somebody else has taken over."""
        if self._loop.optimizer_was_replaced:
            self._broken = True
            self._tell(
                "optimizer",
                "The model's optimizer was replaced during the run. No more decisions "
                "are made in it; a `fit` that begins with the new one steers that.",
            )
        elif not self._loop.probe.installed:
            self._broken = True
            self._tell(
                "another step",
                "The model's training step was made anew during the run, as by a "
                "callback that calls `compile`, `train_on_batch` or "
                "`make_train_function`. No more decisions are made in it, and the "
                "learning rate is what the optimizer was compiled with.",
            )

    def _decide(self) -> None:
        if not self._broken:
            self._check_charge()
        if self._broken:
            return
        horizon = self._horizon()
        due = self._loop.next_decision(self._step, horizon)
        # Accumulated gradients are applied every so many steps; a decision falls there.
        if (accumulated := self._loop.steps_per_update) > 1:
            # The optimizer has counted those of earlier runs, too.
            before = (self._loop.updates - self._step) % accumulated
            due = -(-(due + before) // accumulated) * accumulated - before
        self._due = due
        self._loop.set_horizon(horizon)
        try:
            record = self._loop.decide()
            self._records.append(record)
            self._logs = self._loop.logs(record.learning_rate)
            if self._learner is not None:
                self._note_reward(self._learner.record(_decision(record)))
        except Exception as error:
            if self._step == 0:
                raise
            # What worked before step 1 may fail later: out of memory, a lost device.
            self._broken = True
            self._tell(
                "decision", f"A decision failed: {error} No more are made in this run."
            )
            return
        if not self._step and self._loop.validates and not math.isfinite(record.loss):
            self._tell(
                "no validation loss",
                "The loss on `validation_data` is not finite before step 1. While it "
                "stays so, the learning rate stays too, and weights do not go back.",
            )
        for kind, message in record.remarks():
            self._tell(kind, message)
        self._tell_if_contested(record.contested)
        if self._verbose:
            print(
                f"step {record.step}: learning rate {record.learning_rate:.3g}, "
                f"factor {record.factor:.3g}, loss {record.loss:.4g}"
            )

    def _average_weights(self) -> None:
        if self._broken or not self._averages:
            return
        # Not that of the last decision: in a first epoch of unknown length it grows.
        horizon = self._horizon()
        try:
            self._averaged = self._loop.average(self._step, horizon)
        except Exception as error:
            self._tell(
                "average", f"The weights of this run cannot be averaged: {error}"
            )
            self._averages = False
        # What may follow on the last step of a plan is not the run that was planned.
        self._averages &= self._step < horizon

    def _tell_if_contested(self, contested: bool) -> None:
        if contested and not self._contested:
            self._contested = True
            warnings.warn(
                "Something else sets the learning rate in this run too, and each "
                "decision overrules it: `ReduceLROnPlateau`, `LearningRateScheduler` "
                "or another callback, or the model's own `train_step`. Use either that "
                "or LearnedLearningRate.",
                stacklevel=3,
            )

    def _note_reward(self, reward: float | None) -> None:
        if reward is not None:
            self._rewards.append(reward)

    def _break_off(self) -> None:
        """Cleans up after a run that an exception ended."""
        if not self._running:
            return
        self._running = False
        self._loop.abandon()
        if self._learner is not None:
            self._learner.end_episode(None)

    def _tell(self, kind: str, message: str | None) -> None:
        if message is not None and kind not in self._told:
            self._told.append(kind)
            warnings.warn(f"LearnedLearningRate: {message}", stacklevel=3)

    # How a run that was interrupted goes on.

    @property
    def _identity(self) -> dict[str, Any]:
        return {
            "observation": self.controller.observation_spec.to_config(),
            "action form": self._form().to_config(),
            "kind of controller": "frozen" if self._learner is None else "learning",
            "probe_size": self._probe_size,
            "rollback": self._rollback,
            "average": self._average,
        }

    def _save(self, epoch: int) -> None:
        """Saves where the run stands; `epoch` comes next."""
        if self._backup is None:
            return
        progress = Progress(
            identity=self._identity,
            first_epoch=self._first_epoch,
            step=self._step,
            steps_per_epoch=self._steps,
            due=self._due,
            defaults=self._loop.defaults,
            records=self._records,
            rewards=self._rewards,
            broken=self._broken,
            told=self._told,
        )
        try:
            self._backup.save(self.model, epoch, progress, self._loop, self._learner)
        except Exception as error:
            self._tell(
                "save",
                f"The state of the run could not be saved: {error} If it is "
                "interrupted now, the controller starts anew.",
            )

    def _resume(self, epoch: int) -> bool:
        """Goes on with an interrupted run; says whether there was one."""
        if self._backup is None:
            return False
        saved, remark = self._backup.find(self.model, epoch)
        self._tell("resume", remark)
        try:
            if (state := saved or self._backup.newest(self.model)) is not None:
                progress = self._backup.read(state)
                # Keras has restored the learning rates that were in force.
                if len(progress.defaults) == len(self._loop.defaults):
                    self._compiled_with = progress.defaults
            if saved is not None:
                self._restore(saved, progress)
        except Exception as error:
            saved = None
            self._tell(
                "resume",
                f"The state of an interrupted run cannot be used: {error}. The "
                "controller starts anew.",
            )
        self._backup.go_on_from(saved)
        return saved is not None

    def _resume_finished(self) -> None:
        """Goes on with a run of which an interruption has left only the end to do."""
        # Asked when the run begins, where Keras may not have told yet, and when it
        # ends, where Keras may have deleted our state with its own.
        epochs = self.params["epochs"]
        if (self.model._initial_epoch or 0) >= epochs:
            self._resume(epochs)

    def _restore(self, saved: Saved, progress: Progress) -> None:
        progress.check(self._identity)
        self._first_epoch = progress.first_epoch
        self._epochs = self.params["epochs"] - progress.first_epoch
        self._step = self._epoch_start = progress.step
        if self._steps is None:
            self._steps = progress.steps_per_epoch
        if self._learner is not None:
            self._learner.restore(saved.learner)
        self._loop.resume(self._horizon(), progress.defaults, saved.tensors)
        self._begun = self._running = True
        self._due, self._broken = progress.due, progress.broken
        self._records, self._rewards = progress.records, progress.rewards
        self._told += progress.told
        self._logs = self._loop.logs()
        if self._verbose:
            print(f"step {self._step}: goes on from {saved.path}")


def _decision(record: Record) -> Decision:
    return Decision(
        observation=record.observation,
        action=record.action,
        info=record.info,
        loss=record.loss,
        first_loss=record.first_loss,
        finite=record.finite and not record.held,
    )
