"""The colours of all figures. Colour-blind readers can tell them apart, and labels or markers repeat what they say."""

from __future__ import annotations

BLUE, VERMILION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
ORANGE, SKY_BLUE, YELLOW = "#e69f00", "#56b4e9", "#f0e442"
"""The colours of Okabe and Ito (2008), without black."""
OKABE_ITO = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY_BLUE)
"""For lines and text on white, where yellow is hard to see."""
RIGHT, WRONG, TRUTH = "#1b6e3c", "#a3420f", "#444444"


def rgb(colour: str) -> tuple[int, int, int]:
    """``#rrggbb`` as numbers from 0 to 255."""
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue
