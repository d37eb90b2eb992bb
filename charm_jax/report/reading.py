"""The section of a report that says what its words mean."""

from collections.abc import Mapping
from typing import Any

from charm_jax.report import provenance
from charm_jax.report.html import UNDEFINED, Html, definitions, element, joined

_INDEPENDENT = {
    True: "the images of one patient are not independent",
    False: "patients are unknown, and images are taken for independent",
}


def reading(metrics: Mapping[str, Any]) -> Html:
    """Explain the terms of the report."""
    entries = [
        (
            "Score",
            "The sigmoid of a logit. It ranks images; it is no probability until it is "
            "calibrated, and then only for images like those of the validation part.",
        ),
        (
            "Calibrated score",
            "The sigmoid of logit / temperature, the temperature fitted on validation.",
        ),
        (
            "AUROC",
            "How often an image with the finding scores higher than one without, a tie counting "
            "half. It says nothing of how many false alarms a threshold gives.",
        ),
        (
            "Average precision",
            "The area under precision over recall. Chance gives the share of images with the "
            "finding, so that it compares only between sets of equal share.",
        ),
        ("Interval", f"{_interval(metrics)} It holds no spread over training runs."),
        (
            "ECE, Brier score",
            "Distance of calibrated scores from the observed share, in 15 bins of equal number "
            "(mass) or of equal width, and their mean squared error. Lower is better.",
        ),
        (UNDEFINED, "Undefined: too few images of one kind. It is left out of every mean."),
    ]
    return joined(definitions(entries), element("p", provenance.DISCLAIMER))


def _interval(metrics: Mapping[str, Any]) -> str:
    known = metrics["patients_known"]
    resampled = (
        f"2.5 to 97.5 per cent of resamples of {'patients' if known else 'images'} with "
        f"replacement: {_INDEPENDENT[known]}."
    )
    if metrics["interval_method"]["auroc"] == "bootstrap":
        return resampled
    return (
        "Of AUROC, 95 % by DeLong, which takes images for independent and is too narrow where a "
        f"patient has several. Of average precision, {resampled}"
    )
