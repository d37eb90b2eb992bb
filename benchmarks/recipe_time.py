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


def seconds_a_step(case: dict[str, Any], steps: int, what: str) -> float:
    """Median of a train or evaluation step."""
    side = contestants.make("ours", case)
    seconds = []
    for i in trange(steps + 10, desc=what, leave=False, disable=None):
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
    parser.add_argument("--batch", type=int, help="images, in place of the recipe's")
    args = parser.parse_args()
    stages = recipe.defaults().stages.items()
    sizes = {name: args.batch or stage.batch_size for name, stage in stages}
    cases = {}
    for name, stage in stages:
        case = {"net": args.net, "side": args.side, "batch": sizes[name]}
        step = case | {"kind": "train", "loss": stage.loss, "resident": args.resident}
        cases[name, "evaluation"] = case | {"kind": "eval"}
        if stage.frozen_epochs:
            cases[name, "frozen"] = step | {"frozen": True}
        cases[name, "whole"] = step
    each = {key: seconds_a_step(case, args.steps, " ".join(key)) for key, case in cases.items()}
    rows, total = [], 0.0
    for name, stage in stages:
        train, validation = IMAGES[stage.images]
        batch = sizes[name]
        for kind, epochs in {"frozen": stage.frozen_epochs, "whole": stage.epochs}.items():
            if not epochs:
                continue
            step, evaluation = each[name, kind], each[name, "evaluation"]
            epoch = train // batch * step
            epoch += math.ceil(validation / batch) * evaluation
            total += epochs * epoch
            row = {"stage": name, "trunk": kind, "epochs": epochs, "ms": 1e3 * step}
            row |= {"images_s": batch / step, "evaluation_ms": 1e3 * evaluation}
            rows.append(row | {"minutes": epochs * epoch / 60})
            print(json.dumps(rows[-1]), flush=True)
    device = jax.devices()[0].device_kind
    shared = {"net": args.net, "side": args.side, "resident": args.resident}
    result = {"device": device, "case": shared, "stages": rows, "minutes": total / 60}
    args.out.write_text(json.dumps(result, indent=1))
    print(f"{device}: {total / 60:.1f} minutes (SIMULATED pixels)")


if __name__ == "__main__":
    main()
