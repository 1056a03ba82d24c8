"""What both clients of a served controller do, whatever the wire between."""

import math
import random
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2

from keras_learned_lr.control.controller import PolicyOutput, ServingError
from keras_learned_lr.control.description import Description, read_description

# A description is some kB and an answer some hundred bytes; nothing honest is larger.
MAX_RESPONSE_BYTES = 1 << 20
# Seconds between two tries of a request.
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
# Seconds that a request gets at least, however late it is.
SHORTEST = 0.01

T = TypeVar("T")


class Tensor(NamedTuple):
    """An input or output of a signature, as the server describes it.

    Attributes:
        dtype: A value of TensorFlow's DataType; 0 for an operation's name.
        shape: Its sizes, -1 where free; None if even the rank is unknown.
    """

    dtype: int
    shape: tuple[int, ...] | None


class Signature(NamedTuple):
    """Inputs and outputs by name."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


class Served(NamedTuple):
    """What a server has under a model's name.

    Attributes:
        version: The version's number.
        signatures: By name.
    """

    version: int
    signatures: dict[str, Signature]


class RemoteClient:
    """A controller behind a server; a subclass speaks to the server.

    A run is steered by one version, the one that was served when it began, for as long
    as the server has it. When the server no longer does, the client goes on with the
    version that is served then, if that sees and acts alike.

    Args:
        where: The server, for messages; without credentials.
        version: Ask for this version, or None for the latest.
        label: Ask for the version with this label, or None.
        timeout: Seconds that a decision may take, all its tries together.
        connect_timeout: Seconds for reading what is served, waiting for the server
            included.

    Attributes:
        observation_spec: What the controller must be shown.
        action_form: What its actions mean, and when it decides.
        version: The version that decides.
    """

    def __init__(
        self,
        where: str,
        version: int | None,
        label: str | None,
        timeout: float,
        connect_timeout: float,
    ) -> None:
        _check_seconds("timeout", timeout)
        _check_seconds("connect_timeout", connect_timeout)
        if version is not None and label is not None:
            raise ValueError(
                "Pass a `version` or a `label`, not both. Received: "
                f"version={version!r}, label={label!r}"
            )
        whole = isinstance(version, int) and not isinstance(version, bool)
        if version is not None and not (whole and version >= 0):
            raise ValueError(f"`version` must be an integer. Received: {version!r}")
        if label is not None and not re.fullmatch(r"\w+", str(label), re.ASCII):
            raise ValueError(
                "`label` must be letters, digits and underscores, for TensorFlow "
                f"Serving takes no others. Received: {label!r}"
            )
        self._where = where
        self._wanted = (version, label)
        self._timeout, self._connect_timeout = timeout, connect_timeout
        self._away = False
        # The user's own random state stays as it is.
        self._random = random.Random()
        self.connect()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._where} version {self.version}>"

    def connect(self) -> None:
        """Reads what is served and asks it once; the next run is steered by that.

        Raises:
            ServingError: If the server cannot be reached or does not answer.
            ValueError: If what is served is no controller, or one whose observation
                this package cannot make.
        """
        deadline = time.monotonic() + self._connect_timeout
        self._away = False
        self.version, self._description = self._read(deadline)
        self.observation_spec = self._description.observation_spec
        self.action_form = self._description.action_form
        self._first_state: list[np.ndarray] = []
        shapes = self._description.state_shapes
        if shapes:
            outputs = {f"state_{i}": (1, *s) for i, s in enumerate(shapes)}
            told = self._call("initial_state", _ONE, outputs, deadline)
            self._first_state = [told[name] for name in outputs]
        # With an observation that a run can bring: the zeros of a first decision.
        trial = np.zeros([1, len(self.observation_spec.names)], np.float32)
        action = self._act(trial, self._first_state, deadline)["action"]
        if not np.all(np.isfinite(action)):
            raise ValueError(
                f"The controller at {self._where} answers zeros with an action that is "
                f"not finite. Received: {action.tolist()}. Export it again."
            )

    def initial_state(self, batch_size: int) -> list[tf.Tensor]:
        """Returns the recurrent state before the first decision, as the server told."""
        return [
            tf.constant(np.repeat(state, batch_size, axis=0))
            for state in self._first_state
        ]

    def act(self, observation: tf.Tensor, state: list[tf.Tensor]) -> PolicyOutput:
        """Asks the server about observations `[batch, features]`; not inside a graph.

        Raises:
            ServingError: If there is no answer in time, or one of the wrong form.
        """
        if tf.inside_function():
            raise RuntimeError(
                "A controller behind a server cannot be asked inside a tf.function. "
                "Call `ControlLoop.observe`, `ask` and `set` one by one."
            )
        deadline = time.monotonic() + self._timeout
        states = [np.asarray(value) for value in state]
        try:
            answer = self._act(np.asarray(observation), states, deadline)
        except ServingError as error:
            if not error.gone or self._wanted[0] is not None:
                self._away = True
                raise
            answer = self._follow(np.asarray(observation), states, deadline)
        self._away = False
        new = [tf.constant(answer[f"state_{i}"]) for i in range(len(states))]
        return PolicyOutput(tf.constant(answer["action"]), new)

    # What a subclass brings.

    def _metadata(
        self, version: int | None, label: str | None, seconds: float
    ) -> Served:
        """Asks what is served, once; raises ServingError."""
        raise NotImplementedError

    def _predict(
        self,
        version: int,
        signature: str,
        inputs: dict[str, np.ndarray],
        outputs: dict[str, tuple[int, ...]],
        seconds: float,
    ) -> dict[str, np.ndarray]:
        """Asks a version once and returns float32 outputs of the shapes asked for."""
        raise NotImplementedError

    def _read_json(self, version: int, seconds: float) -> str | bytes:
        """Asks a version once to describe itself."""
        raise NotImplementedError

    # How they are put together.

    def _act(
        self, observation: np.ndarray, state: list[np.ndarray], deadline: float
    ) -> dict[str, np.ndarray]:
        states = {f"state_{index}": value for index, value in enumerate(state)}
        outputs: dict[str, tuple[int, ...]] = {"action": (len(observation),)}
        outputs |= {name: value.shape for name, value in states.items()}
        inputs = {"observation": observation, **states}
        return self._call("serving_default", inputs, outputs, deadline)

    def _call(
        self,
        signature: str,
        inputs: dict[str, np.ndarray],
        outputs: dict[str, tuple[int, ...]],
        deadline: float,
    ) -> dict[str, np.ndarray]:
        def once(seconds: float) -> dict[str, np.ndarray]:
            return self._predict(self.version, signature, inputs, outputs, seconds)

        return self._retry(once, deadline)

    def _read(self, deadline: float) -> tuple[int, Description]:
        version, label = self._wanted
        served = self._retry(
            lambda seconds: self._metadata(version, label, seconds), deadline
        )
        self._check_signatures(served, None)
        told = self._retry(
            lambda seconds: self._read_json(served.version, seconds), deadline
        )
        where = f"The model at {self._where}"
        description = read_description(told, where)
        self._check_signatures(served, description)
        return served.version, description

    def _check_signatures(self, served: Served, described: Description | None) -> None:
        wanted = {
            "serving_default": ({"observation"}, {"action"}),
            "describe": ({"batch"}, {"json"}),
        }
        if described is not None:
            states = {f"state_{i}" for i in range(len(described.state_shapes))}
            wanted["serving_default"] = ({"observation", *states}, {"action", *states})
            if states:
                wanted["initial_state"] = ({"batch"}, states)
        for name, (inputs, outputs) in wanted.items():
            has = served.signatures.get(name, Signature({}, {}))
            # More outputs do no harm; an input more would be missed.
            takes = inputs == set(has.inputs) or (
                described is None and inputs < set(has.inputs)
            )
            if not takes or not outputs <= set(has.outputs):
                raise ValueError(
                    f"The model at {self._where}, version {served.version}, is not a "
                    f"controller: its signature {name!r} must take {sorted(inputs)} "
                    f"and return {sorted(outputs)}. Received: "
                    f"{short(_names(served.signatures))}. Serve one that "
                    "`keras-learned-lr export` wrote."
                )
        if described is None:
            return
        features = len(described.observation_spec.names)
        shapes = {"observation": (-1, features)} | {
            f"state_{i}": (-1, *shape) for i, shape in enumerate(described.state_shapes)
        }
        for name, shape in shapes.items():
            found = served.signatures["serving_default"].inputs[name]
            if found != Tensor(types_pb2.DT_FLOAT, shape):
                kind = types_pb2.DataType.Name(found.dtype)
                raise ValueError(
                    f"The controller at {self._where} must take {name!r} as DT_FLOAT "
                    f"{shape}, as it describes itself. Received: {kind} {found.shape}. "
                    "Export it again."
                )

    def _follow(
        self, observation: np.ndarray, state: list[np.ndarray], deadline: float
    ) -> dict[str, np.ndarray]:
        """Asks the version that is served now, if it is a controller alike."""
        old = self.version
        try:
            version, description = self._read(deadline)
            if description != self._description:
                raise ServingError(
                    f"Version {old} is no longer served at {self._where}, and version "
                    f"{version} sees or acts otherwise; the next run can use it."
                )
            self.version = version
            return self._act(observation, state, deadline)
        except (ServingError, ValueError) as error:
            self.version, self._away = old, True
            raise ServingError(str(error)) from error

    def _retry(self, once: Callable[[float], T], deadline: float) -> T:
        pause = FIRST_PAUSE
        while True:
            try:
                return once(max(deadline - time.monotonic(), SHORTEST))
            except ServingError as error:
                left = deadline - time.monotonic()
                # While the server is away a run is not kept waiting for it.
                if not error.retriable or self._away or left < pause + SHORTEST:
                    raise
            # Not all at once, where many wait for the same server.
            time.sleep(pause * self._random.uniform(0.5, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE)


_ONE = {"batch": np.zeros(1, np.int32)}


def short(value: Any, limit: int = 300) -> str:
    """Returns what a server said, quoted, printable and of bounded length."""
    if isinstance(value, bytes):
        value = value[: 4 * limit].decode("utf-8", "replace")
    text = value if isinstance(value, str) else repr(value)
    return repr(text[:limit]) + (" …" if len(text) > limit else "")


def check_headers(name: str, headers: Any) -> list[tuple[str, str]]:
    """Returns headers as pairs; never quotes a value, since it may be a secret.

    Raises:
        ValueError: If a name or a value is not printable ASCII.
    """
    pairs = headers.items() if hasattr(headers, "items") else headers or ()
    checked = []
    for pair in pairs:
        key, value = pair if len(pair) == 2 else (None, None)
        if not (isinstance(key, str) and re.fullmatch(r"[0-9A-Za-z_.-]+", key)):
            raise ValueError(f"`{name}` has a name that is none. Received: {key!r}")
        if not (isinstance(value, str) and re.fullmatch(r"[ -~]*", value)):
            raise ValueError(
                f"The value of {key!r} in `{name}` must be printable ASCII, without a "
                "line break (it is not shown here)."
            )
        checked.append((key, value))
    return checked


def _names(signatures: dict[str, Signature]) -> dict[str, Any]:
    return {
        name: (sorted(found.inputs), sorted(found.outputs))
        for name, found in signatures.items()
    }


def _check_seconds(name: str, value: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        raise ValueError(f"`{name}` must be a positive number. Received: {value!r}")
