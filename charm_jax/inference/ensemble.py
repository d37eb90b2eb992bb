"""Average the calibrated logits of several models, and calibrate and decide with the mean."""

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from charm_jax.config.settings import Settings
from charm_jax.inference import fitted
from charm_jax.inference.fitted import Calibrator, Validation
from charm_jax.inference.loaded import LoadedModel
from charm_jax.inference.steps import variables_of
from charm_jax.metrics import calibration, conformal
from charm_jax.runs.checkpoints import tree_sha256
from charm_jax.runs.data import Data
from data_pipelines.errors import InputError, listed
from data_pipelines.tables.case_table import CaseTable

FOLDER = "ensembles"  # below the folder of the runs
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Several models of the same findings; its logits are the mean of their calibrated logits.

    Attributes:
        members: at least two.
        names: a short name of each, no two alike.
        sizes: side in pixels at which each reads images.
        calibrations: result of ``fitted.load_calibration`` of each.
        folder: holds ``eval``.
    """

    members: tuple[LoadedModel, ...]
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    calibrations: tuple[Mapping[str, Any], ...]
    folder: Path
    run: None = None  # it has no run of its own
    memory: None = None  # nor a bank

    @property
    def pathologies(self) -> tuple[str, ...]:
        """Names of the findings, in the order of the logits."""
        return self.members[0].pathologies

    @property
    def settings(self) -> Settings:
        """Settings of the first member."""
        return self.members[0].settings

    @property
    def trained(self) -> dict[str, Any]:
        """``split.json`` of the first member."""
        return self.members[0].trained

    @property
    def description(self) -> str:
        """Name for messages."""
        views = " with test-time augmentation" if self.members[0].tta else ""
        return f"the ensemble of {listed(self.names)}{views}"

    @property
    def checkpoint(self) -> str:
        """Checkpoints of the members."""
        return ", ".join(member.checkpoint for member in self.members)

    @property
    def provenance(self) -> dict[str, Any]:
        """Origin of the weights: what any member was refitted with, trained on or began from."""
        every = [member.provenance for member in self.members]
        refit, began = (
            ", ".join(dict.fromkeys(filter(None, (entry[key] for entry in every)))) or None
            for key in ("refit", "began_from")
        )
        simulated = [entry["trained_on_simulated"] for entry in every]
        known = None if None in simulated else any(simulated)
        return {"refit": refit, "began_from": began, "trained_on_simulated": known}

    @functools.cached_property
    def network_sha256(self) -> str:
        """Digest of weights and banks of the members."""
        return _digest(self.members)

    def reading(self, data: Data) -> dict[str, Any]:
        """Describe what changes the scores of images, by member."""
        pairs = zip(self.members, self.data_of(data), strict=True)
        every = [member.reading(own.settings) for member, own in pairs]
        return {"members": dict(zip(self.names, every, strict=True))}

    def data_of(self, data: Data) -> list[Data]:
        """Return the data as each member reads them."""
        settings = [dataclasses.replace(data.settings, image_size=size) for size in self.sizes]
        return [dataclasses.replace(data, settings=own) for own in settings]

    def average(
        self, logits: Sequence[Float[np.ndarray, "n findings"]]
    ) -> Float[np.ndarray, "n findings"]:
        """Return the mean of the members' logits, each divided by its temperature.

        The logits of a finding without a temperature are taken as they are.
        """
        pairs = zip(logits, self.calibrations, strict=True)
        mean = np.mean([calibration.divided(z, known) for z, known in pairs], axis=0)
        return mean.astype(np.float32)

    @property
    def shares_validation(self) -> bool:
        """Whether all members were validated on the same images with the same labels."""
        every = map(fitted.identity, self.members)
        return len({(own["split_sha256"], own["cases_sha256"]) for own in every}) == 1

    def validation(self, given: Data | None = None) -> Validation:
        """Return mean logits and labels of the validation split that all members share.

        Args:
            given: as in ``fitted.load_calibration``.

        Raises:
            InputError: they do not share one, or its images are gone or unreadable.
        """
        if not self.shares_validation:
            raise InputError(
                f"{listed(self.names)} were validated on different images, so some trained on "
                "those of others: give runs of one split, such as seeds."
            )
        every = [fitted.load_validation(member, given) for member in self.members]
        return every[0]._replace(logits=self.average([one.logits for one in every]))

    def calibration(self, given: Data | None = None) -> dict[str, Any]:
        """Fit temperatures and thresholds on the validation split that all members share.

        Where they share none, or it cannot be read, the mean has no Platt scaling, the temperature
        1, and as threshold the mean of the members' thresholds, as calibrated logits.

        Args:
            given: as in ``fitted.load_calibration``.
        """
        averaged = False
        try:
            shared = self.validation(given)
            found = calibration.fit(shared.logits, shared.labels, self.pathologies)
        except InputError as error:
            _LOG.info(f"The thresholds are the means of the members', because {error}")
            found = calibration.nothing(self.pathologies)
            for name, entry in found["findings"].items():
                entry |= calibration.averaged([k["findings"][name] for k in self.calibrations])
            averaged = True
        own = fitted.identity(self.members[0])
        return found | {
            "checkpoint": self.checkpoint,
            "split_sha256": own["split_sha256"],
            "averaged": averaged,
        }

    def calibrator(self, coverage: float | None = None) -> Calibrator:
        """Return the calibration, without an out-of-distribution reference: members have theirs.

        Args:
            coverage: of conformal sets, if any.

        Raises:
            InputError: the members share no validation split to fit these on.
        """
        limits = None if coverage is None else conformal.fit(*self.validation(), coverage)
        return Calibrator(self.pathologies, self.calibration(), None, limits)

    def fitted_on(self, table: CaseTable) -> Bool[np.ndarray, " images"]:
        """Whether each image of a table was used to fit any member's temperatures."""
        pairs = zip(self.members, self.calibrations, strict=True)
        return np.any([fitted.fitted_on(member, known, table) for member, known in pairs], axis=0)


def combine(
    members: Sequence[LoadedModel],
    runs_dir: Path,
    sizes: Sequence[int] = (),
    given: Data | None = None,
) -> Ensemble:
    """Make an ensemble of runs.

    Args:
        members: at least two, of runs or portable models, all with or all without test-time
            augmentation.
        runs_dir: folder of the runs, where it has a folder for its evaluations.
        sizes: side in pixels at which each reads images, by default those of training.
        given: data that may have the members' validation split.

    Raises:
        InputError: a model is given twice, has other findings or is not calibrated.
    """
    first, *others = members
    for member in members:
        if member.run is None:
            raise InputError(
                f"{member.description} is not calibrated, so its logits cannot be averaged with "
                "others: give runs or portable models."
            )
    for other in others:
        if other.pathologies != first.pathologies:
            raise InputError(
                f"{other.run} has the findings {listed(other.pathologies)}, but {first.run} has "
                f"{listed(first.pathologies)}: give runs of the same findings in the same order."
            )
        if other.settings.data.value_range != first.settings.data.value_range:
            raise InputError(
                f"{other.run} was trained with config.data.value_range="
                f"{other.settings.data.value_range}, but {first.run} with "
                f"{first.settings.data.value_range}: give runs that read grey levels alike."
            )
    known: dict[str, Path | None] = {}
    for member in members:
        # Of the weights alone: an export of a run has another digest of all that it holds.
        if (digest := tree_sha256(variables_of(member.state))) in known:
            raise InputError(
                f"{member.run} has the weights of {known[digest]}: give each run once."
            )
        known[digest] = member.run
    calibrations = []
    for member in members:
        calibrations.append(fitted.load_calibration(member, given))
        if calibrations[-1] is None:
            raise InputError(
                f"{member.run} is not calibrated and its validation images cannot be read: run "
                f"charm-jax eval --run {member.run}{' --tta' * member.tta} where they are, before "
                "its logits can be averaged with others."
            )
    short = [member.run.name for member in members]
    unique = len(set(short)) == len(short)
    names = short if unique else [member.run.as_posix().replace("/", "_") for member in members]
    folder = runs_dir / FOLDER / f"{short[0]}+{len(others)}-{_digest(members)[:8]}"
    return Ensemble(
        members=tuple(members),
        names=tuple(names),
        sizes=tuple(sizes or (member.settings.data.image_size for member in members)),
        calibrations=tuple(calibrations),
        folder=folder / "tta" if first.tta else folder,
    )


def _digest(members: Sequence[LoadedModel]) -> str:
    digests = sorted(member.network_sha256 for member in members)
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
