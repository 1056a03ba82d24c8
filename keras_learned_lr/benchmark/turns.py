"""Two fits side by side in one process, taking turns.

A machine that is busy for a minute slows a whole fit, but both of two fits that change
places every second; what is left of the noise is told by how the turns differ.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import keras
import numpy as np

# Hands a fit all the turns that it may still ask for.
EVERY_TURN = 1_000_000

# Calls `model.fit` with these callbacks added to its own.
Fit = Callable[[list[keras.callbacks.Callback]], object]


class Turns(NamedTuple):
    """How long a fit took, turn by turn; float64 `[turns]`.

    Attributes:
        seconds: On the clock.
        processor: Seconds of processor time of the whole process, whose other fit
            waits meanwhile.
    """

    seconds: np.ndarray
    processor: np.ndarray


def run_in_turns(first: Fit, second: Fit) -> tuple[Turns, Turns]:
    """Runs two fits at once, one epoch of each at a time.

    Everything from the call of `fit` to its return is counted, but for the waiting.

    Args:
        first: Begins.
        second: Of as many epochs.
    """
    batons = [threading.Semaphore(1), threading.Semaphore(0)]
    takers = [_TakesTurns(*batons), _TakesTurns(*batons[::-1])]
    with ThreadPoolExecutor(2) as pool:
        running = [
            pool.submit(taker.run, fit)
            for taker, fit in zip(takers, (first, second), strict=True)
        ]
    for done in running:
        done.result()
    return takers[0].turns(), takers[1].turns()


class _TakesTurns(keras.callbacks.Callback):
    """Passes the baton at the end of every epoch; to be the last of the callbacks."""

    def __init__(self, mine: threading.Semaphore, others: threading.Semaphore) -> None:
        super().__init__()
        self._mine = mine
        self._others = others
        self._begun = (0.0, 0.0)
        self._taken: list[tuple[float, float]] = []

    def run(self, fit: Fit) -> None:
        """Runs a fit from its first turn to its last."""
        try:
            self._take()
            fit([self])
            self._note()
        finally:
            self._others.release(EVERY_TURN)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Lets the other one train for an epoch."""
        self._note()
        self._others.release()
        self._take()

    def turns(self) -> Turns:
        """Returns what was measured; the end of `fit` belongs to the last epoch."""
        taken = np.array(self._taken)
        taken[-2] += taken[-1]
        return Turns(*taken[:-1].T)

    def _take(self) -> None:
        self._mine.acquire()
        self._begun = (time.perf_counter(), time.process_time())

    def _note(self) -> None:
        now = (time.perf_counter(), time.process_time())
        self._taken.append((now[0] - self._begun[0], now[1] - self._begun[1]))
