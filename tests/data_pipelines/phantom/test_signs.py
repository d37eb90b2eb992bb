import numpy as np
import pytest

from data_pipelines.phantom import anatomy, signs
from data_pipelines.phantom import draw as phantom
from data_pipelines.tables.findings import NIH_FINDINGS

# Mean absolute difference to the same chest without the sign, in grey levels of 255, at 64 x 64.
LEAST_CHANGE = dict.fromkeys(NIH_FINDINGS, 0.8) | {"Nodule": 0.25}


def _place(number, extent=0.5):
    rng = np.random.default_rng(number)
    return anatomy.Place(1, 0.5, 0.5, extent, rng)


@pytest.mark.parametrize("name", NIH_FINDINGS)
def test_each_sign_changes_the_picture(name):
    changes = []
    for seed in range(6):
        normal = phantom.draw_phantom((), seed, seed, 64).astype(float)
        changes.append(np.abs(phantom.draw_phantom((name,), seed, seed, 64) - normal).mean())
    assert min(changes) > LEAST_CHANGE[name]


def test_cardiomegaly_widens_the_heart():
    shape = signs.SHAPE_SIGNS["Cardiomegaly"]
    for seed in range(20):
        healthy = anatomy.healthy_thorax(seed)
        wide = shape(healthy, _place(seed, extent=seed / 20))
        for thorax, low, high in ((healthy, 0.40, 0.50), (wide, 0.55, 0.70)):
            left, right = thorax.heart
            assert low < (right - left) / (2 * thorax.half_width) < high


def test_the_wide_heart_is_seen_in_the_picture():
    normal = np.mean([phantom.draw_phantom((), n, n, 64) for n in range(8)], axis=0)
    wide = np.mean([phantom.draw_phantom(("Cardiomegaly",), n, n, 64) for n in range(8)], axis=0)
    heart_row = slice(38, 44)
    brighter = (wide - normal)[heart_row, 12:56].mean(axis=0) > 10
    assert brighter.sum() >= 5


def test_a_mass_is_wider_than_three_centimetres_and_a_nodule_is_not():
    centimetres = 2 * phantom.MILLIMETRES / 20  # of a radius, as a diameter
    for extent in (0.0, 1.0):
        assert signs.nodule_radius(_place(0, extent)) * centimetres < 3
        assert signs.mass_radius(_place(0, extent)) * centimetres > 3


def test_a_mass_changes_more_pixels_than_a_nodule():
    for seed in range(8):
        normal = phantom.draw_phantom((), seed, seed, 64).astype(int)
        changed = {
            name: (np.abs(phantom.draw_phantom((name,), seed, seed, 64) - normal) > 20).sum()
            for name in ("Nodule", "Mass")
        }
        assert changed["Mass"] > 2 * changed["Nodule"] > 0


def _boxed(boxes, size):
    inside = np.zeros((size, size), bool)
    for left, top, right, bottom in boxes:
        inside[top:bottom, left:right] = True
    return inside


@pytest.mark.parametrize("name", sorted(set(NIH_FINDINGS) - set(signs.SHAPE_SIGNS)))
def test_a_box_holds_where_the_picture_changes_most(name):
    for seed in range(6):
        normal = phantom.draw_phantom((), seed, seed, 64).astype(float)
        picture, boxes = phantom.draw_with_boxes((name,), seed, seed, 64)
        change, inside = np.abs(picture - normal), _boxed(boxes[name], 64)
        assert change[inside].mean() > 4 * change[~inside].mean()
        assert len(boxes[name]) <= 2 and inside.mean() < 0.5


def test_a_box_does_not_depend_on_other_signs_of_the_same_shape():
    alone = phantom.draw_with_boxes(("Mass",), 5, 6, 64)[1]
    among = phantom.draw_with_boxes(("Mass", "Pneumonia", "Effusion", "Hernia"), 5, 6, 64)[1]
    np.testing.assert_array_equal(alone["Mass"], among["Mass"])


def test_the_boxes_of_heart_and_lungs_are_theirs():
    for seed in range(6):
        _, boxes = phantom.draw_with_boxes(("Cardiomegaly", "Emphysema"), seed, seed, 64)
        [(left, top, right, bottom)] = boxes["Cardiomegaly"]
        assert left < 32 < right and right - 32 > 32 - left and 25 < top < bottom
        first, second = boxes["Emphysema"]
        assert first[2] <= second[0] + 6 and first[3] - first[1] > 30 < second[3] - second[1]
