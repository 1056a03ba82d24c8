"""A controller behind TensorFlow Serving's REST API."""

import json
import re
import ssl
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
from google.protobuf import json_format
from tensorflow.core.protobuf import meta_graph_pb2

from keras_learned_lr.control.controller import ServingError
from keras_learned_lr.control.remote.client import (
    RemoteClient,
    Served,
    check_headers,
    short,
)
from keras_learned_lr.control.remote.signatures import read_signatures

PATH = r"(?P<model>.*/v1/models/[^/:]+)(/versions/(?P<v>\d+)|/labels/(?P<l>\w+))?/?"
# What a path may hold as it is: RFC 3986, section 3.3, and what is quoted already.
SAFE = "/%!$&'()*+,;=:@"
# Too many requests, or a proxy that does not reach the server just now.
RETRIABLE = {429, 502, 503, 504}


class RestController(RemoteClient):
    """A controller behind TensorFlow Serving's REST API.

    Pass it to `LearnedLearningRate` in place of a local controller. It reads what is
    served when it is made and again when a run begins.

    Redirects are not followed, and no proxy or credentials are taken from the
    environment. Needs the `serving` extra.

    Args:
        url: `http://host:8501/v1/models/learned_lr`, with `/versions/N` or
            `/labels/NAME` if one of them is asked for.
        version: A version to stay with; by default the latest that is served.
        label: A version label to ask for, as `stable` or `canary`.
        timeout: Seconds that one decision may take, all its tries together.
        connect_timeout: Seconds for reading what is served, waiting for the server
            included.
        headers: HTTP headers, as `{"Authorization": "Bearer ..."}`. Never logged.
        ca_file: PEM file of the authorities to trust in place of the system's.
        client_certificate: PEM files of a certificate and its key, for a server that
            asks for one.

    Raises:
        ValueError: If an argument is not of its form, or what is served is no
            controller that this package can show what it needs.
        ServingError: If the server cannot be reached.
        ImportError: If httpcore is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float = 1.0,
        connect_timeout: float = 10.0,
        headers: Mapping[str, str] | Sequence[tuple[str, str]] | None = None,
        ca_file: str | None = None,
        client_certificate: tuple[str, str] | None = None,
    ) -> None:
        try:
            from keras_learned_lr.control.remote.http import HttpClient
        except ImportError as error:
            raise ImportError(
                f"RestController needs {error.name}. Install it with "
                '`pip install "keras_learned_lr[serving]"`.'
            ) from error
        self._url, from_url = _read_url(url)
        if version is not None or label is not None:
            if any(value is not None for value in from_url):
                raise ValueError(
                    "Say the version or label in the URL or as an argument, not both. "
                    f"Received: {url!r}, version={version!r}, label={label!r}"
                )
            from_url = (version, label)
        context = None
        if self._url.startswith("https:"):
            context = ssl.create_default_context(cafile=ca_file)
            if client_certificate is not None:
                context.load_cert_chain(*client_certificate)
        elif ca_file is not None or client_certificate is not None:
            raise ValueError(
                "`ca_file` and `client_certificate` are for https. Received: "
                f"{self._url!r}"
            )
        self._http = HttpClient(check_headers("headers", headers), context)
        super().__init__(self._url, *from_url, timeout, connect_timeout)

    def _metadata(
        self, version: int | None, label: str | None, seconds: float
    ) -> Served:
        place = "" if label is None else f"/labels/{label}"
        place = place if version is None else f"/versions/{version}"
        told = self._request("GET", f"{place}/metadata", None, seconds)
        try:
            entries = told["metadata"]["signature_def"]["signature_def"]
            return Served(
                int(told["model_spec"]["version"]),
                read_signatures(
                    {
                        name: json_format.ParseDict(
                            entry,
                            meta_graph_pb2.SignatureDef(),
                            ignore_unknown_fields=True,
                            max_recursion_depth=20,
                        )
                        for name, entry in entries.items()
                    }
                ),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ServingError(
                f"{self._where} did not answer as TensorFlow Serving does when asked "
                f"for metadata. Received: {short(told)}"
            ) from error
        except json_format.ParseError as error:
            raise ServingError(
                f"{self._where} describes its signatures in no known form: "
                f"{short(str(error))}"
            ) from error

    def _read_json(self, version: int, seconds: float) -> str:
        asked = {"signature_name": "describe", "inputs": {"batch": [0]}}
        outputs = self._outputs(version, asked, seconds)
        if isinstance(outputs, dict):
            outputs = outputs.get("json")
        if isinstance(outputs, list) and len(outputs) == 1:
            (outputs,) = outputs
        if not isinstance(outputs, str):
            raise ServingError(
                f"{self._where} does not describe itself as one string. Received: "
                f"{short(outputs)}"
            )
        return outputs

    def _predict(
        self,
        version: int,
        signature: str,
        inputs: dict[str, np.ndarray],
        outputs: dict[str, tuple[int, ...]],
        seconds: float,
    ) -> dict[str, np.ndarray]:
        asked = {
            "signature_name": signature,
            "inputs": {name: value.tolist() for name, value in inputs.items()},
        }
        told = self._outputs(version, asked, seconds)
        # A server leaves out the name of an only output.
        if not isinstance(told, dict):
            told = {name: told for name in outputs} if len(outputs) == 1 else {}
        return {
            name: self._array(name, told.get(name), shape)
            for name, shape in outputs.items()
        }

    def _array(self, name: str, told: Any, shape: tuple[int, ...]) -> np.ndarray:
        try:
            # NumPy would also make numbers of strings and of true and false.
            array = np.asarray(told)
            if array.dtype.kind in "fiu" and array.shape == shape:
                return array.astype(np.float32)
        except (ValueError, TypeError, OverflowError):
            pass  # Ragged, or a number beyond float64.
        raise ServingError(
            f"{self._where} must answer {name!r} as numbers of shape {shape}. "
            f"Received: {short(told)}"
        )

    def _outputs(self, version: int, asked: Any, seconds: float) -> Any:
        told = self._request("POST", f"/versions/{version}:predict", asked, seconds)
        if "outputs" not in told:
            raise ServingError(
                f"{self._where} must answer with `outputs`. Received: {short(told)}"
            )
        return told["outputs"]

    def _request(self, method: str, place: str, asked: Any, seconds: float) -> Any:
        body = None if asked is None else json.dumps(asked).encode()
        status, kind, got = self._http.request(
            method, self._url + place, body, seconds, self._where
        )
        if 300 <= status < 400:
            raise ServingError(
                f"{self._where} redirects (HTTP {status}), which is not followed. Pass "
                "the URL of the server itself."
            )
        told = None
        try:
            told = json.loads(got)
        except (ValueError, RecursionError) as error:
            if status == 200:
                raise ServingError(
                    f"{self._where} must answer in JSON. Received {kind}: "
                    f"{short(got)} ({type(error).__name__})"
                ) from error
        if status != 200:
            said = told.get("error") if isinstance(told, dict) else None
            raise ServingError(
                f"{self._where} refused with HTTP {status}: {short(said or got)}."
                + _ADVICE.get(status, ""),
                retriable=status in RETRIABLE,
                # A label that was taken away is an invalid argument to the server.
                gone=status == 404,
            )
        if not isinstance(told, dict):
            raise ServingError(
                f"{self._where} must answer with a JSON object. Received: {short(told)}"
            )
        return told


_ADVICE = {
    401: " Pass credentials as `headers`.",
    403: " Pass credentials as `headers`.",
    404: " Check the URL, the model's name and the version.",
}


def _read_url(url: Any) -> tuple[str, tuple[int | None, str | None]]:
    """Returns the model's URL, and version and label where it names them."""
    expected = "Expected http://HOST:8501/v1/models/NAME (or https)."
    if not isinstance(url, str):
        raise ValueError(f"{expected} Received: {url!r}")
    try:
        parts = urlsplit(url)
        port = parts.port
        name = (parts.hostname or "").encode("idna").decode()
    except ValueError as error:
        # Not quoted: it may hold a password.
        raise ValueError(f"{expected} Received what is no URL: {error}") from None
    if parts.username is not None or parts.password is not None:
        raise ValueError(
            "`url` must not hold credentials (it is not shown here, it would be in "
            "every message). Pass `headers`."
        )
    match = re.fullmatch(PATH, parts.path, re.ASCII)
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or match is None
        or parts.query
        or parts.fragment
    ):
        raise ValueError(f"{expected} Received: {url!r}")
    host = f"[{name}]" if ":" in name else name
    netloc = host if port is None else f"{host}:{port}"
    version = None if match["v"] is None else int(match["v"])
    model = quote(match["model"], safe=SAFE)
    return f"{parts.scheme}://{netloc}{model}", (version, match["l"])
