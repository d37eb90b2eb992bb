import subprocess
import sys

import pytest

SCRIPT = """
import resource
import numpy as np
from charm_jax import kept_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(1 << 25)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(KEEP and kept_memory.keep(), faults(), faults())
"""


def faults(keep):
    script = SCRIPT.replace("KEEP", str(keep))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    kept, first, again = done.stdout.split()
    return kept == "True", int(first), int(again)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's memory")
def test_memory_that_was_freed_is_not_asked_of_the_system_again():
    kept, first, again = faults(keep=True)
    if not kept:
        pytest.skip("no glibc here")
    assert first > 100
    assert again < first / 100
    # Without it every large array costs its pages anew.
    _, first, again = faults(keep=False)
    assert again > first / 2
