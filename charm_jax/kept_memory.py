"""Memory that the C library keeps for the next step rather than give back to the system."""

import ctypes
import sys
from importlib.util import find_spec

# Names and numbers of glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_PAD = 64 << 20
_GPU = ("jax_cuda12_plugin", "jax_cuda13_plugin")


def keep() -> bool:
    """Makes glibc keep what is freed; returns whether it does.

    On a CPU, XLA takes all working memory of a step anew, gigabytes for a large network, and the
    system hands it over page by page, zeroed: a fifth of a step's time. One arena, no mappings of
    their own for large blocks and no trimming leave it in the process. To be called before threads
    exist. It can take up to twice the memory or more, where small blocks that live on break up what
    a step left: it is for machines with memory to spare. Where JAX can run on a GPU nothing is
    done: a step's memory is not there, and threads that decode images would queue for the one
    arena.
    """
    if not sys.platform.startswith("linux") or any(map(find_spec, _GPU)):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return False
    options = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, _PAD))
    return all([mallopt(*option) == 1 for option in options])
