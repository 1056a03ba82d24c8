"""HTTP requests that end at a deadline, whatever the server does."""

import ssl
import threading
import time
import weakref
from collections.abc import Iterable
from concurrent import futures
from typing import Any, NamedTuple

import httpcore

from keras_learned_lr.control.controller import ServingError
from keras_learned_lr.control.remote.client import MAX_RESPONSE_BYTES, short

# Seconds that a connection is kept for the next decision: what is between may forget
# one that is idle.
KEPT_SECONDS = 5.0


class Response(NamedTuple):
    """What a server answered.

    Attributes:
        status: The HTTP status.
        kind: The content type, quoted and of bounded length.
        body: At most `MAX_RESPONSE_BYTES`.
    """

    status: int
    kind: str
    body: bytes


class HttpClient:
    """Connections to one server, by httpcore: what httpx stands on, and half its time.

    It follows no redirects, keeps no cookies and takes nothing from the environment.

    Args:
        headers: Sent with every request.
        context: For https; None for http.
    """

    def __init__(
        self, headers: list[tuple[str, str]], context: ssl.SSLContext | None
    ) -> None:
        # What is compressed may be far larger than it looks.
        self._headers = [
            ("Accept-Encoding", "identity"),
            ("Content-Type", "application/json"),
            *headers,
        ]
        self._pool = httpcore.ConnectionPool(
            ssl_context=context,
            max_connections=None,
            keepalive_expiry=KEPT_SECONDS,
            network_backend=_Backend(),
        )
        weakref.finalize(self, self._pool.close)

    def request(
        self, method: str, url: str, body: bytes | None, seconds: float, where: str
    ) -> Response:
        """Sends a request and reads the response.

        Args:
            method: The HTTP method.
            url: Where to, in ASCII.
            body: JSON, or None.
            seconds: How long it may take from the name's look-up to the last byte.
            where: The server, for messages.

        Raises:
            ServingError: If there is no answer, or one that is not read to its end.
        """
        deadline = time.monotonic() + seconds
        try:
            return self._exchange(method, url, body, deadline, where)
        except httpcore.TimeoutException as error:
            raise ServingError(
                f"{where} did not answer within the {seconds:.2g} seconds left.",
                retriable=True,
            ) from error
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            reason = short(str(error) or type(error).__name__)
            raise ServingError(
                f"{where} cannot be reached, or broke off its answer: {reason}.",
                # A certificate will not be better in a moment.
                retriable="CERTIFICATE" not in reason and "SSL" not in reason,
            ) from error

    def _exchange(
        self, method: str, url: str, body: bytes | None, deadline: float, where: str
    ) -> Response:
        exchange = self._pool.stream(
            method,
            url,
            headers=self._headers,
            content=body,
            extensions={"timeout": dict.fromkeys(_WAITS, deadline)},
        )
        with exchange as response:
            told = {name.lower(): value for name, value in response.headers}
            if told.get(b"content-encoding", b"identity") != b"identity":
                raise ServingError(
                    f"{where} answers compressed, which was not asked for."
                )
            got = bytearray()
            if int(told.get(b"content-length", 0)) <= MAX_RESPONSE_BYTES:
                for chunk in response.iter_stream():
                    got += chunk
                    if len(got) > MAX_RESPONSE_BYTES:
                        break
                else:
                    kind = short(told.get(b"content-type", b"no type"), 50)
                    return Response(response.status, kind, bytes(got))
            raise ServingError(
                f"{where} answers with more than {MAX_RESPONSE_BYTES} bytes, which no "
                "controller does."
            )


# httpcore hands each of these timeouts on as it was told. Here they are deadlines: a
# timeout bounds one read, and a server that sends a byte now and then never meets it.
_WAITS = ("connect", "read", "write")


class _Stream(httpcore.NetworkStream):
    """A connection each of whose waits ends at the request's deadline."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream
        self._unsent = b""

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._unsent:
            unsent, self._unsent = self._unsent, b""
            self._stream.write(unsent, _left(timeout))
        return self._stream.read(max_bytes, _left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        # Headers and body in one packet: a server is not woken up for half a request.
        self._unsent += buffer

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        left = _left(timeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _Backend(httpcore.NetworkBackend):
    def __init__(self) -> None:
        self._backend = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        left = _left(timeout)
        connected: futures.Future[httpcore.NetworkStream] = futures.Future()

        def connect() -> None:
            try:
                connected.set_result(
                    self._backend.connect_tcp(
                        host, port, left, local_address, socket_options
                    )
                )
            except Exception as error:
                connected.set_exception(error)

        # Looking up a name takes as long as the system lets it.
        threading.Thread(target=connect, daemon=True).start()
        try:
            return _Stream(connected.result(left))
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(f"No connection to {host!r}") from error


def _left(deadline: float | None) -> float:
    assert deadline is not None
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("The deadline has passed")
    return left
