import dataclasses

import numpy as np
import pytest
import report_data

from charm_jax.report import cases
from charm_jax.report.contents import labelled


def split(logits, labels):
    evaluated = report_data.evaluated(n=len(logits), findings=("Mass",), charm=False)
    return dataclasses.replace(
        evaluated,
        logits=np.asarray(logits, np.float32)[:, None],
        labels=np.asarray(labels, np.int8)[:, None],
    )


def found(evaluated, limit):
    seen = None if limit is None else evaluated.logits[:, 0] >= limit
    errors = cases.confident_errors(evaluated, [seen])
    return [(error.row, error.labelled, error.beyond) for error in errors]


def test_the_most_confident_errors_are_the_extremes_of_each_kind():
    evaluated = split([3, -2, 4, -5, 9], [0, 0, 1, 1, -1])
    assert found(evaluated, 0.0) == [(0, False, True), (3, True, True)]


def test_what_is_on_the_right_side_of_the_threshold_is_no_error():
    evaluated = split([-1, -2, 4, -5], [0, 0, 1, 1])
    assert found(evaluated, 0.0) == [(3, True, True)]
    assert found(evaluated, -6.0) == [(0, False, True)]
    assert found(evaluated, -1.0) == [(0, False, True), (3, True, True)]


def test_without_a_threshold_the_extremes_are_shown_as_such():
    evaluated = split([-1, -2, 4], [0, 0, 1])
    assert found(evaluated, None) == [(0, False, False), (2, True, False)]


def test_one_class_or_no_label_has_errors_of_its_own_kind_alone():
    assert found(split([1, 2], [0, 0]), 0.0) == [(1, False, True)]
    assert found(split([1, 2], [-1, -1]), None) == []


def test_of_many_findings_the_most_frequent_are_shown():
    names = [f"f{i}" for i in range(30)]
    evaluated = report_data.evaluated(n=60, findings=names)
    evaluated.labels[:] = np.arange(60)[:, None] < np.arange(30)[None, :]
    errors = cases.confident_errors(evaluated, [None] * 30)
    assert {error.finding for error in errors} == set(range(10, 30))


def test_a_tile_says_score_labels_name_and_the_nearest_stored_case():
    evaluated, bank = report_data.evaluated(n=6), report_data.bank()
    evaluated.valid[2] = [False, True, True, True, True]
    evaluated.slots[2, 1], evaluated.similarities[2, 1] = 7, 0.5
    evaluated.logits[2, 0] = 0.0
    error = cases.Error(0, 2, True, True)
    [tile] = cases.error_tiles([error], evaluated, [2.0] * 14, bank, report_data.read)
    assert (tile.title, tile.shade) == ("Atelectasis: missed", "missed")
    score, labels, name, nearest = tile.facts
    assert score == "score 0.500, calibrated 0.500"
    assert labels == f"labelled {evaluated.named(2)}"
    assert name == "00000000_002.png"
    assert nearest.startswith("most like stored 10000007_000.png (cosine 0.50")
    assert len(tile.pictures) == 2


def test_without_attention_a_tile_has_the_image_alone():
    evaluated = report_data.evaluated(n=6, charm=False)
    error = cases.Error(0, 2, False, False)
    [tile] = cases.error_tiles([error], evaluated, [None] * 14, None, report_data.read)
    assert len(tile.pictures) == 1
    assert len(tile.facts) == 3
    assert "calibrated" not in tile.facts[0]
    assert tile.title == "Atelectasis: scores highest without it"


def test_times_read_count_what_was_valid():
    evaluated, bank = report_data.evaluated(n=4, k=2), report_data.bank()
    evaluated.slots[:] = [[0, 1], [0, 2], [0, 31], [5, 5]]
    evaluated.valid[:] = [[True, True], [True, False], [True, False], [False, False]]
    reads = cases.times_read(evaluated, bank)
    assert reads.sum() == 4
    assert (reads[0], reads[1], reads[2], reads[5]) == (3, 1, 0, 0)
    first, second = cases.most_read(evaluated, bank, report_data.read)
    assert (first.title, second.title) == ("10000000_000.png", "10000001_000.png")
    assert first.facts[0] == "read for 3 images"
    assert (len(first.pictures), len(second.pictures)) == (0, 1)  # slot 0 has no pixels


def test_nothing_read_shows_no_case():
    evaluated, bank = report_data.evaluated(n=4, k=0), report_data.bank()
    assert cases.most_read(evaluated, bank, report_data.read) == []
    plain = report_data.evaluated(n=4, charm=False)
    assert cases.times_read(plain, bank).sum() == 0


def test_pixels_are_asked_for_only_where_there_are_some():
    evaluated = report_data.evaluated(n=6)
    bank = dataclasses.replace(report_data.bank(), rows=np.full(32, -1))

    def never(rows):
        raise AssertionError(rows)

    assert not any(tile.pictures for tile in cases.most_read(evaluated, bank, never))


def test_empty_slots_are_in_no_count_and_on_no_map():
    evaluated, bank = report_data.evaluated(n=6), report_data.bank(filled=3)
    bank.labels[:3] = 0
    bank.labels[1, 4] = 1
    shown = cases.describe_bank(evaluated, bank, "norm_inlier", report_data.read)
    assert (shown["filled"], shown["slots"]) == (3, 32)
    *_, healthy = shown["rows"]
    assert (healthy["name"], healthy["stored"]) == ("no finding", 2)
    assert healthy["share"] == pytest.approx(2 / 3)
    assert [tile.title for tile in shown["maps"]] == ["Edema (1)"]


def test_shares_are_over_known_labels():
    evaluated, bank = report_data.evaluated(n=4, findings=("Mass",)), report_data.bank(("Mass",))
    evaluated.labels[:, 0], bank.labels[:30, 0] = [1, 0, -1, -1], -1
    bank.labels[:2, 0] = [0, 0]
    rows = cases.describe_bank(evaluated, bank, "norm_inlier", report_data.read)["rows"]
    assert [(row["share"], row["here"]) for row in rows] == [(0, 0.5), (1, 0.5)]
    bank.labels[:], evaluated.labels[:] = -1, -1
    unknown = cases.describe_bank(evaluated, bank, "norm_inlier", report_data.read)["rows"]
    assert [(row["share"], row["here"]) for row in unknown] == [(None, None)] * 2


def test_labels_in_words():
    findings = ("Mass", "Pleural_Thickening")
    assert labelled(findings, np.array([1, 1], np.int8)) == "Mass, Pleural Thickening"
    assert labelled(findings, np.array([0, -1], np.int8)) == "no finding"
    assert labelled(findings, np.array([-1, -1], np.int8)) == "labels unknown"


def test_an_image_stands_beside_its_nearest_cases_and_their_weights():
    evaluated, bank = report_data.evaluated(n=6), report_data.bank()
    evaluated.labels[:], evaluated.valid[:] = 0, True
    evaluated.labels[2:4, 1], evaluated.labels[4, 0] = 1, 1
    evaluated.logits[3, 1] = 9.0
    evaluated.valid[3, 0] = False
    evaluated.slots[3, 1], evaluated.similarities[3] = 7, np.log([9, 4, 3, 2, 1])
    rarest, other = cases.compared(evaluated, bank, report_data.read, 1.0)
    assert rarest[0].facts[1] == evaluated.images[4]
    assert other[0].title == f"labelled {evaluated.named(3)}"
    nearest = [tile.facts for tile in other[1:]]
    assert [facts[1] for facts in nearest] == [f"{n:.1f} % of the vote" for n in (40, 30, 20, 10)]
    assert nearest[0][0] == "cosine 1.39"
    assert nearest[0][2] == "stored 10000007_000.png"
    without = cases.compared(evaluated, bank, report_data.read, None)
    assert all(len(tile.facts) == 2 for tile in without[0][1:])


def test_nothing_is_compared_where_nothing_was_read():
    evaluated, bank = report_data.evaluated(n=6), report_data.bank()
    evaluated.valid[:] = False
    assert cases.compared(evaluated, bank, report_data.read, 1.0) == []
    evaluated = report_data.evaluated(n=6, charm=False)
    assert cases.compared(evaluated, bank, report_data.read, 1.0) == []
