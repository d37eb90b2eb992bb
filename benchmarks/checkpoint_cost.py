"""Measure what saving checkpoints costs a run.

    python benchmarks/checkpoint_cost.py --work DIR

Windows of training steps of EfficientNetV2-S with CHARM (phase bce, AdamW, batch 16) alternate: one
after a save has begun, one without. The benchmark compares seconds, and the CPU seconds of all
threads, on which other load has little effect. It then times saves and restores without training:
how long ``save`` blocks, how long until the checkpoint is on the disk, and how long reading takes
with and without the optimizer's state. ``--every 0`` measures these alone.
"""

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from backbones import batch, network, prepared

from charm_jax.runs.checkpoints import Checkpoints


def clocks() -> np.ndarray:
    """Return seconds, and CPU seconds of this process."""
    return np.array([time.perf_counter(), time.process_time()])


def steps(state: Any, step: Any, args: argparse.Namespace) -> Any:
    """Take ``--every`` steps and return the state."""
    for _ in range(args.every):
        state, metrics = step(state, batch(args))
    jax.block_until_ready(metrics)
    return state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for the checkpoints")
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--every", type=int, default=50, help="steps between checkpoints")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    state, step, _ = prepared("efficientnet_v2_s", network("efficientnet_v2_s", True, "loop"), args)
    checkpoints = Checkpoints(args.work / "checkpoint_cost", ("bce",), keep=2)
    ratios, times = [], []
    if args.every:
        state = steps(state, step, args)
    for _ in range(args.rounds):
        if args.every:
            begun = clocks()
            state = steps(state, step, args)
            between = clocks()
            checkpoints.save("bce", state, {}, None)
            state = steps(state, step, args)
            checkpoints.wait()
            ended = clocks()
            ratios.append((ended - between) / (between - begun))
            print(f"{between - begun} without, {ended - between} with a checkpoint")
        state = state.replace(step=state.step + 1)
        marks = [clocks()]
        checkpoints.save("bce", state, {}, None)
        marks.append(clocks())
        checkpoints.wait()
        number = checkpoints.steps("bce")[0]
        for like in (state, state.replace(opt_state=())):
            marks.append(clocks())
            checkpoints.restore("bce", number, like)
        marks.append(clocks())
        blocked, on_disk, whole, network_alone = np.diff(marks, axis=0)
        times.append((blocked, blocked + on_disk, whole, network_alone))
    folder = args.work / "checkpoint_cost"
    newest = folder / "bce" / str(checkpoints.steps("bce")[0])
    size = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
    checkpoints.close()
    shutil.rmtree(folder)
    if args.every:
        cost, spread = 100 * (np.median(ratios, axis=0) - 1), 100 * np.ptp(ratios, axis=0)
        print(
            f"{args.side} pixels, batch {args.batch}, every {args.every} steps: {cost[0]:.1f} % "
            f"more seconds (range {spread[0]:.1f}), {cost[1]:.1f} % more CPU seconds (range "
            f"{spread[1]:.1f})"
        )
    names = ("save blocks for", "until on the disk", "restore", "restore without the optimizer")
    for name, (seconds, cpu) in zip(names, np.median(times, axis=0), strict=True):
        print(f"{name}: {seconds:.2f} s, {cpu:.2f} CPU s")
    print(f"{size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
