"""Draw figures whose text is literal."""

import warnings
from typing import Any

import matplotlib
from matplotlib import figure
from matplotlib.text import Text


class Figure(figure.Figure):
    """Draw every text as it is written: names of images and findings may hold ``$``."""

    def draw(self, renderer: Any) -> None:
        """Draw without reading any text as mathematics; a box stands for an unknown character."""
        for text in self.findobj(Text):
            text.set_parse_math(False)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")
            with matplotlib.rc_context({"text.parse_math": False}):  # ticks are made while drawing
                super().draw(renderer)
