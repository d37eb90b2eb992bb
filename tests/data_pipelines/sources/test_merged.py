"""Several sets as one: findings by name, patients apart, each set split as if it were alone."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from data_pipelines import sources
from data_pipelines.errors import InputError
from data_pipelines.prepare.preparation import prepare
from data_pipelines.sources import VIEWS, chexpert, merged
from data_pipelines.tables import splits

STAGES = {"bce": "abnormal", "focal": "all"}
# The second set writes Effusion otherwise, knows no Mass and has no split of its own.
FIRST = "image,patient,split,Effusion,Mass\n" + "".join(
    f"{i}.png,P{i // 2},{part},{i % 2},{int(i % 3 == 0)}\n"
    for i, part in enumerate(["train"] * 8 + ["val"] * 2 + ["test"] * 4)
)
SECOND = "image,patient,Pleural Effusion,Rib fracture\n" + "".join(
    f"{i}.png,P{i},{i % 2},{int(i == 3)}\n" for i in range(12)
)


@pytest.fixture
def folder(tmp_path):
    """A folder ``both`` beside two sets; equal names in both are other images and patients."""
    rng = np.random.default_rng(0)
    for name, text in (("one", FIRST), ("two", SECOND)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "labels.csv").write_text(text)
        for i in range(len(text.splitlines()) - 1):
            pixels = rng.integers(0, 255, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    write(tmp_path / "both", "one,csv_folder,../one", "two,csv_folder,../two")
    return tmp_path / "both"


def write(folder, *rows):
    folder.mkdir(exist_ok=True)
    (folder / "sets.csv").write_text("\n".join(["name,source,dir", *rows]) + "\n")
    return folder


def test_labels_are_matched_by_name_and_unknown_where_a_set_has_none(folder):
    table = sources.load("merged", folder)
    assert table.findings == ("Effusion", "Mass", "Rib fracture")
    row = table.images.tolist().index
    assert table.labels[row("one/3.png")].tolist() == [1, 1, -1]
    assert table.labels[row("two/3.png")].tolist() == [1, -1, 1]
    assert len(table.images) == 26
    assert (np.sort(table.images) == table.images).all()


def test_patients_of_one_name_stay_apart(folder):
    table = sources.load("merged", folder)
    row = table.images.tolist().index
    names = [table.patient_name(table.patients[row(image)]) for image in ("one/2.png", "two/1.png")]
    assert names == ["one/P1", "two/P1"]
    assert len(np.unique(table.patients)) == 7 + 12


def test_each_image_is_read_from_its_own_set(folder):
    table, two = (
        sources.load(*of) for of in (("merged", folder), ("csv_folder", folder / "../two"))
    )
    rows = np.array([table.images.tolist().index(f"two/{name}") for name in two.images])
    mixed = np.append(rows[::-1], 0)
    read = table.store.read(mixed, 8)
    np.testing.assert_array_equal(read[:-1][::-1], two.store.read(np.arange(12), 8))
    np.testing.assert_array_equal(read[-1:], table.sets["one"].store.read(np.array([0]), 8))


@pytest.mark.parametrize("seed", [0, 5])
def test_each_set_is_split_as_if_it_were_alone(folder, seed):
    table = sources.load("merged", folder)
    whole = splits.make_split(table, "official", STAGES, seed)
    for stage, parts in whole.stages.items():
        for part, rows in parts.items():
            alone = [
                f"{name}/{image}"
                for name, own in table.sets.items()
                for image in own.images[
                    splits.make_split(own, "official", STAGES, seed).stages[stage][part]
                ]
            ]
            assert table.images[rows].tolist() == sorted(alone)


def test_a_finding_that_one_set_alone_has_is_a_shortcut_only_where_others_deny_it(folder):
    warnings = sources.load("merged", folder).warnings
    assert not any("Mass" in text or "Rib" in text for text in warnings)
    denied = SECOND.replace("Rib fracture", "Mass").replace("3.png,P3,1,1", "3.png,P3,1,0")
    (folder / "../two/labels.csv").write_text(denied)
    (told,) = [text for text in sources.load("merged", folder).warnings if "Mass" in text]
    assert told.startswith("Only one has positive images of Mass,")


def test_the_range_of_values_reaches_every_set(folder):
    table = sources.load("merged", folder, value_range="image")
    image = table.store.read(np.array([0]), 8)
    assert (image.min(), image.max()) == (0, 255)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["a,nih,x"], ["row 2", "'nih'"]),
        (["a,merged,x"], ["row 2", "'merged'"]),
        (["a,csv_folder,../one", "b,csv_folder,"], ["row 3", "empty dir"]),
        (["a,csv_folder,../one", "a,csv_folder,../two"], ["row 3", "'a' again"]),
        ([",csv_folder,../one", ",csv_folder,../two"], ["row 3", "'csv_folder' again"]),
        (["a/b,csv_folder,../one"], ["row 2", "'a/b'", "without '/'"]),
        (["a,csv_folder,../none"], ["The set a of", "none"]),
        (["a,nih_chest_xray14,x", "b,rsna_pneumonia,y"], ["a", "b", "ChestX-ray14"]),
    ],
)
def test_a_wrong_table_of_sets_is_refused(folder, rows, words):
    with pytest.raises(InputError) as refused:
        sources.load("merged", write(folder, *rows))
    for word in words:
        assert word in str(refused.value)


def test_a_folder_without_a_table_of_sets_is_refused(folder):
    with pytest.raises(InputError, match=r"no .*one/sets\.csv.*name, source, dir"):
        sources.load("merged", (folder / "../one").resolve())


def test_the_views_reach_every_set(folder):
    path = "train/patient00001/study1/view1_{}.jpg"
    columns = ("Path", "No Finding", *chexpert.LABELS)
    lines = [",".join([path.format(view), *["0.0"] * 14]) for view in ("frontal", "lateral")]
    (folder / "train.csv").write_text("\n".join([",".join(columns), *lines]) + "\n")
    write(folder, "one,csv_folder,../one", "two,chexpert,.")
    found = [len(sources.load("merged", folder, views=v).sets["two"].images) for v in VIEWS]
    assert found == [1, 2]


def test_a_set_that_cannot_be_split_is_named(folder):
    (folder / "../one/labels.csv").write_text(FIRST.replace(",test,", ",,"))
    with pytest.raises(InputError, match=r"The set one: .* needs a part for every image"):
        splits.make_split(sources.load("merged", folder), "official", STAGES, 0)


def test_boxes_are_those_of_the_sets(folder, nih):
    with pytest.raises(InputError, match=r"No set of .*sets\.csv has boxes"):
        sources.read_boxes(folder, "", sources.load("merged", folder))
    write(folder, "one,csv_folder,../one", f"nih,nih_chest_xray14,{nih.path}")
    table = sources.load("merged", folder)
    with pytest.raises(InputError, match=r"The set nih of .* has no boxes, BBox_List"):
        sources.read_boxes(folder, "", table)
    header = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
    (nih.path / "BBox_List_2017.csv").write_text(header + f"{nih.names[4]},Mass,1,2,3,4,,,\n")
    boxes = sources.read_boxes(folder, "", table)
    assert table.images[boxes.rows].tolist() == [f"nih/{nih.names[4]}"]


def test_simulated_and_other_images_are_not_mixed(folder):
    tables = sources.load("merged", folder).sets
    with pytest.raises(InputError, match="images of two are SIMULATED"):
        merged.merge(tables | {"two": dataclasses.replace(tables["two"], simulated=True)})


def test_merged_sets_are_prepared_one_by_one(folder, tmp_path):
    with pytest.raises(InputError, match="prepare each"):
        prepare("merged", folder, tmp_path / "out", size=8)
    assert not (tmp_path / "out").exists()
