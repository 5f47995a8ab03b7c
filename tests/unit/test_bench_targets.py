"""Is a run judged by its bars as one would by hand, and is its length foreseen?"""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import cli, tables, targets
from bench.estimate import Estimate, estimate
from bench.ratios import Spread
from bench.report import write_report
from bench.results import NOT_APPLICABLE, Measurement, Results
from bench.systems import known_systems
from bench.targets import TARGETS, Target, Verdict, judge
from bench.workloads.catalogue import ALL
from tests.unit.bench_results import Round, add_rounds, add_workload, made_up


def judged(results: Results, target: Target, monkeypatch: pytest.MonkeyPatch) -> targets.Judgement:
    monkeypatch.setattr(targets, "TARGETS", (target,))
    (judgement,) = judge(results)
    return judgement


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target.workload} {target.system}")
def test_a_bar_is_for_a_figure_that_is_measured(target: Target) -> None:
    work = ALL[target.workload]
    assert target.figure is None or target.figure in work.figures
    systems = known_systems()
    for name in filter(None, (target.system, target.against)):
        assert name not in work.not_for
        assert not systems[name].left_out_because or name in work.variants
    if target.grown_from is not None:
        assert ALL[target.grown_from].figures == work.figures


def test_no_bar_is_declared_twice() -> None:
    assert len(
        {(bar.workload, bar.figure, bar.system, bar.against, bar.grown_from) for bar in TARGETS}
    ) == len(TARGETS)


@pytest.mark.parametrize(
    ("ours", "peer", "unit", "at_most", "verdict"),
    [
        ([10.0, 10.0, 10.0], [20.0, 20.0, 20.0], "ms", 0.5, Verdict.MET),
        ([10.1, 10.1, 10.1], [20.0, 20.0, 20.0], "ms", 0.5, Verdict.MISSED),
        ([90.0, 90.0, 90.0], [100.0, 100.0, 100.0], "MB/s", 1 / 0.9, Verdict.MET),
        ([89.0, 89.0, 89.0], [100.0, 100.0, 100.0], "MB/s", 1 / 0.9, Verdict.MISSED),
        # Round by round, and the one in the middle decides: 0.4, 0.5, 2.
        ([4.0, 50.0, 20.0], [10.0, 100.0, 10.0], "ms", 0.5, Verdict.MET),
        ([4.0, 51.0, 20.0], [10.0, 100.0, 10.0], "ms", 0.5, Verdict.MISSED),
        (["failed: no"] * 3, [1.0] * 3, "ms", 0.5, Verdict.UNKNOWN),
        ([1.0] * 3, ["hung: no"] * 3, "ms", 0.5, Verdict.UNKNOWN),
        ([None] * 3, [1.0] * 3, "ms", 0.5, Verdict.UNKNOWN),
    ],
)
def test_bars_against_another_system(
    ours: list[Round],
    peer: list[Round],
    unit: str,
    at_most: float,
    verdict: Verdict,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = made_up({"pyoverlay": ours, "peer": peer}, unit=unit)
    assert judged(run, Target("line", "stat-cold", at_most, "peer"), monkeypatch).verdict is verdict


def test_a_bar_without_another_system(monkeypatch: pytest.MonkeyPatch) -> None:
    run = made_up({"pyoverlay": [100.0, 110.0, 300.0]})
    found = judged(run, Target("line", "stat-cold", 110, figure="time"), monkeypatch)
    assert (found.verdict, found.measured, found.unit) == (Verdict.MET, Spread(110, 100, 300, 3), "ms")
    found = judged(run, Target("line", "stat-cold", 109, figure="time"), monkeypatch)
    assert found.verdict is Verdict.MISSED


def test_a_bar_for_what_layers_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    run = made_up({"kernel": [10.0, 20.0], "pyoverlay": [100.0, 50.0]}, workload="one")
    add_workload(run, "many", "metadata", {"time": "ms"})
    add_rounds(run, "many", "kernel", [20.0, 40.0])
    add_rounds(run, "many", "pyoverlay", [300.0, 200.0])
    # The kernel's grows 2 and 2 times, ours 3 and 4 times.
    found = judged(run, Target("line", "many", 1.75, "kernel", grown_from="one"), monkeypatch)
    assert (found.measured, found.verdict) == (Spread(1.75, 1.5, 2.0, 2), Verdict.MET)


def test_what_was_not_run_is_not_met() -> None:
    assert {judgement.verdict for judgement in judge(Results())} == {Verdict.UNKNOWN}
    assert tables.targets_table(Results()) == []
    assert tables.targets_summary(Results()) == f"{len(TARGETS)} bars: {len(TARGETS)} not measured."


def whole() -> Results:
    run = made_up({"kernel": [1.0] * 3, "pyoverlay": [1.3] * 3, "fuse-overlayfs": [4.0] * 3}, unit="µs/op")
    add_workload(run, "mount-of-1-layer", "life", {"mount": "ms", "unmount": "ms"})
    add_rounds(run, "mount-of-1-layer", "pyoverlay", [130.0] * 3)
    return run


def test_the_page_and_the_command_say_what_was_reached(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.json"
    whole().save(path)
    text = write_report(path)[0].read_text()

    assert "## What is to be reached" in text
    (row,) = [line for line in text.splitlines() if "`stat-cold`" in line and "| met" in line]
    assert "fuse-overlayfs" in row and "0.33" in row
    (row,) = [line for line in text.splitlines() if "`mount-of-1-layer mount`" in line]
    assert "120 ms" in row and "130" in row and "**not met**" in row

    assert cli.main(["targets", str(path)]) == 0
    said = capsys.readouterr().out
    assert f"{len(TARGETS)} bars: 1 met, 1 not met, {len(TARGETS) - 2} not measured." in said
    (row,) = [line for line in said.splitlines() if "mount-of-1-layer mount" in line]
    assert row.rstrip().endswith("not met")


def test_targets_of_no_results_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["targets", str(tmp_path / "none.json")]) == 1
    assert "cannot be read" in capsys.readouterr().err


def test_a_run_is_as_long_as_its_trials_were_before() -> None:
    earlier = Results()
    for number, seconds in enumerate((60.0, 61.0, 300.0)):
        earlier.add(Measurement("work", "kernel", number, seconds=seconds))
    earlier.add(Measurement("work", "native", 0, outcome=NOT_APPLICABLE))
    earlier.add(Measurement("work", "peer", 0, seconds=1.0))

    found = estimate([("work", "kernel"), ("work", "kernel"), ("new", "peer"), ("new", "newer")], earlier)

    assert found == Estimate(trials=4, unknown=2, seconds=61 + 61 + 1 + 31)
    assert found.said("full.json") == "4 trials, about 3 min by those of full.json, 2 of them guessed"
    assert estimate([("work", "kernel")], Results()).said("full.json") == "1 trials"
