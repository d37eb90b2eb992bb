"""Run the application in uvicorn, with limits on slow and idle clients."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from charm_jax.serve.app import create_app
from charm_jax.serve.decoding import Decoder
from charm_jax.serve.service import Service
from data_pipelines.errors import InputError

_CONNECTIONS = 512  # further ones get 503
_IDLE_SECONDS = 15.0  # until the headers of a connection's next request are complete


class _Impatient(H11Protocol):
    """Close connections whose next request does not come in time; uvicorn waits forever."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._expect_request()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._expect_request()

    def _expect_request(self) -> None:
        self.loop.call_later(_IDLE_SECONDS, self._give_up, self.cycle)

    def _give_up(self, before: RequestResponseCycle | None, left: int | None = None) -> None:
        if self.cycle is not before:
            return
        unsent = self.transport.get_write_buffer_size()
        if unsent and (left is None or unsent < left):  # the client is still receiving
            self.loop.call_later(_IDLE_SECONDS, self._give_up, before, unsent)
        else:
            self.transport.abort()


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Open the socket of a server.

    Raises:
        InputError: the address is unknown or in use.
    """
    with contextlib.ExitStack() as stack:
        try:
            [family, *_, where], *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            # asyncio turns off Nagle's algorithm, which costs 40 ms an answer, if TCP is named.
            opened = stack.enter_context(
                socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            )
            if os.name == "posix":  # elsewhere others could listen at the same port
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(where)
            opened.listen(_CONNECTIONS)
        except OSError as error:
            raise InputError(
                f"The server cannot listen at {host}, port {port} ({error.strerror}): choose "
                "another --host or --port."
            ) from None
        yield opened


def address(opened: socket.socket) -> str:
    """Return the URL of a socket, without a path."""
    host, port, *_ = opened.getsockname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(service: Service, opened: socket.socket, *, queue: int, token: str | None) -> None:
    """Serve until a signal comes."""
    predictor = service.predictor
    with contextlib.closing(Decoder(predictor.size, predictor.value_range)) as decoder:
        server_of(create_app(service, decoder, queue=queue, token=token)).run([opened])


def server_of(app: Starlette) -> uvicorn.Server:
    """Wrap an application."""
    config = uvicorn.Config(
        app,
        http=_Impatient,
        loop="asyncio",
        ws="none",
        lifespan="on",
        access_log=False,  # names of files are in no log
        log_level="error",
        server_header=False,
        timeout_graceful_shutdown=3,
        limit_concurrency=_CONNECTIONS,
    )
    return uvicorn.Server(config)
