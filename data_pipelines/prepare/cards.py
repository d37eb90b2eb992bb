"""Describe the origin and terms of the sources for prepared data sets."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Card:
    """Describe the origin and terms of a source.

    Attributes:
        description: what the images and labels are.
        license: terms of use, in the owner's words where there are any.
        citation: empty if there is nothing to cite.
        homepage: empty if there is none.
    """

    description: str
    license: str
    citation: str = ""
    homepage: str = ""


_USERS_OWN = Card(
    description="Images of the user's own folder.",
    license="The terms of the images that were prepared hold for this folder, too.",
)
_MEDMNIST = (
    "J. Yang, R. Shi, D. Wei, Z. Liu, L. Zhao, B. Ke, H. Pfister, B. Ni, 'MedMNIST v2 - A "
    "large-scale lightweight benchmark for 2D and 3D biomedical image classification', Scientific "
    "Data 10:41, 2023."
)
_CARDS = {
    "nih_chest_xray14": Card(
        description=(
            "ChestX-ray14: 112,120 frontal chest X-rays of 30,805 patients with 14 findings, mined "
            "from the radiology reports by text processing."
        ),
        license=(
            "The NIH Clinical Center places no restriction on the use of the images, and asks to "
            "link to the download page, to acknowledge the NIH Clinical Center, and to cite the "
            "CVPR 2017 paper."
        ),
        citation=(
            "X. Wang, Y. Peng, L. Lu, Z. Lu, M. Bagheri, R. M. Summers, 'ChestX-ray8: "
            "Hospital-scale Chest X-ray Database and Benchmarks on Weakly-Supervised "
            "Classification and Localization of Common Thorax Diseases', CVPR 2017."
        ),
        homepage="https://nihcc.app.box.com/v/ChestXray-NIHCC",
    ),
    "chestmnist": Card(
        description="ChestMNIST: ChestX-ray14 as MedMNIST resized and divided it.",
        license="CC BY 4.0.",
        citation=_MEDMNIST,
        homepage="https://medmnist.com",
    ),
    "pneumoniamnist": Card(
        description="PneumoniaMNIST: X-rays of children as MedMNIST resized and divided them.",
        license="CC BY 4.0.",
        citation=_MEDMNIST,
        homepage="https://medmnist.com",
    ),
    "phantom": Card(
        description="SIMULATED chest X-rays, drawn by a program, of no patient.",
        license="MIT, as the program that drew them.",
    ),
}


def card_of(source: str) -> Card:
    """Return the card of a source, by default a user's own folder."""
    return _CARDS.get(source, _USERS_OWN)
