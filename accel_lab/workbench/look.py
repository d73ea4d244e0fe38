"""How everything in the course looks: colours, line styles, verdicts, and what a light and a dark
JupyterLab make of them.

Colour never speaks alone: lines differ in style, verdicts carry a sign. What is HTML takes its ink
and its ground from JupyterLab's own variables. Pictures are ink on white paper; a dark theme turns
them over, photographs excepted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape
from math import floor, isfinite, log10
from zlib import crc32

# Okabe and Ito's colours, which colour-blind readers tell apart.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#AA4499", "#8A8A8A"
AMBER, SKY = "#E69F00", "#56B4E9"
# Of lines that stay, in their order: each colour comes twice, in two styles.
STYLES = (
    (ORANGE, "--"),
    (GREEN, "-."),
    (PURPLE, ":"),
    (AMBER, "--"),
    (SKY, "-."),
    (ORANGE, ":"),
    (GREEN, "--"),
    (PURPLE, "-."),
    (AMBER, ":"),
    (SKY, "--"),
)

# Pieces of work, and what fills a budget, have colours that no run has (Tol's "muted" ones). The
# first meaning whose word is in a name gives the colour.
MEANINGS = {
    "#5D5BB8": ("forward", "activation"),
    "#CC6677": ("backward", "gradient"),
    "#999933": ("optimizer", "momentum"),
    "#44AA99": ("bucket", "reduce", "gather", "send", "message", "broadcast", "transfer"),
    "#A8396B": ("weight", "parameter"),
    "#DDCC77": ("load", "data", "read", "decode", "augment", "fetch"),
    "#BBBBBB": ("wait", "idle", "queue"),
}
OTHER_COLORS = ("#117733", "#88CCEE", "#6F4C9B", "#B9770E", "#4477AA", "#EE8866")


def colors_of(names: Iterable[str]) -> dict[str, str]:
    """name → colour, the same wherever the same names are drawn, in whatever order they come."""
    colors: dict[str, str] = {}
    names = list(names)
    for name in sorted(set(names)):
        start = crc32(name.encode())
        wanted = [color for color, words in MEANINGS.items() if any(w in name for w in words)]
        others = [OTHER_COLORS[(start + i) % len(OTHER_COLORS)] for i in range(len(OTHER_COLORS))]
        spare = [color for color in MEANINGS if color not in wanted]
        free = [color for color in wanted + others + spare if color not in colors.values()]
        colors[name] = (free or others)[0]
    return {name: colors[name] for name in dict.fromkeys(names)}


def ink_on(color: str) -> str:
    """Black or white, whichever is easier to read on ``color`` (#rrggbb)."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"


def number(value: float, most: int = 7) -> str:
    """A number for people: 1,250,000 · 0.25 · 10⁻⁸ · 3.2·10⁹. most: digits before the point."""
    if value == 0 or not isfinite(value):
        return "0" if value == 0 else str(value)
    digits = floor(log10(abs(value)))
    if -4 <= digits < most:
        text = f"{value:,.{max(0, 4 - digits)}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    else:
        mantissa = f"{value / 10.0**digits:.4g}"
        power = "10" + str(digits).translate(RAISED)
        text = power if mantissa == "1" else f"{mantissa}·{power}"
    return text.replace("-", "−")


def counted(many: float, what: str) -> str:
    """``1 point``, ``2 points``, ``1,000 points``."""
    return f"{many:,.0f} {what}" if many == 1 else f"{many:,.0f} {what}s"


def in_short(text: str, most: int) -> str:
    """Cut to at most so many letters, in the middle: names of runs that begin alike end apart."""
    if len(text) <= most:
        return text
    head = (most - 3) // 2
    return f"{text[:head].rstrip()} … {text[head - most + 3 :].lstrip()}"


def marked_up(markdown: str) -> str:
    """HTML of the little of Markdown that a hint or a reasoning holds."""
    html = re.sub(r"`(.+?)`", r"<code>\1</code>", escape(markdown))
    return re.sub(r"(?<!\w)\*(\S(?:.*?\S)?)\*(?!\w)", r"<em>\1</em>", html)


RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

LIMIT = {
    "color": "black",
    "linewidth": 1,
    "linestyle": (0, (4, 3)),
}  # how a formula or a boundary is drawn by matplotlib

# Grounds of verdicts, dark enough for white letters: it holds, it does not, nothing to say yet.
VERDICTS = {True: ("#00664b", "✓"), False: ("#a33c00", "✗"), None: ("#555555", "○")}

# What a picture says of itself, so that JupyterLab gives it the class below. Stored outputs show as
# they are where no panel is live.
ON_PAPER = {"needs_background": "light"}
AT_NIGHT = """[data-jp-theme-light="false"] :is(img.jp-needs-light-background, img.accel-picture) {
  filter: invert(.93) hue-rotate(180deg); }"""


def badge(holds: bool | None, text: str) -> str:
    """A verdict, with its sign."""
    color, sign = VERDICTS[holds]
    return (
        f'<span style="background:{color};color:#fff;border-radius:4px;padding:2px 8px">{sign} '
        f"{escape(text)}</span>"
    )
