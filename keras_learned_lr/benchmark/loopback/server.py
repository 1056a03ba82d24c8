"""The server: both APIs over the same models."""

import argparse
import ssl
import threading
from collections.abc import Callable
from concurrent import futures
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import text_format
from tensorflow_serving.apis import (
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
)
from tensorflow_serving.config import model_server_config_pb2

from keras_learned_lr.benchmark.loopback.grpc_api import ModelService, PredictionService
from keras_learned_lr.benchmark.loopback.models import Models
from keras_learned_lr.benchmark.loopback.rest_api import RestHandler
from keras_learned_lr.control.versions import MODEL_NAME

HOST = "127.0.0.1"
GRPC_THREADS = 32


class LoopbackServer:
    """Serves models on 127.0.0.1; a context manager.

    Args:
        base_path: The folder with the versions of one model, or None.
        model_name: That model's name.
        config: A ModelServerConfig in text form in place of the two.
        port: For gRPC; 0 takes a free one.
        rest_port: For REST, likewise.
        poll_seconds: How often the version folders are looked at.
        certificate: PEM files of a key and its certificate chain, to speak TLS.
        token: What the header `authorization` must be, as a proxy in front of the
            server would ask for.

    Attributes:
        models: The `Models` that are served.
        target: `127.0.0.1:PORT` of the gRPC API.
        url: `http://127.0.0.1:PORT` of the REST API.
    """

    def __init__(
        self,
        base_path: str | Path | None = None,
        model_name: str = MODEL_NAME,
        config: str | None = None,
        port: int = 0,
        rest_port: int = 0,
        poll_seconds: float = 1.0,
        certificate: tuple[str, str] | None = None,
        token: str | None = None,
    ) -> None:
        parsed = model_server_config_pb2.ModelServerConfig()
        if config is not None:
            text_format.Parse(config, parsed)
        if base_path is not None:
            parsed.model_config_list.config.add(
                name=model_name, base_path=str(base_path), model_platform="tensorflow"
            )
        self.models = Models(parsed, poll_seconds)
        self._rest = _rest_server(self.models, rest_port, certificate, token)
        self._thread = threading.Thread(target=self._rest.serve_forever, args=[0.05])
        self._thread.start()
        self._grpc = grpc.server(
            futures.ThreadPoolExecutor(GRPC_THREADS),
            interceptors=[] if token is None else [_TokenInterceptor(token)],
            options=[("grpc.so_reuseport", 0)],
        )
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            PredictionService(self.models), self._grpc
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(
            ModelService(self.models), self._grpc
        )
        place = f"{HOST}:{port}"
        if certificate is None:
            bound = self._grpc.add_insecure_port(place)
        else:
            key, chain = (Path(path).read_bytes() for path in certificate)
            credentials = grpc.ssl_server_credentials([(key, chain)])
            bound = self._grpc.add_secure_port(place, credentials)
        self._grpc.start()
        self.target = f"{HOST}:{bound}"
        scheme = "http" if certificate is None else "https"
        self.url = f"{scheme}://{HOST}:{self._rest.server_port}"

    def __enter__(self) -> "LoopbackServer":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Stops serving; open connections are cut."""
        self._grpc.stop(None).wait()
        self._rest.shutdown()
        self._rest.server_close()
        self._thread.join()
        self.models.close()


class _RestServer(ThreadingHTTPServer):
    daemon_threads = True
    # As many as may come in at once when a benchmark begins.
    request_queue_size = 128

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._open: set[Any] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        super().server_close()
        for request in list(self._open):
            self.shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


def _rest_server(
    models: Models,
    port: int,
    certificate: tuple[str, str] | None,
    token: str | None,
) -> _RestServer:
    handler = type("Handler", (RestHandler,), {"models": models, "token": token})
    server = _RestServer((HOST, port), handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        key, chain = certificate
        context.load_cert_chain(chain, key)
        # The handshake is left to the thread of the connection.
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    return server


class _TokenInterceptor(grpc.ServerInterceptor):
    def __init__(self, token: str) -> None:
        self._token = token

    def intercept_service(self, continuation: Callable, details: Any) -> Any:
        if ("authorization", self._token) in details.invocation_metadata:
            return continuation(details)

        def refuse(request: Any, context: Any) -> None:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no")

        return grpc.unary_unary_rpc_method_handler(refuse)


def main() -> None:
    """Serves until killed; the flags are ModelServer's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8500)
    parser.add_argument("--rest_api_port", type=int, default=8501)
    parser.add_argument("--model_name", default=MODEL_NAME)
    parser.add_argument("--model_base_path")
    parser.add_argument("--model_config_file", type=Path)
    parser.add_argument("--file_system_poll_wait_seconds", type=float, default=1.0)
    flags = parser.parse_args()
    file = flags.model_config_file
    server = LoopbackServer(
        flags.model_base_path,
        flags.model_name,
        None if file is None else file.read_text(encoding="utf-8"),
        flags.port,
        flags.rest_api_port,
        flags.file_system_poll_wait_seconds,
    )
    print(f"{server.target} {server.url}", flush=True)
    threading.Event().wait()
