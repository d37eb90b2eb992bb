"""Ours and the peer in turns: every speed of the project in one table, JSON beside it.

    python benchmarks/speed.py --out FILE.json [--only train eval ...] [--rounds 7]
    python benchmarks/speed.py --out FILE.json --short      a small case of each group

Each side has a process of its own (see contestants.py) and takes two steps while the others wait,
so that other load on the machine meets all. The second one is timed: in a virtual machine the first
pays for memory that was handed back to the host meanwhile. Reported are medians, the spread (10th
to 90th percentile) and the median of the ratios of neighbouring steps. Without a GPU the peer runs
as the original does, in float32 with contiguous images, and once more in channels_last.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

SHORT = {"net": "efficientnet_v2_nano", "side": 32, "batch": 8}
HERE = Path(__file__).resolve().parent
WORKER = (
    "import json, os, sys, time; sys.path.insert(0, sys.argv[1]); import contestants\n"
    "out = os.fdopen(os.dup(1), 'w'); os.dup2(2, 1)\n"
    "start = time.perf_counter()\n"
    "side = contestants.make(sys.argv[2], json.loads(sys.argv[3]))\n"
    "for line in sys.stdin:\n"
    "    ask = line.strip(); cpu, wall = time.process_time(), time.perf_counter()\n"
    "    answer = getattr(side, ask)()\n"
    "    times = {'s': time.perf_counter() - wall, 'cpu_s': time.process_time() - cpu}\n"
    "    print(json.dumps(times if ask == 'step' else answer), file=out, flush=True)\n"
)


class Worker:
    """A contestant in its own process."""

    def __init__(self, who: str, case: dict[str, Any], cache: str):
        paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"SPEED_CACHE": cache, "PYTHONPATH": os.pathsep.join(paths)}
        flags = (os.environ.get("XLA_FLAGS", ""), case.get("xla_flags", ""))
        environment["XLA_FLAGS"] = " ".join(flags).strip()
        command = [sys.executable, "-c", WORKER, str(HERE), who, json.dumps(case)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, what: str) -> dict[str, Any]:
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a contestant ended with code {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def duel(case: dict[str, Any], sides: dict[str, tuple[str, dict]], rounds: int, cache: str) -> dict:
    """All sides of a case in turns; each is (contestant, what it changes of the case)."""
    workers: dict[str, Worker] = {}
    try:
        for key, (who, own) in sides.items():
            workers[key] = Worker(who, case | own, cache)
            workers[key].ask("step")  # one after the other: XLA times kernels while it compiles
            workers[key].ask("step")
        times: dict[str, list[dict]] = {key: [] for key in workers}
        for _ in range(rounds):
            for key, worker in workers.items():
                worker.ask("step")
                times[key].append(worker.ask("step"))
        facts = {key: worker.ask("facts") for key, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.close()
    first = next(iter(workers))
    return {
        "case": case,
        "sides": {key: summary(times[key]) | facts[key] for key in workers},
        "ratios": {key: ratios(times[key], times[first]) for key in workers if key != first},
    }


def summary(times: list[dict]) -> dict[str, Any]:
    seconds = [t["s"] for t in times]
    low, high = np.percentile(seconds, [10, 90])
    cpu = statistics.median(t["cpu_s"] for t in times)
    return {
        "median_s": statistics.median(seconds),
        "min_s": min(seconds),
        "spread_s": [low, high],
        "cpu_s": cpu,
        "all_s": seconds,
    }


def ratios(theirs: list[dict], ours: list[dict]) -> dict[str, float]:
    """How many times as long the other side takes."""
    each = [a["s"] / b["s"] for a, b in zip(theirs, ours, strict=True)]
    low, high = np.percentile(each, [10, 90])
    fastest = min(a["s"] for a in theirs) / min(b["s"] for b in ours)
    return {"median": statistics.median(each), "spread": [low, high], "of_minima": fastest}


def cases(gpu: bool) -> dict[str, list[tuple[dict, dict]]]:
    """Return the cases of each group, each with its sides; the first side is ours."""
    ours, peer = {"ours": ("ours", {})}, {"peer": ("peer", {})}
    both = ours | peer
    full = both if gpu else both | {"channels_last": ("peer", {"channels_last": True})}
    # On a GPU the steps are those of the published recipe.
    sides, batch, later = ([224], 64, 128) if gpu else ([64, 224], 16, 16)
    every = 112_120 if gpu else 4096
    resident = ours | {"resident": ("ours", {"resident": every})}
    graphs = {"no_graphs": ("ours", {"xla_flags": "--xla_gpu_enable_command_buffer="})}
    charm = {
        "ours": ("ours", {"memory": "none"}),
        "published": ("ours", {"memory": "published"}),
        "vote": ("ours", {"memory": "vote", "slots": 2048}),
        "vote_all": ("ours", {"memory": "vote", "slots": 75_966}),
    }
    bare_peer = {"peer": ("peer", {"memory": "none"})}
    step = {"kind": "train", "batch": batch}
    return {
        "train": [
            (step | {"side": s, "loss": "bce"}, full | (graphs if gpu else {})) for s in sides
        ]
        + [({"kind": "train", "batch": later, "side": sides[0], "loss": "focal"}, both)],
        "resident": [(step | {"side": sides[0], "loss": "bce"}, resident)],
        "frozen": [(step | {"side": sides[0], "frozen": True}, both)],
        "eval": [({"kind": "eval", "side": 224, "batch": later}, full)],
        "bank": [
            ({"kind": "bank", "batch": 128, "slots": n}, both) for n in (512, 4096, 16384, 65536)
        ],
        "charm": [(step | {"side": s, "memory": "none"}, charm | bare_peer) for s in sides],
        "lite": [
            (step | {"net": "efficientnet_lite0", "side": 224, "batch": 32, "memory": memory}, full)
            for memory in ("none", "published")
        ],
        "nano": [({"kind": "train", "net": "efficientnet_v2_nano", "side": 64, "batch": 32}, both)],
    }


def name(case: dict[str, Any]) -> str:
    known = ("net", "loss", "memory", "frozen", "slots")
    extra = ", ".join(f"{key} {case[key]}" for key in known if key in case)
    side = f", {case['side']}²" if "side" in case else ""
    return f"{case['kind']}, batch {case['batch']}{side}{', ' if extra else ''}{extra}"


def table(results: list[dict]) -> str:
    lines = [
        "| case | side | median, ms | 10-90 %, ms | CPU, ms | peak memory, MB | time over ours |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        for key, side in result["sides"].items():
            low, high = (1e3 * s for s in side["spread_s"])
            ratio = result["ratios"].get(key)
            over = f"{ratio['median']:.2f} ({ratio['of_minima']:.2f} of minima)" if ratio else ""
            lines.append(
                f"| {name(result['case'])} | {key} | {1e3 * side['median_s']:.1f} | "
                f"{low:.1f}-{high:.1f} | {1e3 * side['cpu_s']:.1f} | "
                f"{side.get('device_peak_mb', side['peak_mb']):.0f} | {over} |"
            )
    return "\n".join(lines)


def roofline(results: list[dict], rates: dict[str, float]) -> str:
    """Compute the least time that arithmetic and memory traffic of each step leave."""
    lines = [
        f"Matrix product {rates['gflop_s']:.0f} GFLOP/s, copy {rates['gbyte_s']:.1f} GB/s.\n",
        "| step | GFLOP | GB | least, ms: arithmetic / traffic | measured, ms | of the limit |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        ours = result["sides"]["ours"]
        compute, traffic = ours["gflops"] / rates["gflop_s"], ours["gbytes"] / rates["gbyte_s"]
        share = max(compute, traffic) / ours["median_s"]
        lines.append(
            f"| {name(result['case'])} | {ours['gflops']:.1f} | {ours['gbytes']:.2f} | "
            f"{1e3 * compute:.1f} / {1e3 * traffic:.1f} | {1e3 * ours['median_s']:.1f} | "
            f"{share:.0%} |"
        )
    return "\n".join(lines)


def arguments(groups: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=groups, choices=groups)
    parser.add_argument("--sides", nargs="*", help="leave the other sides out, such as the peer")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--short", action="store_true", help="a small case of each group")
    return parser.parse_args()


def has_gpu() -> bool:
    """Asked in another process: this one must not hold the device."""
    code = "import jax; raise SystemExit(jax.default_backend() != 'gpu')"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def main() -> None:
    groups = cases(has_gpu())
    args = arguments(list(groups))
    results = []
    with tempfile.TemporaryDirectory() as cache:
        cache = os.environ.get("SPEED_CACHE", cache)
        idle = {"kind": "bank", "batch": 2, "slots": 2}
        worker = Worker("ours", idle, cache)
        rates = worker.ask("rates")
        worker.close()
        chosen = []
        for group in args.only:
            for case, sides in groups[group][: 1 if args.short else None]:
                kept = {k: v for k, v in sides.items() if not args.sides or k in args.sides}
                chosen.append((case | (SHORT if args.short else {}), kept))
        for case, sides in chosen:
            results.append(duel(case, sides, args.rounds, cache))
            print("\n".join(table(results[-1:]).splitlines()[-len(sides) :]), flush=True)
            load = os.getloadavg()
            args.out.write_text(
                json.dumps({"rates": rates, "load": load, "results": results}, indent=1)
            )
    print(table(results), roofline(results, rates), sep="\n\n")


if __name__ == "__main__":
    main()
