"""Simulated chest X-rays, drawn on first use."""

import dataclasses
from pathlib import Path

from data_pipelines.phantom.draw import ensure_phantoms
from data_pipelines.sources import nih_chest_xray14
from data_pipelines.tables.case_table import CaseTable


def load(directory: Path, csv: str = "", **sizes: int) -> CaseTable:
    """Reads a simulated set, drawing it on first use.

    Args:
        directory: of the set.
        csv: as for ChestX-ray14.
        **sizes: those of `write_phantoms`; without any, a set that was drawn before is read.

    Raises:
        InputError: as in `write_phantoms` and for ChestX-ray14.
    """
    if sizes:
        ensure_phantoms(directory, **sizes)
    return dataclasses.replace(nih_chest_xray14.load(directory, csv), source="phantom")
