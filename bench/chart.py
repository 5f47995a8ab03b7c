"""How far is each system from kernel overlay, at a glance? Charts as SVG and PNG.

A row for each workload on a logarithmic axis of the ratio to kernel overlay, the systems below each other.
The files are the same for the same results, so that a committed chart changes only with its figures.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bench import notation
from bench.ratios import Spread, cell
from bench.results import FAILED, HUNG, KERNEL, Results, WorkloadFacts

Style = tuple[str, str]
"""Colour and marker."""

# Okabe and Ito's colours, which stay apart for the colour-blind; the markers tell them apart without colours.
_STYLES: dict[str, Style] = {
    "native": ("#7f7f7f", "d"),
    "pyoverlay": ("#0072b2", "o"),
    "pyoverlay-slow-path": ("#56b4e9", "s"),
    "fuse-overlayfs": ("#d55e00", "^"),
    "unionfs-fuse": ("#009e73", "D"),
}
_OTHER_STYLES: list[Style] = [("#cc79a7", "v"), ("#e69f00", "P"), ("#882255", "X"), ("#999933", "<")]

_SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "bench",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.edgecolor": "#888888",
}
_WIDTH_INCHES = 10.0
_HEADING_INCHES = 0.42
_FRAME_INCHES = 1.55
_DOTS_PER_INCH = 130


@dataclass(frozen=True)
class _Density:
    """How much room a row has.

    Attributes:
        system: Inches for each system.
        gap: Inches between rows.
        marker: Points of a marker.
        spread: Points of the thickness of a spread.
        word: The part of the width by which each further word of trouble stands to the left.
    """

    system: float
    gap: float
    marker: float
    spread: float
    word: float

    def row(self, systems: int) -> float:
        """Return the height of a row in inches."""
        return systems * self.system + self.gap


_ROOMY = _Density(system=0.115, gap=0.11, marker=5.5, spread=2.4, word=0.0)
_DENSE = _Density(system=0.05, gap=0.08, marker=4.6, spread=1.6, word=0.055)
_MANY_ROWS = 30
"""More are drawn dense, so that the chart can be seen as a whole."""


@dataclass(frozen=True)
class Row:
    """What a chart shows of one figure of a workload.

    Attributes:
        label: Its name.
        group: The workload's group.
        ratios: Times worse than kernel overlay, by system; without those that have no ratio.
        troubles: "failed" or "hung", by system, of those that have no ratio for it.
    """

    label: str
    group: str
    ratios: dict[str, Spread]
    troubles: dict[str, str]


def overview_rows(results: Results) -> list[Row]:
    """Return the first figure of each workload."""
    return _rows(results, ((facts, next(iter(facts.figures))) for facts in results.workloads.values()))


def group_rows(results: Results, workloads: Iterable[WorkloadFacts]) -> list[Row]:
    """Return all figures of some workloads."""
    return _rows(results, ((facts, figure) for facts in workloads for figure in facts.figures))


def _rows(results: Results, figures: Iterable[tuple[WorkloadFacts, str]]) -> list[Row]:
    """Return rows for the figures that have a ratio, or a system that failed."""
    rows = []
    for facts, figure in figures:
        cells = {name: cell(results, facts.name, figure, name) for name in results.systems if name != KERNEL}
        row = Row(
            label=f"{facts.name}: {figure}" if len(facts.figures) > 1 else facts.name,
            group=facts.group,
            ratios={name: found.ratio for name, found in cells.items() if found.ratio},
            troubles={
                name: found.verdict
                for name, found in cells.items()
                if found.values is None and found.verdict in (FAILED, HUNG)
            },
        )
        if row.ratios or row.troubles:
            rows.append(row)
    return rows


def write(rows: list[Row], systems: Iterable[str], title: str, beside: Path) -> list[Path]:
    """Draw the rows into BESIDE.svg and BESIDE.png, and return these; none without a row.

    Args:
        rows: From top to bottom.
        systems: All systems of the results, so that one looks the same in each of their charts.
        title: Stands above.
        beside: The files' path without their suffix.

    Raises:
        OSError: A file cannot be written.
    """
    if not rows:
        return []
    present = {name for row in rows for name in (*row.ratios, *row.troubles)}
    styles = {name: style for name, style in _styles(systems).items() if name in present}
    paths = [beside.with_name(f"{beside.name}.{kind}") for kind in ("svg", "png")]
    with mpl.rc_context(_SETTINGS):
        figure = _drawn(rows, styles, title)
        figure.savefig(paths[0], metadata={"Date": None, "Creator": None})
        figure.savefig(paths[1], dpi=_DOTS_PER_INCH, metadata={"Software": None})
    return paths


def _styles(systems: Iterable[str]) -> dict[str, Style]:
    others = itertools.cycle(_OTHER_STYLES)
    return {name: _STYLES.get(name) or next(others) for name in systems if name != KERNEL}


def _drawn(rows: list[Row], styles: dict[str, Style], title: str) -> Figure:
    density = _ROOMY if len(rows) <= _MANY_ROWS else _DENSE
    row_inches = density.row(len(styles))
    groups = list(dict.fromkeys(row.group for row in rows))
    headings = len(groups) if len(groups) > 1 else 0
    height = len(rows) * row_inches + headings * _HEADING_INCHES
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    figure = Figure(figsize=(_WIDTH_INCHES, height + _FRAME_INCHES), facecolor="white", layout=layout)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_ylim(height, 0)  # in inches, downwards
    words = max(len(row.troubles) for row in rows) if density.word else 1
    _set_scale(axes, rows, room=0.07 * words if any(row.troubles for row in rows) else 0.0)
    names: dict[float, str] = {}
    top = 0.0
    for group in groups:
        if headings:
            _draw_heading(axes, group, top)
            top += _HEADING_INCHES
        for row in (row for row in rows if row.group == group):
            _draw_row(axes, row, styles, density, top, shaded=len(names) % 2 == 0)
            names[top + row_inches / 2] = row.label
            top += row_inches
    axes.set_yticks(list(names), labels=list(names.values()))
    axes.tick_params(axis="y", length=0)
    figure.legend(
        handles=_legend(styles),
        title=title,
        title_fontproperties={"weight": "bold", "size": 12},
        loc="outside upper center",
        ncols=4,
        frameon=False,
    )
    return figure


def _set_scale(axes: Axes, rows: list[Row], *, room: float) -> None:
    """Make the axis of ratios logarithmic, wide enough for all of them and for 1, with room at the right."""
    ends = [end for row in rows for ratio in row.ratios.values() for end in (ratio.least, ratio.most)]
    least, most = min([0.9, *ends]) / 1.15, max([2.0, *ends]) * 1.15
    most *= (most / least) ** room
    axes.set_xscale("log")
    axes.set_xlim(least, most)
    several_decades = most / least > 2000
    axes.xaxis.set_major_locator(LogLocator(10, subs=(1.0,) if several_decades else (1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{notation.TIMES}{value:,g}"))
    axes.xaxis.set_minor_locator(LogLocator(10, subs=range(2, 10)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", which="both", top=True, labeltop=True, color="#888888")
    axes.grid(axis="x", color="#d5d5d5", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.axvline(1, color="black", linewidth=1.3, zorder=2)


def _draw_heading(axes: Axes, group: str, top: float) -> None:
    middle = top + _HEADING_INCHES * 0.62
    place: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center", "fontweight": "bold"}
    axes.axhspan(top, top + _HEADING_INCHES, color="white", zorder=2.5, linewidth=0)
    axes.text(0.01, middle, group, zorder=3, **place)


def _draw_row(
    axes: Axes, row: Row, styles: dict[str, Style], density: _Density, top: float, *, shaded: bool
) -> None:
    if shaded:
        axes.axhspan(top, top + density.row(len(styles)), color="#f2f4f7", zorder=0, linewidth=0)
    for place, (name, style) in enumerate(styles.items()):
        height = top + density.gap / 2 + (place + 0.5) * density.system
        if name in row.ratios:
            _draw_ratio(axes, row.ratios[name], style, density, height)
        elif name in row.troubles:
            left = density.word * list(row.troubles).index(name)
            _draw_trouble(axes, row.troubles[name], style, 0.995 - left, height)


def _draw_ratio(axes: Axes, ratio: Spread, style: Style, density: _Density, height: float) -> None:
    colour, marker = style
    axes.hlines(height, 1, ratio.median, colors=colour, linewidth=0.4 * density.spread, alpha=0.4, zorder=3)
    axes.hlines(
        height, ratio.least, ratio.most, colors=colour, linewidth=density.spread, alpha=0.75, zorder=3.5
    )
    axes.plot(
        [ratio.median],
        [height],
        marker=marker,
        color=colour,
        markersize=density.marker,
        markeredgecolor="white",
        markeredgewidth=0.5,
        zorder=4,
    )


def _draw_trouble(axes: Axes, word: str, style: Style, right: float, height: float) -> None:
    axes.text(
        right,
        height,
        word,
        transform=axes.get_yaxis_transform(),
        color=style[0],
        fontsize=7.5,
        fontweight="bold",
        ha="right",
        va="center",
    )


def _legend(styles: dict[str, Style]) -> list[Line2D]:
    systems = [
        Line2D([], [], color=colour, marker=marker, linewidth=2.0, alpha=0.9, label=name)
        for name, (colour, marker) in styles.items()
    ]
    return [Line2D([], [], color="black", linewidth=1.3, label="kernel overlay"), *systems]
