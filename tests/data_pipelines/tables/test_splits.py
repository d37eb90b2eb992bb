import dataclasses
import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import small_table

from data_pipelines.errors import InputError
from data_pipelines.tables.findings import NIH_FINDINGS
from data_pipelines.tables.splits import (
    RULES,
    folds,
    keep_rows,
    make_split,
    part_summary,
    shuffled_patients,
    torch_randperm,
)

RECIPE = {"bce": "abnormal", "focal": "all"}


def _table(patients, abnormal, official_part=None):
    n = len(patients)
    return small_table(
        n,
        patients=np.asarray(patients, np.int32),
        labels=np.asarray(abnormal, np.int8).reshape(n, 1),
        official_part=np.asarray(official_part if official_part is not None else [""] * n),
    )


def _sizes(table, parts):
    return {part: (len(rows), len(np.unique(table.patients[rows]))) for part, rows in parts.items()}


def test_official_has_the_published_sizes(nih_table):
    split = make_split(nih_table, "official", RECIPE, split_seed=0)
    parts = split.stages["focal"]
    sizes = _sizes(nih_table, parts)
    assert sizes["train"][0] + sizes["val"][0] == 86_524
    assert (sizes["train"][1], sizes["val"][1]) == (28_008 - 3_501, 3_501)
    assert sizes["test"] == (25_596, 2_797)
    assert (split.leak_images, split.leak_of) == (0, int(nih_table.abnormal[parts["test"]].sum()))


def test_official_validation_is_the_first_train_val_patients_of_the_permutation(nih_table):
    split = make_split(nih_table, "official", RECIPE, split_seed=0)
    order = np.random.Generator(np.random.PCG64(0)).permutation(np.unique(nih_table.patients))
    train_val = set(nih_table.patients[nih_table.official_part == "train_val"].tolist())
    expected = [patient for patient in order.tolist() if patient in train_val][:3_501]
    val = nih_table.patients[split.stages["focal"]["val"]]
    assert set(val.tolist()) == set(expected)


def test_patient_has_the_published_sizes(nih_table):
    split = make_split(nih_table, "patient", RECIPE, split_seed=0)
    patients = {part: n for part, (_, n) in _sizes(nih_table, split.stages["focal"]).items()}
    assert patients == {"test": 6_161, "val": 3_080, "train": 21_564}
    order = shuffled_patients(nih_table, 0)
    test = nih_table.patients[split.stages["bce"]["test"]]
    assert set(test.tolist()) == set(order[:6_161].tolist())
    assert split.leak_images == 0


@pytest.mark.parametrize("rule", ["official", "patient"])
def test_abnormal_stage_takes_the_abnormal_of_train_and_val_and_the_whole_test(nih_table, rule):
    stages = make_split(nih_table, rule, RECIPE, split_seed=0).stages
    for part in ("train", "val"):
        rows = stages["focal"][part]
        np.testing.assert_array_equal(stages["bce"][part], rows[nih_table.abnormal[rows]])
    np.testing.assert_array_equal(stages["bce"]["test"], stages["focal"]["test"])


@pytest.fixture(scope="module")
def notebook(nih_table):
    return make_split(nih_table, "notebook", RECIPE, split_seed=0)


def test_notebook_has_the_published_sizes(nih_table, notebook):
    bce, focal = (
        {part: len(rows) for part, rows in notebook.stages[stage].items()}
        for stage in ("bce", "focal")
    )
    assert bce == {"train": 36_506, "val": 5_215, "test": 10_038, "test_published": 1_254}
    assert focal == {"train": 78_544, "val": 11_220, "test": 22_356, "test_published": 2_794}
    for stage, seen, everyone in (("bce", 11_521, 14_402), ("focal", 24_644, 30_805)):
        parts = notebook.stages[stage]
        train_val = np.concatenate([parts["train"], parts["val"]])
        assert len(np.unique(nih_table.patients[train_val])) == seen
        assert len(np.unique(nih_table.patients[parts["test"]])) == everyone - seen


def test_notebook_leaks_what_it_is_known_to_leak(notebook):
    assert (notebook.leak_images, notebook.leak_of) == (8_016, 10_296)


def test_notebook_published_test_images_are_the_published_ones(nih_table, notebook):
    published = notebook.stages["focal"]["test_published"]
    positives = nih_table.labels[published].sum(axis=0, dtype=int).tolist()
    assert dict(zip(NIH_FINDINGS, positives, strict=True)) == {
        "Atelectasis": 287,
        "Cardiomegaly": 61,
        "Effusion": 292,
        "Infiltration": 485,
        "Mass": 144,
        "Nodule": 179,
        "Pneumonia": 38,
        "Pneumothorax": 99,
        "Consolidation": 135,
        "Edema": 59,
        "Emphysema": 51,
        "Fibrosis": 55,
        "Pleural_Thickening": 92,
        "Hernia": 8,
    }


def test_notebook_published_test_images_had_been_in_stage_1(nih_table, notebook):
    stage_1 = np.concatenate([notebook.stages["bce"]["train"], notebook.stages["bce"]["val"]])
    published = notebook.stages["focal"]["test_published"]
    hernia = nih_table.labels[published, NIH_FINDINGS.index("Hernia")] == 1
    seen = np.isin(published, stage_1)
    assert (int(seen.sum()), int(seen[hernia].sum())) == (979, 7)


def test_notebook_ignores_the_split_seed(nih_table, notebook):
    other = make_split(nih_table, "notebook", {"focal": "all"}, split_seed=3)
    np.testing.assert_array_equal(other.stages["focal"]["val"], notebook.stages["focal"]["val"])
    assert other.leak_images == 0  # one stage has nothing to leak into


@given(n=st.integers(0, 300), seed=st.integers(0, 2**32 - 1))
def test_torch_randperm_is_a_permutation(n, seed):
    # That it is torch's own is what the published positives above show.
    assert sorted(torch_randperm(n, seed).tolist()) == list(range(n))


def test_missing_files_are_dropped_after_the_division(nih_table, notebook):
    kept = keep_rows(nih_table, notebook, nih_table.present)
    for stage, parts in notebook.stages.items():
        for part, rows in parts.items():
            expected = rows[nih_table.present[rows]]
            np.testing.assert_array_equal(kept.stages[stage][part], expected)
    assert len(kept.used_rows) == 1_000
    test = kept.stages["focal"]["test"]
    assert kept.leak_of == int(nih_table.abnormal[test].sum())
    assert 0 < kept.leak_images < kept.leak_of


@st.composite
def _table_arguments(draw):
    n_patients = draw(st.integers(3, 40))
    numbers = draw(
        st.lists(st.integers(0, 9_999), min_size=n_patients, max_size=n_patients, unique=True)
    )
    counts = draw(st.lists(st.integers(1, 4), min_size=n_patients, max_size=n_patients))
    patients = np.repeat(numbers, counts)
    abnormal = draw(st.lists(st.booleans(), min_size=len(patients), max_size=len(patients)))
    is_test = np.arange(n_patients) < max(n_patients // 4, 1)
    official = np.repeat(np.where(is_test, "test", "train_val"), counts)
    return patients, abnormal, official


@given(
    drawn=_table_arguments(),
    rule=st.sampled_from(["official", "patient"]),
    seed=st.integers(0, 2**32),
)
def test_splits_hold_each_image_once_and_share_no_patient(drawn, rule, seed):
    table = _table(*drawn)
    split = make_split(table, rule, {"only": "all"}, seed)
    parts = split.stages["only"]
    rows = np.concatenate(list(parts.values()))
    assert sorted(rows.tolist()) == list(range(len(table.images)))
    assert all((np.diff(part) > 0).all() and part.dtype == np.int64 for part in parts.values())
    patients = [set(table.patients[part].tolist()) for part in parts.values()]
    assert sum(map(len, patients)) == len(np.unique(table.patients))
    assert all(patients)  # three patients are enough for three parts
    assert split.leak_images == 0


@given(drawn=_table_arguments(), rule=st.sampled_from(["official", "patient"]))
def test_the_same_seed_gives_the_same_parts(drawn, rule):
    table = _table(*drawn)
    one, two = (make_split(table, rule, RECIPE, split_seed=7) for _ in range(2))
    for stage, parts in one.stages.items():
        for part, rows in parts.items():
            np.testing.assert_array_equal(rows, two.stages[stage][part])


def test_another_seed_gives_other_parts(nih_table):
    one, two = (make_split(nih_table, "patient", RECIPE, seed).stages["focal"] for seed in (0, 1))
    assert set(one["test"].tolist()) != set(two["test"].tolist())


def test_a_split_column_is_used_as_it_is():
    part = ["val", "train", "test", "train", "val"]
    table = _table([1, 2, 3, 4, 5], [1, 0, 1, 1, 0], part)
    stages = make_split(table, "official", RECIPE, split_seed=0).stages
    assert {k: v.tolist() for k, v in stages["focal"].items()} == {
        "train": [1, 3],
        "val": [0, 4],
        "test": [2],
    }
    assert stages["bce"]["train"].tolist() == [3]


def test_a_split_column_without_val_has_an_eighth_of_its_training_patients_drawn():
    patients = np.repeat(np.arange(24), 2)
    part = np.where(patients < 16, "train", "test")
    split = make_split(_table(patients, patients % 2, part), "official", RECIPE, split_seed=0)
    parts = split.stages["focal"]
    chosen = {name: np.unique(patients[rows]) for name, rows in parts.items()}
    assert {name: len(of_part) for name, of_part in chosen.items()} == {
        "train": 14,
        "val": 2,
        "test": 8,
    }
    assert (chosen["val"] < 16).all()
    same = make_split(_table(patients, patients % 2, part), "official", RECIPE, split_seed=0)
    np.testing.assert_array_equal(same.stages["focal"]["val"], parts["val"])


def test_a_table_of_test_images_alone_stays_one():
    split = make_split(_table([1, 2], [1, 0], ["test", "test"]), "official", RECIPE, split_seed=0)
    assert [len(rows) for rows in split.stages["focal"].values()] == [0, 0, 2]


def test_leak_counts_abnormal_test_images_of_patients_seen_in_any_stage():
    # Alternating images of 40 patients, the first of each abnormal.
    patients = np.repeat(np.arange(40), 2)
    table = _table(patients, np.tile([1, 0], 40))
    split = make_split(table, "notebook", RECIPE, split_seed=0)
    seen = {
        int(table.patients[row])
        for parts in split.stages.values()
        for part in ("train", "val")
        for row in parts[part]
    }
    test = [row for row in split.stages["focal"]["test"] if table.abnormal[row]]
    assert split.leak_of == len(test) == 8
    assert split.leak_images == sum(int(table.patients[row]) in seen for row in test)
    without_stage_1 = keep_rows(
        table, split, ~np.isin(patients, table.patients[test]) | ~table.abnormal
    )
    assert (without_stage_1.leak_images, without_stage_1.leak_of) == (0, 0)


def test_part_summary_hashes_the_sorted_names():
    table = _table([5, 5, 6], [0, 1, 0])
    names = "00000.png\n00001.png"
    summary = part_summary(table, np.array([1, 0]))
    assert len(summary.pop("cases_sha256")) == 64
    assert summary == {
        "images": 2,
        "patients": 1,
        "sha256": hashlib.sha256(names.encode()).hexdigest(),
    }


def test_part_summary_tells_cases_of_the_same_names_apart():
    """Not by the number of the patients' rows, which other rows of the table shift."""
    table, rows = _table([5, 5, 6], [0, 1, 0]), np.array([0, 1])

    def digest(changed):
        return part_summary(changed, rows)["cases_sha256"]

    others = [
        dataclasses.replace(table, labels=1 - table.labels),
        dataclasses.replace(table, patients=np.array([5, 6, 6], np.int32)),
        dataclasses.replace(table, findings=("Nodule",)),
    ]
    assert len({digest(table), *map(digest, others)}) == 4
    named = [
        dataclasses.replace(table, patients=np.array(numbers, np.int32), patient_names=names)
        for numbers, names in (([0, 0, 1], ("ann", "bob")), ([2, 2, 0], ("bob", "cyd", "ann")))
    ]
    assert digest(named[0]) == digest(named[1])
    unknown = [
        dataclasses.replace(table, patients=np.array(numbers, np.int32), patients_known=False)
        for numbers in ([0, 1, 2], [1, 2, 3])
    ]
    assert digest(unknown[0]) == digest(unknown[1])


def _error(call, *needles):
    with pytest.raises(InputError) as caught:
        call()
    for needle in needles:
        assert needle in str(caught.value)


def test_unknown_rule_names_the_nearest():
    table = _table([1], [1])
    _error(
        lambda: make_split(table, "oficial", RECIPE, 0),
        "config.data.split",
        "'oficial'",
        "'official'",
    )


def test_unknown_kind_of_images_names_the_key():
    table = _table([1, 2, 3], [1, 1, 1])
    _error(
        lambda: make_split(table, "patient", {"bce": "sick"}, 0),
        "config.stages.bce.images",
        "'sick'",
    )


def test_official_without_lists_names_them_and_an_image():
    table = dataclasses.replace(
        _table([1, 2], [1, 1]), official_files=("train_val_list.txt", "test_list.txt")
    )
    _error(
        lambda: make_split(table, "official", RECIPE, 0),
        "00000.png",
        "train_val_list.txt",
        "test_list.txt",
        "--config.data.split=patient",
    )


def test_official_with_an_unknown_part_names_image_and_part():
    table = _table([1, 2], [1, 1], ["train", "dev"])
    _error(lambda: make_split(table, "official", RECIPE, 0), "00001.png", "'dev'")


def test_a_patient_on_both_sides_is_named_with_both_parts():
    table = _table([1, 7, 2, 7], [1, 1, 1, 1], ["train", "val", "test", "test"])
    _error(
        lambda: make_split(table, "official", RECIPE, 0),
        "patient 7",
        "'val' (00001.png)",
        "'test' (00003.png)",
    )


def test_a_patient_in_both_official_lists_is_refused():
    table = _table([1, 2, 3, 2], [1, 1, 1, 1], ["train_val", "train_val", "test", "test"])
    _error(lambda: make_split(table, "official", RECIPE, 0), "patient 2", "'test'")


def test_notebook_with_one_patient():
    table = _table([1, 2], [0, 1])
    _error(lambda: make_split(table, "notebook", RECIPE, 0), "'notebook'", "2 patients")


def test_needed_part_that_is_empty_or_unknown():
    table = _table([1, 2, 3], [1, 0, 0], ["train", "val", "test"])
    split = make_split(table, "official", RECIPE, 0)
    assert split.rows("bce", "train").tolist() == [0]
    _error(lambda: split.rows("bce", "val"), "'val'", "'bce'", "config.data.split")
    _error(lambda: split.rows("bce", "test_published"), "'test_published'", "train, val, test")


def test_every_rule_is_tested_here():
    assert set(RULES) == {"official", "patient", "notebook"}


PATIENTS = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 7)), min_size=12, max_size=40)


@given(PATIENTS, st.integers(2, 6), st.integers(0, 3))
def test_folds_test_each_patient_once_and_share_each_finding(drawn, count, seed):
    """Patients with some images each, all with the findings of a bit mask."""
    patients = np.repeat(np.arange(len(drawn)), [images for images, _ in drawn])
    labels = (np.array([mask for _, mask in drawn])[patients][:, None] >> np.arange(3)) & 1
    table = small_table(
        len(patients),
        patients=patients.astype(np.int32),
        labels=labels.astype(np.int8),
        findings=("A", "B", "C"),
    )
    tested = []
    for fold in range(count):
        split = make_split(table, f"kfold:{fold}/{count}", RECIPE, seed)
        parts = split.stages["focal"]
        assert sorted(np.concatenate(list(parts.values()))) == list(range(len(patients)))
        assert split.leak_images == 0
        assert len(parts["val"]) and len(parts["train"])
        tested.append(np.unique(patients[parts["test"]]))
    assert sorted(np.concatenate(tested)) == list(range(len(drawn)))
    rarest = np.argmin(labels.sum(axis=0))  # on a tie the first, as the rule takes it
    having = np.unique(patients[labels[:, rarest] == 1])
    shares = [np.isin(having, fold).sum() for fold in tested]
    assert max(shares) - min(shares) <= 1


def test_folds_of_the_whole_set_have_as_many_of_the_rarest(nih_table):
    fold = folds(nih_table, 5, split_seed=0)
    hernia = nih_table.labels[:, NIH_FINDINGS.index("Hernia")] == 1
    assert np.bincount(fold).min() > 22_000
    assert np.bincount(fold[hernia]).min() > 35
    assert (fold != folds(nih_table, 5, split_seed=1)).any()
    assert (fold == folds(nih_table, 5, split_seed=0)).all()


@pytest.mark.parametrize(
    "rule", ["kfold", "kfold:", "kfold:5/5", "kfold:0/1", "kfold:-1/5", "kfold:1", "kfold:a/b"]
)
def test_a_fold_that_there_is_not_is_refused(rule):
    _error(lambda: make_split(_table([1, 2], [0, 1]), rule, RECIPE, 0), repr(rule), "kfold:0/5")


def test_more_folds_than_patients_are_refused():
    table = _table([1, 2, 3], [1, 0, 0])
    words = ("kfold:0/4", f"{table.source} has 3 patients", "at most 3 folds")
    _error(lambda: make_split(table, "kfold:0/4", RECIPE, 0), *words)
