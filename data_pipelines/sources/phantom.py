"""Read simulated chest X-rays, drawing them on first use."""

import dataclasses
from pathlib import Path

from data_pipelines.phantom.draw import ensure_phantoms
from data_pipelines.sources import nih_chest_xray14
from data_pipelines.tables.case_table import CaseTable


def load(directory: Path, csv: str = "", **sizes: int) -> CaseTable:
    """Read a simulated set, drawing it on first use.

    Args:
        directory: folder of the set.
        csv: table to read in place of the set's own.
        **sizes: arguments of ``write_phantoms``; without any, an existing set is read.

    Raises:
        InputError: see ``write_phantoms`` and ``nih_chest_xray14.load``.
    """
    if sizes:
        ensure_phantoms(directory, **sizes)
    return dataclasses.replace(nih_chest_xray14.load(directory, csv), source="phantom")
