import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.errors import InputError
from data_pipelines.images.store import ImageFiles
from data_pipelines.tables.boxes import concatenated, locate
from data_pipelines.tables.case_table import CaseTable

PATH = Path("boxes.csv")
IMAGES = np.array(["a.png", "b.png"])
TABLE = CaseTable(
    source="somewhere",
    findings=("Mass", "Infiltration"),
    images=IMAGES,
    patients=np.arange(2, dtype=np.int32),
    labels=np.zeros((2, 2), np.int8),
    official_part=np.full(2, ""),
    views=np.full(2, ""),
    sexes=np.full(2, ""),
    ages=np.full(2, -1, np.int16),
    store=ImageFiles(IMAGES, {}),
)
COLUMNS = ["image", "finding", "x", "y", "width", "height", "image_width", "image_height"]


def frame(*rows, size=(200, 100)):
    made = pd.DataFrame([(*row, *size) for row in rows], columns=COLUMNS)
    made.index += 2
    return made


def test_shares_are_of_width_and_height():
    boxes = locate(frame(("b.png", "mass", "20", "10", "100", "40")), TABLE, PATH)
    assert boxes.rows.tolist() == [1] and boxes.findings.tolist() == ["Mass"]
    np.testing.assert_allclose(boxes.fractions, [[0.1, 0.1, 0.6, 0.5]])
    assert boxes.warnings == ()


def test_a_synonym_has_the_name_of_the_table():
    boxes = locate(frame(("a.png", "Infiltrate", 1, 1, 5, 5)), TABLE, PATH)
    assert boxes.findings.tolist() == ["Infiltration"]


@given(x=st.floats(-150, 199), y=st.floats(-80, 99), wide=st.floats(1, 400), high=st.floats(1, 300))
def test_a_box_is_cut_off_at_the_edges(x, y, wide, high):
    rows = frame(("a.png", "Mass", x, y, wide, high))
    if x + wide <= 0 or y + high <= 0:
        with pytest.raises(InputError, match="outside its image of 200 x 100 pixels"):
            locate(rows, TABLE, PATH)
        return
    boxes = locate(rows, TABLE, PATH)
    left, top, right, bottom = boxes.fractions[0]
    assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1
    np.testing.assert_allclose(right, min((x + wide) / 200, 1))
    beyond = max(-x, -y, x + wide - 200, y + high - 100)
    assert bool(boxes.warnings) == (beyond > 0.5)


def test_boxes_of_unknown_images_are_counted():
    rows = frame(("z.png", "Mass", 1, 1, 5, 5), ("a.png", "Mass", 1, 1, 5, 5))
    boxes = locate(rows, TABLE, PATH)
    assert boxes.rows.tolist() == [0]
    [warning] = boxes.warnings
    assert "1 of the 2 boxes in boxes.csv are left out" in warning and "z.png" in warning


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (("a.png", "Mass", "", 1, 5, 5), "row 2 (a.png), has the box ', 1, 5, 5'"),
        (("a.png", "Mass", "one", 1, 5, 5), "'one, 1, 5, 5': x, y, width and height must be"),
        (("a.png", "Mass", 1, 1, 0, 5), "'1, 1, 0, 5'"),
        (("a.png", "Mass", 1, 1, 5, -5), "the last two above 0"),
        (("a.png", "Mass", 1, "inf", 5, 5), "'1, inf, 5, 5'"),
        (("a.png", "Mas", 1, 1, 5, 5), "row 2 (a.png), has the finding 'Mas': did you mean 'Mass'"),
        (("a.png", "Mass", 200, 1, 5, 5), "outside its image of 200 x 100 pixels"),
        (("z.png", "Mass", 1, 1, 5, 5), "of images that somewhere lacks, such as z.png"),
    ],
)
def test_a_wrong_box_is_named(row, words):
    with pytest.raises(InputError, match=re.escape(words)):
        locate(frame(row), TABLE, PATH)


def test_boxes_are_joined_with_their_warnings():
    rows = frame(("a.png", "Mass", -9, 1, 50, 5))
    boxes = locate(rows, TABLE, PATH)
    both = concatenated([boxes, boxes])
    assert len(both.rows) == 2 and both.warnings == boxes.warnings * 2
