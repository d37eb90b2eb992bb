"""Read uploads into memory, within limits on bytes and time."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from charm_jax.serve.refusal import Refusal

FIELD = "image"
MOST_BYTES = 64 * 2**20  # of a file; a detector of 20 megapixels makes 40 MB
_AROUND = 2**16  # bytes of a form around its file
_TOGETHER = 512 * 2**20  # bytes of all uploads that are received, wait or run
_SECONDS = 30.0  # for an upload
_MOST_JSON = 2**18


class _InMemory(MultiPartParser):
    spool_max_size = MOST_BYTES + _AROUND  # a larger file would go to disk


class Receiver:
    """Receive uploads of several clients, which together take at most 512 MB."""

    def __init__(self, seconds: float = _SECONDS):
        self._seconds, self._held = seconds, 0

    async def image(self, request: Request) -> bytes:
        """Return the content of the file in the field ``image`` of a form. Its name is not read.

        Raises:
            Refusal: there is no such file, or it is too large or too slow.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "multipart/form-data":
            raise Refusal(
                415, f"The request is no form: send multipart/form-data with the file as {FIELD!r}."
            )
        body = await self._body(request, MOST_BYTES + _AROUND)

        async def whole() -> AsyncGenerator[bytes, None]:
            yield body

        try:
            parser = _InMemory(request.headers, whole(), max_files=1, max_fields=0)
            form = await parser.parse()
        except MultiPartException as error:
            text = error.message.rstrip(".")
            raise Refusal(400, f"The form is damaged ({text}): send one file.") from None
        file = form.get(FIELD)
        if not isinstance(file, UploadFile):
            raise Refusal(422, f"The form has no file: send one as {FIELD!r}.")
        return await file.read()

    @contextlib.contextmanager
    def holding(self, content: bytes) -> Iterator[None]:
        """Count a file that waits or runs among the uploads that take memory."""
        self._held += len(content)
        try:
            yield
        finally:
            self._held -= len(content)

    async def json(self, request: Request) -> Any:
        """Return a small JSON document.

        Raises:
            Refusal: it is none, or is too large or too slow.
        """
        try:
            return json.loads(await self._body(request, _MOST_JSON))
        except (ValueError, RecursionError):
            raise Refusal(400, "The request is no JSON: send an object.") from None

    async def text(self, request: Request) -> str:
        """Return a small text, with what is not UTF-8 replaced."""
        return (await self._body(request, _MOST_JSON)).decode(errors="replace")

    async def _body(self, request: Request, most: int) -> bytes:
        too_large = Refusal(413, f"The request is too large: send at most {most // 2**10:,} KiB.")
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > most:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._seconds):
                async for chunk in request.stream():
                    self._held += len(chunk)
                    body += chunk
                    if len(body) > most:
                        raise too_large
                    if self._held > _TOGETHER:
                        raise Refusal(429, "Too many uploads at a time: send it again in a second.")
        except TimeoutError:
            raise Refusal(
                408, f"The upload took longer than {self._seconds:.0f} s: use a faster connection."
            ) from None
        finally:
            self._held -= len(body)
        return bytes(body)
