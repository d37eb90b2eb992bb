"""The images of a report: the most confident errors, and what the memory bank holds."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy.special import expit

from charm_jax.report import overlays
from charm_jax.report.contents import Bank, Evaluated, labelled, shown
from charm_jax.report.figures import bank_map, plane
from charm_jax.report.html import Html, element, number, percent, picture, table

Read = Callable[[Int[np.ndarray, " m"]], UInt8[np.ndarray, "m side side"]]
FINDINGS = 20  # whose errors are shown: the most frequent ones
_CASES = 12  # of the bank that are shown
# Labelled or not, beyond a threshold or without one.
_KINDS = {
    (True, True): "missed",
    (False, True): "seen, not labelled",
    (True, False): "scores lowest with it",
    (False, False): "scores highest without it",
}


@dataclasses.dataclass(frozen=True)
class Error:
    """An image that the network is wrong about.

    Attributes:
        finding: column.
        row: of ``Evaluated``.
        labelled: with the finding, which scores low; otherwise it scores high without it.
        beyond: it lies on the wrong side of a threshold; otherwise there is none.
    """

    finding: int
    row: int
    labelled: bool
    beyond: bool


def confident_errors(
    evaluated: Evaluated, seen: Sequence[Bool[np.ndarray, " n"] | None]
) -> list[Error]:
    """For each finding the image without it that scores highest, and the one with it, lowest.

    Args:
        evaluated: the part.
        seen: for each finding, which images reach its threshold. One on the right side is no
            error; for None, without a threshold, the two extremes are taken.
    """
    errors = []
    frequent = np.argsort(-(evaluated.labels == 1).sum(axis=0), kind="stable")[:FINDINGS]
    for column in np.sort(frequent):
        logits, labels = evaluated.logits[:, column], evaluated.labels[:, column]
        decided = seen[column]
        for label in (False, True):
            rows = np.flatnonzero(labels == label)
            if not len(rows):
                continue
            row = rows[np.argmin(logits[rows]) if label else np.argmax(logits[rows])]
            if decided is None or decided[row] != label:
                errors.append(Error(int(column), int(row), label, decided is not None))
    return errors


def error_tiles(
    errors: Sequence[Error],
    evaluated: Evaluated,
    temperatures: Sequence[float | None],
    bank: Bank | None,
    read: Read,
) -> Html:
    """Draw the images of the errors, with the attention over them where there is one."""
    pixels = read(evaluated.rows[[error.row for error in errors]])
    tiles = []
    for error, image in zip(errors, pixels, strict=True):
        name, finding = str(evaluated.images[error.row]), shown(evaluated.findings[error.finding])
        pictures = [picture(image, f"{name}, as the network read it")]
        if evaluated.attention is not None:
            heat = overlays.stretched(evaluated.attention[error.row].astype(float), overlays.FLAT)
            overlay = overlays.attention_overlay(image, heat)
            pictures.append(picture(overlay, f"{name} with the network's attention over it"))
        kind = _KINDS[error.labelled, error.beyond]
        shade = "missed" if error.labelled else "seen"
        title = element("strong", f"{finding}: {kind}", class_=shade)
        facts = _facts(error, evaluated, temperatures[error.finding], bank)
        caption = element("figcaption", title, *(element("div", fact) for fact in facts))
        pair = element("div", *pictures, class_="pair")
        tiles.append(element("figure", pair, caption))
    shape = "tiles small" if evaluated.attention is None else "tiles"
    return element("div", *tiles, class_=shape)


def _facts(
    error: Error, evaluated: Evaluated, temperature: float | None, bank: Bank | None
) -> list[str]:
    row = error.row
    logit = float(evaluated.logits[row, error.finding])
    score = f"score {number(float(expit(logit)))}"
    if temperature is not None:
        score += f", calibrated {number(float(expit(logit / temperature)))}"
    facts = [score, f"labelled {evaluated.named(row)}", str(evaluated.images[row])]
    if bank is not None and evaluated.valid is not None and evaluated.valid[row].any():
        best = int(np.argmax(evaluated.valid[row]))
        slot = int(evaluated.slots[row, best])
        facts.append(
            f"most like stored {bank.images[slot]} (cosine "
            f"{number(float(evaluated.similarities[row, best]), 2)}; "
            f"{labelled(evaluated.findings, bank.labels[slot])})"
        )
    return facts


def times_read(evaluated: Evaluated, bank: Bank) -> Int[np.ndarray, " slots"]:
    """How many images read each slot."""
    if evaluated.valid is None:
        return np.zeros(len(bank.filled), int)
    return np.bincount(evaluated.slots[evaluated.valid], minlength=len(bank.filled))


def bank_table(evaluated: Evaluated, bank: Bank, findings: Mapping[str, Any]) -> Html:
    """Which findings fill the bank, beside their share in the part that is evaluated."""
    labels, reads = bank.labels[bank.filled], times_read(evaluated, bank)[bank.filled]
    known = max(len(labels), 1)
    names = [shown(name) for name in evaluated.findings]
    healthy = (labels != 1).all(axis=1) & (labels >= 0).any(axis=1)
    present = [*(labels == 1).T, healthy]
    here = [values["prevalence"] for values in findings.values()]
    here.append(float((evaluated.labels != 1).all(axis=1).mean()))
    largest = max([*(chosen.sum() / known for chosen in present), *(x or 0 for x in here), 0.01])
    rows = []
    for name, chosen, share in zip([*names, "no finding"], present, here, strict=True):
        stored = chosen.sum() / known
        rows.append(
            [
                name,
                f"{chosen.sum():,}",
                percent(stored),
                percent(share),
                _bar(stored / largest, None if share is None else share / largest, percent(stored)),
                f"{reads[chosen].sum():,}",
            ]
        )
    header = ["Finding", "Stored cases", "Share", "Share in this part", "", "Times read"]
    return table("Findings in the memory bank", header, rows)


def _bar(share: float, mark: float | None, said: str) -> Html:
    shapes = [element("line", class_="stored", x1=0, x2=f"{120 * share:.1f}", y1=8, y2=8)]
    if mark is not None:
        at = f"{120 * mark:.1f}"
        shapes.append(element("line", class_="mark", x1=at, x2=at, y1=2, y2=14))
    size = {"viewBox": "0 0 120 16", "width": 120, "height": 16}
    return element("svg", *shapes, class_="bar", role="img", aria_label=said, **size)


def most_read(evaluated: Evaluated, bank: Bank, read: Read) -> Html | None:
    """Show the stored cases that most images read, with their pictures where there are any."""
    reads = times_read(evaluated, bank)
    slots = np.argsort(-reads, kind="stable")[:_CASES]
    slots = slots[reads[slots] > 0]
    if not len(slots):
        return None
    pictured = slots[bank.rows[slots] >= 0]
    pixels = read(bank.rows[pictured]) if len(pictured) else []
    pictures = dict(zip(pictured.tolist(), pixels, strict=True))
    tiles = []
    for slot in slots.tolist():
        name, uses = str(bank.images[slot]), evaluated.valid & (evaluated.slots == slot)
        image = picture(pictures[slot], f"stored case {name}") if slot in pictures else None
        facts = [
            f"read for {reads[slot]:,} images",
            f"mean cosine {number(float(evaluated.similarities[uses].mean()), 2)}",
            labelled(evaluated.findings, bank.labels[slot]),
            f"patient {bank.patients[slot]}" if bank.patients[slot] else "patient unknown",
        ]
        caption = (element("strong", name), *(element("div", fact) for fact in facts))
        tiles.append(element("figure", image, element("figcaption", *caption)))
    return element("div", *tiles, class_="tiles small")


def bank_maps(findings: Sequence[str], bank: Bank) -> Html:
    """Draw the stored cases on two principal components, once for each finding."""
    features: Float[np.ndarray, "m dim"] = bank.features[bank.filled]
    labels, places = bank.labels[bank.filled], plane(features)
    groups = {shown(name): labels[:, column] == 1 for column, name in enumerate(findings)}
    groups |= {"labels unknown": (labels < 0).all(axis=1)}
    tiles = []
    for name, chosen in groups.items():
        if chosen.any():
            text = f"{name} ({chosen.sum():,})"
            alt = f"Map of the stored cases; those with {text} marked"
            image = picture(bank_map(places, chosen), alt, "PNG")
            tiles.append(element("figure", image, element("figcaption", text)))
    return element("div", *tiles, class_="tiles maps")
