"""The section of a report on the memory bank."""

from collections.abc import Mapping
from typing import Any

from charm_jax.report import cases
from charm_jax.report.cases import Read
from charm_jax.report.contents import Bank, Evaluated
from charm_jax.report.html import Html, element, joined

Json = Mapping[str, Any]
_RULES = {
    "norm_inlier": "features of a norm near the batch's mean, the common ones",
    "norm_outlier": "features of a norm far from the batch's mean",
    "angle_outlier": "features turned away from the batch's mean",
    "rare_finding": "cases with a finding that is rare in training",
}


def section(
    metrics: Json, evaluated: Evaluated, config: Json, bank: Bank | None, read: Read
) -> Html | None:
    """Describe the bank: its cases, how often they were read, and their features."""
    if bank is None:
        return None
    filled = int(bank.filled.sum())
    if not filled:
        return element("p", "The memory bank is empty.")
    text = (
        f"{filled:,} of {len(bank.filled):,} slots are filled, with "
        f"{_origin(metrics, bank, config['model'])}. Each image reads the "
        f"{config['model']['retrieval_k']} most similar ones{_excluded(metrics)}."
    )
    if evaluated.valid is None or not evaluated.valid.any():
        text += " No image of this part read any."
    read_most = cases.most_read(evaluated, bank, read)
    return joined(
        element("p", text),
        element("p", "The tick beside a bar is the share of the images evaluated here."),
        cases.bank_table(evaluated, bank, metrics["findings"]),
        joined(element("h3", "Most read cases"), read_most) if read_most else None,
        element("h3", "Map"),
        element(
            "p",
            "Stored features at unit length on their first two principal components; a dot is a "
            "case, the marked ones have the finding.",
        ),
        cases.bank_maps(evaluated.findings, bank),
    )


def _origin(metrics: Json, bank: Bank, keys: Json) -> str:
    """Whose cases these are, as far as it is known."""
    held = metrics["bank"]
    patients = len(set(bank.patients[bank.filled].tolist()) - {""})
    whose = f"cases of {patients:,} patients" if patients else "cases of unknown patients"
    if held["source"] is None:
        return f"{whose}, as the weight file has them: of what images is not known"
    rule, refilled = keys["rarity"], held["images_sha256"] is not None
    if metrics["began_from"] is not None and not refilled:
        whose += f", those that {metrics['began_from']} brought along and those"
    return (
        f"{whose} of part '{held['split']}' of {held['source']}, chosen by the rule {rule} "
        f"({_RULES[rule]})"
    )


def _excluded(metrics: Json) -> str:
    """Name the cases that an image does not read."""
    held = metrics["bank"]
    if held["source"] is None:
        return ", also of its own patient, who cannot be told"
    if not (metrics["patients_known"] and held["patients_known"]):
        return " of other images, perhaps of its own patient, who cannot be told"
    names = "" if held["source"] == metrics["source"] else ", as far as names tell"
    return f" of other patients{names}"
