"""Names of users are drawn as they are written."""

import io

import pytest

from data_pipelines.figures import Figure

BROKEN = r"a$\frac{1$ b$_\nothing{$.png"


@pytest.mark.parametrize("place", ["title", "tick", "legend", "suptitle", "text"])
def test_no_text_is_read_as_mathematics(place):
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], label=BROKEN)
    if place == "title":
        axes.set_title(BROKEN)
    elif place == "tick":
        axes.set_xticks([0, 1], labels=[BROKEN, "b"])
    elif place == "legend":
        axes.legend()
    elif place == "suptitle":
        figure.suptitle(BROKEN)
    else:
        axes.text(0, 0, BROKEN)
    for kind in ("png", "svg"):
        stream = io.BytesIO()
        figure.savefig(stream, format=kind)
        assert stream.getvalue()
