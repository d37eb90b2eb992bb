"""Draw figures whose text is literal."""

from typing import Any

import matplotlib
from matplotlib import figure
from matplotlib.text import Text


class Figure(figure.Figure):
    """Draw every text as it is written: names of images and findings may hold ``$``."""

    def draw(self, renderer: Any) -> None:
        """Draw without reading any text as mathematics."""
        for text in self.findobj(Text):
            text.set_parse_math(False)
        with matplotlib.rc_context({"text.parse_math": False}):  # for ticks made while drawing
            super().draw(renderer)
