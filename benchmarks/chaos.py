"""Kills a run again and again at random moments, and compares how it ends with an undisturbed one.

    python benchmarks/chaos.py --kills 50 --work DIR

Both are small runs of all stages on SIMULATED images with a checkpoint every 5 steps. Each kill is
kill -9 at a random moment: of seven in ten shortly after the process has begun to train, of the
others while it starts. Exit code 1 if the parameters or the log differ, or if a restart began
before the newest complete checkpoint.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

RUN = Path("runs/demo")
KEYS = {
    "data.phantom.train_images": 420,
    "data.phantom.test_images": 310,
    "data.phantom.image_size": 32,
    "data.image_size": 32,
    "stages.bce.frozen_epochs": 2,
    "stages.bce.epochs": 10,
    "stages.focal.epochs": 10,
    "stages.focal.batch_size": 32,
    "stages.bce.patience": 100,
    "stages.focal.patience": 100,
    "checkpoint.every_steps": 5,
    "log.every_steps": 1,
}
STAGES = ("bce_frozen", "bce", "focal")


def start(folder: Path) -> subprocess.Popen:
    flags = [f"--config.{key}={value}" for key, value in KEYS.items()]
    return subprocess.Popen(
        [sys.executable, "-m", "charm_jax.train", *flags],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=(folder / "stderr.txt").open("w"),
    )


def finish(folder: Path) -> None:
    process = start(folder)
    if process.wait():
        sys.exit((folder / "stderr.txt").read_text()[-2000:])


def newest(folder: Path) -> tuple[int, int]:
    """Stage and step of the newest complete checkpoint; (0, 0) without one."""
    found = [
        (number, int(path.name))
        for number, stage in enumerate(STAGES)
        for path in (folder / RUN / "checkpoints" / stage).glob("*")
        if path.name.isdigit()
    ]
    return max(found, default=(0, 0))


def began_from(folder: Path) -> tuple[int, int] | None:
    """Stage and step that a process says it continues from."""
    said = (folder / "stderr.txt").read_text()
    match = re.search(r"Continuing \S+ from step (\d+) of stage (\w+)", said)
    return (STAGES.index(match[2]), int(match[1])) if match else None


def log_bytes(folder: Path) -> int:
    path = folder / RUN / "metrics.jsonl"
    return path.stat().st_size if path.exists() else 0


def kill_once(folder: Path, rng: np.random.Generator) -> tuple[str, bool]:
    """Start the run, kill it at random, and report whether it lost anything."""
    before = newest(folder)
    process, logged = start(folder), log_bytes(folder)
    # Importing and compiling take longer than all steps: half of the kills wait until it trains.
    waits = rng.random() < 0.7
    while waits and process.poll() is None and log_bytes(folder) <= logged:
        time.sleep(0.01)
    until = time.monotonic() + rng.uniform(0, 1.5 if waits else 12)
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    ended = process.poll() is not None
    process.kill()
    process.wait()
    began = began_from(folder)
    lost = began is not None and began < before
    return ("ended by itself" if ended else f"at {newest(folder)}", lost)


def log_lines(folder: Path) -> list[dict]:
    lines = (folder / RUN / "metrics.jsonl").read_text().splitlines()
    clock = {"images_per_second", "memory_gib"}
    return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True, help="folder for both runs")
    args = parser.parse_args()
    calm, chaos = args.work / "calm", args.work / "chaos"
    calm.mkdir(parents=True)
    chaos.mkdir()
    finish(calm)
    shutil.copytree(calm / "data", chaos / "data")
    rng, lost, kills, rounds = np.random.default_rng(args.seed), 0, 0, 1
    with tqdm(total=args.kills, desc="kills") as bar:
        while kills < args.kills:
            outcome, worse = kill_once(chaos, rng)
            lost += worse
            if outcome == "ended by itself":  # the same again from the beginning
                compare(calm, chaos)
                shutil.rmtree(chaos / "runs")
                rounds += 1
                continue
            kills += 1
            bar.update()
            bar.set_postfix_str(outcome)
    finish(chaos)
    compare(calm, chaos)
    print(f"{kills} kills in {rounds} runs: parameters and logs equal, {lost} restarts lost steps")
    sys.exit(lost > 0)


def compare(calm: Path, chaos: Path) -> None:
    one, two = (json.loads((folder / RUN / "summary.json").read_text()) for folder in (calm, chaos))
    if one["params_sha256"] != two["params_sha256"]:
        sys.exit("the parameters differ")
    if log_lines(calm) != log_lines(chaos):
        sys.exit("the logs differ")


if __name__ == "__main__":
    main()
