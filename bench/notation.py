"""How are figures, ratios and spreads written, and how is a Markdown table made of them?"""

from __future__ import annotations

import re
from collections.abc import Sequence

from bench.ratios import Spread

TIMES = "\N{MULTIPLICATION SIGN}"
TO = "\N{EN DASH}"
NONE = "\N{EM DASH}"

# An underscore within a word is none of GitHub's markup.
_MARKUP = re.compile(r"[\\`*\[\]<>|]|\b_|_\b")


def number(value: float) -> str:
    """Write a value with three significant digits, and all of those before the point."""
    if value == 0:
        return "0"
    for least, decimals in ((100, 0), (10, 1), (1, 2), (0.1, 3)):
        # 99.97 with one decimal is 100.0: what it is rounded to decides.
        if round(abs(value), decimals) >= least:
            return f"{value:,.{decimals}f}"
    return f"{value:.2g}"


def ratio(value: float) -> str:
    """Write how many times worse than kernel overlay."""
    return TIMES + (f"{value:.2f}" if 0.095 <= value < 9.995 else number(value))


def spread_of_ratios(spread: Spread) -> str:
    """Write a median with smallest and largest, as in x5.10 (4.90-5.30)."""
    return f"{ratio(spread.median)} ({bare_range(spread)})"


def bare_range(spread: Spread) -> str:
    """Write smallest and largest of some ratios."""
    return TO.join(ratio(value).removeprefix(TIMES) for value in (spread.least, spread.most))


def value_range(spread: Spread) -> str:
    """Write smallest and largest of some values."""
    return f"{number(spread.least)}{TO}{number(spread.most)}"


def spread_of_values(spread: Spread) -> str:
    """Write a median with smallest and largest, the median alone if there was one round."""
    return number(spread.median) + (f" ({value_range(spread)})" if spread.rounds > 1 else "")


def escaped(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return _MARKUP.sub(lambda match: f"\\{match[0]}", " ".join(text.split()))


def table(heading: Sequence[str], rows: Sequence[Sequence[str]], alignment: str | None = None) -> list[str]:
    """Return the lines of a Markdown table, padded so that it reads as plain text too.

    Args:
        heading: The columns' names.
        rows: The cells, as they are.
        alignment: "l" or "r" for each column; by default all but the first one are to the right.
    """
    widths = [max(3, *(len(row[column]) for row in (heading, *rows))) for column in range(len(heading))]
    sides = alignment or "l" + "r" * (len(heading) - 1)
    rule = [
        "-" * (width - 1) + ("-" if side == "l" else ":") for side, width in zip(sides, widths, strict=True)
    ]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if side == "l" else cell.rjust(width)
            for cell, side, width in zip(cells, sides, widths, strict=True)
        ]
        return f"| {' | '.join(padded)} |"

    return [line(heading), line(rule), *(line(row) for row in rows)]
