"""Macro AUROC from random weights on a small set of real images, over seeds.

    CHARM_DATA=DIR python benchmarks/real_data.py --backbone efficientnet_v2_nano --out DIR

Trains both stages at 64x64 on the images of the NIH folder that are there, evaluates the official
test part, and prints the table for RESULTS.md: mean and standard deviation over seeds, and a
95 % patient-cluster bootstrap interval of that mean.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from one_run import train_and_evaluate

from charm_jax.metrics import bootstrap
from data_pipelines.tables.findings import NIH_FINDINGS


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=15, help="of each stage")
    parser.add_argument("overrides", nargs="*", help="more --config.… after --")
    return parser.parse_args()


def run(backbone: str, seed: int, epochs: int, out: Path, overrides: list[str]) -> Path:
    """Trains and evaluates one seed; returns the folder of the evaluation."""
    name = f"{backbone}-seed{seed}"
    keys = {
        "name": name,
        "runs_dir": out,
        "seed": seed,
        "model.backbone": backbone,
        "data.image_size": 64,
        "data.missing": "skip",
    }
    for stage in ("bce", "focal"):
        keys |= {f"stages.{stage}.batch_size": 32, f"stages.{stage}.epochs": epochs}
        keys |= {f"stages.{stage}.frozen_epochs": 0, f"stages.{stage}.lr_spread": 1.0}
    return train_and_evaluate("configs/effv2s.py", keys, overrides)


def main() -> None:
    args = arguments()
    macros, resamples, seconds = [], [], []
    for seed in range(args.seeds):
        folder = run(args.backbone, seed, args.epochs, args.out, args.overrides)
        macros.append(json.loads((folder / "metrics.json").read_text())["macro_auroc"])
        summary = json.loads((folder.parent.parent / "summary.json").read_text())
        seconds.append(summary["seconds"])
        table = pd.read_csv(folder / "predictions.csv")
        labels = table[[f"{name}_label" for name in NIH_FINDINGS]].to_numpy(np.int8)
        scores, patients = table[list(NIH_FINDINGS)].to_numpy(), table["patient"].to_numpy()
        # One seed for all runs: their resamples are of the same patients and can be averaged.
        drawn = bootstrap.resampled(scores, labels, patients, resamples=1000, seed=0)
        resamples.append(bootstrap.macro(drawn.auroc))
    low, high = np.nanpercentile(np.mean(resamples, axis=0), [2.5, 97.5])
    print(
        f"| {args.backbone} | {', '.join(f'{m:.4f}' for m in macros)} | {np.mean(macros):.4f} | "
        f"{np.std(macros, ddof=1):.4f} | {low:.3f}-{high:.3f} | {np.mean(seconds):.0f} |"
    )


if __name__ == "__main__":
    main()
