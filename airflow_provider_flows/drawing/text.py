"""Texts as a picture can show them: cleaned, measured by a table of widths, and wrapped into a few lines.

It knows no font: its widths are those of a broad one, so that what is narrower fits as well.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator
from itertools import groupby

Letter = tuple[str, bool]  # a character, and whether it is bold
Run = tuple[str, bool]  # a text, and whether it is bold

_PLACEHOLDER = re.compile(r"\{([^{}]{1,1000})\}")  # single braces (vendor-api 2.4)
_JOINERS = "\u200c\u200d"  # letters of Persian and parts of emoji hang together by them
_UNSEEN = {
    "Cc",
    "Cf",
    "Cs",
}  # control characters, those that turn the direction of text, halves of characters
_ELLIPSIS = "…"
# Widths in parts of the font size, as DejaVu Sans has them: of the usual fonts it is the broadest.
_WIDTHS = {
    "iljI'": 0.3,
    " .,:;|!/-tfr()[]": 0.41,
    '"*_szckvxyJ?^': 0.56,
    "<>=+~#&wAOQGDHNUVX": 0.84,
    "mMW@%…—": 1.0,
}
_EM = {char: width for chars, width in _WIDTHS.items() for char in chars}
_BOLDER = 1.13


def clean(text: str, longest: int = 2_000) -> str:
    """Give a text in one line without what is not seen: no control characters, no turning of direction, nothing XML forbids."""
    line = " ".join(text[: longest * 4].split())
    seen = (char for char in line if char in _JOINERS or unicodedata.category(char) not in _UNSEEN)
    return "".join(char for char in seen if char not in "\ufffe\uffff").strip()[:longest]


def bold(text: str) -> list[Letter]:
    """Give the letters of a text that is bold all over."""
    return [(char, True) for char in text]


def emphasised(text: str, names: Collection[str]) -> list[Letter]:
    """Give the letters of a text of which the `{placeholders}` of these names are bold."""
    marked = [False] * len(text)
    for found in _PLACEHOLDER.finditer(text):
        if found[1] in names:
            marked[found.start() : found.end()] = [True] * len(found[0])
    return list(zip(text, marked, strict=True))


def wrap(letters: list[Letter], width: float, size: float, most: int) -> list[list[Run]]:
    """Break a clean text into at most so many lines of this width (pixels, like the font size); `…` stands for the rest."""
    room = width / size
    lines: list[list[Letter]] = [[]]
    for piece in _pieces(letters, room):
        if lines[-1] and _ems([*lines[-1], *piece]) > room:
            lines.append([])
        lines[-1] += piece
        if len(lines) > most + 1:
            break
    if len(lines) > most:
        last = [*lines[most - 1], *lines[most]]
        while last and _ems(last) + 1 > room:
            last.pop()
        lines = [*lines[: most - 1], [*_stripped(last), (_ELLIPSIS, False)]]
    return [
        [
            ("".join(char for char, _ in run), heavy)
            for heavy, run in groupby(_stripped(line), lambda it: it[1])
        ]
        for line in lines
    ]


def _pieces(letters: list[Letter], room: float) -> Iterator[list[Letter]]:
    """Cut a text after its blanks, and where a word fits no line."""
    piece: list[Letter] = []
    filled = 0.0
    for letter in letters:
        blank = letter[0] == " "
        if not blank and piece and filled + _em(letter) > room:
            yield piece
            piece, filled = [], 0.0
        piece.append(letter)
        filled += _em(letter)
        if blank:
            yield piece
            piece, filled = [], 0.0
    yield piece


def _stripped(line: list[Letter]) -> list[Letter]:
    end = len(line)
    while end and line[end - 1][0] == " ":
        end -= 1
    return line[:end]


def _ems(line: list[Letter]) -> float:
    return sum(map(_em, _stripped(line)))


def _em(letter: Letter) -> float:
    """Estimate a character's width in parts of the font size."""
    char, heavy = letter
    if unicodedata.combining(char) or char in _JOINERS:
        return 0.0
    wide = unicodedata.east_asian_width(char) in "WF"
    return _EM.get(char, 1.0 if wide else 0.72 if char.isupper() else 0.64) * (_BOLDER if heavy else 1)
