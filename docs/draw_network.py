"""Draw the figure of the network on the page of the concepts.

python docs/draw_network.py docs/network.svg
"""

import sys

import matplotlib
from matplotlib.figure import Figure

# Text stays text, and the same figure has the same bytes.
_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "charm", "font.size": 10}

_BLUE, _GREEN, _GREY = "#dbe7f5", "#dcefdc", "#eeeeee"
# Name: text, centre, colour.
_BOXES = {
    "x": ("images x", (0.7, 2.0), _GREY),
    "trunk": ("trunk", (2.3, 2.0), _BLUE),
    "main": ("expansion\nθ", (4.2, 3.0), _BLUE),
    "average": ("expansion\nθ̄ = EMA of θ", (4.2, 1.0), _GREEN),
    "q": ("query q\n= mean(f)", (6.3, 3.0), _BLUE),
    "key": ("key\n= mean(f̄)", (6.3, 1.0), _GREEN),
    "linear": ("classifier\nz₀ = W q + b", (9.3, 3.0), _BLUE),
    "bank": ("memory bank\nkeys, labels", (9.3, 1.0), _GREEN),
    "vote": ("vote v of the\nnearest cases", (11.9, 1.0), _GREEN),
    "logits": ("logits = z₀ +\nλ (logit v - logit π)", (14.0, 2.0), _GREY),
}
# From, to, text beside the arrow, dashed.
_ARROWS = (
    ("x", "trunk", "", False),
    ("trunk", "main", "t", False),
    ("trunk", "average", "t", False),
    ("main", "q", "f", False),
    ("average", "key", "f̄", False),
    ("main", "average", "EMA", True),
    ("q", "linear", "", False),
    ("key", "bank", "training", True),
    ("q", "bank", "cosines", False),
    ("bank", "vote", "", False),
    ("linear", "logits", "", False),
    ("vote", "logits", "", False),
)


def draw(path: str) -> None:
    """Write the figure as SVG, on white so that it can be read on a dark page."""
    figure = Figure(figsize=(11.5, 3.2))
    axes = figure.subplots()
    boxes = {}
    for name, (text, place, colour) in _BOXES.items():
        style = {"boxstyle": "round,pad=0.45", "facecolor": colour, "edgecolor": "#555555"}
        boxes[name] = axes.text(*place, text, ha="center", va="center", bbox=style)
    for start, end, text, dashed in _ARROWS:
        ends = {"patchA": boxes[start].get_bbox_patch(), "patchB": boxes[end].get_bbox_patch()}
        line = "dashed" if dashed else "solid"
        arrow = {"arrowstyle": "-|>", "color": "#333333", "linestyle": line, **ends}
        a, b = _BOXES[start][1], _BOXES[end][1]
        axes.annotate("", b, a, arrowprops={**arrow, "shrinkA": 2, "shrinkB": 2})
        if text:
            middle = ((a[0] + b[0]) / 2, (a[1] + b[1]) / 2)
            above = a[1] == b[1]
            axes.annotate(
                text,
                middle,
                (0, 5 if above else 0),
                textcoords="offset points",
                ha="center",
                va="baseline" if above else "center",
                size=8,
                bbox=None if above else {"facecolor": "white", "edgecolor": "none", "pad": 1},
            )
    axes.set_xlim(0, 15.4)
    axes.set_ylim(0.3, 3.7)
    axes.axis("off")
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})


if __name__ == "__main__":
    with matplotlib.rc_context(_STYLE):
        draw(sys.argv[1])
