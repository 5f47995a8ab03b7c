"""Does the page show every system's place, failed ones too, and does the chart draw what there is?"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import chart, notation, tables
from bench.errors import BenchError
from bench.notation import TIMES, TO
from bench.report import BEGIN, END, insert_report, write_report
from bench.results import Measurement, Results
from tests.unit.bench_results import add_rounds, add_workload, made_up, whole_run

PNG = b"\x89PNG\r\n\x1a\n"


def cells(lines: list[str]) -> dict[str, dict[str, str]]:
    """Return a table's cells, by the first column's and the heading's words."""
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("|")]
    heading, _, *body = rows
    return {row[0]: dict(zip(heading, row, strict=True)) for row in body}


def figures(results: Results) -> dict[str, dict[str, str]]:
    return cells(tables.figures_table(results, list(results.workloads.values())))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "run.1.json"
    whole_run().save(path)
    return write_report(path)[0]


def test_cells_of_figures() -> None:
    run = made_up(
        {
            "native": [8.0] * 5,
            "kernel": [10.0, 11.0, 9.0] + [10.0] * 2,
            "pyoverlay": [51.0, 50.0, 52.0] + [51.0] * 2,
        }
    )
    assert figures(run)["`stat-cold`<br>ms, cold"] == {
        "workload": "`stat-cold`<br>ms, cold",
        "native": f"8.00<br>{TIMES}0.80 (0.73{TO}0.89)",
        "kernel": f"10.0<br>(9.00{TO}11.0)",
        "pyoverlay": f"51.0<br>{TIMES}5.10 (4.55{TO}5.78)",
    }


def test_each_figure_has_a_row() -> None:
    run = Results()
    add_workload(run, "latency", "data", {"p50": "ms", "p99": "ms"})
    add_rounds(run, "latency", "kernel", [1.0])
    assert list(figures(run)) == ["`latency` p50<br>ms, cold", "`latency` p99<br>ms, cold"]


def test_failures_keep_their_place_with_the_message_below() -> None:
    run = made_up(
        {
            "kernel": [10.0, 10.0, 10.0, "failed: no | space", 10.0],
            "broken": ["failed: no | space"] * 5,
            "hanging": [20.0, "hung: no *answer*\nat all", 20.0, 20.0, 20.0],
            "unfit": ["not applicable: nothing below"] * 5,
            "short": [20.0, 20.0, 20.0, None, None],
        }
    )
    lines = tables.figures_table(run, list(run.workloads.values()))
    (row,) = cells(lines).values()
    notes = {line.split(".")[0]: line.split(". ", 1)[1] for line in lines if re.match(r"\d+\. ", line)}

    def said(system: str) -> list[str]:
        return [notes[number] for number in re.findall(r"<sup>(\d+)</sup>", row[system])]

    assert row["broken"].startswith("failed<sup>") and said("broken") == [r"no \| space"]
    assert row["hanging"].startswith("20.0<sup>") and f"{TIMES}2.00" in row["hanging"]
    assert said("hanging") == [
        r"of 5 rounds 1 hung: no \*answer\* at all",
        "the ratio leaves out 2 of 5 rounds, in which either side failed",
    ]
    assert row["unfit"].startswith(f"{notation.NONE}<sup>") and said("unfit") == ["nothing below"]
    assert said("short") == ["3 of 5 rounds were run"]
    assert said("kernel") == [r"of 5 rounds 1 failed: no \| space"]


def test_equal_messages_share_a_footnote() -> None:
    run = made_up({"one": ["failed: no space"] * 5, "two": ["failed: no space"] * 5})
    (row,) = figures(run).values()
    assert row["one"] == row["two"] == "failed<sup>1</sup>"


def test_a_system_that_was_not_run() -> None:
    run = made_up({"kernel": [1.0] * 5, "pyoverlay": [2.0] * 5})
    add_workload(run, "walk", "metadata", {"time": "ms"})
    add_rounds(run, "walk", "kernel", [1.0] * 5)
    assert figures(run)["`walk`<br>ms, cold"]["pyoverlay"] == "not measured"


def test_without_a_reference_the_range_is_of_values() -> None:
    run = made_up({"kernel": [0.0] * 5, "pyoverlay": [40.0, 41.0, 45.0, 42.0, 43.0]}, unit="MiB")
    (row,) = figures(run).values()
    assert row["pyoverlay"] == f"42.0<br>(40.0{TO}45.0)"


def test_counters() -> None:
    run = made_up({"kernel": [1.0] * 3, "pyoverlay": []})
    for number, lookups in enumerate((20_000, 20_004, 20_002)):
        run.add(
            Measurement(
                "stat-cold",
                "pyoverlay",
                number,
                figures={"time": 2.0},
                daemon_cpu_seconds=0.5 + number,
                requests={"LOOKUP": lookups, "GETATTR": 6, "OPEN": 4, "READ": 3, "FLUSH": 2, "RELEASE": 1},
                paths={"pyfuse3": 5_000, "fast": 15_000, "unused": 0},
            )
        )
    assert cells(tables.daemon_cpu_table(run)) == {
        "`stat-cold`": {"workload": "`stat-cold`", "pyoverlay": "1.50"}
    }
    assert cells(tables.requests_table(run))["`stat-cold`"]["pyoverlay"] == f"20,018<br>(20,016{TO}20,020)"
    assert cells(tables.opcodes_table(run, "pyoverlay"))["`stat-cold`"] == {
        "workload": "`stat-cold`",
        "requests": "20,018",
        "most of them": "LOOKUP 20,002, GETATTR 6, OPEN 4, READ 3, others 3",
    }
    assert cells(tables.paths_table(run))["`stat-cold`"]["pyoverlay"] == "fast 75.0%, pyfuse3 25.0%"


def test_no_counters_no_tables() -> None:
    run = made_up({"kernel": [1.0] * 3, "pyoverlay": [2.0] * 3})
    assert tables.daemon_cpu_table(run) == [] and tables.requests_table(run) == []
    assert tables.opcodes_table(run, "pyoverlay") == [] and tables.paths_table(run) == []


def test_worst_ratios_are_named() -> None:
    run = Results()
    for place in range(7):
        add_workload(run, f"work-{place}", "data", {"time": "ms"})
        add_rounds(run, f"work-{place}", "kernel", [1.0])
        add_rounds(run, f"work-{place}", "pyoverlay", [0.5 + place])
    found = cells(tables.worst_table(run))
    assert [row["pyoverlay"] for row in found.values()] == [
        f"`work-{place}` {TIMES}{place}.50" for place in (6, 5, 4, 3, 2)
    ]


def test_page_has_all_of_the_run(page: Path) -> None:
    text = page.read_text()
    run = whole_run()
    for fact in (*run.machine.values(), *(facts.version for facts in run.systems.values())):
        assert fact in text
    for facts in run.workloads.values():
        assert f"| `{facts.name}`" in text and f"- `{facts.name}`: {facts.title}" in text
    for system in run.systems.values():
        assert f"`{system.command}`" in text
    assert "5; 3 of git-clone" in text
    assert "0.5 to 0.9, median 0.7" in text
    assert "336 (322 ok, 5 hung, 4 failed, 5 not applicable)" in text
    assert "\n\n\n" not in text


def test_page_and_charts_lie_beside_the_results(page: Path) -> None:
    names = {path.name for path in page.parent.iterdir()}
    stems = ["run.1", *(f"run.1-{group}" for group in ("metadata", "data", "changes", "real", "life"))]
    assert names == {
        "run.1.json",
        "run.1.md",
        *(f"{stem}.{kind}" for stem in stems for kind in ("svg", "png")),
    }
    assert set(re.findall(r"\]\(([^)]*)\)", page.read_text())) == {f"{stem}.svg" for stem in stems}
    for stem in stems:
        assert ET.parse(page.parent / f"{stem}.svg").getroot().tag.endswith("svg")
        assert (page.parent / f"{stem}.png").read_bytes().startswith(PNG)


def test_page_and_charts_are_the_same_for_the_same_results(page: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.1.json"
    whole_run().save(path)
    for written in write_report(path):
        assert written.read_bytes() == (page.parent / written.name).read_bytes()


def test_empty_results(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    Results().save(path)
    assert [written.name for written in write_report(path)] == ["run.md"]
    assert "there are no ratios" in (tmp_path / "run.md").read_text()


def test_report_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="cannot be read"):
        write_report(tmp_path / "none.json")
    path = tmp_path / "run.json"
    Results().save(path)
    (tmp_path / "run.md").mkdir()
    with pytest.raises(BenchError, match=r"run\.md: the report cannot be written: Is a directory"):
        write_report(path)


def test_rows_of_charts() -> None:
    run = whole_run()
    rows = {row.label: row for row in chart.overview_rows(run)}
    assert "copy-latency: p50" in rows and "copy-latency: p99" not in rows
    assert "resident-memory" not in rows  # It has no ratio.
    assert rows["create"].troubles == {"unionfs-fuse": "hung"}
    assert rows["git-clone"].troubles == {"another": "failed"}
    assert "fuse-overlayfs" in rows["remove-tree"].ratios and not rows["remove-tree"].troubles
    assert all("kernel" not in row.ratios for row in rows.values())
    both = chart.group_rows(run, [run.workloads["copy-latency"]])
    assert [row.label for row in both] == ["copy-latency: p50", "copy-latency: p99"]


def test_chart_of_a_kernel_that_failed(tmp_path: Path) -> None:
    run = made_up({"kernel": ["failed: no"] * 3, "pyoverlay": ["hung: no"] * 3, "other": [1.0] * 3})
    rows = chart.overview_rows(run)
    assert [row.ratios for row in rows] == [{}] and rows[0].troubles == {"pyoverlay": "hung"}
    assert len(chart.write(rows, run.systems, "Title", tmp_path / "chart")) == 2


def test_dense_chart_with_far_ratios(tmp_path: Path) -> None:
    run = Results()
    for place in range(40):
        add_workload(run, f"work-{place}", "data", {"time": "ms"})
        add_rounds(run, f"work-{place}", "kernel", [1.0])
        add_rounds(run, f"work-{place}", "pyoverlay", [10.0 ** (place % 6 - 2)])
        add_rounds(run, f"work-{place}", "one", ["hung: no"])
        add_rounds(run, f"work-{place}", "two", ["failed: no"])
    assert len(chart.write(chart.overview_rows(run), run.systems, "Title", tmp_path / "chart")) == 2


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0.0, "0"),
        (0.00012345, "0.00012"),
        (0.0999, "0.100"),
        (0.1234, "0.123"),
        (0.9996, "1.00"),
        (1.234, "1.23"),
        (9.996, "10.0"),
        (12.34, "12.3"),
        (99.96, "100"),
        (123.4, "123"),
        (1234.5, "1,234"),
        (20_000_000.0, "20,000,000"),
    ],
)
def test_numbers(value: float, written: str) -> None:
    assert notation.number(value) == written


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (1.0, "1.00"),
        (5.104, "5.10"),
        (0.5, "0.50"),
        (0.01, "0.01"),
        (9.999, "10.0"),
        (12.34, "12.3"),
        (1234.0, "1,234"),
    ],
)
def test_ratios(value: float, written: str) -> None:
    assert notation.ratio(value) == TIMES + written


@given(st.floats(1e-6, 1e12))
def test_a_written_number_is_close(value: float) -> None:
    written = float(notation.number(value).replace(",", ""))
    assert written == pytest.approx(value, rel=0.05 if value < 0.1 else 0.006)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("x86_64 and O_CREAT | O_EXCL", r"x86_64 and O_CREAT \| O_EXCL"),
        ("_so_ *or* so", r"\_so\_ \*or\* so"),
        ("two\n lines <b>", r"two lines \<b\>"),
    ],
)
def test_markup_is_escaped(text: str, written: str) -> None:
    assert notation.escaped(text) == written


def test_a_report_is_put_into_another_page_again_and_again(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    results_path = tmp_path / "results" / "made-up.json"
    whole_run().save(results_path)
    write_report(results_path)
    page = tmp_path / "page.md"
    page.write_text(f"# Ours\n\n{BEGIN}\nold\n{END}\n\nStays.\n")

    insert_report(results_path, page)
    once = page.read_text()
    insert_report(results_path, page)

    assert page.read_text() == once
    assert once.startswith("# Ours\n")
    assert once.endswith("Stays.\n")
    assert "\nold\n" not in once
    assert "\n### Benchmark: made-up\n" in once
    assert "](results/made-up.svg)" in once


def test_a_page_without_a_place_for_the_report_stays_as_it_is(tmp_path: Path) -> None:
    results_path = tmp_path / "made-up.json"
    whole_run().save(results_path)
    (tmp_path / "page.md").write_text("no place here")

    with pytest.raises(BenchError, match="no place for the report"):
        insert_report(results_path, tmp_path / "page.md")

    assert (tmp_path / "page.md").read_text() == "no place here"
