"""How long the published recipe takes on this device, projected from measured steps.

    python benchmarks/recipe_time.py --out FILE.json

All images lie on the device (SIMULATED pixels); stages, epochs and batch sizes are those of
configs/effv2s.py, counted as if no stage ended early, and the images those of the official split of
ChestX-ray14. Of each kind of step so many are timed, after ten more; loading the images, compiling
and checkpoints are not in the projection.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import contestants
import jax
from tqdm import trange

from charm_jax.config import recipe

# Of the official split with config.data.split_seed 0: training and validation part.
IMAGES = {"abnormal": (31_553, 4_471), "all": (75_966, 10_558)}


def seconds_a_step(case: dict[str, Any], steps: int) -> float:
    """Median of a train or evaluation step."""
    side = contestants.make("ours", case)
    seconds = []
    for i in trange(steps + 10, desc=f"{case['kind']} {case.get('loss', '')}", leave=False):
        start = time.perf_counter()
        side.step()
        if i >= 10:
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--net", default="efficientnet_v2_s")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--resident", type=int, default=112_120, help="images on the device")
    args = parser.parse_args()
    shared = {"net": args.net, "side": args.side}
    rows, total = [], 0.0
    for name, stage in recipe.defaults().stages.items():
        train, validation = IMAGES[stage.images]
        case = shared | {"batch": stage.batch_size}
        step = case | {"kind": "train", "loss": stage.loss, "resident": args.resident}
        epochs = {"frozen": stage.frozen_epochs, "whole": stage.epochs}
        evaluation = seconds_a_step(case | {"kind": "eval"}, min(args.steps, 100))
        for kind, count in epochs.items():
            if not count:
                continue
            each = seconds_a_step(step | {"frozen": kind == "frozen"}, args.steps)
            epoch = train // stage.batch_size * each
            epoch += math.ceil(validation / stage.batch_size) * evaluation
            total += count * epoch
            row = {"stage": name, "trunk": kind, "epochs": count, "ms": 1e3 * each}
            rows.append(row | {"images_s": stage.batch_size / each, "minutes": count * epoch / 60})
            print(json.dumps(rows[-1]), flush=True)
    device = jax.devices()[0].device_kind
    result = {"device": device, "case": shared, "stages": rows, "minutes": total / 60}
    args.out.write_text(json.dumps(result, indent=1))
    print(f"{device}: {total / 60:.1f} minutes (SIMULATED pixels)")


if __name__ == "__main__":
    main()
