"""Does the benchmark's schedule of stats count those that a blocked one has kept waiting?"""

import os
import time
from pathlib import Path

import pytest

from bench.workloads import copying
from bench.workloads.copying import Copying, stat_on_schedule


class Stats:
    """Stands for os: answers a stat at once, but the first one after `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.asked: list[str] = []

    def stat(self, path: str) -> None:
        self.asked.append(path)
        time.sleep(self.seconds if len(self.asked) == 1 else 0)


def test_a_blocked_stat_delays_all_that_were_due_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    stats = Stats(0.1)
    monkeypatch.setattr(copying, "os", stats)
    copy = Copying("unused")
    copy.ended = time.perf_counter() + 0.1
    waited = stat_on_schedule([str(number) for number in range(1000)], copy)
    assert 50 < len(waited) < 150
    assert waited[0] >= 0.1
    assert sorted(waited)[len(waited) // 2] > 0.03
    assert waited[0] > waited[len(waited) // 2] > waited[-1]


def test_stats_end_with_the_names(monkeypatch: pytest.MonkeyPatch) -> None:
    stats = Stats(0)
    monkeypatch.setattr(copying, "os", stats)
    assert len(stat_on_schedule(["a", "b", "c"], Copying("unused"))) == 3
    assert stats.asked == ["a", "b", "c"]


def test_a_copy_that_ended_before_the_first_stat_still_gives_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "os", Stats(0))
    copy = Copying("unused")
    copy.ended = 0
    assert len(stat_on_schedule(["a", "b", "c"], copy)) == 1


def test_copying_writes_another_first_byte_and_notes_its_end(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"\x0fabc")
    copy = Copying(str(file))
    copy.start()
    copy.join()
    assert file.read_bytes() == b"\xf0abc"
    assert os.stat(file).st_size == 4
    assert copy.ended <= time.perf_counter()


def test_copying_keeps_why_it_failed(tmp_path: Path) -> None:
    copy = Copying(str(tmp_path / "missing"))
    copy.start()
    copy.join()
    assert isinstance(copy.failure, FileNotFoundError)
    assert copy.ended <= time.perf_counter()
