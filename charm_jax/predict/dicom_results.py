"""Write predictions of DICOM files as DICOM: a structured report, and a capture of the maps."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
from highdicom import sc
from highdicom.sr import CodedConcept
from jaxtyping import Float
from pydicom.datadict import dictionary_VM
from pydicom.sr.codedict import codes
from pydicom.tag import BaseTag
from pydicom.valuerep import validate_value

from charm_jax import __version__
from charm_jax.predict.contact_sheet import contact_sheet
from charm_jax.predict.dicom_report import (
    NAME,
    NOT_CLINICAL,
    SERIES,
    comments,
    identity,
    write_report,
)
from data_pipelines.atomic_files import whole_files
from data_pipelines.errors import InputError, listed
from data_pipelines.images.decode import decode
from data_pipelines.images.decoders import quiet_decoders

_LONGEST = 1024  # pixels of the longer side of the image that maps are drawn on
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")
_OFTEN_EMPTY = (  # type 2: they must be there
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
_ALLOWED = {"PatientSex": ("M", "F", "O", ""), "Laterality": ("R", "L", "")}
_OF_PIXELS = (  # they hold for pictures of the image, too
    "BurnedInAnnotation",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)
_NUMBERS = ("DS", "IS")  # written as text
_UTF_8 = "ISO_IR 192"


class DicomResults:
    """Write a report and a capture for each DICOM image, in files named after its instance UID."""

    def __init__(
        self, out: Path, thresholds: Mapping[str, float | None], network: str, value_range: str
    ):
        """Choose a folder, which is made at the first result.

        Args:
            out: the folder.
            thresholds: on the scores; None where a finding has none.
            network: SHA-256 of the weights.
            value_range: see ``decode.decode``.
        """
        self.out, self.thresholds, self.network = out, thresholds, network
        self.value_range = value_range
        self._written: set[str] = set()

    def write(
        self, path: Path, record: Mapping[str, Any], heats: Mapping[str, Float[np.ndarray, "h w"]]
    ) -> dict[str, str]:
        """Write both files of an image, or none; return them by kind.

        Raises:
            InputError: the image lacks a UID or has that of another one, says that its pixels
                show the patient's name, or has tags that no result can repeat.
        """
        try:
            header = read_header(path)
            if header.SOPInstanceUID in self._written:
                raise ValueError(f"another image has its SOPInstanceUID, {header.SOPInstanceUID}")
            report = write_report(header, record, self.thresholds, self.network, _new())
            made = {"report": report, "overlay": self._capture(header, path, record, heats)}
            encoded = {kind: _encode(dataset) for kind, dataset in made.items()}
        except Exception as error:  # tags may hold anything, and highdicom checks them variously
            raise InputError(f"no DICOM results: {error}") from error
        self.out.mkdir(parents=True, exist_ok=True)
        names = {kind: f"{header.SOPInstanceUID}.{kind}.dcm" for kind in made}
        with whole_files(self.out) as draft:
            for kind, content in encoded.items():
                (draft / names[kind]).write_bytes(content)
        self._written.add(header.SOPInstanceUID)
        return {kind: (self.out / name).as_posix() for kind, name in names.items()}

    def _capture(
        self,
        header: pydicom.Dataset,
        path: Path,
        record: Mapping[str, Any],
        heats: Mapping[str, Float[np.ndarray, "h w"]],
    ) -> pydicom.Dataset:
        image = (decode(path, self.value_range).view(_LONGEST) >> 8).astype(np.uint8)
        captions = {
            name: f"{name} {record['scores'][name]:.3f} (from {limit:.3f})"
            for name, limit in self.thresholds.items()
            if limit is not None
        }
        made_by = f"{NAME} {__version__}, {', '.join(identity(record))}"
        capture = sc.SCImage.from_ref_dataset(
            header,
            contact_sheet(image, heats, captions, [made_by, *comments(record)]),
            photometric_interpretation="RGB",
            transfer_syntax_uid=pydicom.uid.ExplicitVRLittleEndian,
            bits_allocated=8,
            coordinate_system="PATIENT",
            patient_orientation=("L", "F"),
            series_number=SERIES + 1,
            series_description=f"{NAME} maps. {NOT_CLINICAL}",
            **_new(),
        )
        capture.copy_patient_and_study_information(header)
        capture.PatientOrientation = None  # of several pictures side by side
        capture.Laterality = header.get("Laterality")
        for name in _OF_PIXELS:
            if name in header:
                capture.add(header[name])
        source = pydicom.Dataset()
        source.ReferencedSOPClassUID = header.SOPClassUID
        source.ReferencedSOPInstanceUID = header.SOPInstanceUID
        source.PurposeOfReferenceCodeSequence = [
            CodedConcept(*codes.DCM.SourceImageForImageProcessingOperation[:3])
        ]
        capture.SourceImageSequence = [source]
        return capture


def read_header(path: Path) -> pydicom.Dataset:
    """Read patient, study and UIDs of a DICOM file, leaving out values that their tags forbid.

    Raises:
        ValueError: a UID is missing or invalid, the PatientID is invalid, or the pixels show whose
            image it is.
    """
    quiet_decoders()
    given = pydicom.dcmread(path, stop_before_pixels=True, force=True)
    given.decode()
    if "YES" in str(given.get("BurnedInAnnotation")).upper():
        raise ValueError("by its tag BurnedInAnnotation its pixels show whose image it is")
    header = pydicom.Dataset()
    for tag in sorted(given.keys()):
        if not tag.is_private and (element := _valid(given, tag)) is not None:
            header.add(element)
    if missing := [name for name in _UIDS if not header.get(name)]:
        raise ValueError(f"it has no valid {listed(missing)}")
    if header.SOPClassUID.type != "SOP Class":
        raise ValueError(f"its SOPClassUID {header.SOPClassUID} is not known")
    if "PatientID" in given and "PatientID" not in header:
        raise ValueError("its PatientID is invalid, and results would be another patient's")
    for name, allowed in _ALLOWED.items():
        if header.get(name) not in allowed:
            setattr(header, name, None)
    for name in _OFTEN_EMPTY:
        if name not in header:
            setattr(header, name, None)
    header.SpecificCharacterSet = _UTF_8
    return header


def _valid(given: pydicom.Dataset, tag: BaseTag) -> pydicom.DataElement | None:
    """Return an element with a value that its tag allows; None for others and for sequences."""
    try:
        element = given[tag]
        if element.VR == "SQ" or (element.VM > 1 and dictionary_VM(tag) == "1"):
            return None
        for value in element.value if element.VM > 1 else [element.value]:
            text = str(value) if element.VR in _NUMBERS and value is not None else value
            validate_value(element.VR, text, pydicom.config.RAISE)
    except Exception:  # each kind of damage has an error of its own
        return None
    return element


def _encode(dataset: pydicom.Dataset) -> bytes:
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _new() -> dict[str, Any]:
    """Return attributes of an object in a series of its own."""
    return {
        "series_instance_uid": highdicom.UID(),
        "sop_instance_uid": highdicom.UID(),
        "instance_number": 1,
        "manufacturer": NAME,
        "manufacturer_model_name": NAME,
        "software_versions": __version__,
    }
