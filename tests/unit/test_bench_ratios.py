"""Are ratios, spreads and verdicts those that one computes by hand?"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.ratios import Spread, Verdict, cell, compare, moved, times_worse
from bench.results import Measurement, Results
from tests.unit.bench_results import Round, add_rounds, add_workload, made_up

positive = st.floats(1e-6, 1e9)
several = st.lists(positive, min_size=1, max_size=7)


def spread(*values: float) -> Spread:
    found = Spread.of(values)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("value", "kernel", "unit", "ratio"),
    [
        (10.0, 2.0, "ms", 5.0),
        (2.0, 10.0, "s", 0.2),
        (10.0, 2.0, "\N{MICRO SIGN}s/op", 5.0),
        (10.0, 2.0, "MiB", 5.0),
        (10.0, 2.0, "MB/s", 0.2),
        (2.0, 10.0, "op/s", 5.0),
        (2.0, 0.0, "ms", None),
        (0.0, 2.0, "ms", None),
        (0.0, 2.0, "MB/s", None),
        (2.0, 0.0, "MB/s", None),
        (-1.0, 2.0, "ms", None),
    ],
)
def test_times_worse(value: float, kernel: float, unit: str, ratio: float | None) -> None:
    assert times_worse(value, kernel, unit) == (ratio if ratio is None else pytest.approx(ratio))


def test_spread() -> None:
    assert Spread.of([]) is None
    assert spread(3) == Spread(3, 3, 3, 1)
    assert spread(4, 1, 3, 2) == Spread(2.5, 1, 4, 4)


@given(several)
def test_spread_is_ordered(values: list[float]) -> None:
    found = spread(*values)
    assert found.least <= found.median <= found.most
    assert found.median == statistics.median(values)
    assert found.noise[0] <= found.least and found.most <= found.noise[1]


def test_ratio_is_taken_round_by_round() -> None:
    # The machine is slow in the second round, for both: by medians it would be 22/10.
    run = made_up({"kernel": [10.0, 100.0, 10.0], "pyoverlay": [20.0, 210.0, 22.0]})
    found = cell(run, "stat-cold", "time", "pyoverlay")
    assert found.values == Spread(22.0, 20.0, 210.0, 3)
    assert found.ratio == Spread(2.1, 2.0, 2.2, 3)
    assert found.left_out == 0 and not found.troubled and found.verdict == "ok"


def test_rates_are_worse_when_smaller() -> None:
    run = made_up({"kernel": [100.0, 100.0, 120.0], "pyoverlay": [50.0, 25.0, 20.0]}, unit="MB/s")
    assert cell(run, "stat-cold", "time", "pyoverlay").ratio == Spread(4.0, 2.0, 6.0, 3)


@given(several, st.sampled_from(["ms", "MB/s"]))
def test_the_kernel_is_as_good_as_itself(values: list[float], unit: str) -> None:
    found = cell(made_up({"kernel": values}, unit=unit), "stat-cold", "time", "kernel").ratio
    assert found == Spread(1.0, 1.0, 1.0, len(values))


@given(several, st.floats(0.01, 1000), st.sampled_from(["ms", "op/s"]))
def test_a_constant_factor_is_the_ratio_whatever_the_noise(
    values: list[float], factor: float, unit: str
) -> None:
    scaled = [value * factor if unit == "ms" else value / factor for value in values]
    found = cell(made_up({"kernel": values, "other": scaled}, unit=unit), "stat-cold", "time", "other").ratio
    assert found is not None
    assert [found.median, found.least, found.most] == pytest.approx([factor] * 3)


def test_failed_rounds_are_left_out_and_counted() -> None:
    run = made_up(
        {
            "kernel": [10.0, "failed: no space", 10.0, 10.0, 10.0],
            "pyoverlay": [20.0, 20.0, "hung: no answer", "failed: no space", 30.0],
        }
    )
    found = cell(run, "stat-cold", "time", "pyoverlay")
    assert found.values == Spread(20.0, 20.0, 30.0, 3)
    assert found.ratio == Spread(2.5, 2.0, 3.0, 2)
    assert found.left_out == 3
    assert found.outcomes == Counter(ok=3, hung=1, failed=1)
    assert found.messages == ("no answer", "no space")
    assert found.troubled and found.verdict == "hung"


def test_without_a_reference_there_are_values_alone() -> None:
    run = made_up({"native": [0.0, 0.0], "kernel": [0.0, 0.0], "pyoverlay": [40.0, 42.0]}, unit="MiB")
    found = cell(run, "stat-cold", "time", "pyoverlay")
    assert found.values == Spread(41.0, 40.0, 42.0, 2) and found.ratio is None
    assert cell(run, "stat-cold", "time", "kernel").ratio is None
    assert cell(made_up({"pyoverlay": [1.0]}), "stat-cold", "time", "pyoverlay").ratio is None


def test_not_applicable_and_not_run() -> None:
    run = made_up({"kernel": [1.0], "native": ["not applicable: nothing below"]})
    found = cell(run, "stat-cold", "time", "native")
    assert found.values is None and found.left_out == 0 and not found.troubled
    assert found.verdict == "not applicable" and found.messages == ("nothing below",)
    assert cell(run, "stat-cold", "time", "absent").verdict == ""


def test_a_trial_that_lacks_a_figure() -> None:
    run = Results()
    add_workload(run, "latency", "data", {"p50": "ms", "p99": "ms"})
    add_rounds(run, "latency", "kernel", [1.0])
    run.add(Measurement("latency", "pyoverlay", 0, figures={"p50": 2.0}))
    assert cell(run, "latency", "p50", "pyoverlay").ratio == Spread(2.0, 2.0, 2.0, 1)
    assert cell(run, "latency", "p99", "pyoverlay").values is None


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        ([5.0, 5.1, 5.2], [5.0, 5.1, 5.2], Verdict.UNCHANGED),
        ([5.0, 5.1, 5.2], [2.0, 2.1, 2.2], Verdict.FASTER),
        ([2.0, 2.1, 2.2], [5.0, 5.1, 5.2], Verdict.SLOWER),
        # The ranges overlap, far apart as the medians are.
        ([5.0, 5.1, 9.0], [8.0, 9.0, 9.5], Verdict.UNCHANGED),
        # They touch.
        ([1.0, 2.0, 3.0], [3.0, 4.0, 5.0], Verdict.UNCHANGED),
        # The ranges are apart, but the medians less than 5 %.
        ([5.0, 5.01, 5.02], [5.2, 5.21, 5.22], Verdict.UNCHANGED),
        ([5.0, 5.0, 5.0], [5.25, 5.25, 5.25], Verdict.SLOWER),
        # Two rounds or one say nothing of noise: a factor of 1.25 each is taken for it.
        ([5.0], [6.0], Verdict.UNCHANGED),
        ([5.0, 5.0], [7.5, 7.5], Verdict.UNCHANGED),
        ([5.0], [8.0], Verdict.SLOWER),
        ([8.0], [5.0], Verdict.FASTER),
        ([5.0], [5.5, 5.6, 5.7], Verdict.UNCHANGED),
        ([5.0], [6.5, 6.6, 6.7], Verdict.SLOWER),
    ],
)
def test_moved(old: list[float], new: list[float], verdict: Verdict) -> None:
    assert moved(spread(*old), spread(*new)) is verdict


@given(several, several)
def test_moving_back_is_the_opposite(old: list[float], new: list[float]) -> None:
    opposite = {Verdict.FASTER: Verdict.SLOWER, Verdict.SLOWER: Verdict.FASTER}
    forth, back = moved(spread(*old), spread(*new)), moved(spread(*new), spread(*old))
    assert back is opposite.get(forth, forth)
    of_rates = moved(spread(*old), spread(*new), more_is_better=True)
    assert of_rates is opposite.get(forth, forth)


@given(several, several, st.sampled_from(["ms", "op/s"]))
def test_a_change_of_the_machine_moves_no_ratio(kernel: list[float], ours: list[float], unit: str) -> None:
    rounds: dict[str, Sequence[Round]] = {"kernel": kernel, "pyoverlay": ours}
    faster: dict[str, Sequence[Round]] = {
        "kernel": [v / 2 for v in kernel],
        "pyoverlay": [v / 2 for v in ours],
    }
    found = compare(made_up(rounds, unit=unit), made_up(faster, unit=unit))
    assert [change.verdict for change in found.changes] == [Verdict.UNCHANGED]
    assert found.changes[0].of_ratios


def test_compare_rates() -> None:
    old = made_up({"kernel": [100.0] * 3, "pyoverlay": [20.0] * 3}, unit="MB/s")
    new = made_up({"kernel": [100.0] * 3, "pyoverlay": [50.0] * 3}, unit="MB/s")
    (change,) = compare(old, new).changes
    assert change.verdict is Verdict.FASTER and change.factor == pytest.approx(0.4)
    assert change.old == Spread(5.0, 5.0, 5.0, 3) and change.new == Spread(2.0, 2.0, 2.0, 3)


@pytest.mark.parametrize(("unit", "verdict"), [("MiB", Verdict.SLOWER), ("MB/s", Verdict.FASTER)])
def test_values_without_reference_are_compared_as_values(unit: str, verdict: Verdict) -> None:
    old = made_up({"pyoverlay": [20.0] * 3}, unit=unit)
    new = made_up({"pyoverlay": [50.0] * 3}, unit=unit)
    (change,) = compare(old, new).changes
    assert change.verdict is verdict and not change.of_ratios
    assert change.factor == pytest.approx(2.5 if unit == "MiB" else 0.4)


def test_nothing_stays_nothing() -> None:
    run = made_up({"native": [0.0] * 3}, unit="MiB")
    (change,) = compare(run, run).changes
    assert change.verdict is Verdict.UNCHANGED and change.factor == 1


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        ([5.0] * 3, ["hung: no answer"] * 3, Verdict.BROKEN),
        ([5.0] * 3, [5.0, 5.0, "failed: no space"], Verdict.BROKEN),
        (["failed: no space"] * 3, [5.0] * 3, Verdict.MENDED),
        (["failed: no space"] * 3, ["hung: no answer"] * 3, Verdict.UNCHANGED),
        ([5.0, 5.0, 5.0, "hung: no answer"], [9.0, 9.0, 9.0, "hung: no answer"], Verdict.SLOWER),
    ],
)
def test_failures_are_news(old: list[Round], new: list[Round], verdict: Verdict) -> None:
    found = compare(
        made_up({"kernel": [1.0] * 4, "pyoverlay": old}), made_up({"kernel": [1.0] * 4, "pyoverlay": new})
    )
    assert [change.verdict for change in found.changes] == [verdict]


def test_what_only_one_run_has() -> None:
    old = made_up({"kernel": [1.0], "pyoverlay": [2.0], "gone": [2.0]})
    add_workload(old, "walk", "metadata", {"time": "ms"})
    add_rounds(old, "walk", "pyoverlay", [2.0])
    new = made_up({"kernel": [1.0], "pyoverlay": [2.0], "peer": ["not applicable: no"]})
    for run, figures in ((old, {"p50": "ms", "p99": "ms"}), (new, {"p50": "ms"})):
        add_workload(run, "latency", "data", figures)
        add_rounds(run, "latency", "kernel", [1.0])
    add_rounds(new, "latency", "pyoverlay", [1.0])
    found = compare(old, new)
    assert found.only_old == ["system gone", "workload walk", "figure p99 of latency"]
    assert found.only_new == ["latency on pyoverlay"]
