"""Names of users are drawn as they are written."""

import io

import pytest

from data_pipelines.figures import Figure

BROKEN = r"a$\frac{1$ b$_\nothing{$.png"
UNKNOWN = "\u96ea\t\U0001f44d.png"


@pytest.mark.parametrize("place", ["title", "tick", "legend", "suptitle", "text"])
@pytest.mark.parametrize("text", [BROKEN, UNKNOWN])
@pytest.mark.filterwarnings("error")
def test_no_text_is_read_as_mathematics(place, text):
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], label=text)
    if place == "title":
        axes.set_title(text)
    elif place == "tick":
        axes.set_xticks([0, 1], labels=[text, "b"])
    elif place == "legend":
        axes.legend()
    elif place == "suptitle":
        figure.suptitle(text)
    else:
        axes.text(0, 0, text)
    for kind in ("png", "svg"):
        stream = io.BytesIO()
        figure.savefig(stream, format=kind)
        assert stream.getvalue()
