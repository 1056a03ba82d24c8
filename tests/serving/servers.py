"""Controllers that are served, and servers that misbehave."""

import contextlib
import socket
import threading
import time
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import numpy as np
from helpers import MLPController, RecurrentController, every
from tensorflow_serving.apis import prediction_service_pb2_grpc

from keras_learned_lr import GrpcController, RestController
from keras_learned_lr.control.export import export_version

CONTROLLERS = {"mlp": MLPController, "recurrent": RecurrentController}
CLIENTS = ("rest", "grpc")


def observations(controller, count=5, seed=0):
    rng = np.random.default_rng(seed)
    features = len(controller.observation_spec.names)
    return rng.normal(size=(count, features)).astype("float32")


def export(folder, kind="mlp", **options):
    """Writes a version; returns the controller that is in it."""
    options.setdefault("form", every(3))
    controller = CONTROLLERS[kind](**options)
    export_version(controller, folder, observations(controller))
    return controller


def connect(kind, server, model="learned_lr", **options):
    """A client of a LoopbackServer."""
    if kind == "grpc":
        return GrpcController(server.target, model=model, **options)
    return RestController(f"{server.url}/v1/models/{model}", **options)


class Impostor:
    """An HTTP server that answers what a test wants in place of the real answer.

    `answers` maps a part of the path (or of the body, for `describe` and the like) to a
    function of the handler; what none is for goes to `behind`, a LoopbackServer.
    """

    def __init__(self, behind=None):
        self.answers, self.requests = {}, []
        impostor = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def answer(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                impostor.requests.append((self.path, dict(self.headers), body))
                asked = f"{self.command} {self.path} {body.decode()}"
                for part, answer in impostor.answers.items():
                    if part in asked:
                        answer(self)
                        return
                self.pass_on(body)

            do_GET = do_POST = answer  # noqa: N815

            def pass_on(self, body):
                import httpx

                url = behind.url + self.path
                with httpx.Client(trust_env=False) as client:
                    got = client.request(self.command, url, content=body or None)
                self.reply(got.content, got.status_code)

            def reply(self, body, status=200, **headers):
                body = body.encode() if isinstance(body, str) else body
                self.send_response(status)
                headers = {
                    "Content-Type": "application/json",
                    "Content-Length": str(len(body)),
                } | {key.replace("_", "-"): value for key, value in headers.items()}
                for key, value in headers.items():
                    self.send_header(key, value)
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(body)

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            sent = 0

            def handle_error(self, *_):
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.02])
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def drip(handler, seconds=20):
    """A slow loris: a byte now and then, first of the headers, for ever."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    until = time.monotonic() + seconds
    with contextlib.suppress(OSError):
        while time.monotonic() < until:
            handler.wfile.write(b"X")
            handler.wfile.flush()
            time.sleep(0.05)
    handler.close_connection = True


def drip_body(handler, seconds=20):
    """The same with the body."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    until = time.monotonic() + seconds
    with contextlib.suppress(OSError):
        while time.monotonic() < until:
            handler.wfile.write(b"{")
            handler.wfile.flush()
            time.sleep(0.05)
    handler.close_connection = True


class GrpcImpostor(prediction_service_pb2_grpc.PredictionServiceServicer):
    """A gRPC server that may change each answer of the one behind it.

    `change` is called with the signature's name and the PredictResponse.
    """

    def __init__(self, behind):
        self.change = lambda signature, response, context: response
        self._channel = grpc.insecure_channel(behind.target)
        self._behind = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            self, self._server
        )
        port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        self.target = f"127.0.0.1:{port}"

    def GetModelMetadata(self, request, context):  # noqa: N802
        response = self._behind.GetModelMetadata(request)
        return self.change("metadata", response, context)

    def Predict(self, request, context):  # noqa: N802
        response = self._behind.Predict(request)
        return self.change(request.model_spec.signature_name, response, context)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.stop(None).wait()
        self._channel.close()


def closed_port():
    """A port at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]
