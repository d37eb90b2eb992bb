import numpy as np
import pytest
from dicom_files import make_dicom, save

from data_pipelines import sources
from data_pipelines.errors import InputError
from data_pipelines.sources.vindr_cxr import ALL
from data_pipelines.tables import splits

# Image a: all readers see a large heart, two an effusion, one a nodule or mass.
CHALLENGE = """image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max
b,No finding,14,R1,,,,
b,No finding,14,R2,,,,
b,No finding,14,R3,,,,
a,Cardiomegaly,3,R8,691.0,1375.0,1653.0,1831.0
a,Cardiomegaly,3,R9,690.0,1375.0,1653.0,1831.0
a,Cardiomegaly,3,R10,692.0,1375.0,1653.0,1831.0
a,Pleural effusion,10,R8,1,2,3,4
a,Pleural effusion,10,R8,5,6,7,8
a,Pleural effusion,10,R9,1,2,3,4
a,Nodule/Mass,8,R10,1,2,3,4
"""


def wide(rows, classes=ALL, readers=True):
    """A table of PhysioNet's; a row is an image, a reader and the classes seen."""
    head = ["image_id", *(["rad_id"] if readers else []), *classes, "No finding"]
    lines = [
        [image, *([reader] if readers else []), *(str(int(name in seen)) for name in classes), "0"]
        for image, reader, seen in rows
    ]
    return "\n".join(",".join(line) for line in [head, *lines]) + "\n"


READ = [("a", f"R{i}", {"COPD", *(["Edema"] if i == 1 else [])}) for i in (1, 2, 3)]


@pytest.fixture
def challenge(tmp_path):
    (tmp_path / "train.csv").write_text(CHALLENGE)
    (tmp_path / "train").mkdir()
    save(make_dicom(PatientSex="M", PatientAge="050Y"), tmp_path / "train/a.dicom")
    return tmp_path


@pytest.fixture
def physionet(tmp_path):
    folder = tmp_path / "annotations"
    folder.mkdir()
    (folder / "image_labels_train.csv").write_text(wide(READ))
    classes = ["Other disease" if name == "Other diseases" else name for name in ALL]
    text = wide([("t", "", {"Other disease", "Pneumonia"})], classes, readers=False)
    (folder / "image_labels_test.csv").write_text(text)
    return tmp_path


def label(table, row, finding):
    return int(table.labels[row, table.findings.index(finding)])


@pytest.mark.parametrize(
    ("policy", "three", "two", "one", "none"),
    [("ignore", 1, 1, -1, 0), ("zeros", 1, 1, 0, 0), ("ones", 1, 1, 1, 0)],
)
def test_readers_agree_by_the_policy(challenge, policy, three, two, one, none):
    table = sources.load("vindr_cxr", challenge, uncertain=policy)
    assert label(table, 0, "Cardiomegaly") == three
    assert label(table, 0, "Effusion") == two
    assert label(table, 0, "Nodule/Mass") == one
    assert label(table, 0, "Pneumothorax") == none


def test_an_image_without_findings_has_none(challenge):
    table = sources.load("vindr_cxr", challenge)
    assert table.images.tolist() == ["a.dicom", "b.dicom"]
    assert table.labels[1].tolist() == [0] * 14
    assert len(table.findings) == 14
    assert {"Fibrosis", "Pleural_Thickening"} < set(table.findings)


def test_metadata_is_that_of_the_files(challenge):
    table = sources.load("vindr_cxr", challenge)
    assert table.present.tolist() == [True, False]
    assert table.views.tolist() == ["PA", "PA"]
    assert (table.sexes[0], table.ages[0]) == ("M", 50)
    assert not table.patients_known
    assert "names no patients" in table.warnings[0]
    assert splits.make_split(table, "official", {"all": "all"}, 0).rule == "patient"


def test_the_consensus_of_the_test_set_is_read(physionet):
    table = sources.load("vindr_cxr", physionet, uncertain="ones")
    assert table.images.tolist() == ["a.dicom", "t.dicom"]
    assert table.official_part.tolist() == ["train", "test"]
    assert len(table.findings) == 27
    assert [label(table, 0, name) for name in ("COPD", "Edema", "Pneumonia")] == [1, 1, 0]
    assert [label(table, 1, name) for name in ("Other diseases", "Pneumonia", "COPD")] == [1, 1, 0]


def test_without_the_test_set_the_official_split_is_refused(physionet):
    (physionet / "annotations/image_labels_test.csv").unlink()
    table = sources.load("vindr_cxr", physionet)
    with pytest.raises(InputError, match=r"add image_labels_test\.csv to the data folder"):
        splits.make_split(table, "official", {"all": "all"}, 0)


def test_a_class_outside_the_vocabulary_is_named(challenge):
    (challenge / "train.csv").write_text(CHALLENGE.replace("Nodule/Mass", "Rib fracture"))
    with pytest.raises(InputError, match=r"row 11, has the class 'Rib fracture': it must be"):
        sources.load("vindr_cxr", challenge)


def test_a_wrong_table_is_one_sentence(physionet):
    path = physionet / "annotations/image_labels_train.csv"
    path.write_text(wide(READ).replace("a,R1,0", "a,R1,2"))
    with pytest.raises(InputError, match=r"row 2, has '2' in the column 'Aortic enlargement'"):
        sources.load("vindr_cxr", physionet)
    path.write_text(wide(READ, [name for name in ALL if name != "COPD"]))
    with pytest.raises(InputError, match="has no column 'COPD'"):
        sources.load("vindr_cxr", physionet)


def test_a_table_of_the_same_name_is_read_by_its_own_source(challenge):
    with pytest.raises(InputError, match=r"is one of vindr_cxr, not of chexpert"):
        sources.load("chexpert", challenge)


def test_boxes_of_all_readers_are_in_pixels_of_the_file(challenge):
    save(make_dicom(np.zeros((2000, 1800), np.uint16)), challenge / "train/a.dicom")
    table = sources.load("vindr_cxr", challenge)
    boxes = sources.read_boxes(challenge, "", table)
    counts = dict(zip(*np.unique(boxes.findings, return_counts=True), strict=True))
    assert counts == {"Cardiomegaly": 3, "Effusion": 3, "Nodule/Mass": 1}
    assert boxes.sizes[0].tolist() == [1800, 2000]
    assert boxes.places[0].tolist() == [691, 1375, 962, 456]


def test_boxes_without_their_files_are_refused(challenge):
    (challenge / "train/a.dicom").unlink()
    table = sources.load("vindr_cxr", challenge)
    with pytest.raises(InputError, match=r"No image with a box in .*train.csv has a DICOM file"):
        sources.read_boxes(challenge, "", table)


def test_physionets_boxes_are_in_tables_of_their_own(physionet):
    save(make_dicom(np.zeros((40, 30), np.uint16)), physionet / "t.dicom")
    table = sources.load("vindr_cxr", physionet)
    with pytest.raises(InputError, match=r"has no boxes, annotations_train.csv or annotations_t"):
        sources.read_boxes(physionet, "", table)
    text = "image_id,class_name,x_min,y_min,x_max,y_max\nt,Pneumonia,1,2,11,22\nt,No finding,,,,\n"
    (physionet / "annotations/annotations_test.csv").write_text(text)
    boxes = sources.read_boxes(physionet, "", table)
    assert table.images[boxes.rows].tolist() == ["t.dicom"]
    np.testing.assert_allclose(boxes.fractions, [[1 / 30, 0.05, 11 / 30, 0.55]])
