"""Predict image files with an ensemble: scores of the mean, evidence of each member."""

import functools
from collections.abc import Iterator

from charm_jax.inference import records
from charm_jax.inference.ensemble import Ensemble
from charm_jax.inference.fitted import Calibrator
from charm_jax.inference.predictor import (
    Heats,
    Predictor,
    describe_lacks,
    describe_origin,
)
from charm_jax.inference.records import Record
from data_pipelines.loading.given import GivenImages


class EnsemblePredictor:
    """Predict with the members, 16 images at a time, and average; used like ``Predictor``."""

    def __init__(self, model: Ensemble, value_range: str = "", coverage: float | None = None):
        """Wrap an ensemble; the arguments are those of ``Predictor``."""
        self.model, self.coverage = model, coverage
        self.members = [Predictor(member, value_range) for member in model.members]
        self.size = max(member.size for member in self.members)
        self.value_range = self.members[0].value_range

    @functools.cached_property
    def calibrator(self) -> Calibrator:
        """Calibration of the mean, without an out-of-distribution reference."""
        return self.model.calibrator(self.coverage)

    def origin(self) -> Record:
        """Describe the ensemble for a record."""
        members = zip(self.model.names, self.model.members, strict=True)
        return {
            "runs": {name: describe_origin(member) for name, member in members},
            "trained_on_simulated": self.model.provenance["trained_on_simulated"],
            **describe_lacks(self.calibrator),
        }

    def predict_files(
        self, images: GivenImages, *, heat_maps: bool
    ) -> Iterator[tuple[Record, Heats]]:
        """Yield a record and heat maps for each file, in order; bad files have ``error``.

        ``members`` of a record has the record of each run. The maps are those of each run for the
        findings that the ensemble reports, titled by both.

        Args:
            heat_maps: whether to compute attention and Grad-CAMs.
        """
        names, streams = self.model.names, [one.explain_files(images) for one in self.members]
        for parts in zip(*streams, strict=True):
            own = [
                member.records(part.outputs, part.checks)
                for member, part in zip(self.members, parts, strict=True)
            ]
            logits = self.model.average([part.outputs["logits"] for part in parts])
            made = records.combined(dict(zip(names, own, strict=True)), logits, self.calibrator)
            heats: list[Heats] = [{} for _ in made]
            for name, member, part in zip(names, self.members, parts, strict=True):
                for row, maps in enumerate(member.heats(part, made) if heat_maps else ()):
                    heats[row] |= {f"{name} {title}": heat for title, heat in maps.items()}
            for row, record in enumerate(made):
                entry: Record = {"file": parts[0].paths[row].as_posix()}
                if fault := parts[0].checks[row].fault:
                    yield entry | {"error": fault}, {}
                    continue
                known = [part.known(row) for part in parts]
                for name, mine in zip(names, known, strict=True):
                    record["members"][name] = mine | record["members"][name]
                entry["known_as"] = next(filter(None, (one["known_as"] for one in known)), None)
                entry["seen_in_training"] = any(one["seen_in_training"] for one in known)
                yield entry | record, heats[row]
