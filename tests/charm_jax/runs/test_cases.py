"""Which images and patients of another table a run has seen, by name and never by number."""

import dataclasses
import json

import numpy as np
import pytest
from tables import small_table

from charm_jax.runs import cases
from charm_jax.runs.pseudonyms import names_of
from data_pipelines import sources
from data_pipelines.errors import InputError
from data_pipelines.sources import merged
from data_pipelines.sources.rsna_pneumonia import MAPPING


def table(images, patients, names=(), **more):
    """Images in sorted order, with the patients' numbers."""
    return small_table(
        len(images),
        images=np.array(images),
        patients=np.array(patients, np.int32),
        patient_names=names,
        **more,
    )


OWN = (["a/1.png", "a/2.png", "a/3.png", "a/4.png"], [0, 0, 1, 2], ("P1", "P2", "P3"))
LEARNED = np.array([0, 2])  # an image of P1, and that of P2


@pytest.fixture
def run(tmp_path):
    cases.write_cases(tmp_path, table(*OWN), LEARNED)
    return tmp_path


def known(run, other, **trained):
    """Match with the names and with their digests, which have to agree."""
    described = {"source": "test", "simulated": False, "patients_known": True} | trained
    found = cases.known_cases(run, other, described)
    coded = run / "coded"
    coded.mkdir(exist_ok=True)
    for kept in ({}, {"images_named": True}):
        again = described | {"names_key": "c0de"} | kept
        cases.write_coded(coded, cases.read_cases(run), cases.trained_on(run), *names_of(again))
        for name, values in vars(cases.known_cases(coded, other, again)).items():
            np.testing.assert_array_equal(values, getattr(found, name), name)
    return found


def test_the_own_table_comes_back_with_its_ids(run):
    found = known(run, table(*OWN))
    assert found.case_ids.tolist() == [0, 1, 2, 3]
    assert found.patient_ids.tolist() == [0, 0, 1, 2]
    assert found.patient_seen.tolist() == [True, True, True, False]
    assert found.image_seen.tolist() == [True, False, True, False]


def test_an_image_of_the_same_name_is_the_same_whoever_its_patient_is(run):
    found = known(run, table(["a/0.png", "a/3.png"], [5, 6], patients_known=False))
    assert found.case_ids.tolist() == [-1, 2]
    assert found.patient_seen.tolist() == found.image_seen.tolist() == [False, True]


def test_another_image_of_a_patient_is_told_by_the_patients_name(run):
    found = known(run, table(["new/1.png", "new/2.png"], [0, 1], ("P2", "P9")))
    assert found.case_ids.tolist() == [-1, -1]
    assert found.patient_ids.tolist() == [1, -1]
    assert found.patient_seen.tolist() == [True, False]
    assert not found.image_seen.any()


@pytest.mark.parametrize("source", ["test", "another"])
def test_images_are_told_in_another_spelling(tmp_path, source):
    cases.write_cases(
        tmp_path, table(["Caf\u00e9/A.PNG", "b.png", "c", "c.png"], range(4)), np.arange(4)
    )
    other = table(["B.jpg", "C.png", "b/d.png", "cafe\u0301\\a.png"], [0, 1, 2, 3])
    found = known(tmp_path, other, source=source)
    assert found.case_ids.tolist() == [1, -1, -1, 0]
    assert found.image_seen.tolist() == [True, False, False, True]


def test_a_patient_is_told_in_another_spelling(tmp_path):
    own = table(["1.png", "2.png", "3.png", "4.png"], range(4), ("7", "P-01", "Q1", "q 1"))
    cases.write_cases(tmp_path, own, np.arange(4))
    other = table(["5.png", "6.png", "7.png", "8.png"], range(4), ("007", "Q-1", "p1", "8"))
    assert known(tmp_path, other).patient_ids.tolist() == [0, -1, 1, -1]


def test_a_number_of_another_table_means_nothing(run):
    assert not known(run, table(["new/1.png"], [0], ("Q",))).patient_seen.any()


def test_patients_that_a_source_numbers_are_told_by_number(tmp_path):
    cases.write_cases(tmp_path, table(OWN[0], [10, 10, 11, 12]), LEARNED)
    assert not (tmp_path / "patients.csv").exists()
    found = known(tmp_path, table(["b.png", "c.png", "d.png"], [9, 11, 12]))
    assert found.patient_ids.tolist() == [-1, 11, 12]
    assert found.patient_seen.tolist() == [False, True, False]
    elsewhere = known(tmp_path, table(["b.png", "c.png"], [9, 11], source="other"))
    assert not elsewhere.patient_seen.any()


def test_in_another_source_a_patient_is_told_by_a_known_image(run):
    other = table(["a/1.png", "x.png", "y.png"], [7, 7, 8], source="other")
    found = known(run, other)
    assert found.patient_ids.tolist() == [0, 0, -1]
    assert found.patient_seen.tolist() == [True, True, False]
    assert found.image_seen.tolist() == [True, False, False]


def test_in_another_source_a_folder_before_a_name_does_not_hide_it(run):
    other = table(["3.png", "b/4.png", "c/2.png", "d/2.png"], [7, 8, 9, 5], source="other")
    found = known(run, other)
    assert found.case_ids.tolist() == [2, 3, -1, -1]  # there are two files 2.png
    assert found.patient_seen.tolist() == [True, False, False, False]
    own_folders = known(run, table(["b/1.png"], [0], ("new",)))
    assert own_folders.case_ids.tolist() == [-1]  # folders of one source are told apart


def test_copies_of_a_file_are_all_the_run_s_where_they_are_only_left_out(tmp_path):
    cases.write_cases(tmp_path, table(["a/1.png", "a/2.png", "b/2.png"], [0, 1, 2]), LEARNED)
    described = {"source": "test", "simulated": False, "patients_known": True}
    given = table(["in/1.png", "in/2.png", "more/1.png"], [0, 1, 2], source="given images")
    found = cases.known_cases(tmp_path, given, described, copies=True)
    assert found.case_ids.tolist() == [0, -1, 0]  # the run has two files 2.png
    assert found.patient_ids.tolist() == [0, -1, 0]
    once = cases.known_cases(tmp_path, given, described)
    assert once.case_ids.tolist() == [-1, -1, -1]


def test_simulated_images_are_none_of_the_acquired(run):
    found = known(run, table(*OWN), simulated=True)
    assert not found.patient_seen.any()
    assert (found.case_ids == -1).all()


def test_where_patients_are_not_known_only_images_tell(tmp_path):
    cases.write_cases(tmp_path, table(OWN[0], [0, 1, 2, 3]), LEARNED)
    found = known(tmp_path, table(["a/1.png", "z.png"], [0, 2]), patients_known=False)
    assert found.patient_seen.tolist() == [True, False]


def test_cases_have_the_names_that_the_source_gives(run, tmp_path):
    assert cases.read_cases(run)["patient"].tolist() == ["P1", "P1", "P2", "P3"]
    (tmp_path / "patients.csv").unlink()  # a run of before they were kept
    assert cases.read_cases(run)["patient"].tolist() == ["0", "0", "1", "2"]


@pytest.mark.parametrize("name", ["cases.csv", "trained_on.txt"])
def test_a_run_without_its_cases_is_refused(run, name):
    (run / name).unlink()
    with pytest.raises(InputError, match="no readable list of its cases"):
        known(run, table(*OWN))


def test_weights_without_a_run_know_nothing():
    found = cases.unknown_cases(table(*OWN))
    assert (found.case_ids == -1).all()
    assert not (found.patient_seen | found.image_seen).any()


def test_the_digest_of_cases_tells_shifted_ids_from_the_same_images():
    small, grown = table(["b.png", "c.png"], [0, 0]), table(["a.png", "b.png", "c.png"], [0, 0, 0])
    same = cases.cases_sha256(small, np.array([0, 1]))
    assert same == cases.cases_sha256(small, np.array([0, 1]))
    assert same != cases.cases_sha256(grown, np.array([1, 2]))


def test_images_of_the_rsna_challenge_are_those_of_chestxray14_by_the_mapping(tmp_path):
    run, folder = tmp_path / "run", tmp_path / "rsna"
    run.mkdir()
    folder.mkdir()
    own = (["00000013_000.png", "00000014_000.png"], [13, 14])
    cases.write_cases(run, table(*own), np.array([0]))
    (folder / "stage_2_train_labels.csv").write_text("patientId,Target\nx,0\ny,1\nz,0\n")
    other = sources.load("rsna_pneumonia", folder)
    assert not known(run, other, source="nih_chest_xray14").image_seen.any()
    names = {"x": "00000013_000.png", "y": "00000013_001.png", "z": "00000014_000.png"}
    entries = [{"subset_img_id": key, "img_id": name} for key, name in names.items()]
    (folder / MAPPING).write_text(json.dumps(entries))
    found = known(run, sources.load("rsna_pneumonia", folder), source="nih_chest_xray14")
    assert found.image_seen.tolist() == [True, False, False]
    assert found.patient_seen.tolist() == [True, True, False]


def test_a_run_on_merged_sets_knows_the_images_and_patients_of_each(tmp_path):
    first, second = table(*OWN, source="one"), table(["1.png"], [7], source="two")
    both = merged.merge({"x": first, "y": second})
    cases.write_cases(tmp_path, both, np.array([0]))  # x/a/1.png
    described = {"source": "merged", "sets": {"x": "one", "y": "two"}}
    other = table(["a/2.png", "new.png", "strange.png"], [0, 1, 2], ("P1", "P2", "P9"))
    found = known(tmp_path, dataclasses.replace(other, source="one"), **described)
    assert found.case_ids.tolist() == [1, -1, -1]
    assert found.patient_ids.tolist() == [both.patients[1], both.patients[2], -1]
    assert found.patient_seen.tolist() == [True, False, False]
    assert known(tmp_path, both, **described).case_ids.tolist() == [0, 1, 2, 3, 4]
    assert known(tmp_path, second, **described).case_ids.tolist() == [4]


def test_merged_sets_match_a_run_on_one_of_them_as_they_would_alone(run):
    both = merged.merge({"z": table(["a/1.png"], [3], source="other"), "own": table(*OWN)})
    found = known(run, both)
    own = [both.images.tolist().index(f"own/{image}") for image in OWN[0]]
    assert found.case_ids[own].tolist() == [0, 1, 2, 3]
    assert found.patient_seen[own].tolist() == [True, True, True, False]
