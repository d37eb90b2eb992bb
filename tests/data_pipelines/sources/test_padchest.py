import gzip

import numpy as np
import pytest
from PIL import Image

from data_pipelines import sources
from data_pipelines.errors import InputError
from data_pipelines.sources.padchest import TERMS
from data_pipelines.tables import splits

TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
HEADER = (
    ",ImageID,ImageDir,StudyDate_DICOM,PatientID,PatientBirth,PatientSex_DICOM,Projection,Report,"
    "MethodLabel,Labels"
)
# Image, patient, year of birth, sex, projection, labels.
ROWS = [
    ("c.png", "839860488694292331637988235681460987", "1930.0", "F", "PA", "['normal']"),
    ("a.png", "31357", "1950.0", "M", "AP", "[' pneumonia', 'mass']"),
    ("b.png", "839860488694292331637988235681460987", "1930.0", "F", "L", "['normal']"),
    ("d.png", "777", "", "O", "AP_horizontal", "['hydropneumothorax', 'unchanged']"),
    ("e.png", "778", "nan", "nan", "PA", "nan"),
    ("f.png", "779", "1900.0", "M", "PA", "['suboptimal study', '']"),
    ("g.png", "780", "1990.0", "M", "PA", "['pericardial effusion', 'pseudonodule', 'subcutaneous "
     "emphysema', 'mediastinal mass']"),
]  # fmt: skip
UNKNOWN, NONE = [-1] * len(TERMS), [0] * len(TERMS)


def write(folder, rows=ROWS, header=HEADER):
    lines = [
        f'{i},{image},{i},20150914,{patient},{birth},{sex},{view},"sin hallazg\n. ",RNN_model,'
        f'"{labels}"'
        for i, (image, patient, birth, sex, view, labels) in enumerate(rows)
    ]
    (folder / TABLE).write_text("\n".join([header, *lines]) + "\n")


@pytest.fixture
def folder(tmp_path):
    write(tmp_path)
    (tmp_path / "0").mkdir()
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path / "0/a.png")
    return tmp_path


def positives(table, row):
    return {
        name for name, value in zip(table.findings, table.labels[row], strict=True) if value == 1
    }


def test_frontal_images_are_read_with_patients_and_metadata(folder):
    table = sources.load("padchest", folder)
    assert table.images.tolist() == ["a.png", "c.png", "d.png", "e.png", "f.png", "g.png"]
    assert table.present.tolist() == [True] + [False] * 5
    assert table.patient_name(table.patients[1]) == "839860488694292331637988235681460987"
    assert table.views.tolist() == ["AP", "PA", "AP Supine", "PA", "PA", "PA"]
    assert table.sexes.tolist() == ["M", "F", "", "", "M", "M"]
    assert table.ages.tolist() == [65, 85, -1, -1, 115, 25]
    assert table.warnings[0].startswith("1 of the 7 images")
    assert sources.load("padchest", folder, views="all").views.tolist()[1:3] == ["L", "PA"]
    assert table.warnings[1].startswith("The labels of 6 of 6 images were set by a network")


def test_pixels_of_16_bits_are_read(folder):
    table = sources.load("padchest", folder)
    assert table.store.read(np.array([0]), 8).max() == 40_000 // 256


def test_a_finding_is_present_by_its_terms_and_absent_beside_others(folder):
    table = sources.load("padchest", folder)
    assert positives(table, 0) == {"Pneumonia", "Mass"}
    assert (table.labels[0] == 0).sum() == len(TERMS) - 2
    assert table.labels[1].tolist() == NONE


def test_terms_that_only_look_alike_do_not_count(folder):
    assert sources.load("padchest", folder).labels[5].tolist() == NONE


def test_a_report_that_lists_no_absence_leaves_the_others_unknown(folder):
    table = sources.load("padchest", folder)
    assert positives(table, 2) == {"Effusion", "Pneumothorax"}
    assert (table.labels[2] == -1).sum() == len(TERMS) - 2
    assert table.labels[3].tolist() == table.labels[4].tolist() == UNKNOWN


def test_the_official_split_is_one_by_patient(folder):
    table = sources.load("padchest", folder)
    assert splits.make_split(table, "official", {"all": "all"}, 0).rule == "patient"


def test_the_table_may_be_compressed(folder):
    path = folder / TABLE
    (folder / f"{TABLE}.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert len(sources.load("padchest", folder).images) == 6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows": [ROWS[2]]}, "no frontal view among its 1 images"),
        ({"rows": [(*ROWS[0][:5], "normal")]}, r"row 2, has 'normal' in the column 'Labels'"),
        ({"rows": [ROWS[0], ROWS[0]]}, r"lists c\.png a second time in row 3"),
        ({"header": HEADER.replace("Projection", "View")}, "no column 'Projection'"),
    ],
)
def test_a_wrong_table_is_one_sentence(folder, change, words):
    write(folder, **change)
    with pytest.raises(InputError, match=words):
        sources.load("padchest", folder)
