"""How everything in the course looks: colours, line styles, verdicts, and what a light and a dark
JupyterLab make of them.

Colour never speaks alone: lines differ in style, verdicts carry a sign. What is HTML takes its ink
and its ground from JupyterLab's own variables. Pictures are ink on white paper; a dark theme turns
them over, photographs excepted.
"""

from __future__ import annotations

from html import escape

# Okabe and Ito's colours, which colour-blind readers tell apart.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#AA4499", "#8A8A8A"
AMBER, SKY = "#E69F00", "#56B4E9"
STYLES = (
    (ORANGE, "--"),
    (GREEN, "-."),
    (PURPLE, ":"),
    (AMBER, "--"),
    (SKY, "-."),
)  # of lines that stay, in their order
SPAN_COLORS = (BLUE, ORANGE, GREEN, PURPLE, AMBER, SKY)
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
