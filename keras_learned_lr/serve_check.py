"""Checks a running server: what it serves, how fast, and a training run on it."""

import re
import time
from typing import Any, NamedTuple

import numpy as np

from keras_learned_lr.control.remote import GrpcController, RestController
from keras_learned_lr.rehearsal import rehearse

QUESTIONS = 200


class Check(NamedTuple):
    """One thing that was looked at.

    Attributes:
        name: What.
        passed: Whether it is as it should be.
        found: What was found.
    """

    name: str
    passed: bool
    found: str


def connect(url: str, **options: Any) -> RestController | GrpcController:
    """Returns a client of what is served at `url`.

    Args:
        url: `http(s)://HOST:8501/v1/models/NAME` or `grpc(s)://HOST:8500/NAME`; the
            latter with an s for TLS.
        **options: For the client; `headers` become metadata for gRPC.

    Raises:
        ValueError: If it is neither.
    """
    if not url.startswith("grpc"):
        return RestController(url, **options)
    match = re.fullmatch(r"(grpcs?)://([^/]+)/([^/]+)", url)
    if match is None:
        raise ValueError(f"Expected grpc://HOST:8500/NAME. Received: {url!r}")
    options["metadata"] = options.pop("headers", None)
    return GrpcController(match[2], model=match[3], tls=match[1] == "grpcs", **options)


def check(url: str, **options: Any) -> list[Check]:
    """Asks a server about everything that a training run needs of it.

    Args:
        url: See `connect`.
        **options: See `connect`.

    Returns:
        Checks of signature and spec, of latency and of a tiny `fit`; where the first
        fails, it alone.
    """
    try:
        controller = connect(url, **options)
    except (ValueError, RuntimeError, OSError) as error:
        return [Check("signature and spec", False, str(error))]
    spec, form = controller.observation_spec, controller.action_form
    states = controller.initial_state(1)
    checks = [
        Check(
            "signature and spec",
            True,
            f"version {controller.version}, {len(spec.names)} features of version "
            f"{spec.version}, {type(form).__name__}, {type(form.schedule).__name__}, "
            f"{len(states)} recurrent states",
        )
    ]
    try:
        done = rehearse(controller)
    except Exception as error:
        # Whatever it is, it would have ended the user's run too.
        return [*checks, Check("fit", False, f"{type(error).__name__}: {error}")]
    held = int(done.decisions["held"].sum())
    count = len(done.decisions["held"])
    finite = bool(np.all(np.isfinite(done.losses)))
    rates = done.decisions["learning_rate"]
    checks.append(
        Check(
            "fit",
            finite and held == 0,
            f"{count} decisions, {held} of them held, learning rate from "
            f"{rates.min():.2g} to {rates.max():.2g}, training loss from "
            f"{done.losses[0]:.3g} to {done.losses[-1]:.3g}",
        )
    )
    return [*checks, _latency(controller, done.observations)]


def _latency(
    controller: RestController | GrpcController, observations: np.ndarray
) -> Check:
    state, seconds = controller.initial_state(1), []
    try:
        for turn in range(QUESTIONS):
            seen = observations[turn % len(observations)][np.newaxis]
            begun = time.perf_counter()
            controller.act(seen, state)
            seconds.append(time.perf_counter() - begun)
    except RuntimeError as error:
        return Check("latency", False, str(error))
    p50, p99 = 1e3 * np.percentile(seconds, [50, 99])
    return Check(
        "latency", True, f"{QUESTIONS} questions: p50 {p50:.2f} ms, p99 {p99:.2f} ms"
    )
