"""Markup by function: whatever is not ``Html`` is text and gets escaped."""

import base64
import html
import io
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure
from PIL import Image

UNDEFINED = "\N{EN DASH}"
_VOID = ("img", "line", "circle", "col")
# What figures are drawn in becomes the page's own colours, which follow light and dark.
_COLOURS = {
    "#000000": "var(--ink)",
    "#0072b2": "var(--first)",
    "#d55e00": "var(--second)",
    "#b0b0b0": "var(--rule)",
    "#cccccc": "var(--rule)",
    "#ffffff": "var(--paper)",
}
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


class Html(str):
    """Markup, as opposed to text."""


Child = str | Html | None


def element(tag: str, *children: Child, **attributes: str | int | float | None) -> Html:
    """Make an element, without children and attributes that are None.

    An attribute is written with a hyphen for an underscore; ``class_`` is ``class``.
    """
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in _VOID:
        return Html(f"<{tag}{written}>" if tag in ("img", "col") else f"<{tag}{written}/>")
    return Html(f"<{tag}{written}>{joined(*children)}</{tag}>")


def joined(*children: Child) -> Html:
    """Markup and text one after the other."""
    return Html(
        "".join(
            child if isinstance(child, Html) else html.escape(child, quote=False)
            for child in children
            if child is not None
        )
    )


def table(label: str, header: Sequence[Child], rows: Sequence[Sequence[Child]]) -> Html:
    """Make a table that scrolls sideways where it is too wide."""
    head = element("tr", *(element("th", cell, scope="col") for cell in header))
    body = (
        element("tr", element("th", first, scope="row"), *(element("td", cell) for cell in cells))
        for first, *cells in rows
    )
    whole = element("table", element("thead", head), element("tbody", *body))
    return element("div", whole, class_="scroll", role="region", aria_label=label, tabindex="0")


def definitions(entries: Sequence[tuple[str, Child]]) -> Html:
    """Names and what they stand for; entries without a value are left out."""
    known = [(name, value) for name, value in entries if value]
    pairs = (element("div", element("dt", name), element("dd", value)) for name, value in known)
    return element("dl", *pairs)


def number(value: float | None, digits: int = 3) -> str:
    """Format a number with so many decimals; undefined is a dash."""
    return UNDEFINED if value is None else f"{value:.{digits}f}"


def span(interval: Sequence[float | None], digits: int = 3) -> str:
    """Format an interval's ends; empty where it is undefined."""
    low, high = interval
    return "" if low is None or high is None else f"{low:.{digits}f} to {high:.{digits}f}"


def percent(share: float | None, digits: int = 1) -> str:
    """Format a share in per cent."""
    return UNDEFINED if share is None else f"{100 * share:.{digits}f} %"


def interval_bar(
    value: float | None,
    interval: Sequence[float | None],
    start: float,
    mark: float | None = None,
) -> Html | str:
    """Draw a dot with its interval on a scale from ``start`` to 1, and a tick at ``mark``."""
    if value is None:
        return ""

    def place(x: float) -> str:
        return f"{4 + 112 * (min(max(x, start), 1.0) - start) / (1 - start):.1f}"

    shapes = [element("line", class_="axis", x1=4, x2=116, y1=8, y2=8)]
    if mark is not None:
        shapes.append(element("line", class_="mark", x1=place(mark), x2=place(mark), y1=2, y2=14))
    low, high = interval
    said = number(value)
    if low is not None and high is not None:
        shapes.append(element("line", class_="span", x1=place(low), x2=place(high), y1=8, y2=8))
        said += f", interval {span(interval)}"
    shapes.append(element("circle", class_="value", cx=place(value), cy=8, r=4))
    size = {"viewBox": "0 0 120 16", "width": 120, "height": 16}
    return element("svg", *shapes, class_="bar", role="img", aria_label=said, **size)


def figure_svg(figure: Figure, name: str, alt: str) -> Html:
    """Render a figure as inline SVG in the page's colours.

    Args:
        figure: drawn in black, white and the colours of ``curves``.
        name: unlike that of any other figure of the page; ids begin with it.
        alt: what is to be seen.
    """
    import matplotlib

    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(stream, format="svg", transparent=True, metadata=_NO_METADATA)
    drawn = stream.getvalue()
    body = drawn[drawn.index(">", drawn.index("<svg")) + 1 : drawn.rindex("</svg>")]
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r'(\bid="|xlink:href="#|url\(#)', lambda m: f"{m[1]}{name}-", body)
    body = body.replace("xlink:href", "href").replace("'DejaVu Sans'", "system-ui")
    body = re.sub(r' d="[^"]*"', lambda m: re.sub(r"(\.\d)\d+", r"\1", m[0]), body)
    for colour, variable in _COLOURS.items():
        body = body.replace(colour, variable)
    width, height = 72 * figure.get_size_inches()
    box = {"viewBox": f"0 0 {width:g} {height:g}"}
    return element("svg", Html(body), class_="plot", role="img", aria_label=alt, **box)


def picture(pixels: UInt8[np.ndarray, "s t *channels"], alt: str, file_type: str = "JPEG") -> Html:
    """Pixels, grey or colour, as an image within the page."""
    stream = io.BytesIO()
    options = {"quality": 88} if file_type == "JPEG" else {"optimize": True}
    Image.fromarray(pixels).save(stream, format=file_type, **options)
    code = base64.b64encode(stream.getvalue()).decode()
    height, width = pixels.shape[:2]
    source = f"data:image/{file_type.lower()};base64,{code}"
    return element("img", src=source, alt=alt, width=width, height=height)
