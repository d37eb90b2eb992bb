"""Describe the origin and terms of a source."""

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


USERS_OWN = Card(
    description="Images of the user's own folder.",
    license="The terms of the images that were prepared hold for this folder, too.",
)
