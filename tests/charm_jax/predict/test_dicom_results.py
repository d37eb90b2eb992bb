"""DICOM results: what they repeat of the image, what they say, and what other programs find."""

import os
import shutil
import subprocess
import warnings
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from dicom_files import make_dicom, save
from dicom_results_data import HEATS, LIMITS, OWN, RECORD
from pydicom.sr.codedict import codes

from charm_jax.predict.dicom_results import DicomResults
from data_pipelines.errors import InputError

TAGS = {
    "SpecificCharacterSet": "ISO_IR 100",
    "StudyInstanceUID": "1.2.3",
    "SeriesInstanceUID": "1.2.3.4",
    "SOPInstanceUID": "1.2.3.4.5",
    "StudyDate": "20250102",
    "StudyTime": "030405",
    "StudyID": "7",
    "AccessionNumber": "A1",
    "ReferringPhysicianName": "Weiß^Änne",
    "PatientName": "Müller^Jörg",
    "PatientID": "MRN 12",
    "PatientBirthDate": "19500607",
    "PatientSex": "M",
    "PatientAge": "074Y",
    "PatientWeight": 70.5,
    "BurnedInAnnotation": "NO",
    "ViewPosition": "PA",
}
COPIED = [name for name in TAGS if name not in ("SpecificCharacterSet", "ViewPosition")][3:-1]
GREY = np.arange(60 * 40, dtype=np.uint16).reshape(60, 40)


def written(path, out, record=RECORD, results=None):
    results = results or DicomResults(out, LIMITS, "ab" * 32, "container")
    files = results.write(path, record, HEATS)
    return {kind: Path(file) for kind, file in files.items()}


@pytest.fixture
def image(tmp_path):
    return save(make_dicom(GREY, bits=12, **TAGS), tmp_path / "Doe_Jane_1970.dcm")


@pytest.fixture
def files(image, tmp_path):
    return written(image, tmp_path / "out")


def groups_of(path):
    report = highdicom.sr.srread(path)
    return report, {
        group.finding_type.meaning: group for group in report.content.get_image_measurement_groups()
    }


def reached(group):
    [evaluation] = group.get_qualitative_evaluations()
    return evaluation.value.meaning


def parameters(group):
    items = group[0].ContentSequence
    return [item.TextValue for item in items if item.name == codes.DCM.AlgorithmParameters]


def texts(report):
    items = report.content[0].ContentSequence
    return [item.TextValue for item in items if item.name == codes.DCM.Comment]


def test_patient_and_study_are_those_of_the_image(files):
    read = {kind: pydicom.dcmread(path) for kind, path in files.items()}
    for dataset in read.values():
        assert dataset.StudyInstanceUID == "1.2.3"
        for name in COPIED:
            assert dataset[name].value == TAGS[name], name
        assert dataset.Manufacturer == "CHARM-JAX"
        assert "Not for clinical use" in dataset.SeriesDescription
    uids = [
        d[name].value for d in read.values() for name in ("SeriesInstanceUID", "SOPInstanceUID")
    ]
    assert len({*uids, "1.2.3.4", "1.2.3.4.5"}) == 6
    assert {kind: path.name for kind, path in files.items()} == {
        "report": "1.2.3.4.5.report.dcm",
        "overlay": "1.2.3.4.5.overlay.dcm",
    }


def test_the_report_has_scores_thresholds_and_model(files):
    report, groups = groups_of(files["report"])
    assert report.SOPClassUID == pydicom.uid.EnhancedSRStorage
    assert report.PreliminaryFlag == "PRELIMINARY"
    assert report.VerificationFlag == "UNVERIFIED"
    assert list(groups) == ["Pleural effusion", "Mass", "Hernia", OWN[:63]]
    values = {
        finding: {m.name.meaning: m.value for m in group.get_measurements()}
        for finding, group in groups.items()
    }
    assert values == {
        "Pleural effusion": {"Probability": 0.75, "Threshold Value": 0.3},
        "Mass": {"Probability": 0.123457, "Threshold Value": 0.5},
        "Hernia": {"Uncalibrated score": 0.4},
        OWN[:63]: {"Probability": 0.01, "Threshold Value": 0.2},
    }
    assert [reached(group) for group in groups.values()] == ["Yes", "No", "Undetermined", "No"]
    weights = ["run=demo", "checkpoint=focal/120", "memory=trained", f"sha256={'ab' * 32}"]
    assert parameters(groups["Mass"]) == weights
    assert texts(report) == [
        "Research software, not a medical device. Not for clinical use.",
        "The network was trained on SIMULATED images.",
    ]


def test_the_report_of_an_ensemble_names_its_runs(image, tmp_path):
    both = {
        "demo": {"run": "/home/somebody/demo", "checkpoint": "focal/120", "memory": "trained"},
        "b": {"run": "b", "checkpoint": "bce/9", "memory": None, "test_time_augmentation": True},
    }
    record = {key: value for key, value in RECORD.items() if key not in both["demo"]}
    files = written(image, tmp_path / "out", record | {"runs": both})
    assert parameters(groups_of(files["report"])[1]["Mass"])[:-1] == [
        "run=demo",
        "checkpoint=focal/120",
        "memory=trained",
        "run=b",
        "checkpoint=bce/9",
        "test_time_augmentation",
    ]


def test_both_refer_to_the_image_alone(files):
    report, groups = groups_of(files["report"])
    image = ("1.2.3", "1.2.3.4", "1.2.3.4.5", pydicom.uid.DigitalXRayImageStorageForPresentation)
    assert report.get_evidence() == [image]
    sources = [item for group in groups.values() for item in group[0].ContentSequence]
    sources = [item for item in sources if item.ValueType == "IMAGE"]
    assert {item.referenced_sop_instance_uid for item in sources} == {"1.2.3.4.5"}
    capture = pydicom.dcmread(files["overlay"])
    assert capture.SOPClassUID == pydicom.uid.SecondaryCaptureImageStorage
    assert [s.ReferencedSOPInstanceUID for s in capture.SourceImageSequence] == ["1.2.3.4.5"]
    assert capture.ImageType[:2] == ["DERIVED", "SECONDARY"]


def test_neither_names_other_patients_paths_or_files(files):
    for path in files.values():
        content = path.read_bytes()
        for secret in (b"someone", b"somebody", b"Doe", b"Jane", b"_1970"):  # UIDs hold any digits
            assert secret not in content


def test_the_capture_shows_the_image_and_each_map(files):
    pixels = pydicom.dcmread(files["overlay"]).pixel_array
    assert pixels.dtype == np.uint8
    coloured = (pixels.max(axis=2) != pixels.min(axis=2)).any(axis=0)
    panels = np.flatnonzero(np.diff(coloured.astype(int)) == 1)
    assert len(panels) == 2  # the image itself is grey
    assert pixels.shape[0] > 512  # the image's longer side, and what is written below


def test_the_capture_keeps_what_was_done_to_the_pixels(tmp_path):
    tags = {
        "BurnedInAnnotation": "NO",
        "LossyImageCompression": "01",
        "LossyImageCompressionRatio": 10,
        "LossyImageCompressionMethod": "ISO_10918_1",
    }
    image = save(make_dicom(GREY, bits=12, **TAGS | tags), tmp_path / "a.dcm")
    capture = pydicom.dcmread(written(image, tmp_path / "out")["overlay"])
    assert {name: capture[name].value for name in tags} == tags


def test_an_unfamiliar_image_gets_no_decision(image, tmp_path):
    record = RECORD | {"findings": [], "unfamiliar": True, "unfamiliar_in": ["appearance"]}
    report, groups = groups_of(written(image, tmp_path / "out", record)["report"])
    assert {reached(group) for group in groups.values()} == {"Undetermined"}
    assert "Unlike the images that it was trained on (appearance)" in texts(report)[2]


def save_anything(tags, path):
    """A file whose values may break the rules of their tags."""
    with warnings.catch_warnings(action="ignore"):
        return save(make_dicom(GREY, bits=12, **tags), path)


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"StudyInstanceUID": ""}, "no valid StudyInstanceUID"),
        ({"SeriesInstanceUID": "none", "StudyInstanceUID": ""}, "UID, SeriesInstanceUID"),
        ({"BurnedInAnnotation": "YES"}, "BurnedInAnnotation"),
        ({"PatientID": ["a", "b"]}, "its PatientID is invalid"),
        ({"SOPClassUID": "1.2.3"}, "SOPClassUID 1.2.3 is not known"),
    ],
)
def test_what_cannot_have_results_leaves_nothing(tmp_path, tags, words):
    path = save_anything(TAGS | tags, tmp_path / "a.dcm")
    with pytest.raises(InputError, match=words):
        written(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_second_image_of_the_same_uid_replaces_nothing(image, tmp_path):
    results = DicomResults(tmp_path / "out", LIMITS, "ab" * 32, "container")
    first = written(image, tmp_path / "out", results=results)["report"].read_bytes()
    with pytest.raises(InputError, match="another image has its SOPInstanceUID"):
        written(image, tmp_path / "out", results=results)
    assert (tmp_path / "out/1.2.3.4.5.report.dcm").read_bytes() == first
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_values_that_their_tags_forbid_are_left_out(tmp_path):
    wrong = {"PatientSex": "m", "PatientAge": "62", "StudyDate": "01/02/2025", "StudyID": "x" * 30}
    wrong |= {"Laterality": "B", "AccessionNumber": ["1", "2"]}
    path = save_anything(TAGS | wrong, tmp_path / "a.dcm")
    for file in written(path, tmp_path / "out").values():
        dataset = pydicom.dcmread(file)
        assert not any(dataset.get(name) for name in wrong)
        assert dataset.PatientName == TAGS["PatientName"]


def examined(files):
    """Errors of dciodvfy and of DCMTK's reader of reports."""
    errors = []
    for path in files.values():
        done = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True)
        errors += [line for line in done.stderr.splitlines() if line.startswith("Error")]
    dumped = subprocess.run(["dsrdump", files["report"]], capture_output=True, text=True)
    assert dumped.returncode == 0
    assert "Not for clinical use." in dumped.stdout
    return errors + [line for line in dumped.stderr.splitlines() if not line.startswith("W:")]


needs_checkers = pytest.mark.skipif(
    not (shutil.which("dciodvfy") and shutil.which("dsrdump")),
    reason="needs the Debian packages dicom3tools and dcmtk",
)


@needs_checkers
def test_other_programs_find_no_error(files):
    assert examined(files) == []


def test_real_files_get_results(tmp_path):
    if "CHARM_TEST_DATA" not in os.environ:
        pytest.skip("needs CHARM_TEST_DATA")
    real = sorted(Path(os.environ["CHARM_TEST_DATA"], "nih_fullsize").glob("*.dcm"))
    if not real:
        pytest.skip("needs DICOM files in nih_fullsize of CHARM_TEST_DATA")
    for number, path in enumerate(real):
        files = written(path, tmp_path / str(number))
        given = pydicom.dcmread(path, stop_before_pixels=True)
        for file in files.values():
            dataset = pydicom.dcmread(file)
            assert dataset.StudyInstanceUID == given.StudyInstanceUID
            assert dataset.PatientName == given.PatientName
        if shutil.which("dciodvfy") and shutil.which("dsrdump"):
            assert examined(files) == []
