"""Register the data sources; each is a file with a loader."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from data_pipelines.errors import InputError, did_you_mean
from data_pipelines.images.decode import CONTAINER, VALUE_RANGES, valid_value_range
from data_pipelines.prepared import dataset
from data_pipelines.sources import csv_folder, medmnist, nih_chest_xray14, phantom
from data_pipelines.tables.case_table import CaseTable

SOURCES: dict[str, Callable[..., CaseTable]] = {
    "nih_chest_xray14": nih_chest_xray14.load,
    "csv_folder": csv_folder.load,
    "chestmnist": medmnist.load_chestmnist,
    "pneumoniamnist": medmnist.load_pneumoniamnist,
    "phantom": phantom.load,
}


def load(
    source: str, directory: Path, csv: str = "", value_range: str = CONTAINER, **options: int
) -> CaseTable:
    """Read the table of a source.

    Args:
        source: a name of ``SOURCES``.
        directory: folder of the data, raw or prepared (``data_pipelines.prepare``).
        csv: file to read in place of the source's own table; empty for the source's own.
        value_range: see ``decode.decode``; a prepared folder must have been prepared with it.
        **options: options of this source, the keys of ``config.data.<source>``.

    Raises:
        InputError: unknown source, or an error that the source's loader finds.
    """
    if source not in SOURCES:
        raise InputError(
            f"config.data.source is {source!r}, which is not a known source: "
            f"{did_you_mean(source, SOURCES)}"
        )
    if Path(directory).is_file():
        raise InputError(
            f"The data folder {directory} is a file: name the folder that it is in, "
            f"{Path(directory).parent}."
        )
    if not valid_value_range(value_range):
        raise InputError(f"config.data.value_range is {value_range!r}: give {VALUE_RANGES}.")
    if dataset.is_prepared(directory):
        if csv:
            raise InputError(
                f"config.data.csv is {csv!r} but {directory} is prepared and has its own table: "
                "leave the key empty, or name the folder of the source's own files."
            )
        table = dataset.load(directory, source)
        if table.store.value_range != value_range:
            raise InputError(
                f"config.data.value_range is {value_range!r} but {directory} was prepared with "
                f"{table.store.value_range!r}: set --config.data.value_range="
                f"{table.store.value_range}, or prepare the images again into another folder."
            )
        return table
    if (Path(directory) / dataset.IDENTITY).is_file():
        raise InputError(
            f"{directory} holds prepared images but its preparation is not finished: run "
            "`charm-jax prepare` once more without --part."
        )
    table = SOURCES[source](Path(directory), csv, **options)
    store = dataclasses.replace(table.store, value_range=value_range)
    return dataclasses.replace(table, store=store)
