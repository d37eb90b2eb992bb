"""Read simulated chest X-rays."""

import dataclasses
from pathlib import Path

from data_pipelines.errors import InputError
from data_pipelines.phantom.draw import holds_phantoms
from data_pipelines.sources import nih_chest_xray14
from data_pipelines.sources.card import Card
from data_pipelines.tables.case_table import CaseTable

read_boxes = nih_chest_xray14.read_boxes
TABLES, COLUMNS = nih_chest_xray14.TABLES, nih_chest_xray14.COLUMNS
CARD = Card(
    description="SIMULATED chest X-rays, drawn by a program, of no patient.",
    license="MIT, as the program that drew them.",
)


def load(directory: Path, csv: str = "", **sizes: int) -> CaseTable:
    """Read a simulated set.

    Args:
        directory: folder of the set.
        csv: table to read in place of the set's own.
        **sizes: arguments of ``write_phantoms`` that the set must have; none for any set.

    Raises:
        InputError: there is no such set; see also ``nih_chest_xray14.load``.
    """
    if sizes and not holds_phantoms(directory, **sizes):
        options = " ".join(f"--{name} {value}" for name, value in sizes.items())
        raise InputError(
            f"There are no simulated images in {directory}: draw them with `charm-jax phantom "
            f"--out {directory} {options}`, or name their folder with --config.data.dir."
        )
    table = nih_chest_xray14.load(directory, csv)
    if not table.simulated:
        raise InputError(
            f"{directory} holds no simulated images: name its source with --config.data.source, "
            "such as nih_chest_xray14."
        )
    return dataclasses.replace(table, source="phantom")
