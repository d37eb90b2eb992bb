"""Write a prediction as a DICOM structured report: TID 1500 of PS3.16, in an Enhanced SR."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from highdicom import UID, sr
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from pydicom import Dataset
from pydicom.sr.codedict import Code, codes

from charm_jax import __version__
from charm_jax.report.provenance import DISCLAIMER

NAME = "CHARM-JAX"
NOT_CLINICAL = "Not for clinical use."
SERIES = 901  # number of the series, after those of the scanner
_SCHEME = "99CHARMJAX"  # private ones begin with 99
_MEANING = 64  # bytes of a code's meaning: some readers count them, not characters
# Those that the DICOM standard lists itself; the others are names of labels, coded as such.
_FINDINGS = {
    "Cardiomegaly": codes.SCT.Cardiomegaly,
    "Edema": codes.SCT.PulmonaryEdema,
    "Effusion": codes.SCT.PleuralEffusion,
    "Fibrosis": codes.SCT.Fibrosis,
    "Mass": codes.SCT.Mass,
    "Nodule": codes.SCT.Nodule,
    "Pneumothorax": codes.SCT.Pneumothorax,
}
_UNCALIBRATED = Code("uncalibrated", _SCHEME, "Uncalibrated score")
_REACHED = Code("reached", _SCHEME, "Score reaches threshold")


def write_report(
    header: Dataset,
    record: Mapping[str, Any],
    thresholds: Mapping[str, float | None],
    network: str,
    series: Mapping[str, Any],
) -> sr.EnhancedSR:
    """Return the report of an image, without the stored cases that its scores lean on.

    Args:
        header: patient, study and UIDs of the image.
        record: scores and findings.
        thresholds: on the scores; None where a finding has none.
        network: SHA-256 of the weights.
        series: attributes that the report shares with the capture.
    """
    algorithm = sr.AlgorithmIdentification(
        name=NAME, version=__version__, parameters=[*identity(record), f"sha256={network}"]
    )
    device = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=_uid_of(network), name=NAME, manufacturer_name=NAME, model_name=NAME
        ),
    )
    source = sr.SourceImageForMeasurementGroup(header.SOPClassUID, header.SOPInstanceUID)
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=device),
        procedure_reported=codes.SCT.ChestImaging,
        title=codes.DCM.ImagingMeasurementReport,
        imaging_measurements=[
            _group(name, record, limit, algorithm, source) for name, limit in thresholds.items()
        ],
    )
    for text in comments(record):
        item = sr.TextContentItem(codes.DCM.Comment, text, sr.RelationshipTypeValues.CONTAINS)
        content[0].ContentSequence.append(item)
    return sr.EnhancedSR(
        evidence=[header],
        content=content[0],
        series_number=SERIES,
        series_description=f"{NAME} scores. {NOT_CLINICAL}",
        is_complete=True,
        is_final=False,
        coding_schemes=[CodingSchemeIdentificationItem(_SCHEME, f"Findings of {NAME}")],
        **series,
    )


def comments(record: Mapping[str, Any]) -> list[str]:
    """Return sentences that stand beside the scores, the most important first."""
    sentences = [f"{DISCLAIMER} {NOT_CLINICAL}"]
    if record["trained_on_simulated"]:
        sentences.append("The network was trained on SIMULATED images.")
    if record["unfamiliar"]:
        reasons = ", ".join(record["unfamiliar_in"])
        sentences.append(
            f"Unlike the images that it was trained on ({reasons}): no finding is reported."
        )
    elif record["unfamiliar"] is None:
        sentences.append("It is not known whether the image is like those it was trained on.")
    if record["seen_in_training"]:
        sentences.append("Training or validation saw this patient.")
    return sentences


def identity(record: Mapping[str, Any]) -> list[str]:
    """Return run, checkpoint and memory of a record as ``key=value``, of each run of an ensemble.

    A run's path is no part of them.
    """
    parts = []
    for origin in record.get("runs", {"": record}).values():
        parts += [f"run={Path(origin['run']).name}", f"checkpoint={origin['checkpoint']}"]
        parts += [f"memory={origin['memory']}"] * bool(origin["memory"])
        parts += ["test_time_augmentation"] * origin.get("test_time_augmentation", False)
    return parts


def _uid_of(network: str) -> UID:
    """Return a UID of the weights, so that reports of the same ones name the same device."""
    return UID(f"2.25.{int(network[:32], 16)}")


def _group(
    name: str,
    record: Mapping[str, Any],
    limit: float | None,
    algorithm: sr.AlgorithmIdentification,
    source: sr.SourceImageForMeasurementGroup,
) -> sr.MeasurementsAndQualitativeEvaluations:
    """Return score and threshold of a finding, and whether the one reaches the other."""
    plain, meaning = (
        name in record["uncalibrated"],
        name.encode()[:_MEANING].decode(errors="ignore"),
    )
    measured = [(_UNCALIBRATED if plain else codes.DCM.Probability, record["scores"][name])]
    reached = codes.SCT.Undetermined
    if limit is not None:
        measured.append((codes.DCM.ThresholdValue, round(limit, 6)))
        if not record["unfamiliar"]:
            reached = codes.SCT.Yes if name in record["findings"] else codes.SCT.No
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=UID(), identifier=meaning),
        finding_type=_FINDINGS.get(name) or Code(name, _SCHEME, meaning),
        algorithm_id=algorithm,
        measurements=[sr.Measurement(code, value, codes.UCUM.NoUnits) for code, value in measured],
        qualitative_evaluations=[sr.QualitativeEvaluation(_REACHED, reached)],
        source_images=[source],
    )
