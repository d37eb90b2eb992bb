"""Predict image files or arrays: scores, findings, evidence and heat maps."""

from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
from jaxtyping import UInt8

from charm_jax.inference import explain, records
from charm_jax.inference.fitted import Calibrator
from charm_jax.inference.loaded import LoadedModel
from charm_jax.inference.records import Record
from data_pipelines.loading import given
from data_pipelines.loading.given import GivenImages

BATCH = 16
ATTENTION = "attention"
Outputs = dict[str, np.ndarray]
Heats = dict[str, np.ndarray]
_ON_DEVICE = ("main", "momentum_features", "fused")  # large, and of no use to a reader


class Predictor:
    """A loaded model with the compiled steps and tables that predictions need."""

    def __init__(self, model: LoadedModel, calibrator: Calibrator):
        self.model, self.calibrator = model, calibrator
        self.size = model.settings.data.image_size
        self._explain = model.compile(explain.explain_step, shared=False)
        self._grad_cams = model.jit(explain.grad_cams)
        self._bank = None
        if model.state.memory is not None:
            self._bank = records.stored_cases(model.state.memory, model.bank_cases())

    def predict_files(
        self, images: GivenImages, *, heat_maps: bool
    ) -> Iterator[tuple[Record, Heats]]:
        """Yield a record and heat maps for each file, in order; bad files have ``error``.

        Args:
            heat_maps: whether to compute attention and a Grad-CAM for each reported finding.
        """
        ids = self.match(images)
        start = 0
        for pixels, faults in given.batches(images.paths, image_size=self.size, batch_size=BATCH):
            rows = slice(start, start + len(faults))
            some = {name: values[rows] for name, values in ids.items()}
            batch, explained, outputs = self.explain(pixels, some)
            made = self.records(outputs)
            heats: list[Heats] = [{} for _ in made]
            if heat_maps:
                pairs = [
                    (row, self.calibrator.findings.index(name))
                    for row, record in enumerate(made)
                    if not faults[row]
                    for name in record["findings"]
                ]
                cams = self.grad_cams(batch, explained, pairs)
                for (row, finding), heat in cams.items():
                    heats[row][self.calibrator.findings[finding]] = heat
            for row, record in enumerate(made):
                entry: Record = {"file": images.paths[start + row].as_posix()}
                if faults[row]:
                    yield entry | {"error": faults[row]}, {}
                    continue
                entry |= {
                    "known_as": str(some["name"][row]) or None,
                    "seen_in_training": bool(some["seen"][row]),
                }
                entry |= record
                if ATTENTION in outputs:
                    heat = outputs[ATTENTION][row]
                    entry["attention_range"] = [
                        round(float(heat.min()), 4),
                        round(float(heat.max()), 4),
                    ]
                    if heat_maps:
                        heats[row] = {ATTENTION: heat} | heats[row]
                yield entry, heats[row]
            start += len(faults)

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
        unknown = np.full(n, -1, np.int32)
        padding = (0, BATCH - n)
        batch = {
            "image": np.pad(pixels, ((0, BATCH - len(pixels)), (0, 0), (0, 0), (0, 0))),
            "labels": np.full((BATCH, len(self.calibrator.findings)), -1, np.int8),
        }
        for name in ("case_id", "patient_id"):
            values = unknown if ids is None else ids[name]
            batch[name] = np.pad(values, padding, constant_values=-1)
        explained = self._explain(self.model.state, batch)
        light = {name: value for name, value in explained.items() if name not in _ON_DEVICE}
        outputs = {name: value[:n] for name, value in jax.device_get(light).items()}
        return batch, explained, outputs

    def records(self, outputs: Outputs) -> list[Record]:
        """Turn the outputs of images into records, ready for JSON."""
        return records.records(outputs, self.calibrator, self._bank)

    def grad_cams(
        self,
        batch: Mapping[str, np.ndarray],
        explained: Mapping[str, jax.Array],
        pairs: Sequence[tuple[int, int]],
    ) -> dict[tuple[int, int], np.ndarray]:
        """Compute the Grad-CAM ``[h, w]`` of pairs (row of the batch, number of the finding)."""
        maps = {}
        for start in range(0, len(pairs), BATCH):
            some = pairs[start : start + BATCH]
            rows, findings = np.array([*some, *[(0, 0)] * (BATCH - len(some))], np.int32).T
            heats = self._grad_cams(self.model.state, batch, explained, rows, findings)
            maps |= dict(zip(some, np.asarray(heats), strict=False))
        return maps

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
        ids["name"][rows] = (
            model.bank_cases()["image"].reindex(match.case_ids).fillna("").to_numpy()
        )
        return ids
