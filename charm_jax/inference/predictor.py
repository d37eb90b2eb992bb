"""Predict image files or arrays: scores, findings, evidence and heat maps."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
from jaxtyping import UInt8

from charm_jax.inference import explain, fitted, records
from charm_jax.inference.fitted import Calibrator
from charm_jax.inference.loaded import LoadedModel
from charm_jax.inference.records import Record, StoredCases
from data_pipelines.images.decode import Check
from data_pipelines.loading import given
from data_pipelines.loading.given import GivenImages

BATCH = 16
ATTENTION = "attention"
Outputs = dict[str, np.ndarray]
Heats = dict[str, np.ndarray]
_ON_DEVICE = ("main", "momentum_features", "fused")  # large, and of no use to a reader


class Predictor:
    """Explain the predictions of a model, 16 images at a time."""

    def __init__(self, model: LoadedModel, value_range: str = ""):
        """Wrap a model; ``value_range`` of the given files is by default that of training."""
        self.model, self.size = model, model.settings.data.image_size
        self.value_range = value_range or model.settings.data.value_range

    @functools.cached_property
    def calibrator(self) -> Calibrator:
        """Calibration and out-of-distribution reference, fitted at first use if need be."""
        return fitted.load_calibrator(self.model)

    def predict_files(
        self, images: GivenImages, *, heat_maps: bool
    ) -> Iterator[tuple[Record, Heats]]:
        """Yield a record and heat maps for each file, in order; bad files have ``error``.

        Args:
            heat_maps: whether to compute attention and a Grad-CAM for each reported finding.
        """
        ids, findings, start = self.match(images), self.model.pathologies, 0
        batches = given.batches(
            images.paths, image_size=self.size, batch_size=BATCH, value_range=self.value_range
        )
        for pixels, checks in batches:
            some = {name: values[start : start + len(checks)] for name, values in ids.items()}
            batch, explained, outputs = self.explain(pixels, some)
            made = self.records(outputs, checks)
            heats: list[Heats] = [{} for _ in made]
            if heat_maps:
                pairs = [
                    (row, findings.index(name))
                    for row, record in enumerate(made)
                    if not checks[row].fault
                    for name in record["findings"] or []
                ]
                for row in range(len(made)):
                    if ATTENTION in outputs:
                        heats[row][ATTENTION] = outputs[ATTENTION][row]
                for (row, finding), heat in self.grad_cams(batch, explained, pairs).items():
                    heats[row][findings[finding]] = heat
            for row, record in enumerate(made):
                entry: Record = {"file": images.paths[start + row].as_posix()}
                if checks[row].fault:
                    yield entry | {"error": checks[row].fault}, {}
                    continue
                entry["known_as"] = str(some["name"][row]) or None
                entry["seen_in_training"] = bool(some["seen"][row])
                entry |= record
                if ATTENTION in outputs:
                    heat = outputs[ATTENTION][row]
                    limits = float(heat.min()), float(heat.max())
                    entry["attention_range"] = [round(limit, 4) for limit in limits]
                yield entry, heats[row]
            start += len(checks)

    def explain(
        self,
        pixels: UInt8[np.ndarray, "batch side side 1"],
        ids: Mapping[str, np.ndarray] | None = None,
    ) -> tuple[dict[str, np.ndarray], dict[str, jax.Array], Outputs]:
        """Explain up to 16 images: the padded batch, all outputs, and the small ones on the host.

        Args:
            pixels: grey levels, padded to the batch size or not.
            ids: ``case_id`` and ``patient_id`` in the bank, whose cases are then not read.
        """
        n = len(pixels) if ids is None else len(ids["case_id"])
        ids = ids or dict.fromkeys(("case_id", "patient_id"), np.full(n, -1, np.int32))
        batch = {
            "image": np.pad(pixels, ((0, BATCH - len(pixels)), (0, 0), (0, 0), (0, 0))),
            "labels": np.full((BATCH, len(self.model.pathologies)), -1, np.int8),
        }
        for name in ("case_id", "patient_id"):
            batch[name] = np.pad(ids[name], (0, BATCH - n), constant_values=-1)
        step = self.model.compile(explain.explain_step, shared=False)
        explained = step(self.model.state, batch)
        light = {name: value for name, value in explained.items() if name not in _ON_DEVICE}
        outputs = {name: value[:n] for name, value in jax.device_get(light).items()}
        return batch, explained, outputs

    def records(self, outputs: Outputs, checks: Sequence[Check]) -> list[Record]:
        """Turn the outputs of images into records, ready for JSON."""
        return records.records(outputs, self.calibrator, self._bank, checks)

    @functools.cached_property
    def _bank(self) -> StoredCases | None:
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
