"""Complete a prepared data set: table, ``summary.json`` and TFDS files."""

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.atomic_files import whole_file
from data_pipelines.prepare.shard_writer import Report
from data_pipelines.prepared import dataset
from data_pipelines.prepared.shards import SPLIT, Layout, features
from data_pipelines.sources import SOURCES
from data_pipelines.tables.case_table import SIMULATED_MARKER, CaseTable
from data_pipelines.tables.quarantine import Entry

SUMMARY = "summary.json"


def write_summary(
    layout: Layout, table: CaseTable, reports: Sequence[Report], refused: Sequence[Entry]
) -> None:
    """Write all files but the shards, ``dataset_info.json`` last.

    Args:
        layout: layout of the data set.
        table: the source's full table.
        reports: reports on all shards, in order.
        refused: ``(image, reason)`` of each image that was refused.
    """
    unreadable = [name for report in reports for name, _ in report["refused"]]
    kept = table.present & ~np.isin(table.images, unreadable)
    records = np.where(kept, np.cumsum(kept) - 1, -1)
    dataset.write_table(layout.directory / dataset.TABLE, table, records)
    if table.simulated:
        with whole_file(layout.directory / SIMULATED_MARKER) as file:
            file.write(
                "Every image in this folder is SIMULATED: drawn by a program, of no patient.\n"
            )
    summary = _summary(layout, table, kept, reports) | {"refused": len(refused)}
    with whole_file(layout.directory / SUMMARY) as file:
        json.dump(summary, file, indent=1)
    _write_tfds(layout, table, summary, [report["records"] for report in reports])


def _summary(
    layout: Layout, table: CaseTable, kept: np.ndarray, reports: Sequence[Report]
) -> dict[str, Any]:
    views, counts = np.unique(table.views[kept], return_counts=True)
    positives = (table.labels[kept] == 1).sum(axis=0)
    # A digest of the content: files with equal records differ in their bytes.
    digest = hashlib.sha256("\n".join(report["sha256"] for report in reports).encode())
    return {
        "source": table.source,
        "simulated": table.simulated,
        "size": layout.size,
        "rows": len(table.images),
        "images": int(kept.sum()),
        "absent": int((~table.present).sum()),
        "patients": len(np.unique(table.patients[kept])),
        "findings": dict(zip(table.findings, positives.tolist(), strict=True)),
        "views": dict(zip((v or "unknown" for v in views.tolist()), counts.tolist(), strict=True)),
        "sha256": digest.hexdigest(),
    }


def _write_tfds(
    layout: Layout, table: CaseTable, summary: dict[str, Any], shard_lengths: list[int]
) -> None:
    import tensorflow_datasets as tfds

    card = SOURCES[layout.source].card
    counts = ", ".join(f"{name} {count}" for name, count in summary["findings"].items())
    prefix = "SIMULATED images. " if table.simulated else ""
    with tempfile.TemporaryDirectory(dir=layout.directory, prefix=".tfds-") as hidden:
        # TFDS takes name, split and format from the file names.
        for index in range(layout.n_shards):
            Path(hidden, layout.shard(index).name).touch()
        template = tfds.core.ShardedFileTemplate(
            data_dir=hidden,
            dataset_name=layout.source,
            split=SPLIT,
            filetype_suffix="array_record",
        )
        split = tfds.core.SplitInfo(
            name=SPLIT,
            shard_lengths=shard_lengths,
            num_bytes=sum(layout.shard(i).stat().st_size for i in range(layout.n_shards)),
            filename_template=template,
        )
        tfds.folder_dataset.write_metadata(
            data_dir=hidden,
            features=features(layout.size, len(table.findings)),
            split_infos=[split],
            check_data=False,
            description=(
                f"{prefix}{card.description} Here: {summary['images']} images of "
                f"{summary['patients']} patients, grey, {layout.size} x {layout.size} pixels, "
                f"sorted by name. Labels: 1 present, 0 absent, -1 unknown, -2 possible, in this "
                f"order, with images that have the finding: {counts}. Terms: {card.license}"
            ),
            citation=card.citation,
            homepage=card.homepage,
            license=card.license,
        )
        made = {path.name for path in Path(hidden).iterdir() if path.stat().st_size}
        for name in [*sorted(made - {dataset.TFDS_INFO}), dataset.TFDS_INFO]:
            os.replace(Path(hidden, name), layout.directory / name)
