"""One training run through `model.fit`, as one JSON-ready record."""

import gc
import math
import random
import time
import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_learned_lr.benchmark.quality.methods.method import Method, Run
from keras_learned_lr.benchmark.quality.task import Part, Task
from keras_learned_lr.callback import LearnedLearningRate

# A run is validated so many times: epochs, for whoever counts in them.
EVALUATIONS = 20
EVALUATION_BATCH = 500
# Training examples on which the final training loss is taken.
TRAINING_EXAMPLES = 1000


def steps_of(task: Task, limit: int | None = None) -> int:
    """Returns the steps of a run, cut to `limit`: a multiple that epochs divide."""
    unit = EVALUATIONS * task.steps_per_execution
    steps = task.steps if limit is None else min(limit, task.steps)
    return max(1, steps // unit) * unit


def train(method: Method, run: Run, seed: int) -> dict[str, Any]:
    """Trains and evaluates a model.

    Args:
        method: What sets the learning rate.
        run: What is trained, from which learning rate.
        seed: Of initial weights, order of the examples and dropout; the same for
            every method.

    Returns:
        `training_loss`, `validation_loss`, `test_loss` and (where there is one)
        `accuracy` on the test examples, at the end of the run, None where they are not
        finite; `diverged`, whether one is not; `curve`, the validation loss at equal
        distances, and `rates`, the learning rate there; `decisions`, the mean
        `observation` by feature, and whether the run ended `averaged`, where a
        controller decided; and `seconds`.
    """
    task, data = run.task, run.task.data
    started = time.perf_counter()
    # Keras draws the seeds of initializers and dropout from here. Its own way,
    # `set_random_seed`, makes TensorFlow forget its kernels, seconds for every run.
    before = random.getstate()
    random.seed(seed)
    try:
        model = task.build()
    finally:
        random.setstate(before)
    setup = method.prepare(run)
    model.compile(
        setup.optimizer,
        task.loss,
        metrics=["accuracy"] if task.accuracy else None,
        steps_per_execution=task.steps_per_execution,
        jit_compile=False,
    )
    rates = _Rates()
    callbacks = [*setup.callbacks, *setup.averaging, rates]
    controllers = [c for c in callbacks if isinstance(c, LearnedLearningRate)]
    if not controllers:
        # Nothing brings these back, and the time is better spent.
        callbacks.append(keras.callbacks.TerminateOnNaN())
    with warnings.catch_warnings():
        # That a learning rate was held, for one; the record tells.
        warnings.filterwarnings("ignore", message="LearnedLearningRate:")
        history = model.fit(
            _batches(data.train, task.batch_size, run.steps, seed),
            epochs=EVALUATIONS,
            steps_per_epoch=run.steps // EVALUATIONS,
            validation_data=_part(data.validation),
            callbacks=callbacks,
            shuffle=False,  # the stream is
            verbose=0,
        )
    x, y = data.train
    few = x[:TRAINING_EXAMPLES], y[:TRAINING_EXAMPLES]
    final = {
        name: model.evaluate(
            _part(part), callbacks=list(setup.averaging), return_dict=True, verbose=0
        )
        for name, part in (
            ("training", few),
            ("validation", data.validation),
            ("test", data.test),
        )
    }
    losses = {f"{name}_loss": _finite(found["loss"]) for name, found in final.items()}
    record: dict[str, Any] = {
        **losses,
        "accuracy": final["test"].get("accuracy"),
        "diverged": None in losses.values(),
        "curve": [_finite(loss) for loss in history.history.get("val_loss", [])],
        "rates": rates.seen,
    }
    for callback in controllers:
        record |= _made(callback)
    record["seconds"] = round(time.perf_counter() - started, 2)
    # The model and its callbacks hold each other.
    del model, setup, callbacks, controllers
    gc.collect()
    return record


def _batches(part: Part, batch_size: int, steps: int, seed: int) -> tf.data.Dataset:
    """Returns one stream for the whole run, each pass in another order."""
    generator = np.random.default_rng(seed)
    count = len(part[0])
    passes = -(-steps * batch_size // count)
    order = np.concatenate([generator.permutation(count) for _ in range(passes)])
    order = order[: steps * batch_size].reshape(steps, batch_size)
    x, y = (tf.constant(array) for array in part)
    return _plain(
        tf.data.Dataset.from_tensor_slices(order).map(
            lambda index: (tf.gather(x, index), tf.gather(y, index))
        )
    )


def _part(part: Part) -> tf.data.Dataset:
    return _plain(tf.data.Dataset.from_tensor_slices(part).batch(EVALUATION_BATCH))


def _plain(batches: tf.data.Dataset) -> tf.data.Dataset:
    """Leaves out what takes longer to start than a small evaluation."""
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    return batches.with_options(options)


def _made(callback: LearnedLearningRate) -> dict[str, Any]:
    made = callback.decisions
    return {
        "averaged": callback.averaged,
        "decisions": {
            "step": made["step"].tolist(),
            "learning_rate": [_short(rate) for rate in made["learning_rate"]],
        },
        "observation": {
            name: _short(values.mean()) for name, values in made["observation"].items()
        },
    }


class _Rates(keras.callbacks.Callback):
    """Notes the learning rate at the end of every epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float | None] = []

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        rate = keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
        self.seen.append(_finite(float(rate)))


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _finite(value: float) -> float | None:
    return _short(value) if math.isfinite(value) else None
