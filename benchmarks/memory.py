"""Compare a plain backbone with the published memory and with votes, over seeds.

    python benchmarks/memory.py --work DIR --images 7 --seeds 10 11 12 13 14 --length 1

Trains the small network under the demo's recipe on SIMULATED images with at least 50 test images
of each finding, for each variant and seed, and evaluates the test part. ``--length 2`` doubles the
epochs. A finished run is not trained again. Prints the table for RESULTS.md: means over the seeds
of macro AUROC and of the three rarest findings of ChestX-ray14, and their difference to the plain
backbone with a 95 % interval of a paired bootstrap of patients (the seeds are averaged under each
draw).
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import paired
import pandas as pd
from one_run import train_and_evaluate

from charm_jax.metrics import bootstrap
from data_pipelines.phantom import draw as phantom
from data_pipelines.tables.findings import NIH_FINDINGS

RAREST = ("Hernia", "Pneumonia", "Fibrosis")
VOTE = {"preset": "vote"}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"model.charm": False},
    "published": {"preset": "published"},
    "vote": VOTE,
    "vote, with fusion": VOTE | {"model.fusion": True},
    "vote, keys of the main branch": VOTE | {"model.momentum_branch": False},
    "vote in training alone": VOTE | {"model.vote_weight": 0.0},
    "vote in evaluation alone": VOTE | {"model.vote_loss_share": 0.0},
}
EPOCHS = {"bce": 8, "focal": 4}


def train(variant: str, seed: int, args: argparse.Namespace, images: Path) -> Path:
    """Train and evaluate one run; return the folder of the evaluation."""
    name = "".join(c if c.isalnum() else "_" for c in f"{variant} {args.length} seed {seed}")
    keys = {
        "name": name,
        "runs_dir": args.work / f"runs{args.images}",
        "seed": seed,
        "data.source": "nih_chest_xray14",
        "data.dir": images,
    }
    keys |= {f"stages.{name}.epochs": args.length * epochs for name, epochs in EPOCHS.items()}
    folder = keys["runs_dir"] / name / "eval" / "test"
    if (folder / "metrics.json").exists():
        return folder
    return train_and_evaluate("configs/demo.py", keys | VARIANTS[variant], [])


def resampled(folder: Path) -> dict[str, np.ndarray]:
    """Return AUROC of macro and rarest findings, ``[1 + resamples]``: as it is, then drawn."""
    table = pd.read_csv(folder / "predictions.csv")
    labels = table[[f"{name}_label" for name in NIH_FINDINGS]].to_numpy(np.int8)
    logits = table[[f"{name}_logit" for name in NIH_FINDINGS]].to_numpy(np.float32)
    values = bootstrap.auroc_and_draws(logits, labels, table["patient"].to_numpy())
    rare = [NIH_FINDINGS.index(name) for name in RAREST]
    return {"macro": values.mean(1), "rarest": values[:, rare].mean(1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--images", type=int, default=7, help="seed of the drawn images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12, 13, 14])
    parser.add_argument("--length", type=int, default=1, help="times the demo's epochs")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    args = parser.parse_args()
    images = args.work / f"phantom{args.images}"
    phantom.write_phantoms(
        images,
        train_images=2400,
        test_images=1600,
        image_size=64,
        seed=args.images,
        min_test_positives=50,
    )
    folders = {
        variant: [train(variant, seed, args, images) for seed in args.seeds]
        for variant in dict.fromkeys(["plain", *args.variants])
    }
    print("| network | macro AUROC | minus plain | three rarest | minus plain |")
    print("| --- | --- | --- | --- | --- |")
    values = {variant: [resampled(f) for f in found] for variant, found in folders.items()}
    for variant, mine in values.items():
        print(paired.row(variant, mine, [] if variant == "plain" else values["plain"]))


if __name__ == "__main__":
    main()
