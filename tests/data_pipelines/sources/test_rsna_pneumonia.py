import json

import pytest
from dicom_files import make_dicom, save

from data_pipelines import sources
from data_pipelines.errors import InputError
from data_pipelines.sources.rsna_pneumonia import MAPPING
from data_pipelines.tables import splits

LABELS = """patientId,x,y,width,height,Target
0004cfab,,,,,0
00436515,264.0,152.0,213.0,379.0,1
00436515,562.0,152.0,256.0,453.0,1
00313ee0,,,,,0
"""
CLASSES = """patientId,class
0004cfab,No Lung Opacity / Not Normal
00436515,Lung Opacity
00436515,Lung Opacity
00313ee0,Normal
"""
NAMES = {"0004cfab": "00000013_001", "00436515": "00030712_002", "00313ee0": "00000013_000"}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "stage_2_train_labels.csv").write_text(LABELS)
    images = tmp_path / "stage_2_train_images"
    images.mkdir()
    tags = {"ViewPosition": "AP", "PatientSex": "M", "PatientAge": "061Y"}
    save(make_dicom(**tags), images / "00436515.dcm")
    return tmp_path


def write_mapping(folder, entries):
    (folder / MAPPING).write_text(json.dumps(entries))


def test_an_image_with_a_box_has_pneumonia(folder):
    table = sources.load("rsna_pneumonia", folder)
    assert table.images.tolist() == ["0004cfab.dcm", "00313ee0.dcm", "00436515.dcm"]
    assert table.findings == ("Lung Opacity", "Pneumonia")
    assert table.labels[:, 1].tolist() == [0, 0, 1]
    assert table.present.tolist() == [False, False, True]
    assert (table.views[2], table.sexes[2], table.ages[2]) == ("AP", "M", 61)


def test_an_opacity_is_absent_only_in_normal_images(folder):
    assert sources.load("rsna_pneumonia", folder).labels[:, 0].tolist() == [-1, -1, 1]
    (folder / "stage_2_detailed_class_info.csv").write_text(CLASSES)
    assert sources.load("rsna_pneumonia", folder).labels[:, 0].tolist() == [-1, 0, 1]


def test_without_the_mapping_patients_are_unknown(folder):
    table = sources.load("rsna_pneumonia", folder)
    assert not table.patients_known
    assert len(set(table.patients.tolist())) == 3
    assert "pneumonia-challenge-dataset-mappings_2018.json" in table.warnings[0]


def test_with_the_mapping_images_and_patients_are_those_of_chestxray14(folder):
    entries = [{"subset_img_id": k, "img_id": f"{v}.png"} for k, v in NAMES.items()]
    write_mapping(folder, entries)
    table = sources.load("rsna_pneumonia", folder)
    assert table.images.tolist() == sorted(f"{name}.png" for name in NAMES.values())
    assert table.patients_known
    assert [table.patient_name(number) for number in table.patients] == ["13", "13", "30712"]
    assert table.present.tolist() == [False, False, True]
    assert table.labels[:, 1].tolist() == [0, 0, 1]
    assert table.warnings == ()
    split = splits.make_split(table, "official", {"all": "all"}, 0)
    assert split.rule == "patient"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (",1\n00313", ",2\n00313", r"row 4, has '2' in the column 'Target'"),
        (",1\n00313", ",0\n00313", r"lists 00436515\.dcm a second time"),
        ("Target", "target?", r"has no column 'Target'"),
    ],
)
def test_a_wrong_table_is_one_sentence(folder, old, new, words):
    (folder / "stage_2_train_labels.csv").write_text(LABELS.replace(old, new))
    with pytest.raises(InputError, match=words):
        sources.load("rsna_pneumonia", folder)


def test_wrong_classes_and_a_wrong_mapping_are_one_sentence(folder):
    classes = folder / "stage_2_detailed_class_info.csv"
    classes.write_text(CLASSES.replace("0ee0,Normal", "0ee0,Healthy").replace(",Normal", ",Well"))
    with pytest.raises(InputError, match=r"row 5, has 'Well' in the column 'class'"):
        sources.load("rsna_pneumonia", folder)
    classes.unlink()
    write_mapping(folder, [{"img_id": "00000013_001.png"}])
    with pytest.raises(InputError, match=r"is not a list of entries with 'subset_img_id'"):
        sources.load("rsna_pneumonia", folder)


def test_boxes_are_around_opacity_and_pneumonia(folder):
    write_mapping(
        folder,
        [{"subset_img_id": key, "img_id": f"{name}.png"} for key, name in NAMES.items()],
    )
    table = sources.load("rsna_pneumonia", folder)
    boxes = sources.read_boxes(folder, "", table)
    assert set(table.images[boxes.rows]) == {"00030712_002.png"}
    assert sorted(boxes.findings) == ["Lung Opacity"] * 2 + ["Pneumonia"] * 2
    assert boxes.fractions[0].tolist() == [264 / 1024, 152 / 1024, 477 / 1024, 531 / 1024]


def test_a_wrong_box_is_named(folder):
    path = folder / "stage_2_train_labels.csv"
    path.write_text(LABELS.replace("562.0", "x"))
    table = sources.load("rsna_pneumonia", folder)
    with pytest.raises(InputError, match=r"row 4 \(00436515.dcm\), has the box 'x, 152.0"):
        sources.read_boxes(folder, "", table)
