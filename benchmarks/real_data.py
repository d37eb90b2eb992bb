"""Compare networks with and without memory on small sets of real chest X-rays, by folds.

    python benchmarks/real_data.py --set nih_224 --data DIR --work DIR --backbone NAME

DIR/nih_224 (224 pixels) and DIR/nih_1539 (64 pixels) hold images and tables of ChestX-ray14. All
their images, those of both official lists, are divided into folds by patient: each image is tested
once, by a network that neither trained nor validated on its patient (folds.py). The best epoch is
that of the lowest validation loss; nothing is chosen on the test parts.

AUROC is computed within folds and then averaged, since scores of different folds come from
different networks: one that scores all images a little higher would lose to the others in a pooled
AUROC, though it ranks its own images as well. The table has the macro mean over the findings with
at least 10 positive images of at least 5 patients (with two or three, most draws of patients leave
some folds without any), over the three most frequent and over the three rarest of these; means ± SD
over the seeds; and differences to the plain backbone with 95 % intervals of a paired bootstrap of
patients, the seeds averaged under each draw.

Finished runs are appended to --out, with their scores on validation, and not trained again; --table
prints the table of what is there. A variant that differs in its refitted classifier alone is made
from the run without it. The first runs of the variants fill the compile cache, one after the other;
then --workers processes share the rest.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import folds
import numpy as np
import paired

from charm_jax.metrics import bootstrap
from data_pipelines import sources
from data_pipelines.atomic_files import whole_path

SIZES = {"nih_1539": 64, "nih_224": 224}
BATCH = 32
LEAST_IMAGES, LEAST_PATIENTS = 10, 5  # positive ones of a finding that counts
PLAIN = "plain"
VOTE = {"preset": "vote"}
VARIANTS: dict[str, dict[str, Any]] = {
    PLAIN: {"model.charm": False},
    "published": {"preset": "published"},
    "vote": VOTE,
    "vote, keys of the main branch": VOTE | {"model.momentum_branch": False},
}
REFITTED = {"refit": PLAIN, "vote, refit": "vote"}  # made from runs of another variant
FLOORS = ("40 principal components", "frozen features")
REFIT = ["--config.refit=plain", "--config.resume=force"]
Job = tuple[str, int, int]  # variant, seed, fold
Made = tuple[np.ndarray, np.ndarray, dict[str, Any]]  # images, logits, more for the entry


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", choices=SIZES, default="nih_1539")
    parser.add_argument("--data", type=Path, default=os.environ.get("CHARM_TEST_DATA"))
    parser.add_argument("--work", type=Path, required=True, help="folder for what can be deleted")
    parser.add_argument("--out", type=Path, help="finished runs, by default WORK/runs.jsonl")
    parser.add_argument("--config", default="demo", help="recipe of the runs, such as lite0")
    parser.add_argument("--backbone", default="efficientnet_v2_nano")
    parser.add_argument("--weights", default="none", help="none, imagenet or a file")
    parser.add_argument("--epochs", type=int, default=10, help="at most, of each stage")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    rows = [*VARIANTS, *REFITTED, *FLOORS]
    parser.add_argument("--variants", nargs="+", default=rows, choices=rows)
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.add_argument("overrides", nargs="*", help="more --config.… after --")
    args = parser.parse_args()
    if args.data is None:
        parser.error("give --data, the folder that holds the sets, or set CHARM_TEST_DATA")
    args.out = args.out or args.work / "runs.jsonl"
    names = ("set", "config", "backbone", "weights", "epochs", "folds", "overrides")
    args.settings = {name: getattr(args, name) for name in names}
    digest = hashlib.sha256(json.dumps(args.settings).encode()).hexdigest()
    args.folder = args.work / f"{args.set}-{digest[:8]}"  # of the runs with these settings
    args.init_from = "random" if args.weights == "none" else args.weights
    return args


def finished(args: argparse.Namespace) -> dict[Job, dict[str, Any]]:
    """Read the appended runs of these settings."""
    lines = args.out.read_text().splitlines() if args.out.exists() else []
    entries = [entry for entry in map(json.loads, lines) if entry["settings"] == args.settings]
    return {(entry["variant"], entry["seed"], entry["fold"]): entry for entry in entries}


def begin_worker(log: Path) -> None:
    """Send all output of this process to a file; end it with its parent, even a killed one."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def run(job: Job, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Do a job in this process; return its entry, and that of its refitted variant if asked for."""
    began = time.monotonic()
    made = {job[0]: floor(job, args)} if job[0] in FLOORS else train(job, args)
    return [
        {
            **dict(zip(("variant", "seed", "fold"), (variant, *job[1:]), strict=True)),
            "settings": args.settings,
            "seconds": round(time.monotonic() - began, 1),
            "images": images.tolist(),
            "logits": logits.astype(float).round(5).tolist(),
            **more,
        }
        for variant, (images, logits, more) in made.items()
    ]


def train(job: Job, args: argparse.Namespace) -> dict[str, Made]:
    """Train a network on a fold; return what it gives, refitted too if that is asked for."""
    from charm_jax.train.__main__ import main as train_main

    variant, seed, fold = job
    name = "".join(c if c.isalnum() else "_" for c in f"{variant} seed {seed} fold {fold}")
    keys = {
        "name": name,
        "runs_dir": args.folder,
        "seed": seed,
        "data.source": "csv_folder",
        "data.dir": args.data / args.set / "images",
        "data.csv": (args.folder / f"fold{fold}.csv").absolute(),
        "data.image_size": SIZES[args.set],
        "model.backbone": args.backbone,
        "model.init_from": args.init_from,
        "checkpoint.keep": 1,
        "checkpoint.every_minutes": 0,
    }
    for stage in ("bce", "focal"):
        keys |= {f"stages.{stage}.epochs": args.epochs, f"stages.{stage}.batch_size": BATCH}
    flags = [f"--config.{key}={value}" for key, value in (keys | VARIANTS[variant]).items()]
    refits = [new for new, old in REFITTED.items() if old == variant and new in args.variants]
    made = {}
    for title, more in ({variant: []} | dict.fromkeys(refits, REFIT)).items():
        if code := train_main(["--config", args.config, *flags, *args.overrides, *more]):
            raise RuntimeError(f"training ended with exit code {code}")
        made[title] = score(args.folder / name)
    shutil.rmtree(args.folder / name)
    return made


def score(folder: Path) -> Made:
    """Return images and logits of a run's test part, and what its validation reached."""
    from charm_jax.inference import loaded
    from charm_jax.runs import data as run_data

    model = loaded.load_run(folder)
    data = run_data.load_data(model.settings)
    rows = data.split.rows(model.settings.stage_names[-1], "test")
    loaded.check_unseen(model.match_cases(data.table), rows, data.split.rule, "test", model)
    summary = json.loads((folder / "summary.json").read_text())
    more = {key: summary[key] for key in ("stages", "refit") if key in summary}
    return data.table.images[rows], model.predict_rows(data, rows, "test")["logits"], more


def floor(job: Job, args: argparse.Namespace) -> Made:
    """Fit logistic regressions on a fold; return images and scores of its test part."""
    import linear_floors

    import charm_jax
    from data_pipelines.loading import resident

    csv = str((args.folder / f"fold{job[2]}.csv").absolute())
    folder, size = args.data / args.set / "images", SIZES[args.set]
    table = charm_jax.load_dataset("csv_folder", folder, csv=csv, image_size=size).table
    rows, part = np.arange(len(table.images)), table.official_part
    images = resident.load(table, rows, size, lambda cases: cases).images[..., 0]
    kept = args.folder / "features.npy"
    if job[0] == FLOORS[0]:
        features = linear_floors.principal_components(images, part == "train")
    elif kept.exists():  # made by the first job of this floor, which runs before the others
        features = np.load(kept)
    else:
        findings = table.findings
        features = linear_floors.frozen_features(images, args.backbone, args.init_from, findings)
        with whole_path(kept) as draft, draft.open("wb") as file:  # a name would get .npy
            np.save(file, features)
    return table.images[part == "test"], linear_floors.logits(features, table.labels, part), {}


def work(jobs: list[Job], args: argparse.Namespace) -> int:
    """Do the jobs in worker processes, append each entry; return how many failed."""
    # The first job of each variant compiles for the others; alone, since XLA times GPU kernels.
    first = list({job[0]: job for job in reversed(jobs)}.values())
    failed = 0
    with ProcessPoolExecutor(
        args.workers,
        multiprocessing.get_context("spawn"),
        begin_worker,
        (args.work / "workers.log",),
    ) as pool:
        for some in [[job] for job in first] + [[job for job in jobs if job not in first]]:
            futures = {pool.submit(run, job, args): job for job in some}
            for future in as_completed(futures):
                variant, seed, fold = futures[future]
                title = f"{time.strftime('%H:%M:%S')} {variant}, seed {seed}, fold {fold}"
                if error := future.exception():
                    failed += 1
                    print(f"{title}: FAILED: {error}", file=sys.stderr, flush=True)
                    continue
                entries = future.result()
                with args.out.open("a") as file:
                    file.writelines(json.dumps(entry) + "\n" for entry in entries)
                print(f"{title}: {entries[-1]['seconds']} s", file=sys.stderr, flush=True)
    return failed


def table(
    args: argparse.Namespace,
    images: np.ndarray,
    labels: np.ndarray,
    patients: np.ndarray,
    parts: np.ndarray,
    findings: tuple[str, ...],
) -> Iterable[str]:
    """Yield the lines of the table of finished runs."""
    positives = labels.sum(0)
    having = np.array([len(np.unique(patients[column == 1])) for column in labels.T])
    counts = (positives >= LEAST_IMAGES) & (having >= LEAST_PATIENTS)
    kept = [i for i in np.argsort(positives, kind="stable") if counts[i]]
    columns = {"macro": kept, "most frequent": kept[-3:], "rarest": kept[:3]}
    entries = finished(args)
    values: dict[str, dict[int, paired.Values]] = {}
    for variant in dict.fromkeys([PLAIN, *args.variants]):
        values[variant] = {}
        for seed in args.seeds[:1] if variant in FLOORS else args.seeds:
            found = [entries.get((variant, seed, fold)) for fold in range(args.folds)]
            if None in found:
                yield f"MISSING: {variant}, seed {seed}: {found.count(None)} of {args.folds} folds"
                continue
            logits = np.empty(labels.shape)
            for entry, part in zip(found, parts, strict=True):
                if entry["images"] != images[part == "test"].tolist():
                    raise SystemExit(f"{args.out} has other folds: remove it, or choose another.")
                logits[part == "test"] = entry["logits"]
            drawn = folds.auroc_within(logits, labels, patients, parts)
            values[variant][seed] = {k: bootstrap.macro(drawn[:, c]) for k, c in columns.items()}
    yield "| network | seeds |" + "".join(f" {name} | minus plain |" for name in columns)
    yield "|" + " --- |" * (2 + 2 * len(columns))
    plain = values[PLAIN]
    for variant, mine in values.items():
        others = {} if variant == PLAIN else plain
        if others and variant not in FLOORS:  # which have no seeds
            shared = mine.keys() & others.keys()
            mine, others = ({seed: run[seed] for seed in shared} for run in (mine, others))
        if mine:
            name = f"{variant} | {len(mine)}"
            yield paired.row(name, list(mine.values()), list(others.values()))
    yield "\n95 % of the patient bootstraps of macro:"
    for variant, mine in values.items():
        if mine:
            drawn = np.mean([value["macro"] for value in mine.values()], axis=0)
            low, high = np.nanquantile(drawn[1:], [0.025, 0.975])
            yield f"{variant} {low:.3f} to {high:.3f}"
    for key, chosen in columns.items():
        text = ", ".join(f"{findings[i]} {positives[i]}/{having[i]}" for i in reversed(chosen))
        yield f"\n{key}: {len(chosen)} findings (positive images/patients): {text}"


def main() -> None:
    args = arguments()
    cases = sources.load("nih_chest_xray14", args.data / args.set)
    rows = np.flatnonzero(cases.present)
    images, labels, patients = cases.images[rows], cases.labels[rows], cases.patients[rows]
    parts = folds.make(patients, labels, args.folds, BATCH)
    failed = 0
    if not args.table:
        folds.write(cases, rows, parts, args.folder)
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(args.work / "xla"))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
        done = finished(args)
        missing = [
            (REFITTED.get(variant, variant), seed, fold)
            for seed in args.seeds
            for fold in range(args.folds)
            for variant in args.variants
            if (variant not in FLOORS or seed == args.seeds[0])
            and (variant, seed, fold) not in done
        ]
        failed = work([*dict.fromkeys(missing)], args)
    print("\n".join(table(args, images, labels, patients, parts, cases.findings)))
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
