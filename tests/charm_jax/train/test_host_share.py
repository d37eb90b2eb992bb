"""The short form of ``benchmarks/host_share.py``."""

import json
import runpy
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "benchmarks/host_share.py"


def test_every_part_of_the_loop_is_timed(tmp_path, capsys):
    out = tmp_path / "host.json"
    main = runpy.run_path(str(SCRIPT))["main"]
    main(["--work", str(tmp_path), "--out", str(out), "--step_ms", "2", "--short"])
    cases = json.loads(out.read_text())
    assert {name.rpartition(", ")[2] for name in cases} == {"loaded", "resident"}
    for case in cases.values():
        parts = case["parts_ms"]
        # Each part ran: two checkpoints, a line of the log, and a bar on the pseudo-terminal.
        assert all(parts[name] > 0 for name in set(parts) - {"woken late"})
        assert case["above_ms"] > 0
    assert "| progress bar |" in capsys.readouterr().out
