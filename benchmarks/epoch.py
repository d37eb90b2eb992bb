"""From the command to the first step, and a whole epoch, of ours and of the peer in turns.

    python benchmarks/epoch.py --work DIR --out FILE.json [--rounds 3]

Ours is ``python -m charm_jax.train`` on the demo's SIMULATED images, which are drawn before, once
with an empty compile cache and then with a warm one; the peer reads the same files
(peer_epoch.py). Nothing is timed inside either: the clock runs from the start of the process to the
line of a step. An epoch is what lies between its first step and its last.
"""

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
NET, SIDE, BATCH = "efficientnet_v2_nano", 64, 32


def prepare(work: Path) -> tuple[Path, int]:
    """Draws the images, if they are not there; the list of the training part and its steps."""
    from charm_jax.config import cli, settings
    from charm_jax.runs import data as run_data

    config = cli.load_config("demo")
    config.data.dir = str(work / "phantom")
    data = run_data.load_or_draw(settings.from_dict(config.to_dict()))
    rows = data.split.rows("bce", "train")
    with (work / "train.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        places = {path.name: path for path in (work / "phantom").rglob("*.png")}
        for row in rows:
            labels = [int(label == 1) for label in data.table.labels[row]]
            writer.writerow([places[data.table.images[row]], *labels])
    return work / "train.csv", len(rows) // BATCH


def timed(command: list[str], environment: dict[str, str], lines: object, last: int) -> dict:
    """Seconds to the first step and of the epoch; ``lines`` counts the steps so far."""
    start = time.perf_counter()
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        first = None
        while True:
            steps, now = lines(), time.perf_counter() - start
            if steps and first is None:
                first = now
            if steps >= last:
                process.kill()
                return {"first_step_s": first, "epoch_s": now - first}
            if process.poll() is not None and lines() < last:
                raise RuntimeError(f"{command} ended with code {process.returncode}")
            time.sleep(0.01)


def ours(work: Path, steps: int, cache: Path) -> dict:
    shutil.rmtree(work / "runs", ignore_errors=True)
    log = work / "runs" / "bench" / "metrics.jsonl"
    command = [
        *(sys.executable, "-m", "charm_jax.train"),
        *("--config=demo", f"--config.data.dir={work / 'phantom'}"),
        f"--config.runs_dir={work / 'runs'}",
        *("--config.name=bench", "--config.log.every_steps=1", "--config.stages.bce.epochs=2"),
    ]

    def lines() -> int:
        return log.read_bytes().count(b'"interval"') if log.exists() else 0

    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    return timed(command, environment, lines, steps)


def peer(work: Path, images: Path, steps: int) -> dict:
    out = work / "peer.log"
    out.write_text("")
    script = f"exec {sys.executable} {HERE / 'peer_epoch.py'} {images} --side {SIDE} "
    script += f"--batch {BATCH} --net {NET} > {out}"
    return timed(
        ["bash", "-c", script], dict(os.environ), lambda: out.read_bytes().count(b"\n"), steps
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    images, steps = prepare(work)
    times: dict[str, list[dict]] = {"ours, cold": [], "ours, warm": [], "peer": []}
    for number in range(args.rounds):
        cache = work / f"cache{number}"
        shutil.rmtree(cache, ignore_errors=True)
        times["ours, cold"].append(ours(work, steps, cache))
        times["ours, warm"].append(ours(work, steps, cache))
        times["peer"].append(peer(work, images, steps))
        args.out.write_text(json.dumps(times | {"steps": steps, "load": os.getloadavg()}, indent=1))
    print(f"| {steps} steps of {BATCH} SIMULATED images | to the first step, s | epoch, s |")
    print("| --- | --- | --- |")
    for who, rounds in times.items():
        shown = []
        for key in ("first_step_s", "epoch_s"):
            values = [round_[key] for round_ in rounds]
            shown.append(f"{statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f})")
        print(f"| {who} | {shown[0]} | {shown[1]} |")


if __name__ == "__main__":
    main()
