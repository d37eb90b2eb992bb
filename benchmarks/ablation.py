"""What each part of CHARM and of its recipe adds, over seeds.

    python benchmarks/ablation.py --data phantom --work DIR
    CHARM_DATA=DIR python benchmarks/ablation.py --data nih --work DIR

The small network under the demo's recipe, trained and evaluated for each variant and seed: on
SIMULATED images with at least 50 test images of each finding (sampled by finding, so that their
prevalence is not that of ChestX-ray14), or on those real images that are in the NIH folder, at 64
pixels. Every run is appended to DIR/<data>.jsonl; what is there is not run again. Prints the table
for RESULTS.md: mean and standard deviation over the seeds.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from one_run import train_and_evaluate
from tqdm import tqdm

from data_pipelines.phantom import draw as phantom

RAREST = ("Hernia", "Pneumonia", "Fibrosis")  # in ChestX-ray14
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "without memory": {"model.retrieval_k": 0},
    "without momentum branch": {"model.momentum_branch": False},
    "without fusion": {"model.fusion": False},
    "plain backbone": {"model.charm": False},
    # As many images as both stages see, at the rate of the first.
    "one stage": {"stages.bce.epochs": 0, "stages.focal.epochs": 8, "stages.focal.peak_lr": 2e-3},
    "stored: norm_outlier": {"model.rarity": "norm_outlier"},
    "stored: angle_outlier": {"model.rarity": "angle_outlier"},
    "stored: rare_finding": {"model.rarity": "rare_finding"},
    "stage 2: bce": {"stages.focal.loss": "bce"},
    "stage 2: asymmetric": {"stages.focal.loss": "asymmetric"},
}
REAL = ("full", "without memory", "plain backbone")
SIMULATED = {
    "train_images": 2400,
    "test_images": 1600,
    "image_size": 64,
    "seed": 0,
    "min_test_positives": 50,
}


def keys_of(data: str, work: Path) -> dict[str, Any]:
    """Return the options that all runs on these images share."""
    keys: dict[str, Any] = {"preset": "published", "data.source": "nih_chest_xray14"}
    keys |= {"data.image_size": 64}
    if data == "phantom":
        phantom.write_phantoms(work / "phantom", **SIMULATED)
        return keys | {"data.dir": work / "phantom"}
    keys |= {"data.dir": os.environ["CHARM_DATA"], "data.missing": "skip"}
    for stage in ("bce", "focal"):
        keys |= {f"stages.{stage}.epochs": 15, f"stages.{stage}.batch_size": 32}
    return keys


def done(path: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Read the appended runs, by variant and seed."""
    if not path.exists():
        return {}
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    return {(entry["variant"], entry["seed"]): entry for entry in entries}


def measure(variant: str, seed: int, common: dict[str, Any], runs: Path) -> dict[str, Any]:
    name = "".join(c if c.isalnum() else "_" for c in variant)
    keys = common | {"name": f"{name}-seed{seed}", "runs_dir": runs, "seed": seed}
    folder = train_and_evaluate("configs/demo.py", keys | VARIANTS[variant], [])
    metrics = json.loads((folder / "metrics.json").read_text())
    summary = json.loads((folder.parent.parent / "summary.json").read_text())
    aurocs = {name: values["auroc"] for name, values in metrics["findings"].items()}
    rarest = [aurocs[name] for name in RAREST if aurocs[name] is not None]
    return {
        "variant": variant,
        "seed": seed,
        "macro_auroc": metrics["macro_auroc"],
        "rarest_auroc": float(np.mean(rarest)) if rarest else None,
        "aurocs": aurocs,
        "seconds": summary["seconds"],
    }


def table(entries: dict[tuple[str, int], dict[str, Any]], variants: list[str]) -> str:
    lines = ["| variant | macro AUROC | three rarest | s a run |", "| --- | --- | --- | --- |"]
    for variant in variants:
        mine = [entry for (name, _), entry in entries.items() if name == variant]
        cells = [_spread([entry[key] for entry in mine]) for key in ("macro_auroc", "rarest_auroc")]
        seconds = np.mean([entry["seconds"] for entry in mine])
        lines.append(f"| {variant} | {' | '.join(cells)} | {seconds:.0f} |")
    return "\n".join(lines)


def _spread(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    deviation = f"{np.std(known, ddof=1):.4f}" if len(known) > 1 else "-"
    return f"{np.mean(known):.4f} ± {deviation}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=("phantom", "nih"), required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    variants = list(VARIANTS) if args.data == "phantom" else list(REAL)
    common, path = keys_of(args.data, args.work), args.work / f"{args.data}.jsonl"
    jobs = [(variant, seed) for seed in range(args.seeds) for variant in variants]
    for variant, seed in tqdm(jobs, desc="runs"):
        if (variant, seed) in done(path):
            continue
        entry = measure(variant, seed, common, args.work / "runs" / args.data)
        with path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
    print(table(done(path), variants))


if __name__ == "__main__":
    main()
