"""Whether training in bfloat16 follows training in float32, on the device that is there.

    python benchmarks/bfloat16.py --work DIR --out FILE.json [--short]

Trains EfficientNetV2-S on the demo's SIMULATED images three times: with activations in bfloat16, in
float32 at the highest precision, and in float32 from another seed, for scale. One after the other,
because XLA times kernels while it compiles.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

TRAIN = (
    "import sys, jax, jax.numpy as jnp\n"
    "jax.config.update('jax_default_matmul_precision', 'highest')\n"
    "from charm_jax.config import build, cli\n"
    "dtype = getattr(jnp, sys.argv.pop(1))\n"
    "build.compute_type = lambda platform, capability: dtype\n"
    "from charm_jax.train.__main__ import main\n"
    "cli.run(main)\n"
)
RUNS = {"bfloat16": ("bfloat16", 0), "float32": ("float32", 0), "seed": ("float32", 1)}
SHORT = {
    "data.phantom.train_images": 320,
    "data.phantom.test_images": 320,
    "data.image_size": 32,
    "stages.bce.epochs": 1,
    "stages.focal.epochs": 0,
}


def train(work: Path, name: str, keys: dict[str, object]) -> None:
    """Train a run, or go on with it."""
    dtype, seed = RUNS[name]
    keys |= {"name": name, "seed": seed, "checkpoint.every_steps": 1000}
    flags = [f"--config.{key}={value}" for key, value in keys.items()]
    subprocess.run([sys.executable, "-c", TRAIN, dtype, *flags], cwd=work, check=True)


def curve(work: Path, name: str, key: str) -> np.ndarray:
    """Read a score of the validation part after each epoch of a run."""
    lines = (work / "runs" / name / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return np.array([row[key] for row in rows if row["kind"] == "epoch"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--short", action="store_true", help="a small network, a few steps")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    keys = dict(SHORT) if args.short else {"model.backbone": "efficientnet_v2_s"}
    for name in RUNS:
        train(args.work, name, dict(keys))
    result = {}
    for key in ("train_loss", "val_loss", "val_macro_auroc"):
        curves = {name: curve(args.work, name, key) for name in RUNS}
        length = min(len(values) for values in curves.values())  # one may have stopped early
        curves = {name: values[:length] for name, values in curves.items()}
        apart = {
            other: float(np.mean(np.abs(curves[other] - curves["float32"])))
            for other in ("bfloat16", "seed")
        }
        result[key] = {name: values.tolist() for name, values in curves.items()} | {"apart": apart}
        print(
            f"{key}: bfloat16 is {apart['bfloat16']:.4f} from float32 over {length} epochs, "
            f"another seed {apart['seed']:.4f} (SIMULATED images)"
        )
    args.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
