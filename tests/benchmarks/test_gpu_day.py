import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_day.sh"


@pytest.mark.daily
def test_the_day_with_a_gpu_is_rehearsed_on_a_cpu(tmp_path):
    quick = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}  # of XLA: this is a rehearsal
    command = ["bash", SCRIPT, "--short", tmp_path, sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, env=quick)
    logs = {path.name: path.read_text()[-1000:] for path in tmp_path.glob("*.log")}
    assert done.returncode == 0, (done.stdout, done.stderr, logs)
    day = json.loads((tmp_path / "day.json").read_text())
    assert {part["code"] for part in day["parts"].values()} == {0}
    assert day["recipe"]["minutes"] > 0
    assert day["kernels"]["a_step"][0]["ms"] > 0
    assert {"ours", "resident"} <= set(day["speed_train"]["results"][0]["sides"])
    assert "| resume | passed |" in (tmp_path / "day.md").read_text()
