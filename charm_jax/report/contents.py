"""What a report is made of: plain arrays."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int, Int8


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """What is known of the n images of a part, and what the network said of them.

    Attributes:
        findings: names of the F columns.
        images: ``[n]`` names.
        rows: of each image in its source's table.
        labels: 1 present, 0 absent, -1 unknown.
        logits: one a finding.
        attention: maps, 0 ... 1; None without fusion.
        slots: of the bank, what was read, best match first; None without a bank, as the next two.
        similarities: of those.
        valid: False for slots that were, or counted as, empty.
        disagreement: of main and momentum branch, 0 ... 2; None without one.
    """

    findings: tuple[str, ...]
    images: np.ndarray
    rows: Int[np.ndarray, " n"]
    labels: Int8[np.ndarray, "n findings"]
    logits: Float[np.ndarray, "n findings"]
    attention: Float[np.ndarray, "n h w"] | None = None
    slots: Int[np.ndarray, "n k"] | None = None
    similarities: Float[np.ndarray, "n k"] | None = None
    valid: Bool[np.ndarray, "n k"] | None = None
    disagreement: Float[np.ndarray, " n"] | None = None

    def named(self, row: int) -> str:
        """Return the findings that an image is labelled with."""
        return labelled(self.findings, self.labels[row])


@dataclasses.dataclass(frozen=True)
class Bank:
    """The N slots of a memory bank.

    Attributes:
        features: stored features; zeros in empty slots.
        labels: 1 present, 0 absent, -1 unknown.
        filled: False for an empty slot.
        images: ``[N]`` names of the stored cases.
        patients: ``[N]`` names; empty where unknown.
        rows: of each case in the table of the images that are evaluated; -1 where there are no
            pixels of it there.
    """

    features: Float[np.ndarray, "slots dim"]
    labels: Int8[np.ndarray, "slots findings"]
    filled: Bool[np.ndarray, " slots"]
    images: np.ndarray
    patients: np.ndarray
    rows: Int[np.ndarray, " slots"]


def labelled(findings: tuple[str, ...], labels: Int8[np.ndarray, " findings"]) -> str:
    """Return the findings whose label is 1, in words."""
    if (labels < 0).all():
        return "labels unknown"
    names = [shown(name) for name, label in zip(findings, labels, strict=True) if label == 1]
    return ", ".join(names) or "no finding"


def shown(finding: str) -> str:
    """Return a finding's name for a reader."""
    return finding.replace("_", " ")
