"""Time and memory of an evaluation's metrics on the whole official test list, SIMULATED scores.

    CHARM_TEST_DATA=DIR python benchmarks/evaluation.py

Takes the true table of ChestX-ray14 (`nih_chest_xray14/` in that folder; no image is read), draws
SIMULATED logits for its validation and test parts and measures all that follows the network:
calibration, metrics with 1,000 resamples, subgroups, comparison, the tables and the report.
"""

import argparse
import dataclasses
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from charm_jax.config import recipe
from charm_jax.eval import files
from charm_jax.metrics import calibration, intervals, summary
from charm_jax.metrics.result import BankSource, CalibrationSource, EvaluationResult, Scores
from charm_jax.report import page
from charm_jax.report.contents import Bank, Contents, Evaluated
from charm_jax.runs import folder as runs
from data_pipelines.sources import nih_chest_xray14
from data_pipelines.tables import splits
from data_pipelines.tables.case_table import CaseTable


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--interval", choices=intervals.METHODS, default="bootstrap")
    parser.add_argument("--cores", type=int, default=2)
    return parser.parse_args()


def timed(name: str, call: Callable[[], Any]) -> Any:
    """Print how long a call takes and the process's peak of memory after it."""
    began = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - began
    # In kB, on macOS in bytes.
    unit = 1024 if sys.platform != "darwin" else 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(f"| {name} | {seconds:.2f} | {peak / 2**20:,.0f} |", flush=True)
    return result


def simulated(table: CaseTable, rows: np.ndarray, seed: int) -> np.ndarray:
    """Logits that know something of the labels, alike within a patient."""
    rng = np.random.default_rng(seed)
    shape = (len(rows), len(table.findings))
    of_patient = rng.normal(size=(table.patients.max() + 1, shape[1]))[table.patients[rows]]
    noise = rng.normal(size=shape) + of_patient
    return (noise + 1.7 * (table.labels[rows] == 1) - 2).astype(np.float32)


def write_report(
    path: Path, table: CaseTable, rows: np.ndarray, logits: np.ndarray, scores: Scores
) -> None:
    """Write the report of a SIMULATED network with 512 stored cases that reads 5."""
    rng = np.random.default_rng(3)
    stored, n = rng.choice(len(table.images), 512, replace=False), len(rows)
    part = splits.part_summary(table, rows)
    result = EvaluationResult(
        **vars(scores),
        source=table.source,
        simulated=True,
        data={},
        reading={},
        rule="official",
        split="test",
        split_sha256=part["sha256"],
        cases_sha256=part["cases_sha256"],
        n_images=part["images"],
        n_patients=part["patients"],
        patients_known=True,
        images_present=len(table.images),
        images_missing=0,
        refused=0,
        leak_images=0,
        leak_of=0,
        leak_of_all=0,
        leak_seen=0,
        checkpoint="focal/1",
        trained_on_simulated=True,
        began_from=None,
        calibration=CalibrationSource(
            checkpoint="focal/1", split_sha256="0" * 64, on_these_images=False
        ),
        bank=BankSource(source=table.source, split="train", patients_known=True, images_here=0),
    )
    contents = Contents(
        evaluated=Evaluated(
            findings=table.findings,
            images=table.images[rows],
            rows=rows,
            labels=table.labels[rows],
            logits=logits,
            attention=rng.random((n, 7, 7)),
            slots=rng.integers(512, size=(n, 5)),
            similarities=rng.random((n, 5)),
            valid=np.ones((n, 5), bool),
        ),
        read=lambda rows: rng.integers(256, size=(len(rows), 224, 224)).astype(np.uint8),
        config=recipe.defaults().to_dict(),
        environments={"Evaluated": runs.environment()},
        bank=Bank(
            features=rng.normal(size=(512, 1280)),
            labels=table.labels[stored],
            filled=np.ones(512, bool),
            images=table.images[stored],
            patients=table.patients[stored].astype(str),
            rows=stored,
        ),
    )
    page.write(path, result, contents)


def main() -> None:
    args = arguments()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    folder = Path(os.environ["CHARM_TEST_DATA"]) / "nih_chest_xray14"
    table = nih_chest_xray14.load(folder, "")
    parts = splits.make_split(table, "official", {"all": "all"}, 0).stages["all"]
    train, val, rows = (parts[name] for name in ("train", "val", "test"))
    logits, other = simulated(table, rows, 1), simulated(table, rows, 2)
    part = intervals.EvalSet(logits, table.labels[rows], table.patients[rows], table.findings)
    shares = (table.labels[train] == 1).mean(axis=0).tolist()
    print(f"{len(rows):,} images x {len(table.findings)} findings, SIMULATED scores\n")
    print("| step | s | peak MiB |\n| --- | --- | --- |")
    began = time.perf_counter()
    fitted = timed(
        "temperatures and thresholds",
        lambda: calibration.fit(simulated(table, val, 0), table.labels[val], table.findings),
    )
    timed("resampling alone (1,000)", lambda: intervals.ConfidenceIntervals(part, args.interval))
    scores = timed(
        "metrics, intervals, subgroups",
        lambda: summary.score(
            part,
            fitted=fitted,
            prevalence=dict(zip(table.findings, shares, strict=True)),
            attributes=summary.attributes(table.views[rows], table.sexes[rows], table.ages[rows]),
            method=args.interval,
        ),
    )
    timed("comparison", lambda: intervals.compare(part, other, args.interval))
    with tempfile.TemporaryDirectory() as out:
        path = Path(out) / "predictions.csv"
        timed(
            "predictions.csv written",
            lambda: files.write_predictions(path, table, rows, logits),
        )
        images = table.images[rows]
        timed(
            "predictions.csv read",
            lambda: files.read_logits(path, images, table.findings),
        )
        path = Path(out) / "report.html"
        timed("report.html", lambda: write_report(path, table, rows, logits, scores))
        report_bytes = path.stat().st_size
        metrics_json = json.dumps(dataclasses.asdict(scores), allow_nan=False)
    print(f"| all | {time.perf_counter() - began:.2f} | |\n\nmetrics: {len(metrics_json):,} bytes")
    print(f"report: {report_bytes:,} bytes")


if __name__ == "__main__":
    main()
