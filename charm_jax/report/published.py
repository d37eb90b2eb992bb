"""Published AUROCs on ChestX-ray14, each with the split that it was taken on."""

import csv
import dataclasses
from importlib import resources

from charm_jax.metrics.result import EvaluationResult
from data_pipelines.tables.findings import NIH_FINDINGS


@dataclasses.dataclass(frozen=True)
class Published:
    """Results of one model, with the digits of the source.

    Attributes:
        model: name, and pre-training where that matters.
        macro: mean AUROC over the 14 findings.
        split: kind of split.
        selected_on: split that the model was chosen on; empty where the source does not tell.
        source: where the number is printed.
        findings: AUROC by finding; empty where the source does not print it.
    """

    model: str
    macro: str
    split: str
    selected_on: str
    source: str
    note: str
    findings: dict[str, str]


def read() -> list[Published]:
    """Read the published results, best first within each kind of split."""
    text = (resources.files(__package__) / "published.csv").read_text(encoding="utf-8")
    results = []
    for row in csv.DictReader(text.splitlines()):
        findings = {name: row.pop(name) for name in NIH_FINDINGS}
        results.append(Published(**row, findings=findings if all(findings.values()) else {}))
    return results


def comparable(result: EvaluationResult) -> str:
    """Return which of the published numbers an evaluation may be compared with."""
    if result.simulated:
        which = "These images are SIMULATED: compare this result with none of them."
    elif result.source != "nih_chest_xray14":
        which = "These images are not those of ChestX-ray14: compare this result with none."
    elif result.images_missing or result.refused:
        which = "Images are missing here, so this result is of other images than any of these."
    elif (result.rule, result.split) == ("official", "test"):
        which = "Compare this result with those on the official test list alone."
    elif result.rule == "notebook" and result.split in ("test", "test_published"):
        which = "Compare this result with those on the split that leaks alone."
    else:
        which = "None of these numbers was taken on the split of this result."
    return f"Numbers on different splits are of different patients and not comparable. {which}"
