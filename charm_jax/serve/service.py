"""Predict decoded uploads, and again with stored cases forgotten, as records for JSON."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from charm_jax.inference import records
from charm_jax.inference.loaded import LoadedModel
from charm_jax.inference.predictor import ATTENTION, BATCH, MOST_FORGOTTEN, Predictor
from charm_jax.inference.records import Record
from charm_jax.report.provenance import DISCLAIMER
from charm_jax.runs import folder, portable
from charm_jax.serve.decoding import Upload
from charm_jax.serve.refusal import Refusal
from data_pipelines.images.decode import Check

_SIZES = (1, 4, BATCH)


class Service:
    """Answer requests with a model. An upload is nobody's: no stored case is left out for it."""

    def __init__(self, model: LoadedModel):
        self.model, self.predictor = model, Predictor(model, sizes=_SIZES)
        # The path of the run is the server's own affair.
        self._origin = self.predictor.origin() | {"run": model.run.name, "note": DISCLAIMER}
        bank = self.predictor.bank
        self._ids = {} if bank is None else {bank.name(case): case for case in bank.labels}

    def warm_up(self) -> None:
        """Compile all programs."""
        square = np.zeros((self.predictor.size, self.predictor.size, 1), np.uint8)
        for size in _SIZES:
            made = self.predict([Upload(square, Check(), b"")] * size)
        if self._ids:
            self.forget({"features": made[0]["explanation"]["features"], "cases": []})

    def about(self) -> Record:
        """Describe the model: its findings with thresholds and prevalence in training."""
        shares = folder.prevalence(self.model.run, self.model.trained)
        limits = self.predictor.calibrator.thresholds()
        return self._origin | {
            "description": f"{self.model.run.name}, checkpoint {self.model.checkpoint}",
            "image_size": self.predictor.size,
            "memory_cases": len(self._ids),
            "votes": "vote_weight" in self.model.reading(self.model.settings.data),
            "findings": [
                {
                    "name": name,
                    "threshold": None if np.isnan(limit) else float(limit),
                    "prevalence": share,
                }
                for name, limit, share in zip(self.model.pathologies, limits, shares, strict=True)
            ],
        }

    def predict(self, uploads: Sequence[Upload]) -> list[Record]:
        """Return a record for each of at most 16 uploads; one with a view has ``explanation``."""
        squares = np.stack([upload.square for upload in uploads])
        batch, explained, outputs = self.predictor.explain(squares)
        made = self.predictor.records(outputs, [upload.check for upload in uploads])
        made = [record | self._origin for record in made]
        shown = [row for row, upload in enumerate(uploads) if upload.view is not None]
        if not shown:
            return made
        findings = self.model.pathologies
        pairs = [(row, finding) for row in shown for finding in range(len(findings))]
        heats = self.predictor.grad_cams(batch, explained, pairs)
        fused = jax.device_get(explained["fused"]) if "fused" in explained else None
        for row in shown:
            maps = {name: heats[row, number] for number, name in enumerate(findings)}
            if ATTENTION in outputs:
                maps[ATTENTION] = outputs[ATTENTION][row]
            made[row]["explanation"] = {
                "image": _data_url(uploads[row].view),
                "heat_maps": {name: heat.round(3).tolist() for name, heat in maps.items()},
                "features": None if fused is None else _as_text(fused[row]),
                "thumbnails": self._thumbnails(made[row].get("evidence", [])),
            }
        return made

    def forget(self, asked: Any) -> Record:
        """Return the scores of an image with stored cases forgotten, and the cases read instead.

        Args:
            asked: ``features``, from an explanation, and ``cases``, the names of cases.

        Raises:
            Refusal: the model has no memory, or what is asked is not valid.
        """
        if not self._ids:
            raise Refusal(422, "The model has no memory: leave out what it forgets.")
        features, cases = self._features(asked), self._cases(asked)
        outputs = self.predictor.without(features, cases)
        if not np.isfinite(outputs["logits"]).all():
            raise Refusal(422, "features are out of range: send those of an explanation.")
        findings, calibrator = self.model.pathologies, self.predictor.calibrator
        scores = calibrator.scores(outputs["logits"][None])[0]
        read = records.retrieved(
            outputs["cases"][: records.SHOWN],
            outputs["similarities"][: records.SHOWN],
            findings,
            self.predictor.bank,
        )
        entries = list(read.values())
        return {
            "scores": records.named(findings, scores),
            "logits": records.named(findings, outputs["logits"]),
            "evidence": entries,
            "thumbnails": self._thumbnails(entries),
        }

    def _features(self, asked: Any) -> np.ndarray:
        dim = self.model.state.memory.features.shape[1]
        text = asked.get("features") if isinstance(asked, Mapping) else None
        try:
            features = np.frombuffer(base64.b64decode(text, validate=True), "<f4")
        except (TypeError, ValueError, binascii.Error):
            features = np.zeros(0)
        if len(features) != dim or not np.isfinite(features).all():
            raise Refusal(422, "features are not valid: send those of an explanation.")
        return features.astype(np.float32)

    def _cases(self, asked: Mapping[str, Any]) -> list[int]:
        names = asked.get("cases")
        valid = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if not valid or len(names) > MOST_FORGOTTEN:
            raise Refusal(422, f"cases are not valid: send at most {MOST_FORGOTTEN} names.")
        ids = {self._ids.get(name) for name in names}
        if None in ids:
            raise Refusal(422, "A case is not in the memory: send names of the evidence.")
        return sorted(ids)

    def _thumbnails(self, evidence: Sequence[Record]) -> dict[str, str]:
        """Return the pictures of cases that a portable model has, as data URLs."""
        paths = {
            entry["case"]: portable.thumbnail_path(self.model.run, entry["case"])
            for entry in evidence
        }
        return {
            case: _data_url(path.read_bytes()) for case, path in paths.items() if path.is_file()
        }


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _as_text(features: np.ndarray) -> str:
    return base64.b64encode(features.astype("<f4").tobytes()).decode()
