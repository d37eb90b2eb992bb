"""What a checkpoint every so many steps costs a run.

    python benchmarks/checkpoint_cost.py --work DIR

Windows of train steps of EfficientNetV2-S with CHARM (stage 1, AdamW, batch 16) take turns: one
after a save has begun, one without. The ratio of their times is what the table of RESULTS.md says;
the time of a save alone, until it is on the disk, stands beside it.
"""

import argparse
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import jax
from backbones import batch, network, prepared

from charm_jax.checkpoints import Checkpoints


def window(state: Any, step: Any, args: argparse.Namespace) -> tuple[Any, float]:
    """The state after ``--every`` steps, and their seconds."""
    start = time.perf_counter()
    for _ in range(args.every):
        state, metrics = step(state, batch(args))
    jax.block_until_ready(metrics)
    return state, time.perf_counter() - start


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
    state, _ = window(state, step, args)
    ratios, alone = [], []
    for _ in range(args.rounds):
        state, without = window(state, step, args)
        begun = time.perf_counter()
        checkpoints.save("bce", state, {}, None)
        blocked = time.perf_counter() - begun
        state, seconds = window(state, step, args)
        checkpoints.wait()
        ratios.append((blocked + seconds) / without)
        begun = time.perf_counter()
        checkpoints.save("bce", state.replace(step=state.step + 1), {}, None)
        checkpoints.wait()
        alone.append(time.perf_counter() - begun)
        print(f"{without:.2f} s without, {blocked:.2f} + {seconds:.2f} s with a checkpoint")
    folder = args.work / "checkpoint_cost"
    newest = folder / "bce" / str(checkpoints.steps("bce")[0])
    size = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
    checkpoints.close()
    shutil.rmtree(folder)
    cost = statistics.median(ratios) - 1
    print(
        f"{args.side} pixels, batch {args.batch}, every {args.every} steps: {100 * cost:.1f} % "
        f"more time ({100 * (min(ratios) - 1):.1f} to {100 * (max(ratios) - 1):.1f}); a save alone "
        f"{statistics.median(alone):.2f} s; {size / 1e6:.0f} MB a checkpoint"
    )


if __name__ == "__main__":
    main()
