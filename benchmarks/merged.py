"""Train on two sets of SIMULATED images alone and merged, over seeds.

    python benchmarks/merged.py --work DIR

Each set labels nine of the 14 findings, and four of them both. The small network trains on the
first set, on the second, and on both merged, and each is scored on the test parts of the sets that
it trained on. Finished runs are not trained again. Prints macro AUROC over the shared findings,
with the difference of the merged network to the set's own and its 95 % interval over patients.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import paired
import pandas as pd
from one_run import train_and_evaluate

import charm_jax
from charm_jax.metrics import bootstrap
from data_pipelines.phantom import draw as phantom
from data_pipelines.tables.findings import NIH_FINDINGS

FINDINGS = {"first": NIH_FINDINGS[:9], "second": NIH_FINDINGS[5:]}
SHARED = NIH_FINDINGS[5:9]


def draw(work: Path, seed: int) -> None:
    """Draw both sets and write their tables of labels, and the table that merges them."""
    rows = []
    for number, (name, findings) in enumerate(FINDINGS.items()):
        folder = work / name
        phantom.write_phantoms(
            folder,
            train_images=1200,
            test_images=800,
            image_size=64,
            seed=seed + number,
            min_test_positives=50,
        )
        table = charm_jax.load_dataset("nih_chest_xray14", folder).table
        frame = pd.DataFrame({"image": [f"images/{image}" for image in table.images]})
        frame["patient"] = table.patients
        frame["split"] = np.where(table.official_part == "test", "test", "train")
        for column, finding in enumerate(table.findings):
            if finding in findings:
                frame[finding] = table.labels[:, column]
        own = work / f"{name}_set"
        own.mkdir(exist_ok=True)
        frame.to_csv(own / "labels.csv", index=False)
        if not (own / "images").exists():
            (own / "images").symlink_to((folder / "images").resolve())
        rows.append(f"{name},csv_folder,../{name}_set")
    (work / "merged_set").mkdir(exist_ok=True)
    (work / "merged_set" / "sets.csv").write_text("\n".join(["name,source,dir", *rows]) + "\n")


def evaluate(network: str, seed: int, work: Path) -> pd.DataFrame:
    """Train and evaluate one network; return its predictions on the test part."""
    keys: dict[str, Any] = {
        "name": f"{network}{seed}",
        "runs_dir": work / "runs",
        "seed": seed,
        "data.source": "merged" if network == "merged" else "csv_folder",
        "data.dir": work / f"{network}_set",
        "data.image_size": 64,
        "checkpoint.every_minutes": 0,
    }
    folder = keys["runs_dir"] / keys["name"] / "eval" / "test"
    if not (folder / "metrics.json").exists():
        train_and_evaluate("demo", keys, [])
    return pd.read_csv(folder / "predictions.csv")


def values(predicted: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return AUROC of the shared findings, ``[1 + resamples]``: as it is, then drawn."""
    labels, logits = (
        predicted[[f"{name}_{kind}" for name in SHARED]].to_numpy(kind_type)
        for kind, kind_type in (("label", np.int8), ("logit", np.float32))
    )
    # By number, so that both draw the same patients.
    patients = predicted["patient"].astype(str).str.rpartition("/")[2].astype(int).to_numpy()
    return {"macro": bootstrap.auroc_and_draws(logits, labels, patients).mean(1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--images", type=int, default=50, help="seed of the drawn images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    draw(args.work, args.images)
    merged = {seed: evaluate("merged", seed, args.work) for seed in args.seeds}
    print("| SIMULATED test images of | network | AUROC of the shared findings | minus alone |")
    print("| --- | --- | --- | --- |")
    for name in FINDINGS:
        alone = [values(evaluate(name, seed, args.work)) for seed in args.seeds]
        both = [
            values(frame[frame["image"].str.startswith(f"{name}/")]) for frame in merged.values()
        ]
        print(paired.row(f"{name} | alone", alone, []))
        print(paired.row(f"{name} | merged", both, alone))


if __name__ == "__main__":
    main()
