import base64
import io
import re

import matplotlib
import numpy as np
import pytest
from html_check import Page
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import roc_auc_score, roc_curve

from charm_jax.report import figures
from data_pipelines.figures import Figure


def scores(n=300, seed=0):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.3).astype(np.int8)
    return (rng.normal(size=n) + labels).astype(np.float32), labels


@given(st.integers(2, 400), st.integers(0, 99))
def test_a_thinned_curve_keeps_its_ends_and_its_area(n, seed):
    logits, labels = scores(max(n, 20), seed)
    x, y, _ = roc_curve(labels, logits)
    less_x, less_y = figures.thinned(x, y, points=60)
    assert len(less_x) <= 60
    assert (less_x[0], less_y[0], less_x[-1], less_y[-1]) == (0, 0, 1, 1)
    assert np.all(np.diff(less_x) >= 0)
    assert np.trapezoid(less_y, less_x) == pytest.approx(roc_auc_score(labels, logits), abs=0.02)


def test_a_curve_of_few_points_is_kept_whole():
    x, y = np.array([0, 0.2, 1.0]), np.array([0, 0.9, 1.0])
    for kept, given_ in zip(figures.thinned(x, y), (x, y), strict=True):
        np.testing.assert_array_equal(kept, given_)


def test_reliability_is_of_bins_of_equal_numbers():
    forecast = np.linspace(0, 1, 20)
    labels = (np.arange(20) >= 10).astype(np.int8)
    expected, observed = figures.reliability(forecast, labels, bins=2)
    np.testing.assert_allclose(expected, [forecast[:10].mean(), forecast[10:].mean()])
    np.testing.assert_array_equal(observed, [0, 1])
    assert len(figures.reliability(forecast[:3], labels[:3])[0]) == 3


@pytest.mark.parametrize("temperature", [None, 0.7])
@pytest.mark.parametrize("threshold", [None, 0.3, 0.0, 1.0])
def test_a_finding_is_drawn_with_and_without_threshold_and_temperature(threshold, temperature):
    logits, labels = scores()
    figure = figures.finding_figure(logits, labels, threshold=threshold, temperature=temperature)
    roc, recall, calibration, distribution = figure.axes
    marked = temperature is not None and threshold is not None
    assert len(roc.lines) == 2 + marked
    # Of no image that is said to have it there is no precision.
    assert len(recall.lines) == 2 + (marked and threshold < 1)
    assert len(calibration.lines) == 2 + (temperature is not None)
    assert len(distribution.lines) == marked
    low, high = distribution.get_xlim()
    assert high - low < 2 * np.ptp(logits)  # however far away the threshold is


def test_the_mark_lies_on_the_curve_at_the_threshold():
    logits, labels = scores()
    figure = figures.finding_figure(logits, labels, threshold=0.5, temperature=2.0)
    mark = figure.axes[0].lines[-1]
    seen = figures.seen(logits, threshold=0.5, temperature=2.0)
    np.testing.assert_array_equal(seen, logits >= 0)
    assert mark.get_xdata() == pytest.approx([seen[labels == 0].mean()])
    assert mark.get_ydata() == pytest.approx([seen[labels == 1].mean()])


@pytest.mark.parametrize(("threshold", "temperature"), [(None, 1.0), (0.5, None)])
def test_without_threshold_or_temperature_nothing_is_decided(threshold, temperature):
    logits = scores()[0]
    assert figures.seen(logits, threshold=threshold, temperature=temperature) is None


def test_a_threshold_of_one_is_reached_by_scores_that_round_to_it():
    seen = figures.seen(np.array([1, 3], np.float32), threshold=1.0, temperature=0.05)
    assert seen.tolist() == [False, True]


def test_one_image_of_each_kind_and_equal_scores_are_drawn():
    labels = np.array([0, 1], np.int8)
    for logits in (np.zeros(2, np.float32), np.array([-90, 90], np.float32)):
        figure = figures.finding_figure(logits, labels, threshold=0.5, temperature=1.0)
        assert len(figure.axes) == 4


def test_drawing_leaves_the_style_of_the_caller():
    before = dict(matplotlib.rcParams)
    figures.finding_figure(*scores(), threshold=None, temperature=None)
    assert dict(matplotlib.rcParams) == before


def test_the_plane_keeps_apart_what_points_elsewhere_whatever_its_length():
    features = np.array([[1.0, 0, 0], [5, 0, 0], [0, 1, 0], [0, 9, 0]])
    places = figures.plane(features)
    np.testing.assert_allclose(places[0], places[1], atol=1e-12)
    np.testing.assert_allclose(places[2], places[3], atol=1e-12)
    assert np.linalg.norm(places[0] - places[2]) == pytest.approx(np.sqrt(2))


@pytest.mark.parametrize("shape", [(0, 4), (1, 4), (2, 4), (5, 1)])
def test_the_plane_of_few_cases_or_dimensions(shape):
    places = figures.plane(np.ones(shape, np.float32))
    assert places.shape == (shape[0], 2)
    assert np.isfinite(places).all()


def test_a_map_marks_the_chosen_cases():
    places = np.array([[0.0, 0], [1, 1], [0, 1]])
    pixels = figures.bank_map(places, np.array([False, True, False]), side=100)
    assert pixels.shape == (100, 100, 4)
    solid = pixels[..., 3] == 255
    orange = solid & (pixels[..., 0] > 180) & (pixels[..., 2] < 80)
    grey = solid & (pixels[..., 0] == pixels[..., 2])
    rows, columns = np.nonzero(orange)
    assert rows.max() < 50  # above, right
    assert columns.min() > 50
    assert grey.sum() > 0
    assert (pixels[..., 3] == 0).mean() > 0.8


def test_the_threshold_s_line_ends_below_the_legend():
    logits, labels = scores()
    for threshold in (0.05, 0.3, 0.7):
        figure = figures.finding_figure(logits, labels, threshold=threshold, temperature=0.7)
        figure.draw_without_rendering()
        distribution = figure.axes[3]
        [line] = distribution.lines
        legend = distribution.get_legend().get_window_extent()
        assert line.get_window_extent().y1 < legend.y0


def _figure():
    figure = Figure(figsize=(2, 1))
    axes = figure.subplots()
    axes.plot([0, 1], [1, 0], color="#0072b2", clip_on=True)
    axes.text(0, 0, "in ink", color="black")
    return figure


def test_figures_share_no_id_and_take_the_colours_of_the_page():
    first, second = (figures.figure_svg(_figure(), name, "a line") for name in ("a", "b"))
    assert Page(first.body + second.body).faults == []
    assert "var(--first)" in first.body
    assert "#0072b2" not in first.body
    assert "in ink" in first.body
    assert "http" not in first.body
    assert (first.width, first.height, first.alt) == (144, 72, "a line")


def test_pictures_hold_their_pixels():
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    picture = figures.picture(grey, "x", "PNG")
    assert (picture.width, picture.height, picture.alt) == (8, 6, "x")
    code = re.search(r"data:image/png;base64,(.*)", picture.source)[1]
    read = np.asarray(Image.open(io.BytesIO(base64.b64decode(code))))
    np.testing.assert_array_equal(read, grey)
    assert "data:image/jpeg" in figures.picture(np.stack([grey] * 3, -1), "x").source
