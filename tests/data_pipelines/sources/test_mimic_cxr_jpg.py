import pytest

from data_pipelines import sources
from data_pipelines.errors import InputError
from data_pipelines.tables import splits

FINDINGS = (
    "Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,Lung Lesion,"
    "Lung Opacity,No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices"
)
METADATA = """dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,StudyDate
c-3,10000032,50414267,CHEST (PA AND LAT),PA,21800506
c-1,10000032,50414267,CHEST (PA AND LAT),LATERAL,21800506
a-2,11000011,50000001,CHEST (PORTABLE AP),AP,21510101
b-9,12000012,50000002,,,21510101
d-4,12000012,50000003,CHEST (PORTABLE AP),AP,21520101
"""
LABELS = f"""subject_id,study_id,{FINDINGS}
10000032,50414267,,,,,,,,,1.0,,,,,1.0
11000011,50000001,-1.0,,,0.0,,,,,,1.0,,,,
12000012,50000002,,,,,,,,,1.0,,,,,
"""
SPLIT = """dicom_id,study_id,subject_id,split
a-2,50000001,11000011,validate
c-1,50414267,10000032,test
c-3,50414267,10000032,test
d-4,50000003,12000012,train
"""
PATIENTS = """subject_id,gender,anchor_age,anchor_year,anchor_year_group,dod
10000032,F,52,2180,2014 - 2016,2180-09-09
11000011,M,60,2150,2014 - 2016,
"""
NAME = "mimic-cxr-2.0.0-{}.csv"
IMAGES = [
    "files/p10/p10000032/s50414267/c-3.jpg",
    "files/p11/p11000011/s50000001/a-2.jpg",
    "files/p12/p12000012/s50000003/d-4.jpg",
]


@pytest.fixture
def folder(tmp_path):
    for kind, text in (("metadata", METADATA), ("chexpert", LABELS), ("split", SPLIT)):
        (tmp_path / NAME.format(kind)).write_text(text)
    (tmp_path / IMAGES[0]).parent.mkdir(parents=True)
    (tmp_path / IMAGES[0]).touch()
    return tmp_path


def column(table, finding):
    return table.labels[:, table.findings.index(finding)].tolist()


def test_frontal_images_are_read_with_the_labels_of_their_study(folder):
    table = sources.load("mimic_cxr_jpg", folder)
    assert table.images.tolist() == IMAGES
    assert table.present.tolist() == [True, False, False]
    assert table.patient_names == ("10000032", "11000011", "12000012")
    assert table.views.tolist() == ["PA", "AP", "AP"]
    assert table.official_part.tolist() == ["test", "val", "train"]
    assert column(table, "Effusion") == [0, 1, -1]
    assert column(table, "Support Devices") == [1, -1, -1]
    assert column(table, "Atelectasis") == [0, -1, -1]
    assert table.warnings[0].startswith("2 of the 5 images")
    assert "(1 LATERAL, 1 none)" in table.warnings[0]
    assert "1 images are of studies" in table.warnings[1]
    table = sources.load("mimic_cxr_jpg", folder, views="all")
    assert table.views.tolist() == ["LATERAL", "PA", "AP", "none", "AP"]


def test_uncertain_labels_follow_the_policy(folder):
    table = sources.load("mimic_cxr_jpg", folder, uncertain="ones")
    assert column(table, "Atelectasis") == [0, 1, -1]


def test_sex_and_age_at_the_study_come_from_mimic_iv(folder):
    table = sources.load("mimic_cxr_jpg", folder)
    assert table.sexes.tolist() == [""] * 3
    assert table.ages.tolist() == [-1] * 3
    (folder / "patients.csv").write_text(PATIENTS)
    table = sources.load("mimic_cxr_jpg", folder)
    assert table.sexes.tolist() == ["F", "M", ""]
    assert table.ages.tolist() == [52, 61, -1]


def test_the_labels_of_the_other_labeler_are_read_where_they_are_named_or_alone(folder):
    other = NAME.format("negbio")
    (folder / other).write_text(LABELS.replace(",0.0,,,,,,1.0", ",0.0,,,,,,0.0"))
    assert column(sources.load("mimic_cxr_jpg", folder), "Effusion") == [0, 1, -1]
    assert column(sources.load("mimic_cxr_jpg", folder, other), "Effusion") == [0, 0, -1]
    (folder / NAME.format("chexpert")).unlink()
    assert column(sources.load("mimic_cxr_jpg", folder), "Effusion") == [0, 0, -1]


def test_without_its_table_the_official_split_is_refused(folder):
    (folder / NAME.format("split")).unlink()
    table = sources.load("mimic_cxr_jpg", folder)
    with pytest.raises(InputError, match=r"add mimic-cxr-2\.0\.0-split\.csv to the data folder"):
        splits.make_split(table, "official", {"all": "all"}, 0)


@pytest.mark.parametrize(
    ("kind", "old", "new", "words"),
    [
        ("metadata", ",AP,", ",LL,", "no frontal view among its 5 images"),
        ("split", "validate", "valid", r"row 2, has 'valid' in the column 'split'"),
        ("split", "c-1", "a-2", r"lists a-2 a second time in row 3"),
        ("chexpert", "50000002", "50000001", r"lists 50000001 a second time"),
        ("chexpert", "-1.0", "maybe", r"row 3, has 'maybe' in the column 'Atelectasis'"),
        ("metadata", "d-4,12000012,50000003", "a-2,11000011,50000001", "a second time"),
        ("metadata", "ViewPosition", "View", "no column 'ViewPosition'"),
    ],
)
def test_a_wrong_table_is_one_sentence(folder, kind, old, new, words):
    path = folder / NAME.format(kind)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(",PA,", ",AP,").replace(old, new))
    with pytest.raises(InputError, match=words):
        sources.load("mimic_cxr_jpg", folder)


def test_labels_are_needed(folder):
    (folder / NAME.format("chexpert")).unlink()
    with pytest.raises(InputError, match=r"has no mimic-cxr-2\.\*-chexpert\.csv"):
        sources.load("mimic_cxr_jpg", folder)
