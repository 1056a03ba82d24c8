"""Many trainees trained at once inside one tf.function, under control.

A batch shares its template: model, loss, optimizer kind, batch size. Its members have
their own data, initial weights, batch order, optimizer settings, widths (by mask) and
learning rates. What is seen of them and what an action does to them is what the
callback sees and does: the same `observe`, the same `ActionForm`.
"""

from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras.src.losses.losses import LossFunctionWrapper

from keras_learned_lr.control.actions import ActionForm
from keras_learned_lr.control.rollback import has_collapsed, is_young
from keras_learned_lr.learning import optimizers, window
from keras_learned_lr.learning.batched_model import BatchedModel, Layout
from keras_learned_lr.learning.gradients import LossAndGradients, batch_loss
from keras_learned_lr.learning.shards import (
    InShards,
    number_of_plain_shards,
    number_of_shards,
)
from keras_learned_lr.learning.trainee_state import (
    Look,
    Members,
    Template,
    TraineesState,
)
from keras_learned_lr.observation.averages import averages
from keras_learned_lr.observation.layers import designated_weights, moving_statistics
from keras_learned_lr.observation.outputs import measure_outputs
from keras_learned_lr.observation.spec import ObservationSpec, observe
from keras_learned_lr.observation.statistics import unmeasured
from keras_learned_lr.observation.window_losses import measure_losses

# As many validation examples of each trainee as go through the model at once.
CHUNK = 64


class _Weights(NamedTuple):
    """What models compute with, and after how many updates."""

    parameters: tf.Tensor
    non_trainable: tuple[tf.Tensor, ...]
    updates: tf.Tensor


class Trainees:
    """Trains the members of a batch and steers their learning rates.

    `begin`, then `advance` from decision to decision. Both are pure functions of the
    members and the state and run as one tf.function each; other members of the same
    shapes, other horizons and other window lengths do not retrace them.

    Args:
        template: What the members share.
        spec: What the controller sees.
        form: What its actions mean. The schedule is up to the caller.
    """

    def __init__(
        self, template: Template, spec: ObservationSpec, form: ActionForm
    ) -> None:
        self.template = template
        self.spec = spec
        self.form = form
        model = template.model
        self.layout = Layout(model.trainable_variables)
        self._model = BatchedModel(model)
        self._lags = bool(moving_statistics(model))
        self._averages = {id(a.variable): a for a in averages(model)}
        self._loss = _as_loss(template.loss)
        self._gradients = LossAndGradients(
            model, self._model, self.layout, self._loss, template.way
        )
        self._dtype = tf.as_dtype(keras.config.floatx())
        # Fused into one pass over memory: measured to save a third of a step.
        self._update = tf.function(self._updated, autograph=False, jit_compile=True)
        compiled = self._gradients.way == "compiled"
        self._in_shards = InShards(self._shard, compiled)
        # A look took as long as five training steps where XLA did not compile it.
        self._validate_in_shards = InShards(self._validate_shard, compiled)
        self.begin = tf.function(self._begin, autograph=False)
        self.advance = tf.function(self._advance, autograph=False)

    @property
    def traces(self) -> int:
        """How often a graph was built; stays the same once running."""
        functions = (self.begin, self.advance)
        return sum(f.experimental_get_tracing_count() for f in functions)

    def validation_loss(self, state: TraineesState, members: Members) -> tf.Tensor:
        """Returns the loss on the validation subset now, float32 `[batch]`."""
        return self._validate(state, members)[0]

    def _validate(
        self, state: TraineesState, members: Members
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the loss, and `output_units` of the first validation examples."""
        if members.validation is None:
            raise ValueError("The members have no validation rows to measure on.")
        return self._look_at(state, members, members.validation)

    def _look_at(
        self, state: TraineesState, members: Members, rows: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the loss of some rows, and `output_units` of the first of them."""
        data = (members.inputs, members.targets)
        weights = _Weights(
            state.parameters, state.non_trainable, state.optimizer.iterations
        )
        shards = self._number_of_shards(members, state)
        return self._validate_in_shards(data, (rows, weights), shards)

    def _validate_shard(
        self, data: tuple[tf.Tensor, tf.Tensor], own: tuple[tf.Tensor, _Weights]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Does what `_look_at` says for some of the trainees, a chunk at a time."""
        chosen, weights = own
        size = chosen.shape[1]
        full = size // CHUNK

        def measure(rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return self._validate_chunk(weights, data, rows)

        loss, outputs = measure(chosen[:, :CHUNK])
        total = min(size, CHUNK) * loss
        if full > 1:
            chunks = tf.reshape(chosen[:, : full * CHUNK], [-1, full, CHUNK])
            chunks = tf.ensure_shape(chunks, [chosen.shape[0], full, CHUNK])

            def add(k: tf.Tensor, sum_: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                # Not a slice: XLA wants to know where one begins.
                rows = tf.gather(chunks, k, axis=1)
                return k + 1, sum_ + CHUNK * measure(rows)[0]

            total = tf.while_loop(
                lambda k, _: k < full, add, (1, total), parallel_iterations=1
            )[1]
        rest = size - full * CHUNK
        if full and rest:
            total += rest * measure(chosen[:, full * CHUNK :])[0]
        return total / size, outputs

    def _validate_chunk(
        self,
        weights: _Weights,
        data: tuple[tf.Tensor, tf.Tensor],
        rows: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the loss of some rows, and `output_units` of the first of them."""
        x, y = (tf.gather(part, rows) for part in data)
        split = self.layout.split(weights.parameters)
        non_trainable = self._unbiased(weights, split, x)
        called = self._model(split, non_trainable, x, training=False)
        loss = batch_loss(self._loss, y, called.outputs) + called.penalty
        first = called.outputs[:, : self.template.probe_size]
        return tf.cast(loss, tf.float32), window.output_units(first)

    def _unbiased(
        self, weights: _Weights, split: list[tf.Tensor], x: tf.Tensor
    ) -> list[tf.Tensor]:
        """Returns what `UnbiasedAverages` has for the non-trainable variables."""
        values = list(weights.non_trainable)
        if not self._averages:
            return values
        steps = weights.updates[:, tf.newaxis]

        def looked() -> list[tf.Tensor]:
            new = self._model(split, weights.non_trainable, x, training=True)
            return [
                _where(steps[:, 0] > 0, old, seen)
                for old, seen in zip(values, new.non_trainable, strict=True)
            ]

        values = tf.cond(tf.reduce_all(steps > 0), lambda: values, looked)
        variables = self.template.model.non_trainable_variables
        return [
            self._averages[id(v)].unbiased(value, tf.maximum(steps, 1))
            if id(v) in self._averages
            else value
            for v, value in zip(variables, values, strict=True)
        ]

    def roll_back(self, state: TraineesState, horizon: tf.Tensor) -> TraineesState:
        """Returns the state with the weights back where a run has collapsed.

        They are kept in it, should the coming window be the next to collapse; in a
        young run those of its beginning stay, and those of before where they are left
        to recover.

        Args:
            state: Where the trainees stand.
            horizon: Training steps of the whole run.
        """
        update = state.previous_update
        weights = (state.parameters, state.non_trainable, state.optimizer)

        def choose(mask: tf.Tensor, new: Any, old: Any) -> Any:
            return tf.nest.map_structure(
                lambda new, old: _where(mask, new, old), new, old
            )

        def back() -> Any:
            kept = (state.kept, tf.zeros_like(update))
            return choose(state.collapsed, kept, stay())

        def stay() -> Any:
            return weights, update

        # Nothing is copied where nothing has collapsed, as in most windows.
        weights, update = tf.cond(tf.reduce_any(state.collapsed), back, stay)
        young = is_young(state.step, horizon)
        sound = tf.equal(state.memory.setbacks, 0.0) & ~young
        kept = tf.cond(
            tf.reduce_all(sound),
            lambda: weights,
            lambda: choose(sound, weights, state.kept),
        )
        parameters, non_trainable, optimizer = weights
        return state._replace(
            parameters=parameters,
            non_trainable=non_trainable,
            optimizer=optimizer,
            alive=state.alive | state.collapsed,
            kept=kept,
            previous_update=update,
        )

    # Before step 1.

    def _begin(self, members: Members) -> tuple[TraineesState, Look]:
        """Returns the state before step 1 and what the first decision sees."""
        batch = members.parameters.shape[0]
        parameters = members.parameters
        if members.mask is not None:
            parameters = parameters * tf.cast(members.mask, self._dtype)
        action = self.form.initial_state(members.default_learning_rate)
        level = tf.clip_by_value(members.learning_rate, action.low, action.high)
        remembered = self.layout.size if "update_cosine" in self.spec.needs else 0
        alive = tf.fill([batch], True)
        non_trainable = tuple(members.non_trainable)
        optimizer = optimizers.initial_state(
            self.template.optimizer, parameters, members.settings
        )
        state = TraineesState(
            step=tf.zeros((), tf.int64),
            parameters=parameters,
            non_trainable=non_trainable,
            optimizer=optimizer,
            alive=alive,
            finite=alive,
            collapsed=~alive,
            kept=(parameters, non_trainable, optimizer),
            action=action._replace(level=level, good=level),
            learning_rate=level,
            memory=self.spec.initial_memory((batch,)),
            previous_update=tf.zeros([batch, remembered]),
            outputs=tf.zeros([batch, 0, 0]),
        )
        # No batch is noted before step 1, so that there is nothing to say of one.
        return self._look(members, state, state, window.no_losses(batch), {})

    # A window.

    def _advance(
        self,
        members: Members,
        state: TraineesState,
        action: tf.Tensor,
        steps: tf.Tensor,
    ) -> tuple[TraineesState, Look]:
        """Applies a decision, trains for a window and looks at what came of it.

        Args:
            members: The trainees.
            state: Where they stand.
            action: float32 `[batch]`, the controller's numbers, unclipped.
            steps: Training steps until the next decision, int64, at least 1.

        Returns:
            The new state and what the next decision sees.
        """
        state = self.roll_back(state, members.horizon)
        if self._watches_outputs(members):
            state = self._note_outputs_again(members, state)
        state = self._act(members, state, action)
        needs, measured = self.spec.needs, {}
        x = self._noted(members, state.step + steps - 1)
        noted = "outputs" in needs and not self._watches_outputs(members)
        before = self._units(state, x) if noted else None
        trained, losses = self._train(members, state, steps)
        if "inputs" in needs:
            measured = window.measure_inputs(x)
        if before is not None:
            measured |= measure_outputs(before, self._units(trained, x))
        return self._look(members, state, trained, losses, measured)

    def _validates(self, members: Members) -> bool:
        """Returns whether the loss on validation examples is looked at."""
        return members.validation is not None and "validation" in self.spec.needs

    def _watches_outputs(self, members: Members) -> bool:
        """Returns whether outputs are looked at for validation examples."""
        return self._validates(members) and "outputs" in self.spec.needs

    def _note_outputs_again(
        self, members: Members, state: TraineesState
    ) -> TraineesState:
        """Returns the state with the outputs of the weights that are back."""

        def again() -> tf.Tensor:
            assert members.validation is not None
            first = members.validation[:, :CHUNK]
            outputs = self._look_at(state, members, first)[1]
            return _where(state.collapsed, outputs, state.outputs)

        # Nothing is computed where nothing has collapsed, as in most windows.
        collapsed = tf.reduce_any(state.collapsed)
        outputs = tf.cond(collapsed, again, lambda: state.outputs)
        return state._replace(outputs=outputs)

    def _act(
        self, members: Members, state: TraineesState, action: tf.Tensor
    ) -> TraineesState:
        action = tf.cast(action, tf.float32)
        # Where a number is not finite the action is overruled, unless the weights of
        # before are back.
        follow = state.finite | state.collapsed
        settled = self.form.settle(state.action, follow, state.collapsed)
        follow &= tf.math.is_finite(action)
        moved, rate = self.form.step(
            settled,
            tf.where(follow, action, float("nan")),
            state.step,
            members.horizon,
            state.retreats,
        )
        done = tf.where(follow, tf.clip_by_value(action, -1.0, 1.0), 0.0)
        return state._replace(
            action=moved,
            learning_rate=rate,
            memory=state.memory._replace(previous_action=done),
        )

    def _noted(self, members: Members, step: tf.Tensor) -> tf.Tensor:
        """Returns the first examples of a step's batch, as the probe keeps them."""
        rows = _batch_rows(members.order, step)
        index = tf.range(self.template.probe_size) % rows.shape[1]
        return tf.gather(members.inputs, tf.gather(rows, index, axis=1))

    def _units(self, state: TraineesState, x: tf.Tensor) -> tf.Tensor:
        weights = self.layout.split(state.parameters)
        called = self._model(weights, state.non_trainable, x, training=False)
        return window.output_units(called.outputs)

    def _train(
        self, members: Members, state: TraineesState, steps: tf.Tensor
    ) -> tuple[TraineesState, tf.Tensor]:
        """Trains for a window; returns its losses as `note_losses` keeps them."""
        shards = self._number_of_shards(members, state)
        data = (members.inputs, members.targets)
        # The last window's update is not needed here, and as large as the weights; nor
        # are what is kept and the outputs.
        nothing = tf.zeros(())
        own = state._replace(previous_update=nothing, kept=(), outputs=nothing)
        rest = (members._replace(inputs=(), targets=()), own, steps)
        trained, losses = self._in_shards(data, rest, shards)
        trained = trained._replace(
            previous_update=state.previous_update,
            kept=state.kept,
            outputs=state.outputs,
        )
        return trained, tf.transpose(losses)

    def _number_of_shards(self, members: Members, state: TraineesState) -> int:
        trainees, _, examples = members.order.shape
        if self._gradients.way == "compiled":
            large = (state.parameters, *state.optimizer.slots)
            each = sum(x.dtype.size * x.shape[1] for x in large)
            return number_of_shards(trainees, each)
        if self._gradients.way == "looped":
            return 1
        each = examples * self._model.largest_output * self._dtype.size
        return number_of_plain_shards(trainees, each)

    def _shard(
        self,
        data: tuple[tf.Tensor, tf.Tensor],
        rest: tuple[Members, TraineesState, tf.Tensor],
    ) -> tuple[TraineesState, tf.Tensor]:
        """Trains some of the trainees; returns their losses by trainee."""
        members, state, steps = rest
        members = members._replace(inputs=data[0], targets=data[1])
        state, losses = self._take_steps(members, state, steps)
        return state, tf.transpose(losses)

    def _take_steps(
        self, members: Members, state: TraineesState, steps: tf.Tensor
    ) -> tuple[TraineesState, tf.Tensor]:
        start = state.step

        def body(state: TraineesState, losses: tf.Tensor) -> tuple:
            rows = _batch_rows(members.order, state.step)
            x, y = tf.gather(members.inputs, rows), tf.gather(members.targets, rows)
            result = self._gradients(state.parameters, state.non_trainable, x, y)
            active = state.alive & tf.math.is_finite(result.loss)
            loss = tf.where(state.alive, result.loss, float("nan"))
            losses = window.note_losses(losses, state.step, loss)
            # The envelope moves the learning rate at every step.
            rate = self.form.learning_rate(state.action, state.step, members.horizon)
            parameters, optimizer = self._update(
                state.parameters,
                result.gradients,
                members.mask,
                state.optimizer,
                members.settings,
                rate,
                active,
            )
            non_trainable = tuple(
                _where(active, new, old)
                for new, old in zip(
                    result.non_trainable, state.non_trainable, strict=True
                )
            )
            state = state._replace(
                step=state.step + 1,
                parameters=parameters,
                non_trainable=non_trainable,
                optimizer=optimizer,
                alive=active,
                learning_rate=rate,
            )
            return state, losses

        return tf.while_loop(
            lambda state, _: state.step < start + steps,
            body,
            (state, window.no_losses(state.alive.shape[0])),
            parallel_iterations=1,
        )

    def _updated(
        self,
        parameters: tf.Tensor,
        gradients: list[tf.Tensor],
        mask: tf.Tensor | None,
        state: optimizers.OptimizerState,
        settings: optimizers.Settings,
        learning_rate: tf.Tensor,
        active: tf.Tensor,
    ) -> tuple[tf.Tensor, optimizers.OptimizerState]:
        flat = self.layout.join(gradients)
        if mask is not None:
            flat *= tf.cast(mask, flat.dtype)
        return optimizers.update(
            self.template.optimizer,
            parameters,
            flat,
            state,
            settings,
            learning_rate,
            active,
        )

    def _look(
        self,
        members: Members,
        before: TraineesState,
        now: TraineesState,
        losses: tf.Tensor,
        measured: dict[str, tf.Tensor],
    ) -> tuple[TraineesState, Look]:
        """Measures the window from `before` to `now` and closes it."""
        needs = self.spec.needs
        steps = now.step - before.step
        shape = now.alive.shape
        measured = dict(measured)
        validates = self._validates(members)
        if validates:
            validation, outputs = self._validate(now, members)
            validation = tf.where(now.alive, validation, float("nan"))
        if self._watches_outputs(members):
            # Before step 1 there are none of before.
            if before.outputs.shape[1:] == outputs.shape[1:]:
                measured |= measure_outputs(before.outputs, outputs)
            now = now._replace(outputs=outputs)
        if "layer" in needs:
            measured |= self._measure_layer(now, members.mask)
        if "update" in needs:
            remembered = now.previous_update if "update_cosine" in needs else None
            weights = window.measure_weights(
                now.parameters, before.parameters, remembered
            )
            measured |= weights.statistics
            if remembered is not None:
                now = now._replace(previous_update=weights.update)
        # A diverged trainee would go on with weights that are not finite.
        measured = {
            name: value
            if name.startswith("input_") or name == "output_variance_before"
            else tf.where(now.alive, value, float("nan"))
            for name, value in measured.items()
        }
        measured |= measure_losses(losses, now.step, steps)
        training = measured["training_loss"]
        if not validates:
            validation = tf.where(tf.equal(now.step, 0), float("nan"), training)
        finite = tf.math.is_finite(training)
        finite &= tf.math.is_finite(validation) | (steps == 0)

        def every(value: tf.Tensor) -> tf.Tensor:
            return tf.fill(shape, tf.cast(value, tf.float32))

        statistics = unmeasured(shape)._replace(
            step=every(now.step),
            horizon=every(members.horizon),
            window_steps=every(steps),
            learning_rate=now.learning_rate,
            level=now.action.level,
            default_learning_rate=now.action.default,
            validation_loss=validation,
            finite=tf.cast(finite, tf.float32),
            **measured,
        )
        collapsed, memory = tf.zeros_like(finite), now.memory
        if validates:
            collapsed, memory = has_collapsed(statistics, memory, self._lags)
        observation, memory = observe(self.spec, statistics, memory)
        now = now._replace(memory=memory, finite=finite, collapsed=collapsed)
        return now, Look(observation, statistics, losses)

    def _measure_layer(
        self, state: TraineesState, mask: tf.Tensor | None
    ) -> dict[str, tf.Tensor]:
        model = self.template.model
        chosen = {
            id(v) for v in designated_weights(model, self.template.designated_layer)
        }

        def pick(flat: tf.Tensor) -> tf.Tensor:
            values = zip(
                model.trainable_variables, self.layout.split(flat), strict=True
            )
            picked = [value for v, value in values if id(v) in chosen]
            return tf.concat([tf.reshape(p, [p.shape[0], -1]) for p in picked], axis=1)

        return window.measure_layer(
            pick(state.parameters), None if mask is None else pick(mask)
        )


def _as_loss(loss: str | keras.losses.Loss) -> keras.losses.Loss:
    found = keras.losses.get(loss)
    if not isinstance(found, keras.losses.Loss):
        found = LossFunctionWrapper(found)
    if found.reduction not in ("sum_over_batch_size", "mean"):
        raise ValueError(
            "The loss of a trainee must be the mean over its examples. Received: "
            f"{loss!r} with reduction={found.reduction!r}"
        )
    return found


def _batch_rows(order: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
    """Returns the rows of a step's batch."""
    # A slice, whose begin XLA wants to know, would be compiled again at every step.
    return tf.gather(order, step % order.shape[1], axis=1)


def _where(active: tf.Tensor, new: tf.Tensor, old: tf.Tensor) -> tf.Tensor:
    rank = len(new.shape)
    return tf.where(tf.reshape(active, [-1] + [1] * (rank - 1)), new, old)
