"""Register the data sources; each is a file with a loader, a card and what tells its table."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np

from data_pipelines.errors import InputError, did_you_mean
from data_pipelines.images.decode import CONTAINER, VALUE_RANGES, valid_value_range
from data_pipelines.prepared import dataset
from data_pipelines.sources import (
    chexpert,
    csv_folder,
    medmnist,
    merged,
    mimic_cxr_jpg,
    nih_chest_xray14,
    openi,
    padchest,
    phantom,
    rsna_pneumonia,
    siim_pneumothorax,
    vindr_cxr,
)
from data_pipelines.sources.card import USERS_OWN, Card
from data_pipelines.sources.published import VIEWS, find_table, header
from data_pipelines.tables.boxes import Boxes
from data_pipelines.tables.case_table import UNCERTAIN, CaseTable
from data_pipelines.tables.findings import plain


@dataclasses.dataclass(frozen=True)
class Source:
    """Describe a data source.

    Attributes:
        load: reads the table of a folder.
        card: origin and terms.
        tables: names or patterns of its main table, to tell a folder of it from another set's.
        columns: columns that tell its table from another set's.
        boxes: reads the boxes around findings for the table of a folder; None without boxes.
        lateral: whether it has lateral images, so that ``load`` takes ``views``.
    """

    load: Callable[..., CaseTable]
    card: Card = USERS_OWN
    tables: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    boxes: Callable[[Path, str, CaseTable], Boxes] | None = None
    lateral: bool = False


def _of(module: ModuleType, *, lateral: bool = False) -> Source:
    boxes = getattr(module, "read_boxes", None)
    return Source(module.load, module.CARD, module.TABLES, module.COLUMNS, boxes, lateral)


SOURCES: dict[str, Source] = {
    "nih_chest_xray14": _of(nih_chest_xray14),
    "csv_folder": Source(csv_folder.load, tables=(csv_folder.TABLE,)),
    "chexpert": _of(chexpert, lateral=True),
    "mimic_cxr_jpg": _of(mimic_cxr_jpg, lateral=True),
    "openi": _of(openi, lateral=True),
    "padchest": _of(padchest, lateral=True),
    "rsna_pneumonia": _of(rsna_pneumonia),
    "siim_pneumothorax": _of(siim_pneumothorax),
    "vindr_cxr": _of(vindr_cxr),
    "chestmnist": Source(medmnist.load_chestmnist, medmnist.CHEST_CARD),
    "pneumoniamnist": Source(medmnist.load_pneumoniamnist, medmnist.PNEUMONIA_CARD),
    "phantom": _of(phantom),
    merged.NAME: _of(merged, lateral=True),
}


# Label of an uncertain finding, by policy. Irvin et al. (AAAI 2019) chose ones for two of the five
# findings that they compare. Differs: for the others they chose training on predicted labels
# (Consolidation) or with a third class (Cardiomegaly, Effusion), which are no labels; these are
# ignored, as in the first step of the former.
UNCERTAIN_POLICIES: dict[str, Callable[[str], int]] = {
    "ignore": lambda finding: -1,
    "zeros": lambda finding: 0,
    "ones": lambda finding: 1,
    "chexpert": lambda finding: 1 if finding in ("Atelectasis", "Edema") else -1,
}
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".7z")


def load(
    source: str,
    directory: Path,
    csv: str = "",
    value_range: str = CONTAINER,
    uncertain: str = "ignore",
    views: str = "frontal",
    **options: int,
) -> CaseTable:
    """Read the table of a source.

    Args:
        source: a name of ``SOURCES``.
        directory: folder of the data, raw or prepared (``data_pipelines.prepare``).
        csv: file to read in place of the source's own table; empty for the source's own.
        value_range: see ``decode.decode``; a prepared folder must have been prepared with it.
        uncertain: policy for uncertain labels, a key of ``UNCERTAIN_POLICIES``; ``keep`` leaves
            them as ``UNCERTAIN``.
        views: one of ``VIEWS``: ``frontal`` leaves out the lateral images of a set that has some; a
            prepared folder must have been prepared with it.
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
        packed = Path(directory).name.lower().endswith(_ARCHIVES)
        near = f"name the folder that it is in, {Path(directory).parent}"
        remedy = "unpack it and name that folder" if packed else near
        raise InputError(f"The data folder {directory} is a file: {remedy}.")
    if not valid_value_range(value_range):
        raise InputError(f"config.data.value_range is {value_range!r}: give {VALUE_RANGES}.")
    if uncertain not in (*UNCERTAIN_POLICIES, "keep"):
        raise InputError(
            f"config.data.uncertain is {uncertain!r}: {did_you_mean(uncertain, UNCERTAIN_POLICIES)}"
        )
    if views not in VIEWS:
        raise InputError(f"config.data.views is {views!r}: {did_you_mean(views, VIEWS)}")
    lateral = SOURCES[source].lateral
    if dataset.is_prepared(directory):
        table = _load_prepared(source, Path(directory), csv, value_range, views if lateral else "")
        return _resolve_uncertain(table, uncertain)
    if (Path(directory) / dataset.IDENTITY).is_file():
        raise InputError(
            f"{directory} holds prepared images but its preparation is not finished: run "
            "`charm-jax prepare` once more without --part."
        )
    try:
        chosen = {"views": views} if lateral else {}
        table = SOURCES[source].load(Path(directory), csv, **chosen, **options)
    except InputError as error:
        readers = _readers(source, Path(directory), csv)
        if not readers or source in readers:
            raise
        reader, path = next(iter(readers.items()))
        raise InputError(
            f"The table {path} is one of {reader}, not of {source}: set "
            f"--config.data.source={reader}."
        ) from error
    store = dataclasses.replace(table.store, value_range=value_range)
    return _resolve_uncertain(dataclasses.replace(table, store=store), uncertain)


def _load_prepared(
    source: str, directory: Path, csv: str, value_range: str, views: str
) -> CaseTable:
    """Read a prepared folder, if it was prepared as is asked.

    Args:
        source: see ``load``.
        directory: the folder.
        csv: see ``load``.
        value_range: see ``load``.
        views: see ``load``; empty for any.
    """
    if csv:
        raise InputError(
            f"config.data.csv is {csv!r} but {directory} is prepared and has its own table: "
            "leave the key empty, or name the folder of the source's own files."
        )
    table, identity = dataset.load(directory, source), dataset.read_identity(directory)
    for key, asked in (("value_range", value_range), ("views", views)):
        if asked and identity[key] != asked:
            raise InputError(
                f"config.data.{key} is {asked!r} but {directory} was prepared with "
                f"{identity[key]!r}: set --config.data.{key}={identity[key]}, or prepare the "
                "images again into another folder."
            )
    return table


def read_boxes(directory: Path, csv: str, table: CaseTable) -> Boxes:
    """Read the boxes around the findings of a source.

    Args:
        directory: folder of the source's own files.
        csv: see ``load``.
        table: what ``load`` returned for them.

    Raises:
        InputError: the source has no boxes, the folder is prepared, or a box is wrong.
    """
    read = SOURCES[table.source].boxes
    if read is None:
        known = [name for name, source in SOURCES.items() if source.boxes is not None]
        raise InputError(
            f"The source {table.source} has no boxes around findings: use one of "
            f"{', '.join(known)}."
        )
    if dataset.is_prepared(directory):
        raise InputError(
            f"{directory} holds prepared images without their boxes: name the folder of the "
            "source's own files with --config.data.dir."
        )
    return read(Path(directory), csv, table)


def _readers(source: str, directory: Path, csv: str) -> dict[str, Path]:
    """Return the sources that read the table given to one of them, with the table.

    Without a table of the source's own, those of other sources count.
    """
    given = [path for path in (Path(csv), directory / csv) if csv and path.is_file()]
    own = next(iter(given), find_table(directory, SOURCES[source].tables))
    tables = {
        name: own or find_table(directory, other.tables)
        for name, other in SOURCES.items()
        if other.columns
    }
    return {
        name: path
        for name, path in tables.items()
        if path and set(map(plain, SOURCES[name].columns)) <= header(path)
    }


def _resolve_uncertain(table: CaseTable, policy: str) -> CaseTable:
    """Replace uncertain labels by the policy."""
    if policy == "keep":
        return table
    values = [UNCERTAIN_POLICIES[policy](name) for name in table.findings]
    labels = np.where(table.labels == UNCERTAIN, np.array(values, np.int8), table.labels)
    return dataclasses.replace(table, labels=labels)
