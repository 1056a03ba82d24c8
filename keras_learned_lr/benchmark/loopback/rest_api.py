"""ModelServer's REST API: paths, JSON and errors."""

import base64
import json
import re
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    predict_pb2,
)

from keras_learned_lr.benchmark.loopback import grpc_api
from keras_learned_lr.benchmark.loopback.models import (
    DEFAULT_SIGNATURE,
    Models,
    StatusError,
)

MODEL = r"/v1/models(?:/([^/:]+))?(?:/versions/(\d+)|/labels/([^/:]+))?"
PREDICT = re.compile(MODEL + r":(classify|regress|predict)", re.IGNORECASE)
STATUS = re.compile(MODEL + r"(?:/(metadata))?", re.IGNORECASE)
HTTP_STATUS = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
JSON_TYPES = {
    type(None): "Null",
    bool: "Bool",
    int: "Number",
    float: "Number",
    str: "String",
    list: "Array",
    dict: "Object",
}


class RestHandler(BaseHTTPRequestHandler):
    """One connection; a subclass brings `models` and, if wanted, a `token`."""

    models: Models
    token: str | None = None
    protocol_version = "HTTP/1.1"
    # Else every answer waits for the acknowledgement of its headers.
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_GET(self) -> None:  # noqa: N802
        """Model status and metadata."""
        self._respond(self._get)

    def do_POST(self) -> None:  # noqa: N802
        """Predictions."""
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        self._respond(lambda path: self._post(path, body))

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""

    def _respond(self, answer: Any) -> None:
        path = urlsplit(self.path).path
        if not path.lower().startswith("/v1/"):
            self.send_error(404)
            return
        code = 200
        try:
            if self.token not in (None, self.headers.get("Authorization")):
                raise StatusError("UNAUTHENTICATED", "no")
            text = answer(path)
        except StatusError as error:
            code = HTTP_STATUS.get(error.code, 500)
            text = json.dumps({"error": str(error)})
        body = text.encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _get(self, path: str) -> str:
        match = STATUS.fullmatch(path)
        if match is None:
            raise StatusError("INVALID_ARGUMENT", f"Malformed request: GET {path}")
        if not match[1]:
            raise StatusError("INVALID_ARGUMENT", "Missing model name in request.")
        spec = _spec(match)
        as_json = {"always_print_fields_with_no_presence": True}
        if match[4] is None:
            asked = get_model_status_pb2.GetModelStatusRequest(model_spec=spec)
            told = grpc_api.status(self.models, asked)
            return json_format.MessageToJson(
                told, preserving_proto_field_name=True, **as_json
            )
        request = get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=spec, metadata_field=["signature_def"]
        )
        response = grpc_api.metadata(self.models, request)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        spec_told, signatures_told = (
            json_format.MessageToDict(m, preserving_proto_field_name=True, **as_json)
            for m in (response.model_spec, signatures)
        )
        return json.dumps(
            {"model_spec": spec_told, "metadata": {"signature_def": signatures_told}}
        )

    def _post(self, path: str, body: bytes) -> str:
        match = PREDICT.fullmatch(path)
        if match is None or not match[1] or match[4].lower() != "predict":
            raise StatusError("INVALID_ARGUMENT", f"Malformed request: POST {path}")
        request = predict_pb2.PredictRequest(model_spec=_spec(match))
        doc = _parse(body)
        name = doc.get("signature_name", "")
        if not isinstance(name, str):
            raise StatusError(
                "INVALID_ARGUMENT",
                f"JSON Value: {_debug(doc)} not formatted correctly. 'signature_name' "
                "key must be a string value.",
            )
        request.model_spec.signature_name = name
        _, servable = self.models.find(request.model_spec)
        key = name or DEFAULT_SIGNATURE
        if key not in servable.signatures:
            raise StatusError(
                "INVALID_ARGUMENT",
                f'Serving signature name: "{key}" not found in signature def',
            )
        infos = servable.signatures[key].inputs
        if not infos:
            raise StatusError(
                "INVALID_ARGUMENT",
                f"Failed to get input map for signature: {name or 'DEFAULT'}",
            )
        row = "instances" in doc
        for name, value in _inputs(doc, infos).items():
            dtype = tf.as_dtype(infos[name].dtype)
            tensor = _tensor(value, dtype)
            request.inputs[name].CopyFrom(tf.make_tensor_proto(tensor, dtype))
        outputs = {
            name: tf.make_ndarray(value)
            for name, value in grpc_api.predict(self.models, request).outputs.items()
        }
        return json.dumps(_rows(outputs) if row else _columns(outputs))


def _spec(match: re.Match) -> model_pb2.ModelSpec:
    spec = model_pb2.ModelSpec(name=unquote(match[1]))
    if match[2]:
        spec.version.value = int(match[2])
    if match[3]:
        spec.version_label = unquote(match[3])
    return spec


def _parse(body: bytes) -> dict[str, Any]:
    if not body:
        raise StatusError("INVALID_ARGUMENT", "JSON Parse error: The document is empty")
    try:
        doc = json.loads(body)
    except (ValueError, RecursionError) as error:
        at = getattr(error, "pos", 0)
        raise StatusError(
            "INVALID_ARGUMENT", f"JSON Parse error: Invalid value. at offset: {at}"
        ) from error
    if not isinstance(doc, dict):
        raise StatusError(
            "INVALID_ARGUMENT", f"JSON Value: {_debug(doc)} Is not object"
        )
    return doc


def _inputs(doc: dict[str, Any], infos: Any) -> dict[str, Any]:
    """Returns the value of every input, from the row or the column format."""
    if "instances" in doc and "inputs" in doc:
        raise StatusError(
            "INVALID_ARGUMENT",
            f"JSON Value: {_debug(doc)} Not formatted correctly expecting only one of "
            "'inputs' or 'instances' keys to exist ",
        )
    if "inputs" in doc:
        value = doc["inputs"]
        if not isinstance(value, dict):
            if len(infos) > 1:
                raise StatusError(
                    "INVALID_ARGUMENT",
                    "inputs is a plain value/list, but expecting an object as multiple "
                    "input tensors required as per tensorinfo_map",
                )
            return {name: value for name in infos}
        for name in infos:
            if name not in value:
                raise StatusError(
                    "INVALID_ARGUMENT",
                    f"Missing named input: {name} in 'inputs' object.",
                )
        return {name: value[name] for name in infos}
    if "instances" not in doc:
        raise StatusError("INVALID_ARGUMENT", "Missing 'inputs' or 'instances' key")
    rows = doc["instances"]
    if not isinstance(rows, list) or not rows:
        reason = (
            "No values in 'instances' array"
            if rows == []
            else "Expecting 'instances' to be an list/array"
        )
        raise StatusError("INVALID_ARGUMENT", f"JSON Value: {_debug(doc)} {reason}")
    if not isinstance(rows[0], dict):
        if len(infos) > 1:
            raise StatusError(
                "INVALID_ARGUMENT",
                "instances is a plain list, but expecting list of objects as multiple "
                "input tensors required as per tensorinfo_map",
            )
        return {name: rows for name in infos}
    for index, row in enumerate(rows):
        if not isinstance(row, dict) or set(row) != set(infos):
            raise StatusError(
                "INVALID_ARGUMENT",
                f"Failed to process element: {index} of 'instances' list. JSON object: "
                f"{_debug(row)} keys must be equal to: {','.join(sorted(infos))}",
            )
    return {name: [row[name] for row in rows] for name in infos}


def _tensor(value: Any, dtype: tf.DType) -> np.ndarray:
    """Returns a nested list as a tensor; its shape is that of its first elements."""
    shape, first = [], value
    while isinstance(first, list):
        shape.append(len(first))
        first = first[0] if first else None
    leaves: list[Any] = []
    _flatten(value, 0, shape, dtype, leaves)
    return np.reshape(np.array(leaves, dtype.as_numpy_dtype), shape)


def _flatten(
    value: Any, level: int, shape: list[int], dtype: tf.DType, leaves: list[Any]
) -> None:
    if not isinstance(value, list):
        if level != len(shape):
            raise StatusError(
                "INVALID_ARGUMENT",
                f"JSON Value: {_debug(value)} found at incorrect level: {level + 1} in "
                f"the JSON DOM. Expected at level: {len(shape)}",
            )
        wanted: tuple[type, ...] = (str,)
        if dtype.is_floating:
            wanted = (int, float)
        elif dtype.is_integer:
            wanted = (int,)
        if type(value) not in wanted:
            raise StatusError(
                "INVALID_ARGUMENT",
                f"JSON Value: {_debug(value)} Type: {JSON_TYPES[type(value)]} is not "
                f"of expected type: {dtype.name.replace('float32', 'float')}",
            )
        leaves.append(value)
        return
    if level >= len(shape):
        raise StatusError(
            "INVALID_ARGUMENT",
            f"Encountered list at unexpected level: {level} expected < {len(shape)}",
        )
    if len(value) != shape[level]:
        raise StatusError(
            "INVALID_ARGUMENT",
            f"Encountered list at unexpected size: {len(value)} at level: {level} "
            f"expected size: {shape[level]}",
        )
    for item in value:
        _flatten(item, level + 1, shape, dtype, leaves)


def _columns(outputs: dict[str, np.ndarray]) -> dict[str, Any]:
    told = {name: _json(name, value) for name, value in sorted(outputs.items())}
    return {"outputs": told if len(told) > 1 else next(iter(told.values()))}


def _rows(outputs: dict[str, np.ndarray]) -> dict[str, Any]:
    sizes = {len(value) if value.ndim else -1 for value in outputs.values()}
    if len(sizes) > 1 or -1 in sizes:
        raise StatusError(
            "INVALID_ARGUMENT", f"Tensor has inconsistent batch size: {sorted(sizes)}"
        )
    told = {name: _json(name, value) for name, value in sorted(outputs.items())}
    if len(told) == 1:
        return {"predictions": next(iter(told.values()))}
    rows = zip(*told.values(), strict=True)
    return {"predictions": [dict(zip(told, row, strict=True)) for row in rows]}


def _json(name: str, value: np.ndarray) -> Any:
    if value.dtype == object:
        as_bytes = name.endswith("_bytes")

        def text(item: bytes) -> Any:
            coded = base64.b64encode(item).decode()
            return {"b64": coded} if as_bytes else item.decode()

        return np.vectorize(text, otypes=[object])(value).tolist()
    if value.dtype == np.float32:
        # The shortest digits that give the same float32 again.
        value = value.astype(str).astype(float)
    return value.tolist()


def _debug(value: Any) -> str:
    return json.dumps(value)[:256]
