"""One moment of something that goes on, drawn so that the next one lies over it: the axes are those
of the whole, and all pictures of it have one size. ``Sliders`` steps through them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Patch

from accel_lab.workbench.drawing.axis import LEGEND, SMALL
from accel_lab.workbench.drawing.figure import Picture, tidy
from accel_lab.workbench.drawing.paper import in_our_style
from accel_lab.workbench.drawing.timeline import draw_spans
from accel_lab.workbench.look import BLUE, GREY, LIMIT, ORANGE, colors_of, number
from accel_lab.workbench.measure.comparison import Comparison
from accel_lab.workbench.step import Span

# A turn of the ring on one rank: the chunk it has just received (None at first), and what it holds
# of each chunk.
Turn = tuple[int | None, Sequence[float]]
IDLE = {"facecolor": "#f1e4c8", "edgecolor": "#c9a95a", "hatch": "////", "linewidth": 0}


@in_our_style
def draw_turn(
    turns: Sequence[Sequence[Turn]], turn: int, title: str, *, columns: str | Sequence[str]
) -> Picture:
    """What each rank holds after one turn, a row for each, darker for more; an arrow brings the
    chunk that has just arrived, from the rank above and for the first one from the last.

    turns: [turn][rank], as they were recorded · columns: a name for each chunk
    """
    picture, (one,) = _fixed(6.4, 3.8, left=0.09, bottom=0.08, right=0.97)
    ranks, most = len(turns[0]), max(max(holds) for of_all in turns for _, holds in of_all)
    one.grid(False)
    for rank, (received, holds) in enumerate(turns[turn]):
        for chunk, value in enumerate(holds):
            new = chunk == received
            shade = 0.75 * value / most
            one.add_patch(
                FancyBboxPatch(
                    (chunk - 0.38, rank - 0.22),
                    0.76,
                    0.44,
                    boxstyle="round,pad=0,rounding_size=0.06",
                    facecolor=_blend(BLUE, shade),
                    edgecolor=ORANGE if new else "white",
                    linewidth=2.4 if new else 0,
                )
            )
            ink = "white" if shade > 0.6 else "black"
            one.text(chunk, rank, number(value), ha="center", va="center", color=ink, fontsize=12)
        if received is not None:
            sent = turns[turn - 1][rank - 1][1][received]
            _arrow(one, received, rank - 0.75, rank - 0.25, number(sent))
            if rank == 0:  # the ring closes: the last row's chunk comes in at the top
                one.text(received + 0.1, -0.83, f"from rank {ranks - 1}", fontsize=SMALL + 1)
                _arrow(one, received, ranks - 0.75, ranks - 0.4, number(sent))
                one.text(received + 0.1, ranks - 0.28, "to rank 0", fontsize=SMALL + 1)
    one.set(xlim=(-0.6, len(columns) - 0.4), ylim=(ranks - 0.2, -1.0))
    one.set_xticks(range(len(columns)), [f"chunk {name}" for name in columns])
    one.set_yticks(range(ranks), [f"rank {rank}" for rank in range(ranks)])
    one.tick_params(length=0)
    one.spines[:].set_visible(False)
    one.set_title(title, loc="left", fontsize=10)
    return picture


def _fixed(width: float, height: float, columns: int = 1, **place: float) -> tuple[Picture, list]:
    """As ``axes``, but what stands around the axes does not move them.

    place: left, right, bottom, top and wspace, as shares of the picture
    """
    picture = Picture((width, height), dpi=100)
    row = list(picture.subplots(1, columns, squeeze=False)[0])
    picture.subplots_adjust(**{"right": 0.985, "top": 0.9, **place})
    for one in row:
        tidy(one)
    return picture, row


def _arrow(one: Axes, x: float, start: float, end: float, what: str) -> None:
    """Down a column, with what it carries beside it."""
    style = {"arrowstyle": "-|>", "color": ORANGE, "linewidth": 1.8, "shrinkA": 0, "shrinkB": 0}
    one.annotate("", (x, end), (x, start), arrowprops=style)
    one.text(x - 0.08, (start + end) / 2, what, ha="right", va="center", color=ORANGE)


def _blend(color: str, share: float) -> tuple[float, ...]:
    """So much of a colour (#rrggbb) on white paper."""
    return tuple(
        1 - share * (1 - int(color[place : place + 2], 16) / 255) for place in range(1, 7, 2)
    )


@in_our_style
def draw_lanes(
    spans: Sequence[Span],
    title: str,
    *,
    until: float,
    longest: float,
    lanes: int,
    notes: Sequence[str],
    label: str,
) -> Picture:
    """A timeline that is played as far as ``until``, 0 to 1 of its time, with the idle time of each
    lane shaded.

    longest: milliseconds that the axis has room for · lanes: that the picture has room for · notes:
    what to say of each lane · label: of the axis
    """
    picture, (one,) = _fixed(9, 0.9 + 0.5 * lanes, left=0.07, bottom=0.17, right=0.82)
    end = max(span.end for span in spans)
    now = until * end
    begun = [replace(span, end=min(span.end, now)) for span in spans if span.start < now]
    for lane, note in enumerate(notes):
        one.broken_barh([(0, 1e3 * now)], (lane - 0.35, 0.7), **IDLE)
        one.annotate(
            note,
            (1, lane),
            xycoords=one.get_yaxis_transform(),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=SMALL + 1,
        )
    draw_spans(one, begun, legend=False, room=0.01e-3 * longest)
    kinds = colors_of(span.kind for span in spans)
    handles = [Patch(facecolor=color, label=kind) for kind, color in kinds.items()]
    handles.append(Patch(label="idle: the bubble", **IDLE))
    one.legend(
        handles=handles,
        ncols=len(handles),
        loc="lower right",
        bbox_to_anchor=(1, 1),
        borderpad=0,
        **LEGEND,
    )
    one.axvline(1e3 * now, color="black", linewidth=1)
    one.set_yticks(range(len(notes)), [f"rank {lane}" for lane in range(len(notes))])
    one.set(xlim=(0, longest), ylim=(lanes - 0.4, -0.6), xlabel=label)
    one.set_title(title, loc="left", fontsize=10)
    return picture


@in_our_style
def draw_two_ways(
    ways: Mapping[str, Sequence[tuple[str, float]]],
    estimates: Mapping[str, tuple[float, tuple[float, float] | None]],
    truth: float,
    *,
    seconds: tuple[float, float],
    ratios: tuple[float, float],
) -> Picture:
    """Readings of two programs in the order in which they were taken, for each way to take them,
    and the ratio that each way finds.

    ways: title → (which program, milliseconds) · estimates: title → ratio, and its interval if
    there is one · truth: the true ratio · seconds, ratios: ends of the axes
    """
    count = len(ways) + 1
    picture, (*readings, found) = _fixed(9.6, 2.8, count, left=0.06, bottom=0.17, wspace=0.36)
    styles = {"ours": (BLUE, "o"), "the peer": (ORANGE, "s")}
    for one, (title, taken) in zip(readings, ways.items(), strict=True):
        for program, (color, mark) in styles.items():
            those = [(place, ms) for place, (who, ms) in enumerate(taken, 1) if who == program]
            one.plot(*zip(*those, strict=True), mark, color=color, markersize=5, label=program)
        one.set(ylim=seconds, xlabel="reading", xticks=range(0, len(taken) + 1, len(taken) // 2))
        one.set_title(title, loc="left", fontsize=10)
    readings[0].set_ylabel("milliseconds")
    readings[0].legend(frameon=False, fontsize=SMALL, loc="upper left")
    found.axvline(truth, **LIMIT)
    for place, (middle, interval) in enumerate(estimates.values()):
        low, high = interval or (middle, middle)
        found.plot([low, high], [place, place], color=BLUE, linewidth=2)
        found.plot(middle, place, "o", color=BLUE)
    names = [f"{title}\n{middle:.2f} ×" for title, (middle, _) in estimates.items()]
    found.set_yticks(range(len(names)), names)
    found.set(xlim=ratios, ylim=(len(names) - 0.5, -0.6), xlabel="time of ours, × the peer's")
    found.set_title("found; dashed: the truth", loc="left", fontsize=10)
    return picture


@in_our_style
def draw_refusals(
    comparison: Comparison,
    share_of: Callable[[float], float],
    *,
    candidate: float,
    ends: tuple[float, float],
) -> Picture:
    """How an interval comes about. Above: the ratios of the pairs, beside a candidate for the true
    one. Below: for each candidate the share of the coin's outcomes that are as lopsided.

    share_of: candidate → share of outcomes, 0 to 1 · ends: of the axis of ratios
    """
    picture = Picture((8, 3.6), dpi=100)
    above, below = picture.subplots(2, 1, sharex=True, height_ratios=(1, 2.4))
    picture.subplots_adjust(left=0.08, right=0.96, bottom=0.14, top=0.92, hspace=0.3)
    for one in (above, below):
        tidy(one)
        one.axvline(candidate, **LIMIT)
    ratios = np.array(comparison.ratios)
    for those, color, mark in (
        (ratios[ratios > candidate], ORANGE, ">"),
        (ratios[ratios <= candidate], BLUE, "<"),
    ):
        above.plot(those, 0 * those, mark, color=color, markersize=8, alpha=0.7)
    above.set(yticks=[], ylim=(-1, 1))
    above.spines["left"].set_visible(False)
    said = f"{(ratios > candidate).sum()} of {len(ratios)} pairs lie above {candidate:.3f}"
    above.set_title(
        f"{said}: {100 * share_of(candidate):.1f} % of the coin's outcomes are as lopsided",
        loc="left",
        fontsize=10,
    )
    across = np.linspace(*ends, 241)
    below.plot(across, [100 * share_of(one) for one in across], color=BLUE)
    refused = 100 * (1 - comparison.sure)
    below.axhline(refused, color=GREY, linewidth=1)
    below.text(ends[0], refused, f" below {refused:.0f} %: refused", va="bottom", fontsize=SMALL)
    low, high = comparison.interval
    below.axvspan(low, high, color=BLUE, alpha=0.12, linewidth=0)
    below.set(yscale="log", ylim=(0.15, 150), xlim=ends, xlabel="candidate for the true ratio")
    below.set_ylabel("% of outcomes")
    below.set_yticks([1, 10, 100], ["1", "10", "100"])
    below.minorticks_off()
    below.set_title(f"not refused: the interval, {low:.3f} to {high:.3f}", loc="left", fontsize=10)
    return picture
