"""Compare where a network looks with the boxes around the findings of its images."""

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from charm_jax.config.cli import say
from charm_jax.inference.loaded import LoadedModel
from charm_jax.inference.predictor import ATTENTION, BATCH, Predictor
from charm_jax.metrics import localisation
from charm_jax.metrics.localisation import Truth
from charm_jax.metrics.result import EvaluationResult
from charm_jax.report.contents import Localisation
from charm_jax.runs.cases import CaseMatch
from charm_jax.runs.data import Data
from charm_jax.runs.folder import write_json
from data_pipelines import sources
from data_pipelines.errors import InputError, listed
from data_pipelines.loading import loader
from data_pipelines.progress import progress
from data_pipelines.tables.boxes import Boxes
from data_pipelines.tables.case_table import CaseTable
from data_pipelines.tables.findings import columns_of


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The boxes of the evaluated images, and the image's row in the table of each pair."""

    truth: Truth
    rows: Int[np.ndarray, " p"]


def read_pairs(given: Data, data: Data, rows: Int[np.ndarray, " n"], split: str) -> Pairs:
    """Read the boxes of a source and find the pairs; see ``find_pairs``.

    Args:
        given: data with the findings of the source.
        data: the same with those of the model.
        rows: evaluated rows.
        split: their name.
    """
    boxes = sources.read_boxes(Path(given.settings.dir), given.settings.csv, given.table)
    for warning in boxes.warnings:
        say(f"warning: {warning}")
    return find_pairs(boxes, data.table, rows, split)


def find_pairs(boxes: Boxes, table: CaseTable, rows: Int[np.ndarray, " n"], split: str) -> Pairs:
    """Find the pairs of an evaluated image and a finding of the model that have boxes.

    Args:
        boxes: boxes of the source.
        table: table with the model's findings.
        rows: evaluated rows.
        split: their name, for the error.

    Raises:
        InputError: there is none.
    """
    columns = columns_of(boxes.findings.tolist(), table.findings)
    used = np.isin(boxes.rows, rows) & (columns >= 0)
    if not used.any():
        raise InputError(
            f"None of the {len(boxes.rows):,} boxes of {table.source} is around a finding of the "
            f"model in one of the {len(rows):,} evaluated images (split {split!r}; boxes of "
            f"{listed(sorted(set(boxes.findings.tolist())))}): evaluate other images, such as "
            "another --split, or leave out --boxes."
        )
    keys = boxes.rows[used] * len(table.findings) + columns[used]
    distinct, pairs = np.unique(keys, return_inverse=True)
    images, findings = np.divmod(distinct, len(table.findings))
    truth = Truth(boxes.fractions[used], pairs, findings, table.patients[images])
    return Pairs(truth, images)


def localise(model: LoadedModel, data: Data, pairs: Pairs, match: CaseMatch) -> Localisation:
    """Compute the maps of all pairs and score them beside the two baselines.

    Args:
        model: evaluated model.
        data: data with the model's findings.
        pairs: boxes of evaluated images.
        match: cases of the table as the model knows them.
    """
    maps = _maps(model, data, pairs, match)
    located = {name: localisation.from_maps(heats) for name, heats in maps.items()}
    located |= {
        "image_centre": localisation.image_centre(pairs.truth),
        "mean_box": localisation.mean_box(pairs.truth),
    }
    result = localisation.score(located, pairs.truth, data.table.findings)
    return Localisation(result, pairs.truth, pairs.rows, maps, located)


def _maps(
    model: LoadedModel, data: Data, pairs: Pairs, match: CaseMatch
) -> dict[str, Float[np.ndarray, "p h w"]]:
    """Return the maps of each method: attention where there is one, and Grad-CAM twice."""
    predictor, wanted = Predictor(model), np.unique(pairs.rows)
    batches = loader.evaluation_batches(
        data.table,
        wanted,
        image_size=data.settings.image_size,
        batch_size=BATCH,
        workers=data.settings.processes,
    )
    made: dict[str, list[np.ndarray]] = {}
    with progress(total=len(wanted), desc="comparing with boxes", unit="images") as bar:
        for batch in batches:
            ids = batch["case_id"][batch["mask"]]
            known = {"case_id": match.case_ids[ids], "patient_id": match.patient_ids[ids]}
            batch, explained, outputs = predictor.explain(batch["image"], known)
            here = np.flatnonzero(np.isin(pairs.rows, ids))
            places = np.searchsorted(ids, pairs.rows[here])
            some = [*zip(places.tolist(), pairs.truth.findings[here].tolist(), strict=True)]
            if ATTENTION in outputs:
                made.setdefault(ATTENTION, []).extend(outputs[ATTENTION][row] for row, _ in some)
            for name, cams in (
                ("grad_cam", predictor.grad_cams(batch, explained, some)),
                ("grad_cam_finer", predictor.finer_grad_cams(batch, some)),
            ):
                made.setdefault(name, []).extend(cams[pair] for pair in some)
            bar.update(len(ids))
    return {name: np.stack(heats).astype(np.float32) for name, heats in made.items()}


def write(out: Path, found: Localisation, result: EvaluationResult) -> None:
    """Write the shares of hits, and what they were taken on, to ``localisation.json``."""
    names = ("source", "simulated", "split", "split_sha256", "checkpoint", "network_sha256")
    content = {name: getattr(result, name) for name in names}
    content["maps"] = {
        name: {"places": list(heats.shape[1:]), "empty": found.empty(name)}
        for name, heats in found.maps.items()
    }
    write_json(out / "localisation.json", content | dataclasses.asdict(found.result))
