import base64
import io
import re

import numpy as np
import pytest
from html_check import Page
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from charm_jax.report import html
from charm_jax.report.html import Html, element


@given(st.text(st.characters(codec="utf-8", exclude_characters="\r\0")))
def test_text_comes_back_as_it_was_and_never_becomes_markup(text):
    markup = element("p", text, title=text)
    page = Page(markup)
    assert page.faults == []
    assert page.tags == {"p": 1}
    assert page.text == text


def test_markup_within_markup_is_kept_and_none_left_out():
    inner = element("b", "<")
    assert element("p", inner, None, " & ", class_="x", id=None, data_y=1.5) == (
        '<p class="x" data-y="1.5"><b>&lt;</b> &amp; </p>'
    )
    assert isinstance(inner, Html)


def test_elements_without_content_are_not_closed():
    assert element("img", alt="x") == '<img alt="x">'
    assert element("line", x1=1) == '<line x1="1"/>'


@pytest.mark.parametrize(
    ("value", "said"), [(None, "\N{EN DASH}"), (0.12345, "0.123"), (1.0, "1.000")]
)
def test_numbers(value, said):
    assert html.number(value) == said


def test_intervals_and_shares():
    assert html.span([0.1, 0.25], 2) == "0.10 to 0.25"
    assert html.span([None, None]) == ""
    assert html.percent(0.1234) == "12.3 %"
    assert html.percent(None) == "\N{EN DASH}"


def test_a_bar_lies_on_its_scale():
    bar = html.interval_bar(0.75, [0.5, 1.0], 0.5, mark=0.6)
    assert re.search(r'class="span" x1="4.0" x2="116.0"', bar)
    assert re.search(r'class="value" cx="60.0"', bar)
    assert re.search(r'class="mark" x1="26.4"', bar)
    assert 'aria-label="0.750, interval 0.500 to 1.000"' in bar
    beyond = html.interval_bar(0.2, [None, None], 0.5)
    assert re.search(r'class="value" cx="4.0"', beyond)
    assert 'class="span"' not in beyond
    assert html.interval_bar(None, [None, None], 0.5) == ""


def _figure():
    figure = Figure(figsize=(2, 1))
    axes = figure.subplots()
    axes.plot([0, 1], [1, 0], color="#0072b2", clip_on=True)
    axes.text(0, 0, "in ink", color="black")
    return figure


def test_figures_share_no_id_and_take_the_colours_of_the_page():
    first, second = (html.figure_svg(_figure(), name, "a line") for name in ("a", "b"))
    assert Page(first + second).faults == []
    assert "var(--first)" in first
    assert "#0072b2" not in first
    assert "in ink" in first
    assert "http" not in first
    assert 'viewBox="0 0 144 72"' in first


def test_pictures_hold_their_pixels():
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    markup = html.picture(grey, 'an "x"', "PNG")
    assert 'alt="an &quot;x&quot;" width="8" height="6"' in markup
    code = re.search(r"data:image/png;base64,([^\"]*)", markup)[1]
    read = np.asarray(Image.open(io.BytesIO(base64.b64decode(code))))
    np.testing.assert_array_equal(read, grey)
    assert "data:image/jpeg" in html.picture(np.stack([grey] * 3, -1), "x")
