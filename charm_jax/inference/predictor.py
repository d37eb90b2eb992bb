"""Predict image files or arrays: scores, findings, evidence and heat maps."""

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, UInt8

from charm_jax.inference import explain, fitted, records
from charm_jax.inference.fitted import Calibrator
from charm_jax.inference.loaded import LoadedModel
from charm_jax.inference.records import ATTENTION, Record, StoredCases
from data_pipelines.images.decode import Check
from data_pipelines.loading import given
from data_pipelines.loading.given import GivenImages

BATCH = 16
MOST_FORGOTTEN = 128  # cases at a time
Outputs = dict[str, np.ndarray]
Heats = dict[str, np.ndarray]
_ON_DEVICE = ("main", "momentum_features", "fused")  # large, and of no use to a reader


class Explained(NamedTuple):
    """A batch of files, as ``Predictor.explain`` returns it.

    Attributes:
        paths: of the files.
        ids: result of ``Predictor.match`` for them.
        checks: what was found out about them.
        batch: padded images.
        explained: all outputs, on the device.
        outputs: the small ones, on the host, without padding.
    """

    paths: Sequence[Path]
    ids: Mapping[str, np.ndarray]
    checks: Sequence[Check]
    batch: dict[str, np.ndarray]
    explained: dict[str, jax.Array]
    outputs: Outputs

    def known(self, row: int) -> Record:
        """Return what the run knows of a file."""
        return {
            "known_as": str(self.ids["name"][row]) or None,
            "seen_in_training": bool(self.ids["seen"][row]),
        }


class Predictor:
    """Explain the predictions of a model, 16 images at a time."""

    def __init__(
        self,
        model: LoadedModel,
        value_range: str = "",
        sizes: Sequence[int] = (BATCH,),
        coverage: float | None = None,
    ):
        """Wrap a model.

        Args:
            value_range: of the given files, by default that of training.
            sizes: of the batches that programs are compiled for, the largest last; images are
                padded to the next one.
            coverage: of conformal sets, if any.
        """
        self.model, self.size, self.sizes = model, model.settings.data.image_size, sizes
        self.coverage = coverage
        self.value_range = value_range or model.settings.data.value_range

    @functools.cached_property
    def calibrator(self) -> Calibrator:
        """Calibration and out-of-distribution reference, fitted at first use if need be."""
        return fitted.load_calibrator(self.model, coverage=self.coverage)

    def predict_files(
        self, images: GivenImages, *, heat_maps: bool
    ) -> Iterator[tuple[Record, Heats]]:
        """Yield a record and heat maps for each file, in order; bad files have ``error``.

        Args:
            heat_maps: whether to compute attention and a Grad-CAM for each reported finding.
        """
        for part in self.explain_files(images):
            made = self.records(part.outputs, part.checks)
            heats = self.heats(part, made) if heat_maps else [{} for _ in made]
            for row, record in enumerate(made):
                entry: Record = {"file": part.paths[row].as_posix()}
                if part.checks[row].fault:
                    yield entry | {"error": part.checks[row].fault}, {}
                    continue
                yield entry | part.known(row) | record, heats[row]

    def explain_files(self, images: GivenImages) -> Iterator[Explained]:
        """Yield the outputs of each batch of files, in order."""
        ids, start = self.match(images), 0
        batches = given.batches(
            images.paths, image_size=self.size, batch_size=BATCH, value_range=self.value_range
        )
        for pixels, checks in batches:
            here = slice(start, start + len(checks))
            some = {name: values[here] for name, values in ids.items()}
            yield Explained(images.paths[here], some, checks, *self.explain(pixels, some))
            start += len(checks)

    def heats(self, part: Explained, made: Sequence[Record]) -> list[Heats]:
        """Compute attention, and a Grad-CAM for each finding that the records report."""
        findings = self.model.pathologies
        pairs = [
            (row, findings.index(name))
            for row, record in enumerate(made)
            if not part.checks[row].fault
            for name in record["findings"] or []
        ]
        heats: list[Heats] = [{} for _ in made]
        if ATTENTION in part.outputs:
            for row, attention in enumerate(part.outputs[ATTENTION]):
                heats[row][ATTENTION] = attention
        for (row, finding), heat in self.grad_cams(part.batch, part.explained, pairs).items():
            heats[row][findings[finding]] = heat
        return heats

    def explain(
        self,
        pixels: UInt8[np.ndarray, "batch side side 1"],
        ids: Mapping[str, np.ndarray] | None = None,
    ) -> tuple[dict[str, np.ndarray], dict[str, jax.Array], Outputs]:
        """Explain a batch: padded images, all outputs, and the small ones on the host.

        Args:
            pixels: grey levels, padded to the batch size or not.
            ids: ``case_id`` and ``patient_id`` in the bank, whose cases are then not read.
        """
        n = len(pixels) if ids is None else len(ids["case_id"])
        ids = ids or dict.fromkeys(("case_id", "patient_id"), np.full(n, -1, np.int32))
        size = next(size for size in self.sizes if size >= len(pixels))
        batch = {
            "image": np.pad(pixels, ((0, size - len(pixels)), (0, 0), (0, 0), (0, 0))),
            "labels": np.full((size, len(self.model.pathologies)), -1, np.int8),
        }
        for name in ("case_id", "patient_id"):
            batch[name] = np.pad(ids[name], (0, size - n), constant_values=-1)
        step = self.model.compile(explain.explain_step, shared=False)
        explained = step(self.model.state, batch)
        light = {name: value for name, value in explained.items() if name not in _ON_DEVICE}
        if self.model.tta:  # evidence and maps are those of the image as it is
            views = self.model.compile(self.model.scoring_step, shared=False)
            scored = views(self.model.state, batch)
            light |= {name: scored[name] for name in ("logits", "single_view")}
        outputs = {name: value[:n] for name, value in jax.device_get(light).items()}
        return batch, explained, outputs

    def records(self, outputs: Outputs, checks: Sequence[Check]) -> list[Record]:
        """Turn the outputs of images into records, ready for JSON."""
        return records.records(outputs, self.calibrator, self.bank, checks)

    def origin(self) -> Record:
        """Describe the model for a record."""
        return describe_origin(self.model) | describe_lacks(self.calibrator)

    def without(
        self, fused: Float[np.ndarray, " dim"], forgotten: Collection[int]
    ) -> dict[str, np.ndarray]:
        """Classify features with some cases forgotten; see ``explain.read_without``.

        Args:
            fused: as ``explain_step`` returns them.
            forgotten: ids of at most 128 cases of the bank.
        """
        ids = np.full(MOST_FORGOTTEN, -1, np.int32)
        ids[: len(forgotten)] = list(forgotten)
        step = self.model.jit(explain.read_without)
        outputs = jax.device_get(step(self.model.state, fused[None], ids))
        return {name: value[0] for name, value in outputs.items()}

    @functools.cached_property
    def bank(self) -> StoredCases | None:
        """The cases of the memory bank; None for a network without one."""
        memory = self.model.state.memory
        return None if memory is None else records.stored_cases(memory, self.model.bank_cases())

    def grad_cams(
        self,
        batch: Mapping[str, np.ndarray],
        explained: Mapping[str, jax.Array],
        pairs: Sequence[tuple[int, int]],
    ) -> dict[tuple[int, int], np.ndarray]:
        """Compute the Grad-CAM ``[h, w]`` of pairs (row of the batch, number of the finding)."""
        step = self.model.jit(explain.grad_cams)
        return _in_batches(pairs, functools.partial(step, self.model.state, batch, explained))

    def finer_grad_cams(
        self, batch: Mapping[str, np.ndarray], pairs: Sequence[tuple[int, int]]
    ) -> dict[tuple[int, int], np.ndarray]:
        """Compute the Grad-CAM of pairs over a finer map; see ``explain.finer_grad_cams``."""
        step = self.model.compile(explain.finer_grad_cams, shared=False)

        def heats(rows: np.ndarray, findings: np.ndarray) -> jax.Array:
            chosen = {name: values[rows] for name, values in batch.items()}
            return step(self.model.state, chosen | {"finding": findings})

        return _in_batches(pairs, heats)

    def match(self, images: GivenImages) -> dict[str, np.ndarray]:
        """Match files with the bank and with training."""
        n, model = len(images.names), self.model
        ids = {
            "case_id": np.full(n, -1, np.int32),
            "patient_id": np.full(n, -1, np.int32),
            "seen": np.zeros(n, bool),
            "name": np.full(n, "", object),
        }
        if model.run is None:
            return ids
        # Simulated and real images may have the same names.
        simulated = model.trained["simulated"]
        rows = np.flatnonzero([given.is_simulated(path) == simulated for path in images.paths])
        rows = rows[np.argsort(np.array(images.names)[rows])]
        some = GivenImages(tuple(images.names[row] for row in rows), (), 0)
        table = given.table_of(some, model.pathologies, simulated=simulated)
        match = model.match_cases(table, copies=True)
        ids["case_id"][rows] = match.case_ids
        ids["patient_id"][rows] = match.patient_ids
        ids["seen"][rows] = match.patient_seen
        names = model.bank_cases()["image"].reindex(match.case_ids).fillna("")
        ids["name"][rows] = names.to_numpy()
        return ids


def describe_origin(model: LoadedModel) -> Record:
    """Describe for a record where a model is from."""
    return {
        "run": model.run.as_posix(),
        "checkpoint": model.checkpoint,
        "memory": model.memory,
        "trained_on_simulated": model.provenance["trained_on_simulated"],
        **({"test_time_augmentation": True} if model.tta else {}),
    }


def describe_lacks(calibrator: Calibrator) -> Record:
    """Name for a record the findings without a temperature, and those without a threshold."""
    return {"uncalibrated": calibrator.uncalibrated(), "undecided": calibrator.undecided()}


def _in_batches(
    pairs: Sequence[tuple[int, int]], heats: Callable[[np.ndarray, np.ndarray], jax.Array]
) -> dict[tuple[int, int], np.ndarray]:
    """Return the map of each pair; ``heats`` takes rows and findings of 16 at a time."""
    maps = {}
    for start in range(0, len(pairs), BATCH):
        some = pairs[start : start + BATCH]
        rows, findings = np.array([*some, *[(0, 0)] * (BATCH - len(some))], np.int32).T
        maps |= dict(zip(some, np.asarray(heats(rows, findings)), strict=False))
    return maps
