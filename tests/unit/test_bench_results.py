"""Does a results file come back as it was written, and is anything else refused with a sentence?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import machine
from bench.errors import BenchError
from bench.results import FORMAT, OUTCOMES, Measurement, Results, SystemFacts, WorkloadFacts
from tests.unit.bench_results import whole_run

words = st.text(max_size=8)
numbers = st.floats(allow_nan=False, allow_infinity=False)
counts = st.none() | st.dictionaries(words, st.integers(0), max_size=3)
measurements = st.builds(
    Measurement,
    words,
    words,
    st.integers(0, 9),
    outcome=st.sampled_from(OUTCOMES),
    message=words,
    figures=st.dictionaries(words, numbers, max_size=3),
    daemon_cpu_seconds=st.none() | numbers,
    requests=counts,
    paths=counts,
    load=numbers,
    seconds=numbers,
)
workloads = st.builds(
    WorkloadFacts, words, words, words, words, words, st.dictionaries(words, words, max_size=2), st.booleans()
)
runs = st.builds(
    Results,
    scale=st.sampled_from(["full", "quick"]),
    rounds=st.dictionaries(words, st.integers(0), max_size=2),
    machine=st.dictionaries(words, words, max_size=2),
    workloads=st.dictionaries(words, workloads, max_size=2),
    systems=st.dictionaries(words, st.builds(SystemFacts, words, words, words), max_size=2),
    measurements=st.lists(measurements, max_size=3),
)


@given(run=runs)
def test_any_results_come_back(run: Results, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("results") / "run.json"
    run.save(path)
    assert Results.load(path) == run
    assert [entry.name for entry in path.parent.iterdir()] == ["run.json"]


def test_save_makes_directories_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "run.json"
    Results(scale="full").save(path)
    Results(scale="quick").save(path)
    assert Results.load(path).scale == "quick"


def test_whole_numbers_are_figures(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    run = Results()
    run.add(Measurement("stat", "kernel", 0, figures={"time": 3}))
    run.save(path)
    assert Results.load(path).measurements[0].figures == {"time": 3.0}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cut short"),
        ("{", "cut short"),
        ("[" * 100_000, "cut short"),
        ("\x00", "cut short"),
        ("3", "names no format"),
        ("[]", "names no format"),
        ("{}", "names no format"),
        ('{"format": true}', "names no format"),
        ('{"format": "1"}', "names no format"),
        ('{"format": 0}', "names no format"),
        (json.dumps({"format": FORMAT + 1}), f"format {FORMAT + 1}, and this version reads up to {FORMAT}"),
        (json.dumps({"format": FORMAT}), "has no scale"),
    ],
)
def test_what_is_no_result(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(BenchError, match=words) as caught:
        Results.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("scale", 3),
        ("scale", None),
        ("rounds", []),
        ("rounds", {"stat-cold": "five"}),
        ("rounds", {"stat-cold": True}),
        ("machine", {"kernel": 6.18}),
        ("workloads", {"stat-cold": {}}),
        ("systems", {"kernel": "6.18"}),
        ("measurements", {}),
        ("measurements", [None]),
        ("measurements", [{"workload": "stat-cold"}]),
    ],
)
def test_damaged_results(key: str, value: object, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    whole_run().save(path)
    document = json.loads(path.read_text())
    document[key] = value
    path.write_text(json.dumps(document))
    with pytest.raises(BenchError, match=f"or damaged: results.{key}"):
        Results.load(path)


def test_every_shortened_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    whole_run().save(path)
    text = path.read_text()
    for length in range(0, len(text) - 1, len(text) // 50):
        path.write_text(text[:length])
        with pytest.raises(BenchError, match="cut short"):
            Results.load(path)


def test_unknown_fields_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    run = whole_run()
    run.save(path)
    document = json.loads(path.read_text())
    document["colour"] = "blue"
    document["measurements"][0]["weather"] = "fine"
    path.write_text(json.dumps(document))
    assert Results.load(path) == run


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="cannot be read: No such file or directory"):
        Results.load(tmp_path / "none.json")
    with pytest.raises(BenchError, match="cannot be read: Is a directory"):
        Results.load(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(BenchError, match="cannot be written"):
        Results().save(tmp_path / "file" / "run.json")


def test_done_and_repeated_trials() -> None:
    run = Results()
    run.add(Measurement("stat", "kernel", 1, outcome="failed", message="no space"))
    assert run.done("stat", "kernel", 1)
    assert not run.done("stat", "kernel", 0) and not run.done("stat", "native", 1)
    run.add(Measurement("stat", "kernel", 0, figures={"time": 1.0}))
    run.add(Measurement("stat", "kernel", 1, figures={"time": 2.0}))
    assert [(found.round, found.outcome) for found in run.of("stat", "kernel")] == [(0, "ok"), (1, "ok")]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_number_is_a_failure(value: float, tmp_path: Path) -> None:
    run = Results()
    run.add(Measurement("stat", "kernel", 0, figures={"p50": 1.0, "p99": value}))
    assert run.measurements[0].outcome == "failed"
    assert run.measurements[0].message == "p99: measured no number"
    run.save(tmp_path / "run.json")


def test_machine_is_described_in_words(tmp_path: Path) -> None:
    facts = machine.describe(tmp_path)
    assert set(facts) >= {
        "date",
        "kernel",
        "CPUs",
        "memory",
        "file system",
        "distribution",
        "Python",
        "libfuse",
    }
    assert all(facts.values())
    assert str(tmp_path) not in str(facts)


def test_machine_names_the_file_system_of_the_directory() -> None:
    assert machine.describe(Path("/proc"))["file system"].startswith("proc (")
