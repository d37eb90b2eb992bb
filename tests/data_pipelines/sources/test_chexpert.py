import gzip
import zipfile

import numpy as np
import pytest
from PIL import Image

from data_pipelines import sources
from data_pipelines.errors import InputError
from data_pipelines.prepare.preparation import prepare
from data_pipelines.tables import splits

HEADER = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,"
    "Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,"
    "Pleural Effusion,Pleural Other,Fracture,Support Devices"
)
SMALL = "CheXpert-v1.0-small"
# Labels: healthy with a device; an uncertain edema and atelectasis; an effusion.
TRAIN = f"""{HEADER}
{SMALL}/train/patient00002/study1/view1_frontal.jpg,Male,0,Frontal,AP,,,,,,-1.0,,,-1.0,0.0,,,,
{SMALL}/train/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,PA,1.0,,,,,,,,,0.0,,,,1.0
{SMALL}/train/patient00001/study1/view2_lateral.jpg,Female,68,Lateral,,1.0,,,,,,,,,0.0,,,,1.0
{SMALL}/train/patient00003/study2/view1_frontal.jpg,Unknown,90,Frontal,LL,,,,,,,,,,,1.0,,,
"""
VALID = f"""{HEADER}
{SMALL}/valid/patient64541/study1/view1_frontal.jpg,Male,73,Frontal,AP,{",".join(["0.0"] * 14)}
"""
TEST = (
    """Path,"""
    + HEADER.split(",", 5)[5]
    + f"""
test/patient64741/study1/view1_frontal.jpg,{",".join("0" * 14)}
"""
)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / SMALL
    root.mkdir()
    (root / "train.csv").write_text(TRAIN)
    (root / "valid.csv").write_text(VALID)
    for name in (
        "train/patient00001/study1/view1_frontal",
        "valid/patient64541/study1/view1_frontal",
    ):
        path = root / f"{name}.jpg"
        path.parent.mkdir(parents=True)
        Image.fromarray(np.full((8, 8), 99, np.uint8)).save(path)
    return root


def label(table, image, finding):
    row = next(row for row, name in enumerate(table.images) if image in name)
    return int(table.labels[row, table.findings.index(finding)])


def test_frontal_images_are_read_with_patients_and_metadata(folder):
    table = sources.load("chexpert", folder)
    assert table.images.tolist() == [
        "train/patient00001/study1/view1_frontal.jpg",
        "train/patient00002/study1/view1_frontal.jpg",
        "train/patient00003/study2/view1_frontal.jpg",
        "valid/patient64541/study1/view1_frontal.jpg",
    ]
    assert [table.patient_name(number) for number in table.patients[:2]] == [
        "patient00001",
        "patient00002",
    ]
    assert table.views.tolist() == ["PA", "AP", "LL", "AP"]
    assert table.sexes.tolist() == ["F", "M", "", "M"]
    assert table.ages.tolist() == [68, -1, 90, 73]
    assert table.present.tolist() == [True, False, False, True]
    assert "1 of the 5 images" in table.warnings[0]
    assert "(1 lateral)" in table.warnings[0]


def test_all_views_are_read_if_asked(folder):
    table = sources.load("chexpert", folder, views="all")
    assert table.images[1] == "train/patient00001/study1/view2_lateral.jpg"
    assert table.views.tolist() == ["PA", "lateral", "AP", "LL", "AP"]
    assert not any("frontal" in warning for warning in table.warnings)
    with pytest.raises(InputError, match=r"config\.data\.views is 'both': choose one of frontal"):
        sources.load("chexpert", folder, views="both")


def test_a_prepared_folder_keeps_the_views_that_it_was_made_with(folder, tmp_path):
    out = tmp_path / "out"
    prepare("chexpert", folder, out, size=8, missing="skip", views="all")
    assert len(sources.load("chexpert", out, views="all").images) == 5
    with pytest.raises(InputError, match=r"prepared with 'all': set --config\.data\.views=all"):
        sources.load("chexpert", out)


def test_labels_are_present_absent_or_unknown(folder):
    table = sources.load("chexpert", folder)
    assert label(table, "patient00003", "Effusion") == 1
    assert label(table, "patient00002", "Pneumothorax") == 0
    assert label(table, "patient00002", "Fracture") == -1
    # No finding makes all absent but the devices, which are labelled.
    assert label(table, "patient00001", "Cardiomegaly") == 0
    assert label(table, "patient00001", "Support Devices") == 1


@pytest.mark.parametrize(
    ("policy", "edema", "atelectasis"),
    [("ignore", -1, -1), ("zeros", 0, 0), ("ones", 1, 1), ("chexpert", 1, 1), ("keep", -2, -2)],
)
def test_uncertain_labels_follow_the_policy(folder, policy, edema, atelectasis):
    table = sources.load("chexpert", folder, uncertain=policy)
    assert label(table, "patient00002", "Edema") == edema
    assert label(table, "patient00002", "Atelectasis") == atelectasis
    assert label(table, "patient00002", "Fracture") == -1


def test_the_paper_chose_another_policy_for_other_findings(folder):
    (folder / "train.csv").write_text(TRAIN.replace("-1.0,,,-1.0", ",-1.0,,"))
    table = sources.load("chexpert", folder, uncertain="chexpert")
    assert label(table, "patient00002", "Consolidation") == -1


def test_a_prepared_folder_leaves_the_policy_to_the_run(folder, tmp_path):
    out = tmp_path / "out"
    prepare("chexpert", folder, out, size=8, missing="skip")
    for policy, expected in (("ignore", -1), ("zeros", 0), ("ones", 1)):
        table = sources.load("chexpert", out, uncertain=policy)
        assert label(table, "patient00002", "Edema") == expected
    with pytest.raises(InputError, match=r"config\.data\.uncertain is 'two'"):
        sources.load("chexpert", out, uncertain="two")


def test_an_unknown_policy_is_named(folder):
    with pytest.raises(InputError, match=r"config\.data\.uncertain is 'one': did you mean 'ones'"):
        sources.load("chexpert", folder, uncertain="one")


def test_the_images_of_valid_test_where_there_are_no_labels_of_the_test_set(folder):
    table = sources.load("chexpert", folder)
    split = splits.make_split(table, "official", {"all": "all"}, 0)
    assert table.images[split.rows("all", "test")].tolist() == [table.images[3]]
    assert len(split.rows("all", "val")) == 1  # of the three training patients
    assert any("the images of valid.csv test" in warning for warning in table.warnings)


def test_all_three_splits_are_read(folder):
    (folder / "test_labels.csv").write_text(TEST)
    table = sources.load("chexpert", folder)
    assert table.official_part.tolist() == ["test", "train", "train", "train", "val"]
    assert len(table.warnings) == 1


def test_without_valid_the_official_split_is_refused(folder):
    (folder / "valid.csv").unlink()
    table = sources.load("chexpert", folder)
    with pytest.raises(InputError, match=r"has none: add valid\.csv to the data folder"):
        splits.make_split(table, "official", {"all": "all"}, 0)
    assert splits.make_split(table, "patient", {"all": "all"}, 0).rows("all", "test").size


def test_tables_may_be_compressed_and_lie_in_a_folder_of_the_batches(folder):
    batch = folder / "CheXpert-v1.0 batch 1 (validate & csv)"
    batch.mkdir()
    with zipfile.ZipFile(batch / "train.csv.zip", "w") as archive:
        archive.writestr("train.csv", TRAIN.replace(SMALL, "CheXpert-v1.0"))
    (batch / "valid.csv.gz").write_bytes(gzip.compress(VALID.encode()))
    for name in ("train.csv", "valid.csv"):
        (folder / name).unlink()
    (folder / "train").rename(folder / "CheXpert-v1.0 batch 2 (train 1)")
    table = sources.load("chexpert", folder)
    assert table.present.tolist() == [True, False, False, True]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("Frontal,AP,,,,,,-1.0", "Frontal,AP,,,,,,2.0", r"row 2, has '2\.0' in the column 'Edema'"),
        ("train/patient00002", "train/p2", "row 2, has the path"),
        ("patient00003/study2", "patient00001/study1", r"lists train/patient00001.* a second time"),
        ("No Finding,", "Nothing,", "has no column 'No Finding'"),
        (",,1.0,,,\n", ",,1.0,\n", r"line 5, has 17 fields where 19"),
        ("_frontal", "_lateral", r"has no frontal view"),
    ],
)
def test_a_wrong_table_is_one_sentence(folder, old, new, words):
    (folder / "valid.csv").unlink()
    assert old in TRAIN
    (folder / "train.csv").write_text(TRAIN.replace(old, new))
    with pytest.raises(InputError, match=words):
        sources.load("chexpert", folder)


def test_a_folder_without_a_table_says_where_to_get_it(tmp_path):
    with pytest.raises(InputError, match=r"has no train\.csv, \.gz or \.zip.*stanfordmlgroup"):
        sources.load("chexpert", tmp_path)
    with pytest.raises(InputError, match="gone does not exist"):
        sources.load("chexpert", tmp_path / "gone")


@pytest.mark.parametrize("source", ["csv_folder", "nih_chest_xray14", "chestmnist"])
def test_a_folder_of_another_set_is_named_with_its_source(folder, source):
    with pytest.raises(InputError, match=r"is one of chexpert, .*config\.data\.source=chexpert"):
        sources.load(source, folder)


def test_a_table_of_another_set_is_named_with_its_source(folder, nih):
    with pytest.raises(InputError, match=r"is one of nih_chest_xray14.*source=nih_chest_xray14"):
        sources.load("chexpert", folder, str(nih.csv))
    with pytest.raises(InputError, match=r"is one of chexpert.*source=chexpert"):
        sources.load("nih_chest_xray14", nih.path, str(folder / "train.csv"))
