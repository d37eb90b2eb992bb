"""Draw the figures of a report, and embed figures and images in its page."""

import base64
import dataclasses
import io
import re
from functools import wraps

import numpy as np
from jaxtyping import Bool, Float, Int8, UInt8
from matplotlib.axes import Axes
from PIL import Image
from scipy.special import expit, logit
from sklearn.decomposition import PCA
from sklearn.metrics import precision_recall_curve, roc_curve
from sklearn.preprocessing import normalize

from data_pipelines.figures import Figure

FIRST, SECOND, NEUTRAL = "#0072b2", "#d55e00", "#b0b0b0"  # distinct for the colour-blind
_POINTS = 160  # of a curve; more would not show
_BINS = 10
_OPEN = (1e-300, 1 - 2.0**-53)  # between these a probability has a finite logit
_HEADROOM = 1.45  # height of the axes over that of the highest bar: room for the legend
# Colours of the figures become those of the page, which follow light and dark.
_COLOURS = {
    "#000000": "var(--ink)",
    FIRST: "var(--first)",
    SECOND: "var(--second)",
    NEUTRAL: "var(--rule)",
    "#cccccc": "var(--rule)",
    "#ffffff": "var(--paper)",
}
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.handlelength": 1.2,
}


def _styled(draw):
    """Wrap a function so that it draws in the style of this module."""

    @wraps(draw)
    def styled(*args, **kwargs):
        import matplotlib

        with matplotlib.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return styled


@_styled
def finding_figure(
    logits: Float[np.ndarray, " n"],
    labels: Int8[np.ndarray, " n"],
    *,
    threshold: float | None,
    temperature: float | None,
) -> Figure:
    """Draw ROC and precision-recall curve, calibration and distribution of a finding's scores.

    Args:
        logits: logits of the images whose label is known.
        labels: 0 or 1, both present.
        threshold: threshold on the calibrated probability; None for none.
        temperature: divisor that calibrates the logits; None for none.
    """
    figure = Figure(figsize=(4.7, 4.5), layout="constrained")
    (roc, recall), (calibration, distribution) = figure.subplots(2, 2)
    _roc(roc, logits, labels)
    _precision_recall(recall, logits, labels)
    _calibration(calibration, logits, labels, temperature)
    _distribution(distribution, logits, labels)
    chosen = seen(logits, threshold=threshold, temperature=temperature)
    if chosen is not None:
        _mark(roc, recall, chosen, labels)
        distribution.set_xlim(distribution.get_xlim())
        at = temperature * logit(np.clip(threshold, *_OPEN))
        style = {"color": "black", "linewidth": 1, "linestyle": "--"}
        distribution.axvline(at, ymax=1 / _HEADROOM, **style)  # below the legend
    for axes in (roc, recall, calibration):
        axes.grid(alpha=0.5)
    return figure


def seen(
    logits: Float[np.ndarray, " n"], *, threshold: float | None, temperature: float | None
) -> Bool[np.ndarray, " n"] | None:
    """Return which images reach the threshold on the calibrated score; None without one."""
    if threshold is None or temperature is None:
        return None
    return expit(logits.astype(float) / temperature) >= threshold


def _roc(axes: Axes, logits: np.ndarray, labels: np.ndarray) -> None:
    false, true, _ = roc_curve(labels, logits)
    axes.plot([0, 1], [0, 1], color=NEUTRAL, linewidth=1)
    axes.plot(*thinned(false, true), color=FIRST)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), title="ROC curve")
    axes.set(xlabel="1 - specificity", ylabel="sensitivity")


def _precision_recall(axes: Axes, logits: np.ndarray, labels: np.ndarray) -> None:
    precision, recall, _ = precision_recall_curve(labels, logits, drop_intermediate=True)
    precision, recall = precision[:-1], recall[:-1]  # without scikit-learn's end at (0, 1)
    axes.axhline(labels.mean(), color=NEUTRAL, linewidth=1)
    axes.plot(*thinned(recall, precision), color=FIRST, drawstyle="steps-post")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), title="Precision and recall")
    axes.set(xlabel="recall", ylabel="precision")


def thinned(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], points: int = _POINTS
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Keep at most ``points`` points, evenly spaced along the curve, with both ends."""
    way = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    at = np.searchsorted(way, np.linspace(0, way[-1], points))
    kept = np.unique(np.concatenate([[0], at[1:-1], [len(x) - 1]]))
    return x[kept], y[kept]


def _calibration(
    axes: Axes, logits: np.ndarray, labels: np.ndarray, temperature: float | None
) -> None:
    forecasts = {"raw score": (expit(logits.astype(float)), SECOND, "x")}
    if temperature is not None:
        forecasts["calibrated"] = (expit(logits.astype(float) / temperature), FIRST, "o")
    largest = 0.0
    for label, (forecast, colour, marker) in forecasts.items():
        expected, observed = reliability(forecast, labels)
        largest = max(largest, expected.max(), observed.max())
        axes.plot(expected, observed, color=colour, marker=marker, ms=4, lw=1, label=label)
    axes.plot([0, 1], [0, 1], color=NEUTRAL, linewidth=1, zorder=0)
    end = min(1.0, 1.08 * largest) or 1.0
    axes.set(xlim=(-0.03 * end, 1.03 * end), ylim=(-0.03 * end, 1.03 * end), title="Calibration")
    axes.set(xlabel="mean score of a tenth", ylabel="share with the finding")
    axes.legend(loc="upper left")


def reliability(
    forecast: Float[np.ndarray, " n"], labels: Int8[np.ndarray, " n"], bins: int = _BINS
) -> tuple[Float[np.ndarray, " b"], Float[np.ndarray, " b"]]:
    """Compute mean forecast and share of positives in bins of equal numbers of images."""
    parts = np.array_split(np.argsort(forecast, kind="stable"), min(bins, len(labels)))
    means = [(forecast[part].mean(dtype=float), labels[part].mean()) for part in parts]
    return tuple(np.asarray(means).T)


def _distribution(axes: Axes, logits: np.ndarray, labels: np.ndarray) -> None:
    bins = np.histogram_bin_edges(logits.astype(float), 36)
    for label, name, colour in ((0, "without", FIRST), (1, "with", SECOND)):
        chosen = logits[labels == label]
        counts, _ = np.histogram(chosen, bins)
        share = counts / len(chosen)
        axes.stairs(share, bins, color=colour, fill=True, alpha=0.25)
        axes.stairs(share, bins, color=colour, label=f"{name} (n = {len(chosen):,})")
    axes.set(xlabel="logit", ylabel="share of the images", title="Scores")
    axes.set_ylim(0, _HEADROOM * axes.dataLim.y1)
    axes.legend(loc="upper left")


def _mark(roc: Axes, recall: Axes, positive: np.ndarray, labels: np.ndarray) -> None:
    """Draw a diamond on each curve where the threshold lies."""
    true = (positive & (labels == 1)).sum()
    sensitivity = true / (labels == 1).sum()
    false = (positive & (labels == 0)).sum() / (labels == 0).sum()
    style = {"color": "black", "marker": "D", "markersize": 4.5, "zorder": 5}
    roc.plot(false, sensitivity, **style)
    if positive.any():
        recall.plot(sensitivity, true / positive.sum(), **style)


def plane(features: Float[np.ndarray, "n dim"]) -> Float[np.ndarray, "n 2"]:
    """Compute the first two principal components of the features at unit length.

    Components that fewer than two cases or dimensions, or equal features, leave open are zero.
    """
    parts = min(2, *features.shape)
    flat = np.zeros((len(features), 2))
    unit = normalize(features.astype(float)) if len(features) else flat
    if np.any(unit != unit[:1]):
        flat[:, :parts] = PCA(parts, svd_solver="full").fit_transform(unit)
    return flat


@_styled
def bank_map(
    places: Float[np.ndarray, "n 2"], chosen: np.ndarray, side: int = 220
) -> UInt8[np.ndarray, "side side 4"]:
    """Draw cases as dots on a plane, the chosen ones on top, as transparent RGBA pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = Figure(figsize=(side / 100, side / 100), dpi=100)
    figure.patch.set_alpha(0)
    axes = figure.add_axes((0.02, 0.02, 0.96, 0.96))
    axes.scatter(*places[~chosen].T, s=7, color=NEUTRAL, linewidths=0)
    axes.scatter(*places[chosen].T, s=14, color=SECOND, linewidths=0)
    axes.axis("off")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()


@dataclasses.dataclass(frozen=True)
class Plot:
    """A figure for the page: the content of an ``svg`` element, its size in points, its text."""

    body: str
    width: float
    height: float
    alt: str


def figure_svg(figure: Figure, name: str, alt: str) -> Plot:
    """Render a figure in the colours of the page.

    Args:
        figure: drawn in black, white and the colours of this module.
        name: prefix of the ids, unique in the page.
        alt: description of the figure.
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
    width, height = (72 * figure.get_size_inches()).tolist()
    return Plot(body, width, height, alt)


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image for the page, its source a data URI."""

    source: str
    width: int
    height: int
    alt: str


def picture(
    pixels: UInt8[np.ndarray, "s t *channels"], alt: str, file_type: str = "JPEG"
) -> Picture:
    """Encode grey or colour pixels."""
    stream = io.BytesIO()
    options = {"quality": 88} if file_type == "JPEG" else {"optimize": True}
    Image.fromarray(pixels).save(stream, format=file_type, **options)
    code = base64.b64encode(stream.getvalue()).decode()
    height, width = pixels.shape[:2]
    return Picture(f"data:image/{file_type.lower()};base64,{code}", width, height, alt)
