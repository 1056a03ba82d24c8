"""The models of a server: which versions there are, loading them, running them."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow.python.util import deprecation
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_pb2,
    predict_pb2,
    prediction_log_pb2,
)
from tensorflow_serving.config import model_server_config_pb2

from keras_learned_lr.control.versions import versions_in
from keras_learned_lr.control.warm_up import FILE as WARM_UP_FILE

MAX_WARM_UP_RECORDS = 1000
DEFAULT_SIGNATURE = "serving_default"
States = get_model_status_pb2.ModelVersionStatus


class StatusError(Exception):
    """An error with one of gRPC's status codes, by its name."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Servable:
    """One version of a model, loaded and warmed up.

    Args:
        path: The version's folder.

    Raises:
        StatusError: If a warm-up request fails.
    """

    def __init__(self, path: Path) -> None:
        self.session = tf.compat.v1.Session(graph=tf.Graph())
        # A session, as ModelServer has one, feeds and fetches tensors by their names.
        with deprecation.silence():
            loaded = tf.compat.v1.saved_model.load(self.session, ["serve"], str(path))
        self.signatures = dict(loaded.signature_def)
        self.warmed_up = 0
        if (path / WARM_UP_FILE).is_file():
            for record in tf.data.TFRecordDataset(str(path / WARM_UP_FILE)):
                log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
                self.predict(log.predict_log.request)
                self.warmed_up += 1
                if self.warmed_up > MAX_WARM_UP_RECORDS:
                    raise StatusError(
                        "INVALID_ARGUMENT",
                        "Number of warmup records exceeds the maximum "
                        f"({MAX_WARM_UP_RECORDS}) at {path}",
                    )

    def predict(self, request: predict_pb2.PredictRequest) -> dict[str, np.ndarray]:
        """Runs a signature; returns its outputs by name."""
        name = request.model_spec.signature_name or DEFAULT_SIGNATURE
        if name not in self.signatures:
            raise StatusError(
                "FAILED_PRECONDITION", f'Serving signature key "{name}" not found.'
            )
        signature = self.signatures[name]
        sent, takes = sorted(request.inputs), sorted(signature.inputs)
        if sent != takes:
            extra = ",".join(sorted({*sent} - {*takes}))
            missing = ",".join(sorted({*takes} - {*sent}))
            raise StatusError(
                "INVALID_ARGUMENT",
                f"input size does not match signature: {len(sent)}!={len(takes)} "
                f"len({{{','.join(sent)}}}) != len({{{','.join(takes)}}}). Sent extra: "
                f"{{{extra}}}. Missing but required: {{{missing}}}.",
            )
        wanted = list(request.output_filter) or sorted(signature.outputs)
        for output in wanted:
            if output not in signature.outputs:
                raise StatusError(
                    "INVALID_ARGUMENT",
                    f"output tensor alias not found in signature: {output} Outputs "
                    f"expected to be in the set {{{','.join(signature.outputs)}}}.",
                )
        feeds = {}
        for index, (key, proto) in enumerate(sorted(request.inputs.items())):
            info = signature.inputs[key]
            if proto.dtype != info.dtype:
                wanted_type, got = (
                    types_pb2.DataType.Name(t).removeprefix("DT_").lower()
                    for t in (info.dtype, proto.dtype)
                )
                raise StatusError(
                    "INVALID_ARGUMENT",
                    f"Expects arg[{index}] to be {wanted_type} but {got} is provided",
                )
            feeds[info.name] = self._parse(key, proto)
        fetches = [signature.outputs[output].name for output in wanted]
        try:
            values = self.session.run(fetches, feeds)
        except tf.errors.OpError as error:
            raise StatusError(_code_name(error.error_code), error.message) from error
        except ValueError as error:  # A shape that Python finds out about first.
            raise StatusError("INVALID_ARGUMENT", str(error)) from error
        return dict(zip(wanted, values, strict=True))

    def _parse(self, key: str, proto: Any) -> np.ndarray:
        try:
            return tf.make_ndarray(proto)
        except (ValueError, TypeError) as error:
            raise StatusError(
                "INVALID_ARGUMENT", f"tensor parsing error: {key}"
            ) from error


class Models:
    """Every model that a server serves, kept in step with its version folders.

    Args:
        config: What ModelServer reads from `--model_config_file`.
        poll_seconds: How often the version folders are looked at.
    """

    def __init__(
        self,
        config: model_server_config_pb2.ModelServerConfig,
        poll_seconds: float = 1.0,
    ) -> None:
        self._configs = {c.name: c for c in config.model_config_list.config}
        self._servables: dict[str, dict[int, Servable]] = {}
        self._states: dict[str, dict[int, Any]] = {}
        self._stopped = threading.Event()
        self.poll()
        self._thread = threading.Thread(target=self._watch, args=[poll_seconds])
        self._thread.start()

    def close(self) -> None:
        """Stops looking at the version folders."""
        self._stopped.set()
        self._thread.join()

    def poll(self) -> None:
        """Loads what is new, then unloads what is no longer wanted."""
        for name, config in self._configs.items():
            wanted = _wanted_versions(config)
            loaded = dict(self._servables.get(name, {}))
            states = self._states.setdefault(name, {})
            for version in wanted:
                if version not in states:
                    self._load(Path(config.base_path), version, loaded, states)
            available = [v for v in wanted if v in loaded]
            # The old version serves until a new one does.
            for version in [v for v in loaded if v not in wanted and available]:
                del loaded[version]
                states[version] = _state(version, States.END)
            self._servables[name] = loaded

    def find(self, spec: model_pb2.ModelSpec) -> tuple[int, Servable]:
        """Returns the version that a request is for."""
        name, version = spec.name, None
        if spec.HasField("version"):
            version = spec.version.value
        elif spec.version_label:
            config = self._configs.get(name)
            labels = {} if config is None else config.version_labels
            if spec.version_label not in labels:
                raise StatusError(
                    "INVALID_ARGUMENT",
                    f"Unrecognized servable version label: {spec.version_label}",
                )
            version = labels[spec.version_label]
        servables = self._servables.get(name, {})
        asked = f"Latest({name})" if version is None else f"Specific({name}, {version})"
        if version is None:
            version = max(servables, default=None)
        if version not in servables:
            raise StatusError("NOT_FOUND", f"Servable not found for request: {asked}")
        return version, servables[version]

    def status(self, spec: model_pb2.ModelSpec) -> list[Any]:
        """Returns the status of a model's versions, or of the one asked for."""
        states = self._states.get(spec.name, {})
        if spec.HasField("version"):
            version = spec.version.value
            if version not in states:
                raise StatusError(
                    "NOT_FOUND",
                    f"Could not find version {version} of model {spec.name}",
                )
            return [states[version]]
        if not states:
            raise StatusError(
                "NOT_FOUND", f"Could not find any versions of model {spec.name}"
            )
        return [states[version] for version in sorted(states, reverse=True)]

    def _load(
        self,
        base: Path,
        version: int,
        loaded: dict[int, Servable],
        states: dict[int, Any],
    ) -> None:
        states[version] = _state(version, States.LOADING)
        try:
            loaded[version] = Servable(base / str(version))
            states[version] = _state(version, States.AVAILABLE)
        except Exception as error:
            # One bad version must not stop the others, nor the server.
            states[version] = _state(version, States.END, str(error))

    def _watch(self, seconds: float) -> None:
        while not self._stopped.wait(seconds):
            self.poll()


def _wanted_versions(config: model_server_config_pb2.ModelConfig) -> list[int]:
    found = versions_in(Path(config.base_path))
    policy = config.model_version_policy
    if policy.HasField("specific"):
        return [v for v in policy.specific.versions if v in found]
    if policy.HasField("all"):
        return found
    return found[-(policy.latest.num_versions or 1) :]


def _state(version: int, state: int, error: str = "") -> Any:
    status = States(version=version, state=state)
    status.status.error_message = error
    if error:
        status.status.error_code = tf.errors.UNKNOWN
    return status


def _code_name(number: int) -> str:
    return next(
        name
        for name in dir(tf.errors)
        if name.isupper() and getattr(tf.errors, name) == number
    )
