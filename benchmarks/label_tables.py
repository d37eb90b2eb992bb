"""Read a set's tables: time, memory and counts, beside those of TorchXRayVision's loader.

    python benchmarks/label_tables.py SOURCE DIR          # DIR as config.data.dir
    python benchmarks/label_tables.py SOURCE DIR --peer   # after pip install torchxrayvision
    python benchmarks/label_tables.py mimic_cxr_jpg DIR --make   # first writes tables of full size

The peer reads the tables that it ships, with all frontal views and all images of a patient; DIR
holds the same ones under the set's own names. ``--make`` writes MIMIC-CXR-JPG's tables, whose real
ones are not public, with random content and the real numbers of rows.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from data_pipelines import sources
from data_pipelines.sources.chexpert import LABELS
from data_pipelines.tables.findings import NO_FINDING, columns_of

_FRONTAL = ["PA", "AP", "AP Supine"]
_PEERS: dict[str, tuple[str, dict]] = {
    "nih_chest_xray14": ("NIH_Dataset", {"views": _FRONTAL, "unique_patients": False}),
    "chexpert": ("CheX_Dataset", {"views": _FRONTAL, "unique_patients": False}),
    "padchest": ("PC_Dataset", {"views": _FRONTAL, "unique_patients": False}),
    "openi": ("Openi_Dataset", {"views": _FRONTAL, "unique_patients": False}),
    "rsna_pneumonia": ("RSNA_Pneumonia_Dataset", {"views": _FRONTAL}),
    "siim_pneumothorax": ("SIIM_Pneumothorax_Dataset", {}),
    "vindr_cxr": ("VinDr_Dataset", {}),
}
_IMAGES, _STUDIES, _PATIENTS = 377_110, 227_835, 65_379
_UNLABELLED = 8  # studies


def make_mimic(folder: Path) -> None:
    """Write tables of MIMIC-CXR-JPG with random content."""
    draw = np.random.Generator(np.random.PCG64(0))
    folder.mkdir(parents=True, exist_ok=True)
    study = np.sort(np.append(np.arange(_STUDIES), draw.integers(0, _STUDIES, _IMAGES - _STUDIES)))
    numbers = 50_000_000 + draw.permutation(9_999_999)[:_STUDIES]
    people = 10_000_000 + draw.permutation(9_999_999)[:_PATIENTS]
    owner = np.sort(draw.integers(0, _PATIENTS, _STUDIES))
    ids = {
        "dicom_id": ["-".join(f"{word:08x}" for word in row) for row in _words(draw)],
        "subject_id": people[owner[study]],
        "study_id": numbers[study],
    }
    view = draw.choice(["PA", "AP", "LATERAL", "LL", ""], _IMAGES, p=[0.25, 0.39, 0.22, 0.1, 0.04])
    date = draw.integers(21_100_101, 22_000_101, _IMAGES)
    metadata = ids | {"ViewPosition": view, "StudyDate": date, "StudyTime": 1200, "Rows": 3056}
    part = draw.choice(["train", "validate", "test"], _PATIENTS, p=[0.97, 0.01, 0.02])
    labelled = slice(_STUDIES - _UNLABELLED)
    labels = {"subject_id": people[owner[labelled]], "study_id": numbers[labelled]} | {
        name: draw.choice(
            ["", "1.0", "0.0", "-1.0"], _STUDIES - _UNLABELLED, p=[0.7, 0.15, 0.1, 0.05]
        )
        for name in (*LABELS, NO_FINDING)
    }
    gender = draw.choice(["F", "M"], _PATIENTS)
    patients = {"subject_id": people, "gender": gender, "anchor_age": 60, "anchor_year": 2150}
    tables = {
        "mimic-cxr-2.0.0-metadata": metadata,
        "mimic-cxr-2.0.0-split": ids | {"split": part[owner[study]]},
        "mimic-cxr-2.0.0-chexpert": labels,
        "patients": patients,
    }
    for name, columns in tables.items():
        pd.DataFrame(columns).to_csv(folder / f"{name}.csv.gz", index=False)


def _words(draw: np.random.Generator) -> list[list[int]]:
    return draw.integers(0, 2**32, (_IMAGES, 5)).tolist()


def timed(read: Callable[[], object]) -> tuple[object, str]:
    """Return what a function reads, with its seconds and the process's peak memory."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = read()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1e6
    return result, f"{wall:.1f} s, {cpu:.1f} s of CPU, peak {peak:.2f} GB"


def main() -> None:
    """Read the tables and print what was measured and counted."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", choices=sources.SOURCES)
    parser.add_argument("dir", type=Path)
    parser.add_argument("--uncertain", default="ignore", choices=sources.UNCERTAIN_POLICIES)
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--make", action="store_true")
    options = parser.parse_args()
    if options.make:
        make_mimic(options.dir)
    table, spent = timed(
        lambda: sources.load(options.source, options.dir, uncertain=options.uncertain)
    )
    print(f"{len(table.images):,} images of {len(np.unique(table.patients)):,} patients: {spent}")
    names, labels = list(table.findings), table.labels
    theirs = np.zeros((0, 0))
    if options.peer:
        import torchxrayvision

        kind, arguments = _PEERS[options.source]
        peer = getattr(torchxrayvision.datasets, kind)(str(options.dir), **arguments)
        theirs, known = peer.labels, list(peer.pathologies)
        names += [name for name in known if columns_of((name,), names)[0] < 0]
        print(f"there: {len(theirs):,} images")
    for column, name in enumerate(names):
        ours = _counts(labels[:, column]) if column < labels.shape[1] else None
        at = columns_of((name,), known)[0] if options.peer else -1
        other = f"  there {_counts(theirs[:, at])}" if at >= 0 else ""
        print(f"{name:28} {ours}{other}")


def _counts(labels: np.ndarray) -> tuple[int, int]:
    return int((labels == 1).sum()), int((labels == 0).sum())


if __name__ == "__main__":
    main()
