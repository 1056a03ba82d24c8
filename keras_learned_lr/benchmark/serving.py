"""Many trainings on one server: how fast it decides, and what happens when it dies."""

import contextlib
import functools
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_learned_lr.benchmark.serving_run import connect
from keras_learned_lr.control.actions import AnchoredScaleFactor
from keras_learned_lr.control.controller import (
    Controller,
    PolicyOutput,
    ServingError,
)
from keras_learned_lr.control.export import export_version
from keras_learned_lr.control.saved_model import SavedModelController, load_controller
from keras_learned_lr.control.versions import MODEL_NAME
from keras_learned_lr.control_loop import ControlLoop
from keras_learned_lr.observation.spec import ObservationSpec
from keras_learned_lr.observation.validation import ValidationLoss, draw_subset
from keras_learned_lr.rehearsal import made_up_trainee, rehearse

DECISIONS = 500
# Each replaying client asks about twice a second, far more often than a training does.
MEAN_PAUSE = 0.5
DOWN_SECONDS = 3.0
START_SECONDS = 300.0


class UntrainedController:
    """A network of the usual size with random weights, for want of a trained one."""

    def __init__(self, seed: int = 0) -> None:
        self.observation_spec = ObservationSpec()
        self.action_form = AnchoredScaleFactor()
        rng = np.random.default_rng(seed)
        sizes = [len(self.observation_spec.names), 64, 64, 1]
        self.variables = [
            tf.Variable((rng.normal(size=s) / np.sqrt(s[0])).astype("float32"))
            for s in zip(sizes[:-1], sizes[1:], strict=True)
        ]

    def initial_state(self, batch_size: int) -> list[tf.Tensor]:
        """Returns no state."""
        return []

    def act(self, observation: tf.Tensor, state: list[tf.Tensor]) -> PolicyOutput:
        """Answers observations of shape `[batch, features]`."""
        for weights in self.variables:
            observation = tf.tanh(observation @ weights)
        return PolicyOutput(observation[:, 0], [])


def run(
    controller: str | None = None,
    seconds: float = 120.0,
    fits: int = 8,
    clients: int = 56,
    decisions: int = DECISIONS,
) -> dict[str, Any]:
    """Measures decisions one by one, then many trainings at once.

    The server is the stand-in of `benchmark.loopback`, in a process of its own; in the
    middle of the second part it is killed, and started again three seconds later.

    Args:
        controller: Name or path of the controller; None for an untrained one.
        seconds: How long the many trainings run, at least.
        fits: Processes that train, one fit after another.
        clients: Clients that replay recorded observations beside them.
        decisions: How many are timed one by one.

    Returns:
        `local_p50_ms`, `grpc_p50_ms`, `rest_p50_ms` and the same with `p99`: one whole
        decision (observe, ask, set) on an idle server, taken in turns; the same with
        `ask_` in front for the question alone, and with `busy_` for a question among
        all others. `runs` and `runs_lost`: fits and clients together, and those that
        failed, missed a decision, or got an answer that is not the controller's.
        Further counts of what they did.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / MODEL_NAME
        source: Any = UntrainedController() if controller is None else controller
        if controller is not None:
            source = load_controller(controller)
        observations = rehearse(source).observations
        local = SavedModelController(export_version(source, folder, observations))
        server = stack.enter_context(_Server(folder))
        report: dict[str, Any] = {
            "controller": controller or "untrained",
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "load_before": os.getloadavg()[0],
        }
        report |= _one_by_one(local, server, observations, decisions)
        report |= _many(local, server, observations, seconds, fits, clients)
    return report


class _Server:
    """The stand-in server in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen | None = None
        self.grpc = self.rest = "127.0.0.1:0"

    def start(self) -> None:
        """Starts it, the second time on the same ports."""
        ports = [address.rsplit(":", 1)[1] for address in (self.grpc, self.rest)]
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "keras_learned_lr.benchmark.loopback"),
                f"--port={ports[0]}",
                f"--rest_api_port={ports[1]}",
                f"--model_base_path={self._folder}",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline().split()
        if len(line) != 2:
            raise RuntimeError("The server of the benchmark did not start.")
        self.grpc, self.rest = line

    def kill(self) -> None:
        """Kills it without a word, as an out-of-memory killer would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None

    def addresses(self) -> dict[str, str]:
        """Returns where each API is."""
        return {"grpc": self.grpc, "rest": f"{self.rest}/v1/models/{MODEL_NAME}"}

    def __enter__(self) -> "_Server":
        self.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.kill()


def _one_by_one(
    local: Controller, server: _Server, observations: np.ndarray, decisions: int
) -> dict[str, float]:
    controllers: dict[str, Controller] = {"local": local}
    controllers |= {kind: connect(a) for kind, a in server.addresses().items()}
    with contextlib.ExitStack() as stack:
        loops = {
            kind: stack.enter_context(_running_loop(controller))
            for kind, controller in controllers.items()
        }
        whole: dict[str, list[float]] = {kind: [] for kind in loops}
        asked: dict[str, list[float]] = {kind: [] for kind in loops}
        for turn in range(decisions + 10):
            seen = tf.constant(observations[turn % len(observations)][np.newaxis])
            for kind, controller in controllers.items():
                state = controller.initial_state(1)
                question = _timed(functools.partial(controller.act, seen, state))
                decision = _timed(loops[kind].decide)
                if turn >= 10:
                    asked[kind].append(question)
                    whole[kind].append(decision)
    report: dict[str, float] = {}
    for kind in loops:
        report |= _percentiles(f"{kind}_", whole[kind])
        report |= _percentiles(f"ask_{kind}_", asked[kind])
    return report


@contextlib.contextmanager
def _running_loop(controller: Controller) -> Iterator[ControlLoop]:
    """A trainee after a few steps, so that every measurement is taken."""
    model, (x, y) = made_up_trainee()
    validation = ValidationLoss(model, draw_subset((x[-128:], y[-128:]), None))
    loop = ControlLoop(model, controller, controller.action_form, validation)
    loop.start(horizon=10_000)
    for _ in range(3):
        loop.probe.expect_step()
        model.train_function(iter([(x[:32], y[:32])]))
    yield loop
    loop.stop()


def _many(
    local: Controller,
    server: _Server,
    observations: np.ndarray,
    seconds: float,
    fits: int,
    clients: int,
) -> dict[str, Any]:
    addresses = list(server.addresses().values())
    folder = Path(tempfile.mkdtemp())
    end = folder / "stop"
    processes = [_start_fit(addresses[i % 2], i, end) for i in range(fits)]
    try:
        _wait_until_ready(processes)
        stop = threading.Event()
        replays = [
            _Replay(addresses[i % 2], local, observations, i, stop)
            for i in range(clients)
        ]
        begun = time.monotonic()
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for replay in replays:
            replay.start()
        time.sleep(0.4 * seconds)
        server.kill()
        killed = time.monotonic()
        time.sleep(min(DOWN_SECONDS, 0.1 * seconds))
        server.start()
        back = time.monotonic()
        # However long the restart took, all see the server again.
        time.sleep(max(begun + seconds - back, 0.3 * seconds))
        end.touch()
        done = [
            _finish_fit(process, folder / f"fit_{index}.log")
            for index, process in enumerate(processes)
        ]
        stop.set()
        for replay in replays:
            replay.join()
    finally:
        for process in processes:
            process.kill()
            process.wait()
        shutil.rmtree(folder)
    good = [report for report in done if isinstance(report, dict)]
    lost = [f"fit {i}: {r}" for i, r in enumerate(done) if not isinstance(r, dict)]
    lost += [f"fit {i}: missed decisions" for i, r in enumerate(good) if r["missing"]]
    for index, replay in enumerate(replays):
        lost += [f"client {index}: {reason}" for reason in replay.faults(back)]
    report: dict[str, Any] = {
        "runs": fits + clients,
        "runs_lost": len(lost),
        "lost": lost,
        "seconds": round(time.monotonic() - begun, 1),
        "seconds_without_server": round(back - killed, 1),
        "fits": sum(report["fits"] for report in good),
        "fit_decisions": sum(report["decisions"] for report in good),
        "fit_decisions_held": sum(report["held"] for report in good),
        "replayed": sum(len(replay.seconds) for replay in replays),
        "replayed_held": sum(replay.held for replay in replays),
    }
    for kind, start in (("grpc", 0), ("rest", 1)):
        times = [t for replay in replays[start::2] for t in replay.seconds]
        report |= _percentiles(f"busy_{kind}_", times)
    return report


def _start_fit(address: str, index: int, end: Path) -> subprocess.Popen:
    with (end.parent / f"fit_{index}.log").open("w") as log:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "keras_learned_lr.benchmark.serving_run"),
                *(address, str(1000 * index), str(end)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )


def _wait_until_ready(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            raise RuntimeError("A fit of the benchmark did not start.")


def _finish_fit(process: subprocess.Popen, log: Path) -> dict[str, Any] | str:
    """Returns what a fit reports, or why it failed."""
    try:
        said, _ = process.communicate(timeout=START_SECONDS)
        if process.returncode == 0:
            return json.loads(said)
        lines = log.read_text(errors="replace").splitlines()
        return f"exit code {process.returncode}, {lines[-1] if lines else 'no word'}"
    except (subprocess.TimeoutExpired, ValueError) as error:
        return repr(error)


class _Replay(threading.Thread):
    """A client that asks about recorded observations and checks the answers."""

    def __init__(
        self,
        address: str,
        local: Controller,
        observations: np.ndarray,
        seed: int,
        stop: threading.Event,
    ) -> None:
        super().__init__()
        self._remote = connect(address)
        self._observations = observations
        self._random = random.Random(seed)
        self._stop_event = stop
        state, self._expected = local.initial_state(1), []
        for seen in observations[:, np.newaxis]:
            output = local.act(tf.constant(seen), state)
            self._expected.append((output.action.numpy(), state))
            state = output.state
        self.seconds: list[float] = []
        self.held = self._asked = self._wrong = 0
        self._last_answer = 0.0

    def run(self) -> None:
        """Asks until it is told to stop."""
        while not self._stop_event.wait(self._random.uniform(0, 2 * MEAN_PAUSE)):
            at = self._asked % len(self._observations)
            self._asked += 1
            expected, state = self._expected[at]
            seen = tf.constant(self._observations[at][np.newaxis])
            begun = time.perf_counter()
            try:
                action = self._remote.act(seen, state).action.numpy()
            except ServingError:
                self.held += 1
                continue
            self.seconds.append(time.perf_counter() - begun)
            self._last_answer = time.monotonic()
            self._wrong += not np.allclose(action, expected, rtol=1e-4, atol=1e-5)

    def faults(self, back: float) -> list[str]:
        """Returns what went wrong, but for the time that the server was away.

        Args:
            back: When it was back, on the monotonic clock.
        """
        if self._wrong:
            return [f"{self._wrong} answers are not the controller's"]
        if len(self.seconds) + self.held != self._asked:
            return ["it broke off"]
        if self._last_answer < back:
            return ["it never found the server again"]
        return []


def _timed(function: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def _percentiles(name: str, seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {}
    return {
        f"{name}p{q}_ms": round(1e3 * float(np.percentile(seconds, q)), 3)
        for q in (50, 99)
    }
