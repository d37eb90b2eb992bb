"""Choose and describe the images of a report: confident errors and cases of the memory bank."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from scipy.special import expit, softmax

from charm_jax.report import overlays
from charm_jax.report.contents import Bank, Evaluated, Read, labelled, number, shown
from charm_jax.report.figures import Picture, bank_map, picture, plane

FINDINGS = 20  # findings whose errors are shown: the most frequent ones
_CASES = 12  # cases of the bank that are shown
_COMPARED, _NEAREST = 3, 5  # images that are shown beside so many stored cases
# By whether an image is labelled with the finding, and whether there is a threshold.
_KINDS = {
    (True, True): "missed",
    (False, True): "seen, not labelled",
    (True, False): "scores lowest with it",
    (False, False): "scores highest without it",
}


@dataclasses.dataclass(frozen=True)
class Error:
    """An image with a confident error.

    Attributes:
        finding: column.
        row: row of ``Evaluated``.
        labelled: with the finding, and scores low; otherwise without it, and scores high.
        beyond: on the wrong side of a threshold; otherwise there is none.
    """

    finding: int
    row: int
    labelled: bool
    beyond: bool


@dataclasses.dataclass(frozen=True)
class Tile:
    """Pictures with a title and facts below; the title's colour is ``missed``, ``seen`` or none."""

    title: str
    pictures: Sequence[Picture]
    facts: Sequence[str] = ()
    shade: str = ""


def confident_errors(
    evaluated: Evaluated, seen: Sequence[Bool[np.ndarray, " n"] | None]
) -> list[Error]:
    """Find each finding's highest score without it and lowest score with it.

    Args:
        evaluated: predictions and labels.
        seen: for each finding, which images reach its threshold. An image on the right side is no
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
) -> list[Tile]:
    """Show the images of the errors, with the attention over them where there is one."""
    pixels = read(evaluated.rows[[error.row for error in errors]]) if errors else []
    tiles = []
    for error, image in zip(errors, pixels, strict=True):
        row, name = error.row, str(evaluated.images[error.row])
        pictures = [picture(image, f"{name}, as the network read it")]
        if evaluated.attention is not None:
            heat = overlays.stretched(evaluated.attention[row].astype(float), overlays.FLAT)
            overlay = overlays.attention_overlay(image, heat)
            pictures.append(picture(overlay, f"{name} with the network's attention over it"))
        logit, temperature = (
            float(evaluated.logits[row, error.finding]),
            temperatures[error.finding],
        )
        score = f"score {number(float(expit(logit)))}"
        if temperature is not None:
            score += f", calibrated {number(float(expit(logit / temperature)))}"
        facts = [score, f"labelled {evaluated.named(row)}", name]
        if bank is not None and evaluated.valid is not None and evaluated.valid[row].any():
            best = int(np.argmax(evaluated.valid[row]))
            slot = int(evaluated.slots[row, best])
            facts.append(
                f"most like stored {bank.images[slot]} (cosine "
                f"{number(float(evaluated.similarities[row, best]), 2)}; "
                f"{labelled(evaluated.findings, bank.labels[slot])})"
            )
        title = (
            f"{shown(evaluated.findings[error.finding])}: {_KINDS[error.labelled, error.beyond]}"
        )
        tiles.append(Tile(title, pictures, facts, "missed" if error.labelled else "seen"))
    return tiles


def times_read(evaluated: Evaluated, bank: Bank) -> Int[np.ndarray, " slots"]:
    """Count the images that read each slot."""
    if evaluated.valid is None:
        return np.zeros(len(bank.filled), int)
    return np.bincount(evaluated.slots[evaluated.valid], minlength=len(bank.filled))


def describe_bank(
    evaluated: Evaluated, bank: Bank, rule: str, read: Read, temperature: float | None = None
) -> dict[str, Any]:
    """Collect what the report shows of a memory bank: cases, reads and features.

    Args:
        evaluated: predictions and labels.
        bank: the bank that they were made with.
        rule: that chose its cases, for people.
        read: returns pixels.
        temperature: of the vote; None where cases do not vote.
    """
    rows = _bank_rows(evaluated, bank)
    shares = [row[key] or 0 for row in rows for key in ("share", "here")]
    return {
        "filled": int(bank.filled.sum()),
        "slots": len(bank.filled),
        "patients": len(set(bank.patients[bank.filled].tolist()) - {""}),
        "rule": rule,
        "read": evaluated.valid is not None and bool(evaluated.valid.any()),
        "rows": rows,
        "largest": max(0.01, *shares),
        "compared": compared(evaluated, bank, read, temperature),
        "most_read": most_read(evaluated, bank, read),
        "maps": bank_maps(evaluated.findings, bank),
    }


def _bank_rows(evaluated: Evaluated, bank: Bank) -> list[dict[str, Any]]:
    """Compare the findings in the bank with their share in the evaluated split.

    Shares are over known labels; None without any.
    """
    reads = times_read(evaluated, bank)[bank.filled]
    stored, here = _with_healthy(bank.labels[bank.filled]), _with_healthy(evaluated.labels)
    names = [*map(shown, evaluated.findings), "no finding"]
    return [
        {
            "name": name,
            "stored": int((labels == 1).sum()),
            "share": _share(labels),
            "here": _share(others),
            "reads": int(reads[labels == 1].sum()),
        }
        for name, labels, others in zip(names, stored.T, here.T, strict=True)
    ]


def _with_healthy(labels: Int[np.ndarray, "n findings"]) -> Int[np.ndarray, "n columns"]:
    """Add a column for images without any finding; unknown where all labels are."""
    healthy = np.where((labels < 0).all(axis=1), -1, (labels != 1).all(axis=1))
    return np.column_stack([labels, healthy])


def _share(labels: Int[np.ndarray, " n"]) -> float | None:
    known = labels[labels >= 0]
    return float((known == 1).mean()) if len(known) else None


def compared(
    evaluated: Evaluated, bank: Bank, read: Read, temperature: float | None
) -> list[list[Tile]]:
    """Show the surest images of the rarest findings beside the stored cases nearest to them.

    With a temperature, a case's weight in the vote, of the cases that the image read.
    """
    if evaluated.valid is None:
        return []
    candidates = evaluated.valid.any(axis=1)[:, None] & (evaluated.labels == 1)
    rarest = np.argsort((evaluated.labels == 1).sum(axis=0), kind="stable")
    shown_rows: dict[int, int] = {}
    for column in rarest[candidates.any(axis=0)[rarest]].tolist():
        row = int(np.argmax(np.where(candidates[:, column], evaluated.logits[:, column], -np.inf)))
        shown_rows.setdefault(row, column)
    chosen = list(shown_rows.items())[:_COMPARED]
    if not chosen:
        return []
    nearest = [_nearest(evaluated, row, temperature) for row, _ in chosen]
    stored = _stored_pictures(bank, sorted({slot for cases in nearest for slot, *_ in cases}), read)
    groups = []
    images = read(evaluated.rows[[row for row, _ in chosen]])
    for (row, column), image, cases in zip(chosen, images, nearest, strict=True):
        name, score = str(evaluated.images[row]), float(expit(evaluated.logits[row, column]))
        facts = [f"{shown(evaluated.findings[column])}: score {number(score)}", name]
        title = f"labelled {evaluated.named(row)}"
        tiles = [Tile(title, [picture(image, f"{name}, as the network read it")], facts)]
        for slot, cosine, weight in cases:
            facts = [f"cosine {number(cosine, 2)}"]
            if weight is not None:
                facts.append(f"{number(100 * weight, 1)} % of the vote")
            labels = labelled(evaluated.findings, bank.labels[slot])
            tiles.append(Tile(labels, stored[slot], [*facts, f"stored {bank.images[slot]}"]))
        groups.append(tiles)
    return groups


def _nearest(
    evaluated: Evaluated, row: int, temperature: float | None
) -> list[tuple[int, float, float | None]]:
    """Return slot, cosine and weight of the cases nearest to an image, best first."""
    valid = evaluated.valid[row]
    slots, cosines = evaluated.slots[row][valid], evaluated.similarities[row][valid].astype(float)
    weights = [None] * len(slots)
    if temperature is not None:
        weights = softmax(cosines / temperature).tolist()
    return list(zip(slots.tolist(), cosines.tolist(), weights, strict=True))[:_NEAREST]


def most_read(evaluated: Evaluated, bank: Bank, read: Read) -> list[Tile]:
    """Show the stored cases that most images read, with their pictures where there are any."""
    reads = times_read(evaluated, bank)
    slots = np.argsort(-reads, kind="stable")[:_CASES]
    slots = slots[reads[slots] > 0]
    stored = _stored_pictures(bank, slots.tolist(), read)
    tiles = []
    for slot in slots.tolist():
        name, uses = str(bank.images[slot]), evaluated.valid & (evaluated.slots == slot)
        facts = [
            f"read for {reads[slot]:,} images",
            f"mean cosine {number(float(evaluated.similarities[uses].mean()), 2)}",
            labelled(evaluated.findings, bank.labels[slot]),
            f"patient {bank.patients[slot]}" if bank.patients[slot] else "patient unknown",
        ]
        tiles.append(Tile(name, stored[slot], facts))
    return tiles


def _stored_pictures(bank: Bank, slots: Sequence[int], read: Read) -> dict[int, list[Picture]]:
    """Draw stored cases; an empty list for one without usable pixels."""
    pictures: dict[int, list[Picture]] = {slot: [] for slot in slots}
    there = [slot for slot in slots if bank.rows[slot] >= 0]
    pixels = read(bank.rows[there]) if there else []
    for slot, image in zip(there, pixels, strict=True):
        pictures[slot].append(picture(image, f"stored case {bank.images[slot]}"))
    return pictures


def bank_maps(findings: Sequence[str], bank: Bank) -> list[Tile]:
    """Draw the stored cases on two principal components, once for each finding."""
    labels, places = bank.labels[bank.filled], plane(bank.features[bank.filled])
    groups = {shown(name): labels[:, column] == 1 for column, name in enumerate(findings)}
    groups |= {"labels unknown": (labels < 0).all(axis=1)}
    tiles = []
    for name, chosen in groups.items():
        if chosen.any():
            text = f"{name} ({chosen.sum():,})"
            alt = f"Map of the stored cases; those with {text} marked"
            tiles.append(Tile(text, [picture(bank_map(places, chosen), alt, "PNG")]))
    return tiles
