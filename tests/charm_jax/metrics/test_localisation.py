"""Heat maps against boxes: by hand, and against plain loops over pairs and patients."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charm_jax.metrics import bootstrap, localisation
from charm_jax.metrics.localisation import THRESHOLDS, Located, Truth

NAMES = ("Mass", "Nodule", "Edema")
WHOLE = np.array([[0.0, 0.0, 1.0, 1.0]])


def a_map(*cells, side=4):
    """A map that is 1 at some cells (row, column)."""
    heat = np.zeros((1, side, side))
    for cell in cells:
        heat[(0, *cell)] = 1
    return heat


def one(boxes, findings=(0,), patients=(0,)):
    boxes = np.array(boxes, float).reshape(-1, 4)
    return Truth(boxes, np.zeros(len(boxes), int), np.array(findings), np.array(patients))


def random_truth(seed, pairs=14):
    rng = np.random.default_rng(seed)
    of = np.sort(np.concatenate([np.arange(pairs), rng.integers(0, pairs, 6)]))
    first = rng.uniform(0, 0.6, (len(of), 2))
    boxes = np.hstack([first, first + rng.uniform(0.1, 0.4, (len(of), 2))])
    return Truth(boxes, of, rng.integers(0, 3, pairs), rng.integers(0, 6, pairs))


def random_located(seed, pairs=14):
    rng = np.random.default_rng(seed)
    first = rng.uniform(0, 0.6, (pairs, 2))
    boxes = np.hstack([first, first + rng.uniform(0.1, 0.4, (pairs, 2))])
    return Located(rng.uniform(size=(pairs, 2)), boxes)


def test_the_peak_is_the_centre_of_the_highest_cell():
    found = localisation.from_maps(a_map((1, 3)))
    np.testing.assert_allclose(found.peaks, [[0.875, 0.375]])


def test_several_highest_cells_give_their_mean():
    np.testing.assert_allclose(localisation.from_maps(np.ones((1, 5, 5))).peaks, [[0.5, 0.5]])


def test_a_map_of_one_cell_points_at_the_centre_and_boxes_the_image():
    found = localisation.from_maps(np.ones((1, 1, 1)))
    np.testing.assert_allclose(found.peaks, [[0.5, 0.5]])
    np.testing.assert_allclose(found.boxes, WHOLE)


def test_the_box_holds_the_region_around_the_peak_alone():
    heat = a_map((0, 0), (3, 3))
    heat[0, 3, 3] = 0.9  # as high as half, but apart
    left, top, right, bottom = localisation.from_maps(heat).boxes[0]
    assert left == top == 0
    assert right == bottom == pytest.approx(0.25, abs=0.02)  # half way to the next cell's centre


def test_the_box_of_a_map_that_is_not_square():
    heat = np.zeros((1, 2, 8))
    heat[0, 1, 2] = 1
    left, top, right, bottom = localisation.from_maps(heat).boxes[0]
    assert left == pytest.approx(0.25, abs=0.02) and right == pytest.approx(0.375, abs=0.02)
    assert top == pytest.approx(0.5, abs=0.02) and bottom == 1


def test_a_map_without_heat_misses_everything():
    found = localisation.from_maps(np.zeros((1, 4, 4)))
    assert not localisation.hits(found, one(WHOLE)).any()


def test_the_pointing_game_has_no_tolerance():
    for x, inside in ((0.3, True), (0.299, False), (0.5, True), (0.501, False)):
        found = Located(np.array([[x, 0.4]]), WHOLE)
        values = localisation.hits(found, one([0.3, 0.3, 0.5, 0.5]))
        assert values[0, 0] == inside


def test_iou_and_iobb_by_hand():
    """The map's box is 0.4 x 0.5, the true one 0.6 x 0.5, they share 0.3 x 0.5."""
    found = Located(np.array([[0.0, 0.0]]), np.array([[0.1, 0.0, 0.5, 0.5]]))
    values = localisation.hits(found, one([0.2, 0.0, 0.8, 0.5]))[0]
    iou, iobb = 0.15 / (0.2 + 0.3 - 0.15), 0.75
    assert values[1:8].tolist() == [iou > t for t in THRESHOLDS]
    assert values[8:].tolist() == [iobb > t for t in THRESHOLDS]


def test_the_best_of_several_boxes_counts():
    found = Located(np.array([[0.9, 0.9]]), np.array([[0.8, 0.8, 1.0, 1.0]]))
    truth = one([[0, 0, 0.2, 0.2], [0.8, 0.8, 1.0, 1.0]])
    assert localisation.hits(found, truth).all()


@given(st.integers(0, 2**32 - 1))
def test_hits_equal_a_loop_over_pairs(seed):
    truth, located = random_truth(seed), random_located(seed + 1)
    values = localisation.hits(located, truth)
    for pair, (point, ours) in enumerate(zip(located.peaks, located.boxes, strict=True)):
        point_hit, ious, iobbs = False, [], []
        for box in truth.boxes[truth.pairs == pair]:
            point_hit |= box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]
            wide = max(0, min(box[2], ours[2]) - max(box[0], ours[0]))
            high = max(0, min(box[3], ours[3]) - max(box[1], ours[1]))
            areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, ours)]
            ious.append(wide * high / (sum(areas) - wide * high))
            iobbs.append(wide * high / areas[1])
        expected = [point_hit, *(max(ious) > t for t in THRESHOLDS)]
        assert values[pair].tolist() == expected + [max(iobbs) > t for t in THRESHOLDS]


@given(st.integers(0, 2**32 - 1))
def test_the_mean_box_reads_no_box_of_its_own_patient(seed):
    truth = random_truth(seed)
    found = localisation.mean_box(truth)
    for pair, finding in enumerate(truth.findings):
        others = (truth.findings == finding) & (truth.patients != truth.patients[pair])
        boxes = truth.boxes[others[truth.pairs]]
        if len(boxes):
            np.testing.assert_allclose(found.boxes[pair], boxes.mean(axis=0))
            np.testing.assert_allclose(found.peaks[pair], boxes.mean(axis=0).reshape(2, 2).mean(0))
        else:
            assert np.isnan(found.boxes[pair]).all()


def test_the_image_centre_has_no_box():
    truth = one(WHOLE)
    values = localisation.hits(localisation.image_centre(truth), truth)
    assert values[0, 0] == 1 and np.isnan(values[0, 1:]).all()


def test_shares_and_intervals_are_those_of_plain_resampling():
    truth, located = random_truth(3), {"ours": random_located(4)}
    result = localisation.score(located, truth, NAMES)
    values = localisation.hits(located["ours"], truth)
    names = np.unique(truth.patients)
    rng = np.random.default_rng(0)
    drawn = [names[rng.integers(len(names), size=len(names))] for _ in range(bootstrap.RESAMPLES)]
    rows = [np.concatenate([np.flatnonzero(truth.patients == p) for p in ids]) for ids in drawn]
    for column, name in enumerate(NAMES):
        entry, pairs = result.findings[name], truth.findings == column
        assert entry.images == pairs.sum()
        assert entry.boxes == pairs[truth.pairs].sum()
        assert entry.patients == len(set(truth.patients[pairs].tolist()))
        share = entry.methods["ours"].pointing
        assert share.value == values[pairs, 0].mean()
        picked = [r[truth.findings[r] == column] for r in rows]
        expected = np.array([values[r, 0].mean() if len(r) else math.nan for r in picked])
        same = np.nanmin(expected) == np.nanmax(expected)
        assert share.interval == ((None, None) if same else bootstrap.interval(expected))
        assert list(entry.methods["ours"].iou) == [str(t) for t in THRESHOLDS]
    mean = np.mean([entry.methods["ours"].iobb["0.3"].value for entry in result.findings.values()])
    assert result.mean["ours"].iobb["0.3"].value == pytest.approx(mean)


def test_all_found_or_none_has_no_interval():
    truth = random_truth(5)
    peaks = np.array([truth.boxes[truth.pairs == pair][0, :2] for pair in range(14)])
    sure, lost = Located(peaks, np.full((14, 4), -1.0)), Located(peaks - 9, np.full((14, 4), -1.0))
    result = localisation.score({"sure": sure, "lost": lost}, truth, NAMES)
    for name, value in (("sure", 1), ("lost", 0)):
        share = result.mean[name].pointing
        assert (share.value, share.interval) == (value, (None, None))


def test_a_finding_without_a_box_is_left_out_and_one_patient_has_no_interval():
    truth = one([0.2, 0.2, 0.6, 0.6], findings=(2,), patients=("p",))
    located = {
        "centre": localisation.image_centre(truth),
        "mean_box": localisation.mean_box(truth),
    }
    result = localisation.score(located, truth, NAMES)
    assert list(result.findings) == ["Edema"]
    methods = result.findings["Edema"].methods
    assert methods["centre"].pointing.value == 1
    assert methods["centre"].pointing.interval == (None, None)
    assert methods["centre"].iou["0.1"].value is None
    assert methods["mean_box"].pointing.value is None
    assert result.mean["mean_box"].iobb["0.7"].value is None
