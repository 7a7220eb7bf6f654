"""One colour per operator, in figures, pages and the terminal alike (imports no matplotlib).

The colours are Paul Tol's "muted" scheme, which stays apart under the common forms of colour
blindness; codes are printed in the strips as well, so colour never carries meaning alone.
"""

from __future__ import annotations

COLOURS: dict[str, str] = {
    "a": "#CC6677",
    "w": "#DDCC77",
    "mla": "#EE7733",
    "m1": "#88CCEE",
    "m2": "#332288",
    "m3": "#0077BB",
    "d": "#117733",
    "gd": "#44AA99",
    "gdp": "#009988",
    "kda": "#EE3377",
    "gla": "#999933",
    "ret": "#882255",
    "r7": "#AA4499",
    "f": "#DDDDDD",
}
OTHER = "#888888"

INK = "#222222"
MUTED = "#8A8F98"
GRID = "#E6E8EB"
TRAINED = "#9DB4C8"
FRONT = "#0B5CAD"
BEST = "#D1495B"
BASELINE = "#6B4E16"


def colour(code: str) -> str:
    """Colour (#RRGGBB) of an operator's code; parts that are not operators share one grey."""
    return COLOURS.get(code, OTHER)


def ink_on(background: str) -> str:
    """Black or white, whichever reads better on `background` (#RRGGBB)."""
    red, green, blue = (int(background[i : i + 2], 16) for i in (1, 3, 5))
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "#FFFFFF"
