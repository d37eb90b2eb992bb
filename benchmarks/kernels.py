"""Which operations a step spends its time on, by the device's own clock.

    python benchmarks/kernels.py --out FILE.json [--memory none] [--batch 64]

Traces ten train steps of the published recipe with JAX's profiler, and sums the time of each kind
of operation that ran: names without the numbers that XLA appends.
"""

import argparse
import json
import re
import tempfile
from collections import Counter
from pathlib import Path

import contestants
import jax

STEPS = 10


def operations(trace: Path) -> tuple[Counter, Counter]:
    """Sum the nanoseconds and the number of runs of each kind of operation in a trace."""
    nanoseconds, runs = Counter(), Counter()
    data = jax.profiler.ProfileData.from_file(str(trace))
    gpu = any(plane.name.startswith("/device:GPU") for plane in data.planes)
    for plane in data.planes:
        if not plane.name.startswith("/device:GPU" if gpu else "/host:CPU"):
            continue
        for line in plane.lines:
            if not line.name.startswith("Stream" if gpu else "tf_XLA"):
                continue
            for event in line.events:
                if event.name.startswith("ThunkExecutor"):  # the whole program
                    continue
                kind = re.sub(r"[._]?\d+", "", event.name)[:60]
                nanoseconds[kind] += event.duration_ns
                runs[kind] += 1
    return nanoseconds, runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--net", default="efficientnet_v2_s")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--memory", default="published")
    args = parser.parse_args()
    case = {key: getattr(args, key) for key in ("net", "side", "batch", "memory")}
    ours = contestants.make("ours", case | {"kind": "train"})
    ours.step()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(STEPS):
                ours.step()
        nanoseconds, runs = operations(next(Path(folder).rglob("*.xplane.pb")))
    rows = [
        {"operation": kind, "ms": ns / 1e6 / STEPS, "runs": runs[kind] / STEPS}
        for kind, ns in nanoseconds.most_common()
    ]
    device = jax.devices()[0].device_kind
    args.out.write_text(json.dumps({"device": device, "case": case, "a_step": rows}, indent=1))
    print(f"{device}: {sum(row['ms'] for row in rows):.2f} ms a step in {len(rows)} kinds")
    for row in rows[:20]:
        print(f"{row['ms']:8.3f} ms  {row['runs']:7.1f} runs  {row['operation']}")


if __name__ == "__main__":
    main()
