"""A small bitmap font drawn for this project: 5 x 9 pixels (7 above the base line), no file needed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

WIDTH, HEIGHT = 5, 9
ADVANCE = 6

# One glyph: nine rows from the top, each a base-32 digit whose five bits are the pixels, leftmost first.
_GLYPHS = {
    "A": "ehhvhhh00", "B": "uhhuhhu00", "C": "fgggggf00", "D": "uhhhhhu00", "E": "vgguggv00",
    "F": "vgguggg00", "G": "fggjhhf00", "H": "hhhvhhh00", "I": "e44444e00", "J": "3111hhe00",
    "K": "hikokih00", "L": "ggggggv00", "M": "hrllhhh00", "N": "hppljjh00", "O": "ehhhhhe00",
    "P": "uhhuggg00", "Q": "ehhhlid00", "R": "uhhukih00", "S": "fgge11u00", "T": "v44444400",
    "U": "hhhhhhe00", "V": "hhhhaa400", "W": "hhhllrh00", "X": "hha4ahh00", "Y": "hha444400",
    "Z": "v1248gv00", "a": "00e1fhf00", "b": "gguhhhu00", "c": "00fgggf00", "d": "11fhhhf00",
    "e": "00ehvge00", "f": "68u888800", "g": "00fhhhf1e", "h": "gguhhhh00", "i": "40c444e00",
    "j": "2062222ic", "k": "ggikoki00", "l": "c44444e00", "m": "00qllll00", "n": "00uhhhh00",
    "o": "00ehhhe00", "p": "00uhhhugg", "q": "00fhhhf11", "r": "00moggg00", "s": "00fge1u00",
    "t": "88u888600", "u": "00hhhhf00", "v": "00hhaa400", "w": "00hllla00", "x": "00ha4ah00",
    "y": "00hhhhf1e", "z": "00v248v00", "0": "ehjlphe00", "1": "4c4444e00", "2": "eh168gv00",
    "3": "u11e11u00", "4": "26aiv2200", "5": "vgu11he00", "6": "egguhhe00", "7": "v12448800",
    "8": "ehhehhe00", "9": "ehhf11e00", " ": "000000000", ".": "00000cc00", ",": "00000cc48",
    ":": "0cc0cc000", ";": "0cc0cc480", "-": "000e00000", "+": "044v44000", "=": "00v0v0000",
    "/": "122488g00", "\\": "g88422100", "(": "248884200", ")": "842224800", "[": "e88888e00",
    "]": "e22222e00", "%": "pp248jj00", "#": "aavavaa00", "_": "000000v00", "|": "444444444",
    "<": "248g84200", ">": "842124800", "!": "444440400", "?": "eh1240400", "'": "444000000",
    '"': "aaa000000", "*": "0level000", "&": "cik8lid00", "@": "ehnlnge00", "°": "cic000000",
    "±": "44v440v00", "×": "00ha4ah00", "·": "000cc0000", "~": "009m00000",
}  # fmt: skip


def _bitmap(rows: str) -> npt.NDArray[np.bool_]:
    values = np.array([int(row, 32) for row in rows], np.uint8)
    return (values[:, None] >> np.arange(WIDTH - 1, -1, -1) & 1).astype(bool)


_BITMAPS = {character: _bitmap(rows) for character, rows in _GLYPHS.items()}


def text_size(text: str, scale: int = 1) -> tuple[int, int]:
    """Width and height in pixels of one line of text."""
    return max(0, len(text) * ADVANCE - 1) * scale, HEIGHT * scale


def draw_text(
    canvas: npt.NDArray[np.uint8],
    x: int,
    y: int,
    text: str,
    colour: tuple[int, int, int] = (235, 235, 235),
    scale: int = 1,
) -> int:
    """Draws one line with its top left corner at (x, y) into uint8 [h, w, 3]; what lies outside is clipped.

    Characters the font lacks are drawn as "?". Returns the x after the last character.
    """
    for character in text:
        glyph = _BITMAPS.get(character, _BITMAPS["?"])
        if scale > 1:
            glyph = glyph.repeat(scale, 0).repeat(scale, 1)
        x0, y0 = max(0, -x), max(0, -y)
        region = canvas[max(0, y) : max(0, y + glyph.shape[0]), max(0, x) : max(0, x + glyph.shape[1])]
        if region.size:
            region[glyph[y0 : y0 + region.shape[0], x0 : x0 + region.shape[1]]] = colour
        x += ADVANCE * scale
    return x
