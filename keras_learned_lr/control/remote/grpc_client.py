"""A controller behind TensorFlow Serving's gRPC API."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from keras_learned_lr.control.controller import ServingError
from keras_learned_lr.control.remote.client import (
    MAX_RESPONSE_BYTES,
    RemoteClient,
    Served,
    check_headers,
    short,
)
from keras_learned_lr.control.remote.signatures import read_signatures
from keras_learned_lr.control.versions import MODEL_NAME

OPTIONS = [
    ("grpc.max_receive_message_length", MAX_RESPONSE_BYTES),
    # As for REST: nothing from the environment.
    ("grpc.enable_http_proxy", 0),
    # A server that is back is found within a second; gRPC would wait up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A channel of one's own: the certificates and pauses of others are not ours.
    ("grpc.use_local_subchannel_pool", 1),
]


class GrpcController(RemoteClient):
    """A controller behind TensorFlow Serving's gRPC API.

    Pass it to `LearnedLearningRate` in place of a local controller. It reads what is
    served when it is made and again when a run begins. Needs the `serving` extra.

    Args:
        target: `host:8500`.
        model: The model's name on the server.
        version: A version to stay with; by default the latest that is served.
        label: A version label to ask for, as `stable` or `canary`.
        timeout: Seconds that one decision may take, all its tries together.
        connect_timeout: Seconds for reading what is served, waiting for the server
            included.
        metadata: gRPC metadata, as `{"authorization": "Bearer ..."}`. Never logged.
        tls: Whether to speak TLS.
        ca_file: PEM file of the authorities to trust in place of gRPC's.
        client_certificate: PEM files of a certificate and its key, for a server that
            asks for one.

    Raises:
        ValueError: If an argument is not of its form, or what is served is no
            controller that this package can show what it needs.
        ServingError: If the server cannot be reached.
        ImportError: If grpcio or tensorflow-serving-api is not installed.
    """

    def __init__(
        self,
        target: str,
        *,
        model: str = MODEL_NAME,
        version: int | None = None,
        label: str | None = None,
        timeout: float = 1.0,
        connect_timeout: float = 10.0,
        metadata: Mapping[str, str] | Sequence[tuple[str, str]] | None = None,
        tls: bool = False,
        ca_file: str | None = None,
        client_certificate: tuple[str, str] | None = None,
    ) -> None:
        if not isinstance(target, str) or not re.fullmatch(
            r"(dns:(///)?)?([^\s/:@]+|\[[0-9a-fA-F:]+\]):\d+|unix:\S+", target
        ):
            raise ValueError(
                f"`target` must be HOST:PORT, without http://. Received: {target!r}"
            )
        if not isinstance(model, str) or not model:
            raise ValueError(f"`model` must be a model's name. Received: {model!r}")
        if not tls and (ca_file is not None or client_certificate is not None):
            raise ValueError(
                "`ca_file` and `client_certificate` are for TLS. Received: tls=False"
            )
        try:
            import grpc
            from tensorflow_serving.apis import prediction_service_pb2_grpc
        except ImportError as error:
            raise ImportError(
                f"GrpcController needs {error.name}. Install it with "
                '`pip install "keras_learned_lr[serving]"`.'
            ) from error
        self._grpc = grpc
        # gRPC knows header names in lower case only.
        pairs = check_headers("metadata", metadata)
        self._headers = [(key.lower(), value) for key, value in pairs]
        if tls:
            key, chain = None, None
            if client_certificate is not None:
                chain, key = (Path(path).read_bytes() for path in client_certificate)
            credentials = grpc.ssl_channel_credentials(
                None if ca_file is None else Path(ca_file).read_bytes(), key, chain
            )
            channel = grpc.secure_channel(target, credentials, OPTIONS)
        else:
            channel = grpc.insecure_channel(target, OPTIONS)
        self._model = model
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        super().__init__(
            f"grpc://{target}, model {model!r},",
            version,
            label,
            timeout,
            connect_timeout,
        )

    def _metadata(
        self, version: int | None, label: str | None, seconds: float
    ) -> Served:
        from tensorflow_serving.apis import get_model_metadata_pb2 as protos

        request = protos.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name = self._model
        if version is not None:
            request.model_spec.version.value = version
        if label is not None:
            request.model_spec.version_label = label
        told = self._send(self._stub.GetModelMetadata, request, seconds)
        signatures = protos.SignatureDefMap()
        try:
            if told.metadata["signature_def"].Unpack(signatures):
                return Served(
                    told.model_spec.version.value,
                    read_signatures(signatures.signature_def),
                )
        except DecodeError as error:
            raise ServingError(
                f"{self._where} describes its signatures in no known form: "
                f"{short(str(error))}"
            ) from error
        raise ServingError(f"{self._where} does not tell its signatures.")

    def _read_json(self, version: int, seconds: float) -> bytes:
        inputs = {"batch": np.zeros(1, np.int32)}
        told = self._ask(version, "describe", inputs, ["json"], seconds)["json"]
        if told.dtype != tf.string.as_datatype_enum or len(told.string_val) != 1:
            raise ServingError(
                f"{self._where} does not describe itself as one string. Received: "
                f"{short(str(told))}"
            )
        return told.string_val[0]

    def _predict(
        self,
        version: int,
        signature: str,
        inputs: dict[str, np.ndarray],
        outputs: dict[str, tuple[int, ...]],
        seconds: float,
    ) -> dict[str, np.ndarray]:
        told = self._ask(version, signature, inputs, [*outputs], seconds)
        return {
            name: self._array(name, told[name], shape)
            for name, shape in outputs.items()
        }

    def _array(self, name: str, told: Any, shape: tuple[int, ...]) -> np.ndarray:
        sizes = tuple(d.size for d in told.tensor_shape.dim)
        # Checked first: `make_ndarray` would make room for any shape it is told.
        if told.dtype == tf.float32.as_datatype_enum and sizes == shape:
            try:
                return tf.make_ndarray(told)
            except ValueError:
                pass  # Its content is shorter or longer than its shape says.
        raise ServingError(
            f"{self._where} must answer {name!r} as float32 of shape {shape}. "
            f"Received: {short(str(told))}"
        )

    def _ask(
        self,
        version: int,
        signature: str,
        inputs: dict[str, np.ndarray],
        outputs: list[str],
        seconds: float,
    ) -> Any:
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest(
            inputs={name: tf.make_tensor_proto(v) for name, v in inputs.items()},
            output_filter=outputs,
        )
        request.model_spec.name = self._model
        request.model_spec.version.value = version
        request.model_spec.signature_name = signature
        told = self._send(self._stub.Predict, request, seconds).outputs
        missing = [name for name in outputs if name not in told]
        if missing:
            raise ServingError(
                f"{self._where} must answer {missing}. Received: {short(sorted(told))}"
            )
        return told

    def _send(self, method: Any, request: Any, seconds: float) -> Any:
        try:
            return method(request, timeout=seconds, metadata=self._headers)
        except self._grpc.RpcError as error:
            code, details = error.code(), str(error.details())
            codes = self._grpc.StatusCode
            certificate = "CERTIFICATE" in details or "certificate" in details
            raise ServingError(
                f"{self._where} refused or broke off with {code.name}: "
                f"{short(details)}." + _ADVICE.get(code.name, ""),
                retriable=not certificate
                and code in (codes.UNAVAILABLE, codes.ABORTED, codes.DEADLINE_EXCEEDED),
                gone=code == codes.NOT_FOUND,
            ) from None


_ADVICE = {
    "NOT_FOUND": " Check the model's name and the version.",
    "PERMISSION_DENIED": " Pass credentials as `metadata`.",
    "UNAUTHENTICATED": " Pass credentials as `metadata`.",
}
