"""The routes of the server."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

import anyio.to_thread
import jinja2
from prometheus_client import generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from charm_jax.inference.predictor import BATCH
from charm_jax.inference.records import Record
from charm_jax.report.provenance import DISCLAIMER
from charm_jax.serve import guard, openapi
from charm_jax.serve.batching import Batches, Queue
from charm_jax.serve.decoding import Decoder, Upload
from charm_jax.serve.guard import Counters, Guard
from charm_jax.serve.refusal import Refusal
from charm_jax.serve.service import Service
from charm_jax.serve.uploads import MOST_BYTES, Receiver

_METRICS = "text/plain; version=0.0.4; charset=utf-8"


def create_app(
    service: Service,
    decoder: Decoder,
    *,
    queue: int = 64,
    token: str | None = None,
    receiver: Receiver | None = None,
) -> Starlette:
    """Create the application.

    Args:
        queue: number of images that are decoded, wait or run at a time; further ones get 429.
        token: what clients have to send; None for a server that only this computer reaches.
        receiver: reads uploads; one with the usual limits by default.
    """
    counters = Counters()
    site = _Site(service, decoder, receiver or Receiver(), Queue(queue), token, counters)
    routes = [
        Route("/", site.page),
        Route("/login", site.login, methods=["GET", "POST"]),
        Route("/api/predict", site.predict, methods=["POST"]),
        Route("/api/explain", site.explain, methods=["POST"]),
        Route("/api/forget", site.forget, methods=["POST"]),
        Route("/api/model", site.model),
        Route("/openapi.json", site.document),
        Route("/healthz", site.health),
        Route("/metrics", site.metrics),
        Mount("/static", StaticFiles(packages=[(__package__, "static")])),
    ]
    return Starlette(
        routes=routes,
        lifespan=site.running,
        middleware=[Middleware(Guard, counters, {route.path for route in routes}, token)],
        exception_handlers={
            Refusal: _answering(guard.of_refusal),
            HTTPException: _answering(_of_status),
            ClientDisconnect: _answering(lambda error: Response(status_code=400)),
        },
    )


class _Site:
    """Answer the requests of each route."""

    def __init__(
        self,
        service: Service,
        decoder: Decoder,
        receiver: Receiver,
        queue: Queue,
        token: str | None,
        counters: Counters,
    ):
        self._service, self._decoder, self._receiver = service, decoder, receiver
        self._queue, self._token, self._counters = queue, token, counters
        self._batches = Batches(self._work, BATCH)
        self._about = service.about()
        self._document = openapi.document(service.model.pathologies)
        self._templates = jinja2.Environment(
            loader=jinja2.PackageLoader(__package__),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
        )

    @contextlib.asynccontextmanager
    async def running(self, _: Starlette) -> AsyncIterator[None]:
        """Run batches while the application does."""
        async with self._batches.running():
            yield

    def _work(self, uploads: list[Upload]) -> list[Record]:
        self._counters.batches.observe(len(uploads))
        return self._service.predict(uploads)

    async def predict(self, request: Request) -> Response:
        return await self._predicted(request, explain=False)

    async def explain(self, request: Request) -> Response:
        return await self._predicted(request, explain=True)

    async def _predicted(self, request: Request, *, explain: bool) -> Response:
        self._queue.check()  # before what may be large is received
        content = await self._receiver.image(request)
        with self._receiver.holding(content), self._queue.place():
            upload = await self._decoder.decode(content, with_view=explain)
            return JSONResponse(await self._batches.submit(upload))

    async def forget(self, request: Request) -> Response:
        asked = await self._receiver.json(request)
        with self._queue.place():
            return JSONResponse(await anyio.to_thread.run_sync(self._service.forget, asked))

    async def model(self, request: Request) -> Response:
        return JSONResponse(self._about)

    async def document(self, request: Request) -> Response:
        return JSONResponse(self._document)

    async def health(self, request: Request) -> Response:
        runs = self._batches.are_running
        return JSONResponse({"status": "ok" if runs else "stopped"}, 200 if runs else 503)

    async def metrics(self, request: Request) -> Response:
        self._counters.queue.set(self._queue.length)
        self._counters.killed.set(self._decoder.killed)
        return Response(
            generate_latest(self._counters.registry), headers={"Content-Type": _METRICS}
        )

    async def page(self, request: Request) -> Response:
        return self._rendered("page.html", about=self._about, most_bytes=MOST_BYTES)

    async def login(self, request: Request) -> Response:
        if self._token is None:
            return RedirectResponse("/", 303)
        if request.method == "GET":
            return self._rendered("login.html", wrong=False)
        given = parse_qs(await self._receiver.text(request)).get("token", [""])[0]
        if not guard.same(given, self._token):
            return self._rendered("login.html", 401, wrong=True)
        entered = RedirectResponse("/", 303)
        entered.set_cookie(
            guard.COOKIE,
            guard.cookie_of(self._token),
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return entered

    def _rendered(self, name: str, status: int = 200, **values: Any) -> Response:
        page = self._templates.get_template(name).render(disclaimer=DISCLAIMER, **values)
        return HTMLResponse(page, status)


def _answering(
    made: Callable[[Any], Response],
) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def answer(request: Request, error: Exception) -> Response:
        return made(error)

    return answer


def _of_status(error: HTTPException) -> Response:
    remedies = {404: "/openapi.json lists the paths", 405: "/openapi.json lists the methods"}
    remedy = remedies.get(error.status_code, "read /openapi.json")
    return guard.answer(error.status_code, f"{error.detail}: {remedy}.", dict(error.headers or {}))
