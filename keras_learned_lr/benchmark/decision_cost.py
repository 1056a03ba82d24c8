"""What one decision costs, part by part, and what it holds and copies."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_learned_lr.benchmark.workloads import Workload
from keras_learned_lr.callback import (
    PROBE_SIZE,
    VALIDATION_SIZE,
    LearnedLearningRate,
)
from keras_learned_lr.control.actions import LONGEST_AVERAGE
from keras_learned_lr.control.average import WeightAverage
from keras_learned_lr.control.controller import Controller
from keras_learned_lr.control.rollback import Rollback
from keras_learned_lr.control.saved_model import load_controller
from keras_learned_lr.control_loop import ControlLoop
from keras_learned_lr.observation.spec import observe
from keras_learned_lr.observation.statistics import Statistics
from keras_learned_lr.observation.validation import ValidationLoss, draw_subset

WARM_UP = 3
# Training steps of the run that parts of a decision are timed in.
HORIZON = 10_000


def time_decision(
    workload: Workload,
    turns: int = 30,
    jit_compile: bool | str = "auto",
    validation_size: int = VALIDATION_SIZE,
) -> dict[str, float]:
    """Times the decisions of the shipped controller on a model that trains.

    Args:
        workload: The model and its data.
        turns: How often each part is timed; medians are returned.
        jit_compile: See `keras.Model.compile`.
        validation_size: See `LearnedLearningRate`.

    Returns:
        Milliseconds: `total`, a whole decision; `statistics`, `features`, `policy` and
        `keeping` (the weights and the optimizer's variables to go back to), its parts
        as graphs of their own, without what it takes to call a graph (the first three
        are one graph in a decision, where they may overlap); `python`, the calls of
        the two, the copy to the host and the record.
        `validation`, the part of the statistics that is the validation loss;
        `averaging`, taking the weights into their average once; `step`, a training step
        of the same model, for comparison.
    """
    model = workload.compiled(jit_compile)
    controller = load_controller("default")
    spec = controller.observation_spec
    subset = draw_subset(workload.validation(), validation_size)
    measure_validation = ValidationLoss(model, subset, PROBE_SIZE)
    form = controller.action_form
    loop = ControlLoop(
        model,
        controller,
        form,
        measure_validation,
        probe_size=PROBE_SIZE,
        rollback=True,
    )
    rollback = Rollback(model)
    rollback.make_copies()
    average = WeightAverage(model, LONGEST_AVERAGE)
    rate = tf.constant(1e-3)

    def statistics() -> Statistics:
        return loop.probe.measure(tf.constant(HORIZON, tf.int64), rate, rate, rate)

    def keeping() -> None:
        rollback.keep(loop.probe.step, tf.constant(1, tf.int64), tf.constant(0.0))

    # Arguments, so that nothing is computed once for all.
    measured = Statistics(*(tf.constant(0.5) for _ in Statistics._fields))
    observation = tf.zeros([1, len(spec.names)])
    memory, state = spec.initial_memory(), controller.initial_state(1)
    graphs: dict[str, Callable[[], Any]] = {
        "statistics": _graph(statistics),
        "validation": _graph(measure_validation),
        "features": _graph(functools.partial(observe, spec), measured, memory),
        "policy": _graph(lambda o, s: controller.act(o, s)[:2], observation, state),
        "keeping": _graph(keeping),
        "call": _graph(lambda: tf.constant(0.0)),
    }
    batches = iter(workload.batches())

    def step() -> None:
        loop.probe.expect_step()
        model.train_function(batches)

    # Each turn trains on, so that caches are as a decision finds them.
    whole = {"graph": loop.decide_function, "total": loop.decide}
    averaging = {"averaging": lambda: average.go_on(HORIZON, HORIZON)}
    parts: dict[str, Callable[[], Any]] = {"step": step} | graphs | whole | averaging
    taken: dict[str, list[float]] = {name: [] for name in parts}
    loop.start(horizon=HORIZON)
    try:
        for turn in range(turns + WARM_UP):
            for name, part in parts.items():
                begun = time.perf_counter()
                part()
                if turn >= WARM_UP:
                    taken[name].append(time.perf_counter() - begun)
    finally:
        loop.stop()
    milliseconds = {name: 1e3 * float(np.median(t)) for name, t in taken.items()}
    call = milliseconds.pop("call")
    for name in graphs.keys() - {"call"}:
        milliseconds[name] = max(0.0, milliseconds[name] - call)
    graph = milliseconds.pop("graph")
    rest = milliseconds["total"] - graph - milliseconds["keeping"]
    milliseconds["python"] = rest + call
    return milliseconds


def _graph(function: Callable, *arguments: Any) -> Callable[[], Any]:
    graph = tf.function(function, autograph=False)
    return lambda: graph(*arguments)


class CountingLearningRate(LearnedLearningRate):
    """The callback, counting what its hooks copy from the device to the host.

    Attributes:
        copies: Copies of each decision during training.
        idle_copies: Copies of all hooks between them together.
        end_copies: Copies of each hook at the end of a run, for its last step.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.copies: list[int] = []
        self.idle_copies = 0
        self.end_copies: list[int] = []

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        """Counts around the callback's own hook."""
        with self._counting():
            super().on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Counts around the callback's own hook."""
        with self._counting():
            super().on_train_batch_end(batch, logs)

    @contextlib.contextmanager
    def _counting(self) -> Iterator[None]:
        before = len(self._records)
        with host_copies() as copies:
            yield
        if self._step >= self._horizon():
            self.end_copies.append(len(copies))
        elif len(self._records) > before:
            self.copies.append(len(copies))
        else:
            self.idle_copies += len(copies)


@contextlib.contextmanager
def host_copies() -> Iterator[list[int]]:
    """Yields a list that gets the size of every tensor copied to the host."""
    kind = type(tf.constant(0.0))
    # What numpy(), float(), int() and bool() come down to.
    copy, copies = kind._numpy, []

    def counting(tensor: Any) -> Any:
        copies.append(int(np.prod(tensor.shape)))
        return copy(tensor)

    kind._numpy = counting
    try:
        yield copies
    finally:
        del kind._numpy


def count_in_fits(
    workload: Workload, steps: int, jit_compile: bool | str = "auto"
) -> dict[str, int]:
    """Counts what decisions do in two fits of one model, which fits warm up nothing.

    Args:
        workload: The model and its data.
        steps: Training steps of each fit.
        jit_compile: See `keras.Model.compile`.

    Returns:
        `decisions` of a fit; `synchronisations`, the most copies to the host that a
        decision of the second fit made during training (in the first, building the
        graph copies small constants); `idle_synchronisations`, the copies between
        decisions of both; `end_synchronisations`, those of the last step of the second;
        `retraces`, the graphs of training steps and decisions that were built after the
        first decision during training.
    """
    model, traces = workload.compiled(jit_compile), []
    train_step = model.train_step

    def traced_train_step(data: Any) -> Any:
        traces.append("training step")
        return train_step(data)

    model.train_step = traced_train_step
    rate = CountingLearningRate(validation_data=workload.validation())
    graphs: list[int] = []

    def count(batch: int, logs: dict | None) -> None:
        decide = rate._loop.decide_function
        graphs.append(len(traces) + decide.traces)

    counting = keras.callbacks.LambdaCallback(on_train_batch_end=count)
    for _ in range(2):
        rate.copies.clear()
        model.fit(
            workload.batches(),
            epochs=2,
            steps_per_epoch=steps // 2,
            verbose=0,
            callbacks=[rate, counting],
        )
    decided = rate.decisions["step"]
    first = int(decided[decided > 0][0])
    return {
        "decisions": len(decided),
        "synchronisations": max(rate.copies),
        "idle_synchronisations": rate.idle_copies,
        "end_synchronisations": rate.end_copies[-1],
        "retraces": graphs[-1] - graphs[first - 1],
    }


def count_memory(
    workload: Workload, controller: Controller | None = None
) -> dict[str, int]:
    """Counts what the callback's defaults hold beside the model, in bytes.

    Args:
        workload: The model and its data.
        controller: The shipped one, if not told otherwise.

    Returns:
        `variables`: copies of weights, the outputs and losses that are remembered;
        `validation`: the subset; `rollback`, the weights and the optimizer's variables
        to go back to; `average`, that of the weights. For comparison,
        `trainable_weights` and `probe_batch`, the inputs of a batch.
    """
    model = workload.compiled(jit_compile=False)
    controller = controller or load_controller("default")
    subset = draw_subset(workload.validation(), VALIDATION_SIZE)
    measure_validation = ValidationLoss(model, subset, PROBE_SIZE)
    form = controller.action_form
    loop = ControlLoop(
        model, controller, form, measure_validation, probe_size=PROBE_SIZE
    )
    rollback = Rollback(model)
    rollback.make_copies()
    average = WeightAverage(model, LONGEST_AVERAGE)
    average.go_on(HORIZON, HORIZON)
    batches = workload.batches()
    loop.start(horizon=100)
    loop.probe.expect_step()
    model.train_function(iter(batches))
    loop.decide()
    loop.stop()
    inputs, _ = next(iter(batches.take(1)))
    return {
        "variables": _bytes(loop.probe.variables),
        "validation": measure_validation.nbytes,
        "rollback": rollback.nbytes,
        "average": average.nbytes,
        "trainable_weights": _bytes(model.trainable_variables),
        "probe_batch": _bytes([inputs]),
    }


def _bytes(values: Iterable[Any]) -> int:
    arrays = (keras.ops.convert_to_numpy(value) for value in values)
    return sum(array.nbytes for array in arrays)
