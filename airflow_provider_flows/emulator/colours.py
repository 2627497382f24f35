"""The colour of a prompt, and a hash that is the same on every machine."""

from __future__ import annotations

import colorsys
import hashlib
import re

NAMED_COLOURS = {
    "red": (200, 40, 36),
    "orange": (232, 126, 32),
    "yellow": (240, 200, 48),
    "green": (52, 140, 72),
    "blue": (40, 88, 200),
    "purple": (120, 60, 168),
    "violet": (120, 60, 168),
    "pink": (236, 128, 168),
    "brown": (120, 76, 44),
    "wooden": (150, 104, 62),
    "black": (36, 36, 40),
    "white": (236, 236, 232),
    "grey": (128, 130, 134),
    "gray": (128, 130, 134),
    "gold": (212, 168, 56),
    "golden": (212, 168, 56),
    "silver": (188, 192, 198),
}
CLAY = (176, 168, 160)


def digest(*parts: object) -> bytes:
    """Return the SHA-256 hash of the parts' texts."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()


def get_colour(text: str) -> tuple[int, int, int]:
    """Return the RGB values (0 to 255) of the first colour that the text names, or of one derived from it."""
    for word in re.findall(r"[a-z]+", text.lower()):
        if word in NAMED_COLOURS:
            return NAMED_COLOURS[word]
    red, green, blue = colorsys.hsv_to_rgb(digest(text)[0] / 256, 0.6, 0.8)
    return int(red * 255), int(green * 255), int(blue * 255)
