"""Draws batches of trainees: tasks of a template, each from several learning rates."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_learned_lr.control.actions import ActionForm
from keras_learned_lr.learning import optimizers
from keras_learned_lr.learning.tasks import initial
from keras_learned_lr.learning.tasks.split import TaskTemplate
from keras_learned_lr.learning.tasks.task_family import (
    LEAST_WRONG,
    Data,
    TaskFamily,
    draw_noise,
    log_uniform,
)
from keras_learned_lr.learning.trainee_state import Members, Template, TraineesState
from keras_learned_lr.learning.trainees import Trainees
from keras_learned_lr.observation.spec import ObservationSpec

# Batches after which a trainee's order of examples begins anew.
ORDERS = 512
# Examples of a task that the controller may look at, and that its result is measured
# on; at most a quarter of the data each.
VALIDATION = SCORING = 256
# What a critic may know and a controller may not; see `TaskBatch.privileged`.
PRIVILEGED = 1 + len(optimizers.RULES)


class TaskBatch(NamedTuple):
    """A batch of trainees that is about to train.

    Attributes:
        template: What they share.
        trainees: The engine; the same object for every batch of the template.
        measure: `Trainees.validation_loss` as a tf.function.
        members: What they do not share.
        scoring: int32 `[batch, examples]`, the rows that results are measured on:
            neither trained on nor shown to the controller.
        task: int `[batch]`, which task a trainee belongs to. Those of one task have
            everything in common but the learning rate.
        offset: float32 `[batch]`, log10 of the initial learning rate over the
            template's.
        privileged: float32 `[batch, PRIVILEGED]`, `offset / 3` and which optimizer.
    """

    template: TaskTemplate
    trainees: Trainees
    measure: Callable[[TraineesState, Members], tf.Tensor]
    members: Members
    scoring: tf.Tensor
    task: np.ndarray
    offset: np.ndarray
    privileged: np.ndarray


class TaskSampler:
    """Draws tasks, always with the same engine for the same template.

    Args:
        spec: What the controller sees.
        form: What its actions mean.
        shown: Validation examples that the controller looks at, at most.
        fewest_rows: Of all the rows that there are, tasks train on as few as this,
            again and again, or on more, log-uniformly.
        most_wrong: Largest share of wrong labels.
    """

    def __init__(
        self,
        spec: ObservationSpec,
        form: ActionForm,
        shown: int = VALIDATION,
        fewest_rows: int = 256,
        most_wrong: float = 0.25,
    ) -> None:
        self.spec = spec
        self.form = form
        self._shown = shown
        self._fewest_rows = fewest_rows
        self._most_wrong = most_wrong
        self._engines: dict[str, tuple[Trainees, Any]] = {}

    def watching(self, spec: ObservationSpec, form: ActionForm) -> "TaskSampler":
        """Returns a sampler that draws the same tasks for another controller.

        Args:
            spec: What that one sees.
            form: What its actions mean.
        """
        return TaskSampler(spec, form, self._shown, self._fewest_rows, self._most_wrong)

    def drawing(self, fewest_rows: int, most_wrong: float) -> "TaskSampler":
        """Returns a sampler of other data, which uses the same engines.

        Args:
            fewest_rows: As for this class.
            most_wrong: Likewise.
        """
        other = TaskSampler(self.spec, self.form, self._shown, fewest_rows, most_wrong)
        other._engines = self._engines
        return other

    def _engine(self, template: TaskTemplate) -> tuple[Trainees, Any]:
        if template.name not in self._engines:
            shared = Template(
                template.make_model(), template.make_loss(), template.optimizer
            )
            trainees = Trainees(shared, self.spec, self.form)
            measure = tf.function(trainees.validation_loss, autograph=False)
            self._engines[template.name] = trainees, measure
        return self._engines[template.name]

    def draw(
        self,
        template: TaskTemplate,
        tasks: int,
        offsets: np.ndarray,
        horizon: int,
        rng: np.random.Generator,
    ) -> TaskBatch:
        """Draws a batch.

        Args:
            template: What its trainees share.
            tasks: How many tasks.
            offsets: log10 of each trainee's initial learning rate over the template's,
                `[tasks, group]`.
            horizon: Training steps.
            rng: Draws everything else.
        """
        trainees, measure = self._engine(template)
        model, family = trainees.template.model, template.source
        group = offsets.shape[1]
        batch = tasks * group
        drawn = [_draw_data(family, self._most_wrong, rng) for _ in range(tasks)]
        rows = Rows.of(family)
        order = np.stack(
            [
                i * family.examples
                + _draw_order(rows.train, self._fewest_rows, template.batch_size, rng)
                for i in range(tasks)
            ]
        )
        widths = initial.draw_widths(model, tasks, rng)
        parameters = initial.draw_parameters(model, widths, tasks, rng)
        rate = template.learning_rate * 10.0 ** offsets.reshape(batch)
        rates = tf.constant(rate, tf.float32)
        settings = _draw_settings(template.optimizer, tasks, rng)

        def each(values: np.ndarray) -> np.ndarray:
            return np.repeat(values, group, axis=0)

        def held_out(first: int, count: int) -> tf.Tensor:
            start = np.arange(tasks)[:, np.newaxis] * family.examples + first
            return tf.constant(each(start + np.arange(count)), tf.int32)

        members = Members(
            inputs=tf.constant(np.concatenate([d.inputs for d in drawn])),
            targets=tf.constant(np.concatenate([d.targets for d in drawn])),
            order=tf.constant(each(order), tf.int32),
            validation=held_out(rows.train, min(self._shown, rows.validation)),
            parameters=tf.constant(each(parameters)),
            non_trainable=tuple(map(tf.constant, initial.non_trainable(model, batch))),
            mask=None if widths.mask is None else tf.constant(each(widths.mask)),
            settings=optimizers.make_settings(
                template.optimizer,
                batch,
                **{name: each(values) for name, values in settings.items()},
            ),
            default_learning_rate=rates,
            learning_rate=rates,
            horizon=tf.constant(horizon, tf.int64),
        )
        kinds = np.eye(len(optimizers.RULES), dtype="float32")
        kind = kinds[list(optimizers.RULES).index(template.optimizer)]
        offset = offsets.reshape(batch, 1).astype("float32")
        privileged = np.concatenate([offset / 3.0, np.tile(kind, (batch, 1))], axis=1)
        return TaskBatch(
            template,
            trainees,
            measure,
            members,
            held_out(rows.train + rows.validation, rows.scoring),
            each(np.arange(tasks)),
            offset[:, 0],
            privileged,
        )


class Rows(NamedTuple):
    """How many examples of a data set are for what."""

    train: int
    validation: int
    scoring: int

    @classmethod
    def of(cls, family: TaskFamily) -> "Rows":
        """Returns the numbers for data sets of a family."""
        quarter = family.examples // 4
        validation, scoring = min(VALIDATION, quarter), min(SCORING, quarter)
        return cls(family.examples - validation - scoring, validation, scoring)


def spread_offsets(
    tasks: int, group: int, decades: float, rng: np.random.Generator
) -> np.ndarray:
    """Draws offsets `[tasks, group]` within ±decades, one in each equal part."""
    parts = np.arange(group) + rng.uniform(size=(tasks, group))
    return decades * (2.0 * parts / group - 1.0)


def draw_horizon(shortest: int, longest: int, rng: np.random.Generator) -> int:
    """Draws training steps, log-uniform between the shortest and the longest run."""
    return round(float(log_uniform(rng, shortest, longest)))


def _draw_data(family: TaskFamily, most_wrong: float, rng: np.random.Generator) -> Data:
    inputs, targets = family.draw(rng)
    if family.scaled:
        scale = 10.0 ** rng.uniform(-0.6, 0.6)
        if rng.random() < 0.5:
            scale = scale * 10.0 ** rng.uniform(-0.4, 0.4, size=inputs.shape[1:])
        inputs = (inputs * scale).astype("float32")
    if family.target != "number":
        wrong = rng.random(len(targets)) < draw_noise(rng, most_wrong, LEAST_WRONG)
        # Labels of other examples, so that classes stay as frequent as they are.
        targets = np.where(
            wrong.reshape(-1, *(1 for _ in targets.shape[1:])),
            targets[rng.permutation(len(targets))],
            targets,
        )
    return Data(inputs, targets)


def _draw_order(
    rows: int, fewest: int, batch_size: int, rng: np.random.Generator
) -> np.ndarray:
    """Draws int `[ORDERS, batch_size]`: epochs over all or some of the rows."""
    used = round(float(log_uniform(rng, min(fewest, rows), rows)))
    epochs = -(-ORDERS * batch_size // used)
    permuted = rng.permuted(np.tile(np.arange(used), (epochs, 1)), axis=1)
    return permuted.reshape(-1)[: ORDERS * batch_size].reshape(ORDERS, batch_size)


def _draw_settings(
    kind: str, tasks: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Draws optimizer settings around those that people use, `[tasks]` each."""
    if kind in ("momentum", "nesterov"):
        return {"momentum": rng.choice([0.8, 0.9, 0.9, 0.95], tasks)}
    if kind == "rmsprop":
        return {"rho": rng.choice([0.9, 0.9, 0.95, 0.99], tasks)}
    if kind == "adam":
        return {
            "beta_1": rng.choice([0.8, 0.9, 0.9, 0.95], tasks),
            "beta_2": rng.choice([0.95, 0.99, 0.999, 0.999], tasks),
        }
    if kind == "adamw":
        return {
            "beta_2": rng.choice([0.95, 0.99, 0.999, 0.999], tasks),
            "weight_decay": 10.0 ** rng.uniform(-4, -1, tasks),
        }
    return {}
