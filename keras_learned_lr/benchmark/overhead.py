"""What the callback costs: `fit` with it over `fit` without."""

import functools
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_learned_lr.benchmark.decision_cost import (
    count_in_fits,
    count_memory,
    time_decision,
)
from keras_learned_lr.benchmark.turns import Turns, run_in_turns
from keras_learned_lr.benchmark.workloads import TINY, WORKLOADS, Workload
from keras_learned_lr.callback import LearnedLearningRate

STEPS = (2_000, 10_000)
# Training steps of one fit before the other one's turn: long against a change of
# places, short against what else the machine does.
TURN = 25
# Training steps of a fit in which decisions are only counted, not timed.
COUNTED = 200
TAPPED = 4_000
IMPORTS = 5
IMPORT = """
import json, time
begun = time.perf_counter()
import keras
between = time.perf_counter()
import keras_learned_lr
print(json.dumps([between - begun, time.perf_counter() - between]))
"""
Callbacks = list[keras.callbacks.Callback]


def run(
    rounds: int = 2,
    quick: bool = False,
    jit_compile: bool | str = "auto",
    steps: tuple[int, ...] | None = None,
) -> dict[str, Any]:
    """Measures everything with the callback's default settings.

    Two fits of equal models, one with the callback and one without any, run side by
    side and take turns of 25 steps; then the models change roles. Each model has
    trained before, so that no graph is built; what building costs is reported apart.
    Each round builds both models anew.

    Args:
        rounds: How often the shortest fits are repeated; longer ones run in the first
            round only.
        quick: Leaves out all but the shortest fits.
        jit_compile: See `keras.Model.compile`.
        steps: Training steps of the fits, multiples of 25, shortest first; 2000 and
            10 000 by default.

    Returns:
        A dict, JSON-ready. `cnn_2000` and so on: seconds with the callback over seconds
        without, the mean over the rounds; `processor`, the same in processor time,
        which neighbours on the machine disturb less; `errors`, the standard errors of
        the ratios, by the rounds or, if that is more, by the turns; `by_round`, the
        ratios of the rounds. `step_ms`, a training step without. `tap`, `decision_ms`,
        `counts` and `memory`: see `measure_tap`, `time_decision`, `count_in_fits` and
        `count_memory`. `first_fit_seconds`, what the callback adds to a model's first
        fit. `import_seconds`, of keras, and what this package adds.
    """
    steps = steps or STEPS
    report: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load_before": os.getloadavg()[0],
        "jit_compile": jit_compile,
        "import_seconds": import_seconds(),
        "tap": measure_tap(jit_compile),
    }
    comparisons: dict[str, list[Comparison]] = {}
    by_model: dict[str, dict[str, Any]] = {}
    for name, workload in WORKLOADS.items():
        watched = functools.partial(_watching, workload)
        first_fits = []
        for number in range(rounds):
            pair = Pair(workload, list, watched, jit_compile)
            first_fits.append(pair.first_fit_seconds)
            for count in steps if number == 0 and not quick else steps[:1]:
                found = comparisons.setdefault(f"{name}_{count}", [])
                found.append(_in_both_roles(pair, count))
        shortest = comparisons[f"{name}_{steps[0]}"]
        by_model[name] = {
            "step_ms": mean(shortest).step_ms,
            "decision_ms": time_decision(workload, jit_compile=jit_compile),
            "counts": count_in_fits(workload, COUNTED, jit_compile),
            "memory": count_memory(workload),
            "first_fit_seconds": float(np.median(first_fits)),
        }
    means = {key: mean(found) for key, found in comparisons.items()}
    facts = next(iter(by_model.values()))
    turned = {fact: {name: by_model[name][fact] for name in by_model} for fact in facts}
    return {
        **{key: one.ratio for key, one in means.items()},
        "processor": {key: one.processor for key, one in means.items()},
        "errors": {key: one.error for key, one in means.items()},
        "by_round": {
            key: [one.ratio for one in found] for key, found in comparisons.items()
        },
        **turned,
        **report,
        "load_after": os.getloadavg()[0],
    }


def _watching(workload: Workload, update_freq: int | str = "auto") -> Callbacks:
    data = workload.validation()
    return [LearnedLearningRate(validation_data=data, update_freq=update_freq)]


def _in_both_roles(pair: "Pair", steps: int, turn: int = TURN) -> "Comparison":
    # By what the turns tell alone: the roles differ by which of the models is faster.
    return _mean_by_turns([pair(steps, turn, swap) for swap in (False, True)])


class Comparison(NamedTuple):
    """A fit with a callback against one without.

    Attributes:
        ratio: Seconds with over seconds without.
        processor: The same in processor time.
        error: Standard error of the ratio.
        step_ms: Milliseconds of a training step without.
        added_us: Microseconds that a step takes longer with.
        added_processor_us: The same in processor time.
    """

    ratio: float
    processor: float
    error: float
    step_ms: float
    added_us: float
    added_processor_us: float


def mean(rounds: Sequence[Comparison]) -> Comparison:
    """Returns the mean of comparisons, and its standard error.

    Args:
        rounds: Each of other models. Turns of the same two say little of others: where
            their memory lies is worth some percent.
    """
    together = _mean_by_turns(rounds)
    if len(rounds) == 1:
        return together
    spread = np.std([one.ratio for one in rounds], ddof=1) / np.sqrt(len(rounds))
    return together._replace(error=max(together.error, float(spread)))


def _mean_by_turns(found: Sequence[Comparison]) -> Comparison:
    """Returns the mean, with the error that the errors of its parts leave."""
    error = float(np.linalg.norm([one.error for one in found])) / len(found)
    return Comparison(*np.mean(found, axis=0).tolist())._replace(error=error)


class Pair:
    """Two models of a workload, one trained with callbacks that the other is without.

    Args:
        workload: The model and its data.
        without: Makes the callbacks of the one.
        with_them: Makes the callbacks of the other.
        jit_compile: See `keras.Model.compile`.

    Attributes:
        first_fit_seconds: What the other callbacks added to a model's first fit.
    """

    def __init__(
        self,
        workload: Workload,
        without: Callable[[], Callbacks],
        with_them: Callable[[], Callbacks],
        jit_compile: bool | str = "auto",
    ) -> None:
        batches = workload.batches()

        def make() -> Callable[..., None]:
            model = workload.compiled(jit_compile)
            kinds = {False: without(), True: with_them()}

            def fit(
                more: Callbacks, watched: bool, steps: int = 4, turn: int = 2
            ) -> None:
                model.fit(
                    batches,
                    epochs=steps // turn,
                    steps_per_epoch=turn,
                    verbose=0,
                    callbacks=[*kinds[watched], *more],
                )

            return fit

        make()([], False)  # pays for what TensorFlow prepares once in a process
        self._models = [make(), make()]
        first = []
        for watched, fit in enumerate(self._models):
            begun = time.perf_counter()
            fit([], bool(watched))
            first.append(time.perf_counter() - begun)
            fit([], not watched)
        self.first_fit_seconds = first[1] - first[0]

    def __call__(self, steps: int, turn: int = TURN, swap: bool = False) -> Comparison:
        """Fits both for so many steps, in turns.

        Args:
            steps: A multiple of `turn`.
            turn: Training steps before the other one goes on.
            swap: Lets the models change roles, and the other fit begin. Of two equal
                models one may be some percent slower, wherever its memory lies.
        """
        fits = [
            functools.partial(fit, watched=watched != swap, steps=steps, turn=turn)
            for watched, fit in enumerate(self._models)
        ]
        taken = run_in_turns(*fits)
        without, with_them = taken[::-1] if swap else taken
        return compare(with_them, without, steps)


def compare(with_them: Turns, without: Turns, steps: int) -> Comparison:
    """Compares two fits of so many steps, turn by turn."""
    seconds, processor = without.seconds.sum(), without.processor.sum()
    added = with_them.seconds - without.seconds
    added_processor = with_them.processor.sum() - processor
    return Comparison(
        ratio=1.0 + added.sum() / seconds,
        processor=1.0 + added_processor / processor,
        error=np.std(added) * np.sqrt(len(added)) / seconds,
        step_ms=1e3 * seconds / steps,
        added_us=1e6 * added.sum() / steps,
        added_processor_us=1e6 * added_processor / steps,
    )


class Idle(keras.callbacks.Callback):
    """Does nothing after every step; Keras then runs `fit` as it does with us."""

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Does nothing."""


def measure_tap(
    jit_compile: bool | str = "auto", steps: int = TAPPED, rounds: int = 3
) -> dict[str, float]:
    """Measures what the tap adds to a training step, with no decision but the first.

    Returns:
        `us`, microseconds on the clock that a step of a tiny model takes longer than
        with a callback that does nothing; `processor_us`, microseconds of processor
        time; medians over the rounds.
    """
    seldom = functools.partial(_watching, TINY, update_freq=10 * steps)
    pair = Pair(TINY, lambda: [Idle()], seldom, jit_compile)
    turn = max(1, steps // 10)
    found = [_in_both_roles(pair, steps, turn) for _ in range(rounds)]
    return {
        "us": float(np.median([one.added_us for one in found])),
        "processor_us": float(np.median([one.added_processor_us for one in found])),
    }


def import_seconds(times: int = IMPORTS) -> dict[str, float]:
    """Measures how long keras and then this package take to import, the medians."""
    taken = [
        json.loads(
            subprocess.run(
                [sys.executable, "-W", "ignore", "-c", IMPORT],
                check=True,
                capture_output=True,
                text=True,
            ).stdout.splitlines()[-1]
        )
        for _ in range(times)
    ]
    keras_alone, added = np.median(taken, axis=0).tolist()
    return {"keras": keras_alone, "keras_learned_lr": added}
