"""The short form of ``benchmarks/fuzz_inputs.py``."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "fuzz_inputs.py"
CASES = 60


def test_damaged_files_are_read_or_refused():
    command = [sys.executable, "-W", "error", SCRIPT, "--cases", str(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert {"png", "jpeg", "tiff", "dicom"} <= {line.split(":")[0] for line in lines}
    for line in lines:
        assert re.search(rf": {CASES} cases: .*[1-9]\d* read, [1-9]\d* refused; at most", line)
