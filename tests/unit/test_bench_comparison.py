"""Does `compare` say in words what moved, what did not, and what cannot be compared?"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from bench.comparison import compare
from bench.errors import BenchError
from bench.notation import TIMES, TO
from bench.results import Results
from tests.unit.bench_results import Round, add_rounds, add_workload, made_up, whole_run


def run(**rounds: Sequence[Round]) -> Results:
    """Return a run whose workloads are the keywords, on the kernel in 10 ms and on pyoverlay."""
    results = Results()
    for name, figures in rounds.items():
        add_workload(results, name, "metadata", {"time": "ms"})
        add_rounds(results, name, "kernel", [10.0] * len(figures))
        add_rounds(results, name, "pyoverlay", figures)
    return results


def cells(text: str, word: str) -> list[str]:
    """Return the cells of the row of a table that contains a word."""
    (line,) = [line for line in text.splitlines() if line.startswith("|") and word in line]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_same_run_did_not_move() -> None:
    # 11 figures on 6 systems, and one is not for one of them.
    text = compare(whole_run(), whole_run())
    assert "|" not in text
    assert text.startswith("65 of 65 figures did not move beyond noise")


def test_what_moved_the_worst_first() -> None:
    old = run(
        same=[50.0, 51.0, 52.0],
        slower=[20.0, 21.0, 22.0],
        much_slower=[20.0, 21.0, 22.0],
        faster=[60.0, 50.0, 70.0],
        broken=[20.0] * 3,
        mended=["failed: no space"] * 3,
    )
    new = run(
        same=[51.0, 51.0, 53.0],
        slower=[42.0, 40.0, 41.0],
        much_slower=[90.0, 91.0, 92.0],
        faster=[30.0, 25.0, 26.0],
        broken=["hung: no answer"] * 3,
        mended=[20.0] * 3,
    )
    text = compare(old, new)
    rows = [line for line in text.splitlines() if line.startswith("|")][2:]
    assert [row.split("|")[2].split()[0] for row in rows] == [
        "broken",
        "much_slower",
        "slower",
        "faster",
        "mended",
    ]
    assert cells(text, "| slower") == [
        "worse",
        "slower time",
        "pyoverlay",
        f"{TIMES}2.10 (2.00{TO}2.20)",
        f"{TIMES}4.10 (4.00{TO}4.20)",
        f"{TIMES}1.95 worse",
    ]
    assert cells(text, "faster") == [
        "better",
        "faster time",
        "pyoverlay",
        f"{TIMES}6.00 (5.00{TO}7.00)",
        f"{TIMES}2.60 (2.50{TO}3.00)",
        f"{TIMES}2.31 better",
    ]
    assert cells(text, "broken")[0] == "fails now" and cells(text, "mended")[0] == "works now"
    assert cells(text, "broken")[4] == "none"
    assert "\n1 of 6 figures did not move" in text


def test_values_are_marked() -> None:
    old = made_up({"pyoverlay": [40.0, 41.0, 42.0]}, unit="MiB", workload="memory")
    new = made_up({"pyoverlay": [20.0, 21.0, 22.0]}, unit="MiB", workload="memory")
    text = compare(old, new)
    assert cells(text, "memory")[3:] == [
        f"41.0 (40.0{TO}42.0) MiB [value]",
        f"21.0 (20.0{TO}22.0) MiB [value]",
        f"{TIMES}1.95 better",
    ]
    assert "marked [value] have no reference" in text


def test_few_rounds_are_named() -> None:
    text = compare(run(stat=[20.0]), run(stat=[24.0]))
    assert text.startswith("1 of 1 figures did not move")
    assert "less than 3 rounds" in text
    assert "less than 3 rounds" not in compare(run(stat=[20.0] * 3), run(stat=[20.0] * 3))


def test_what_is_only_in_one_file() -> None:
    old, new = run(stat=[20.0], walk=[20.0]), run(stat=[20.0], read=[20.0])
    text = compare(old, new)
    assert "Only in the old run: workload walk." in text
    assert "Only in the new run: workload read." in text


def test_what_differs_in_machine_and_systems() -> None:
    old, new = run(stat=[20.0]), run(stat=[20.0])
    old.machine = {"date": "Monday", "kernel": "Linux 6.17", "memory": "8 GiB"}
    new.machine = {"date": "Friday", "kernel": "Linux 6.18", "memory": "8 GiB", "libfuse": "3.14"}
    new.systems["pyoverlay"].version = "2.0"
    text = compare(old, new)
    assert "- kernel: Linux 6.17 -> Linux 6.18" in text
    assert "- libfuse: unknown -> 3.14" in text
    assert "- pyoverlay: 1.2.3" in text and "-> 2.0" in text
    assert "Monday" not in text and "memory" not in text


def test_other_scales_are_refused() -> None:
    old, new = Results(scale="quick"), Results(scale="full")
    with pytest.raises(BenchError, match="the old run is of scale quick, the new one full"):
        compare(old, new)


def test_nothing_in_common() -> None:
    text = compare(run(stat=[20.0]), run(walk=[20.0]))
    assert text.startswith("0 of 0 figures")
