"""One of many trainings that share a server; started by `benchmark.serving`.

Trains, one short `fit` after another, until a file is there, and prints what came of it
as JSON.
"""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import keras

from keras_learned_lr.control.actions import ActionForm
from keras_learned_lr.control.remote import GrpcController, RestController
from keras_learned_lr.rehearsal import BATCH_SIZE, EPOCHS, EXAMPLES, rehearse

# A training step of a real model takes longer than one of ours.
STEP_SECONDS = 0.02
CONNECT_SECONDS = 120.0


class _Pace(keras.callbacks.Callback):
    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        time.sleep(STEP_SECONDS)


def connect(address: str, **options: Any) -> RestController | GrpcController:
    """Returns a client of the server at a URL or at `HOST:PORT`."""
    if address.startswith("http"):
        return RestController(address, **options)
    return GrpcController(address, **options)


def due_steps(form: ActionForm, horizon: int) -> list[int]:
    """Returns the steps at which a run of `horizon` steps must decide."""
    steps = [0]
    while (due := form.schedule.next_step(steps[-1], horizon)) < horizon:
        steps.append(due)
    return steps


def main(address: str, seed: int, stop: Path) -> None:
    """Says when it is ready, waits for a line, trains until `stop` exists."""
    # A server that is restarted may take its time when a fit begins.
    controller = connect(address, connect_timeout=CONNECT_SECONDS)
    # Everything is loaded and traced once before the clock starts.
    rehearse(controller, epochs=1)
    print("ready", flush=True)
    sys.stdin.readline()
    report: dict[str, Any] = {"fits": 0, "decisions": 0, "held": 0, "missing": 0}
    while not stop.exists():
        done = rehearse(controller, seed=seed + report["fits"], callbacks=(_Pace(),))
        due = due_steps(controller.action_form, EPOCHS * (EXAMPLES // BATCH_SIZE))
        recorded = done.decisions["step"].tolist()
        report["fits"] += 1
        report["decisions"] += len(recorded)
        report["held"] += int(done.decisions["held"].sum())
        report["missing"] += len(set(due) ^ set(recorded))
        report["missing"] += len(done.losses) != EPOCHS
        report["missing"] += not all(map(math.isfinite, done.losses))
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
