"""The short form of ``benchmarks/fuzz_inputs.py``."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "fuzz_inputs.py"


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "dicom"])
def test_damaged_files_are_read_or_refused(kind):
    command = [sys.executable, "-W", "error", SCRIPT, "--cases", "100", "--kinds", kind]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert f"{kind}: 100 cases: " in done.stdout
    assert "refused" in done.stdout
    assert "read" in done.stdout
