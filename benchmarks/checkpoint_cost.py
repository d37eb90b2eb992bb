"""What a checkpoint every so many steps costs a run.

    python benchmarks/checkpoint_cost.py --work DIR

Windows of train steps of EfficientNetV2-S with CHARM (stage 1, AdamW, batch 16) take turns: one
after a save has begun, one without. Compared are seconds, and the CPU seconds of all threads, which
other load on the machine hardly touches. The time of a save alone, until it is on the disk, stands
beside them.
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
    """Seconds, and CPU seconds of this process."""
    return np.array([time.perf_counter(), time.process_time()])


def steps(state: Any, step: Any, args: argparse.Namespace) -> Any:
    """The state after ``--every`` steps."""
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
    state = steps(state, step, args)
    ratios, alone = [], []
    for _ in range(args.rounds):
        begun = clocks()
        state = steps(state, step, args)
        between = clocks()
        checkpoints.save("bce", state, {}, None)
        state = steps(state, step, args)
        checkpoints.wait()
        ended = clocks()
        ratios.append((ended - between) / (between - begun))
        checkpoints.save("bce", state.replace(step=state.step + 1), {}, None)
        checkpoints.wait()
        alone.append(clocks() - ended)
        print(f"{between - begun} without, {ended - between} with a checkpoint, {alone[-1]} alone")
    folder = args.work / "checkpoint_cost"
    newest = folder / "bce" / str(checkpoints.steps("bce")[0])
    size = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
    checkpoints.close()
    shutil.rmtree(folder)
    cost, spread = 100 * (np.median(ratios, axis=0) - 1), 100 * (np.ptp(ratios, axis=0))
    save = np.median(alone, axis=0)
    print(
        f"{args.side} pixels, batch {args.batch}, every {args.every} steps: {cost[0]:.1f} % more "
        f"seconds (range {spread[0]:.1f}), {cost[1]:.1f} % more CPU seconds (range "
        f"{spread[1]:.1f}); a save alone {save[0]:.2f} s, {save[1]:.2f} CPU s; {size / 1e6:.0f} MB"
    )


if __name__ == "__main__":
    main()
