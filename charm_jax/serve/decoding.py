"""Decode uploads in processes of their own, which may crash, hang or run out of memory."""

import asyncio
import contextlib
import dataclasses
import io
import multiprocessing
import os
import signal
from multiprocessing.connection import Connection

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image

from charm_jax.serve.refusal import Refusal
from data_pipelines import stopping
from data_pipelines.errors import InputError
from data_pipelines.images.decode import Check, Decoded, examine_with

_SECONDS = 20.0  # for an image; one of 80 million pixels takes 3
_MEMORY = 4 * 2**30  # bytes of a process; 80 million pixels of 16 bits take 1.5 GB
_LONGEST = 1024  # pixels of the longer side of what is shown


@dataclasses.dataclass(frozen=True)
class Upload:
    """Hold a decoded upload.

    Attributes:
        square: grey levels for the network.
        check: what was found out about the file, without a fault.
        view: PNG that shows it, see ``packed``; None where it was not asked for.
    """

    square: UInt8[np.ndarray, "side side 1"]
    check: Check
    view: bytes | None


class Decoder:
    """Decode uploads with a limit on time and memory; a process that breaks one is replaced."""

    def __init__(
        self, size: int, value_range: str, *, processes: int = 2, seconds: float = _SECONDS
    ):
        """Start the processes.

        Args:
            size: side of the squares in pixels.
            value_range: see ``decode.decode``.
        """
        self.killed = 0
        self._seconds = seconds
        self._every = [_Process(size, value_range) for _ in range(processes)]
        self._idle: asyncio.Queue[_Process] = asyncio.Queue()
        for process in self._every:
            self._idle.put_nowait(process)

    async def decode(self, content: bytes, *, with_view: bool) -> Upload:
        """Decode the content of a PNG, JPEG, TIFF or DICOM file.

        Raises:
            Refusal: it is no such file, is damaged, has too many pixels, or takes too long.
        """
        process = await self._idle.get()
        try:
            found = await asyncio.to_thread(process.call, (content, with_view), self._seconds)
        finally:
            self._idle.put_nowait(process)
        if found is None:
            self.killed += 1
            raise Refusal(
                422,
                f"The image crashed its decoder or took longer than {self._seconds:.0f} s: save it "
                "again, as a PNG.",
            )
        read, check = found
        if check.fault:
            status, remedy = 422, "save it again, as a PNG"
            if check.too_large:
                status, remedy = 413, "make it smaller"
            raise Refusal(status, f"The image cannot be read ({check.fault}): {remedy}.")
        return Upload(read[0], check, read[1])

    def close(self) -> None:
        """End the processes."""
        for process in self._every:
            process.kill()


class _Process:
    def __init__(self, size: int, value_range: str):
        self._arguments = size, value_range
        self._start()

    def _start(self) -> None:
        # A fork would copy JAX's threads half-way.
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_serve, args=(theirs, *self._arguments), name="decoder", daemon=True
        )
        with stopping.for_children(signal.SIGINT):  # the server ends it
            process.start()
        theirs.close()
        self._pipe, self._process = ours, process  # if none starts, the next job tries again

    def call(
        self, job: tuple[bytes, bool], seconds: float
    ) -> tuple[tuple[np.ndarray, bytes | None] | None, Check] | None:
        """Return the answer to a job; None if it ended the process twice, or took too long."""
        for _ in range(2):  # the process may have been killed before, for its memory
            with contextlib.suppress(OSError, EOFError):
                self._pipe.send(job)
                if self._pipe.poll(seconds):
                    return self._pipe.recv()
                self._restart()
                return None
            self._restart()
        return None

    def _restart(self) -> None:
        self.kill()
        self._start()

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _serve(pipe: Connection, size: int, value_range: str) -> None:
    """Answer jobs until the other end of the pipe is closed."""
    stopping.end_with_parent()
    _limit_memory()
    with open(os.devnull, "w") as nowhere:  # C libraries tell of what they read
        os.dup2(nowhere.fileno(), 2)

    def read(decoded: Decoded) -> tuple[np.ndarray, bytes | None]:
        return decoded.square(size), packed(decoded.view(_LONGEST)) if with_view else None

    with contextlib.suppress(EOFError):
        while True:
            content, with_view = pipe.recv()
            try:
                found = examine_with(content, value_range, read)
            except InputError:  # the packages for DICOM are not installed
                found = None, Check("this server reads no DICOM")
            pipe.send(found)


def _limit_memory() -> None:
    with contextlib.suppress(ImportError):  # Windows
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_AS)
        if most == resource.RLIM_INFINITY or most > _MEMORY:
            resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, most))


def packed(grey: UInt16[np.ndarray, "height width"]) -> bytes:
    """Return a PNG with the upper 8 bits as red and the lower as green: browsers read 8 bits."""
    channels = np.stack([grey >> 8, grey & 255, np.zeros_like(grey)], axis=-1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(channels).save(file, format="PNG", compress_level=1)
    return file.getvalue()
