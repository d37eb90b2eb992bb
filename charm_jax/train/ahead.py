"""Compile on a thread, while a phase trains, the programs that come after its first step."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import numpy as np
from jaxtyping import PyTree

from charm_jax.config.cli import say


class Ahead:
    """Compile programs one after the other on a thread.

    JAX keeps what was compiled, so that the call with the same shapes finds it.
    """

    def __init__(self, *, enabled: bool):
        """Without ``enabled`` nothing is compiled before it is called."""
        self._threads = ThreadPoolExecutor(1) if enabled else None
        self._pending: dict[str, Future] = {}

    def compile(self, name: str, lower: Callable[[], jax.stages.Lowered]) -> None:
        """Compile what ``lower`` returns after what was asked for before; once for each name."""
        if self._threads is not None and name not in self._pending:
            self._pending[name] = self._threads.submit(lambda: lower().compile())

    def wait(self, name: str) -> None:
        """Wait until a program is compiled, rather than compile it twice at the same time.

        An error is left to the call that needs the program.
        """
        if name in self._pending and (error := self._pending[name].exception()):
            say(f"warning: the {name} could not be compiled while training: {error!r}.")

    def close(self) -> None:
        """End the thread after the program that it is compiling."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)


def shapes(tree: PyTree) -> PyTree[jax.ShapeDtypeStruct]:
    """Return the shapes of the arrays of a tree."""
    return jax.eval_shape(lambda: tree)


def batch_shapes(
    batch: Mapping[str, np.ndarray], batch_size: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of a batch like another, with other numbers of images."""
    return {
        name: jax.ShapeDtypeStruct((batch_size, *rows.shape[1:]), rows.dtype)
        for name, rows in batch.items()
    }
