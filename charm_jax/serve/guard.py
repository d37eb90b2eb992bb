"""Guard an application: who may ask, what browsers may do, what is counted and logged."""

import hashlib
import hmac
import logging
import time
import traceback
from collections.abc import Collection
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from charm_jax.inference.predictor import BATCH
from charm_jax.serve.refusal import Refusal

COOKIE = "charm_jax"
LOCAL = ("127.0.0.1", "localhost", "::1")
OPEN = ("/healthz", "/login", "/static/page.css")  # without a token
_LOG = logging.getLogger(__name__)
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_BOUNDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)


class Counters:
    """Count what happens, for Prometheus."""

    def __init__(self):
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "charm_jax_requests", "Answers", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "charm_jax_request_seconds",
            "Seconds to an answer",
            ["path"],
            buckets=_BOUNDS,
            registry=self.registry,
        )
        self.batches = Histogram(
            "charm_jax_batch_images",
            "Images of a batch",
            buckets=(1, 2, 4, 8, BATCH),
            registry=self.registry,
        )
        self.queue = Gauge("charm_jax_queue", "Images in the queue", registry=self.registry)
        self.killed = Gauge(
            "charm_jax_decoders_killed",
            "Images that crashed a decoder or took too long",
            registry=self.registry,
        )


class Guard:
    """Wrap an application.

    It asks for the token, refuses other sites, sets headers, counts, and logs the faults of the
    program without their text, which may tell of an upload.
    """

    def __init__(
        self,
        app: ASGIApp,
        counters: Counters,
        paths: Collection[str],
        token: str | None,
    ):
        """Wrap ``app``.

        Args:
            paths: those that are counted by name; any other is a client's invention.
            token: None for a server that only this computer reaches; it then answers to this
                computer's names alone, so that no site can reach it by a name of its own.
        """
        self._app, self._counters, self._paths, self._token = app, counters, paths, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            refused = self._refused(scope)
            await (refused or self._app)(scope, receive, guarded)
        except Exception as error:
            frames = "".join(traceback.format_tb(error.__traceback__))
            _LOG.error("A request failed with %s:\n%s", type(error).__name__, frames)
            if not status:
                await answer(500, "The server failed: its log says where.")(scope, receive, guarded)
        path = scope["path"] if scope["path"] in self._paths else "other"
        self._counters.requests.labels(path, status or 499).inc()
        self._counters.seconds.labels(path).observe(time.perf_counter() - began)

    def _refused(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self._token is None and _hostname(host) not in LOCAL:
            return answer(400, f"This server answers to {LOCAL[0]} alone: use that address.")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return answer(403, "Another site sent this request: use the server's own page.")
        if self._token is None or scope["path"] in OPEN or self._knows_token(headers):
            return None
        if scope["path"] == "/":
            return Response(status_code=303, headers={"Location": "/login"})
        return answer(
            401,
            "The token is missing or wrong: send it as Authorization: Bearer TOKEN.",
            {"WWW-Authenticate": "Bearer"},
        )

    def _knows_token(self, headers: Headers) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and same(given.strip(), self._token):
            return True
        jar = cookie_parser(headers.get("cookie", ""))
        return same(jar.get(COOKIE, ""), cookie_of(self._token))


def answer(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return an error as JSON; the rest of the request, if there is one, is not read."""
    return JSONResponse({"error": message}, status, {"Connection": "close"} | (headers or {}))


def of_refusal(refusal: Refusal) -> JSONResponse:
    """Return the answer to a refused request."""
    return answer(
        refusal.status, str(refusal), {"Retry-After": "1"} if refusal.status == 429 else None
    )


def cookie_of(token: str) -> str:
    """Return the content of a browser's cookie, from which nobody learns the token."""
    return hashlib.sha256(f"cookie of {token}".encode()).hexdigest()


def same(given: str, wanted: str) -> bool:
    """Whether two texts are equal, in a time that does not tell how far they are."""
    return hmac.compare_digest(given.encode(), wanted.encode())


def _hostname(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
