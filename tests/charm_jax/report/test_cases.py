import dataclasses

import numpy as np
import report_data

from charm_jax.report import cases
from charm_jax.report.contents import labelled


def part(logits, labels):
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
    evaluated = part([3, -2, 4, -5, 9], [0, 0, 1, 1, -1])
    assert found(evaluated, 0.0) == [(0, False, True), (3, True, True)]


def test_what_is_on_the_right_side_of_the_threshold_is_no_error():
    evaluated = part([-1, -2, 4, -5], [0, 0, 1, 1])
    assert found(evaluated, 0.0) == [(3, True, True)]
    assert found(evaluated, -6.0) == [(0, False, True)]
    assert found(evaluated, -1.0) == [(0, False, True), (3, True, True)]


def test_without_a_threshold_the_extremes_are_shown_as_such():
    evaluated = part([-1, -2, 4], [0, 0, 1])
    assert found(evaluated, None) == [(0, False, False), (2, True, False)]


def test_one_class_or_no_label_has_errors_of_its_own_kind_alone():
    assert found(part([1, 2], [0, 0]), 0.0) == [(1, False, True)]
    assert found(part([1, 2], [-1, -1]), None) == []


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
    tiles = cases.error_tiles([error], evaluated, [2.0] * 14, bank, report_data.read)
    assert "Atelectasis: missed" in tiles
    assert "score 0.500, calibrated 0.500" in tiles
    assert evaluated.named(2) in tiles
    assert "00000000_002.png" in tiles
    assert "most like stored 10000007_000.png (cosine 0.50" in tiles
    assert tiles.count("<img") == 2


def test_without_attention_a_tile_has_the_image_alone():
    evaluated = report_data.evaluated(n=6, charm=False)
    error = cases.Error(0, 2, False, False)
    tiles = cases.error_tiles([error], evaluated, [None] * 14, None, report_data.read)
    assert tiles.count("<img") == 1
    assert "calibrated" not in tiles
    assert "stored" not in tiles
    assert "scores highest without it" in tiles


def test_times_read_count_what_was_valid():
    evaluated, bank = report_data.evaluated(n=4, k=2), report_data.bank()
    evaluated.slots[:] = [[0, 1], [0, 2], [0, 31], [5, 5]]
    evaluated.valid[:] = [[True, True], [True, False], [True, False], [False, False]]
    reads = cases.times_read(evaluated, bank)
    assert reads.sum() == 4
    assert (reads[0], reads[1], reads[2], reads[5]) == (3, 1, 0, 0)
    most = cases.most_read(evaluated, bank, report_data.read)
    assert most.index("10000000_000.png") < most.index("10000001_000.png")
    assert "read for 3 images" in most
    assert most.count("<img") == 1  # of slot 0 there are no pixels


def test_nothing_read_shows_no_case():
    evaluated, bank = report_data.evaluated(n=4, k=0), report_data.bank()
    assert cases.most_read(evaluated, bank, report_data.read) is None
    plain = report_data.evaluated(n=4, charm=False)
    assert cases.times_read(plain, bank).sum() == 0


def test_pixels_are_asked_for_only_where_there_are_some():
    evaluated = report_data.evaluated(n=6)
    bank = dataclasses.replace(report_data.bank(), rows=np.full(32, -1))

    def never(rows):
        raise AssertionError(rows)

    assert "<img" not in cases.most_read(evaluated, bank, never)


def test_empty_slots_are_in_no_count_and_on_no_map():
    evaluated, bank = report_data.evaluated(n=6), report_data.bank(filled=3)
    bank.labels[:3] = 0
    bank.labels[1, 4] = 1
    metrics = report_data.metrics(evaluated)
    text = cases.bank_table(evaluated, bank, metrics["findings"])
    assert "<td>2</td><td>66.7 %</td>" in text  # no finding
    maps = cases.bank_maps(evaluated.findings, bank)
    assert maps.count("<img") == 1
    assert "Edema (1)" in maps


def test_labels_in_words():
    findings = ("Mass", "Pleural_Thickening")
    assert labelled(findings, np.array([1, 1], np.int8)) == "Mass, Pleural Thickening"
    assert labelled(findings, np.array([0, -1], np.int8)) == "no finding"
    assert labelled(findings, np.array([-1, -1], np.int8)) == "labels unknown"
