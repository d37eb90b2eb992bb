"""Prepare the small NIH folder, and compare what was prepared."""

import json
from pathlib import Path

import numpy as np

import data_pipelines
from data_pipelines import sources
from data_pipelines.prepare.preparation import prepare

SOURCE = "nih_chest_xray14"
ROOT = str(Path(data_pipelines.__file__).parents[1])


def prepare_nih(nih, out, **changes):
    return prepare(SOURCE, nih.path, out, **({"size": 8, "rows_per_shard": 2} | changes))


def content(out):
    """Digest, names in order, and pixels; all by our own reader and by TFDS."""
    import tensorflow_datasets as tfds

    records = list(tfds.builder_from_directory(out).as_data_source("all"))
    table = sources.load(SOURCE, out)
    rows = np.flatnonzero(table.present)
    size = json.loads((out / "summary.json").read_text())["size"]
    images = table.store.read(rows, size)
    assert [record["case_id"] for record in records] == rows.tolist()
    assert all(
        (record["image"] == image).all() for record, image in zip(records, images, strict=True)
    )
    return (
        json.loads((out / "summary.json").read_text()),
        [record["name"] for record in records],
        images.tobytes(),
        (out / "table.csv.gz").read_bytes(),
    )


def leftovers(out):
    return [path.name for path in out.rglob("*") if path.suffix in (".draft", ".tmp")]
