"""How is a lower's file copied up, timed, and the copy checked?

Shared by the workloads of changes; declares none itself.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from bench.layers import LONG_AGO, MEBIBYTE
from bench.trial import Trial
from bench.workloads.checks import expect

_COMPARED: Final = 64 << 10
_SECONDS_BETWEEN_STATS: Final = 0.001


def look_at(trial: Trial) -> None:
    """Make names and inodes of the tree warm."""
    for directory, _, files in os.walk(trial.root):
        for name in files:
            os.lstat(f"{directory}/{name}")


def measure_and_sync(
    trial: Trial, work: Callable[[], object], *, operations: int = 1, size: int = 0
) -> float:
    """Measure the work as the first figure; return the seconds until its result was on the disk as well."""
    os.sync()
    with trial.measured(operations=operations, size=size):
        started = time.perf_counter()
        work()
        seconds = time.perf_counter() - started
    started = time.perf_counter()
    os.sync()
    return seconds + time.perf_counter() - started


def invert_first_byte(path: str) -> None:
    """Write into a file: some systems copy up when it is opened, some when it is written."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.pwrite(descriptor, bytes([os.pread(descriptor, 1, 0)[0] ^ 0xFF]), 0)
    finally:
        os.close(descriptor)


def expect_copy(trial: Trial, name: str) -> None:
    """Compare a file of the upper with the lower's, which must be as it was; 64 KiB in each MiB."""
    assert trial.upper is not None
    lower, copy, shown = (directory / name for directory in (trial.layers.merged, trial.upper, trial.root))
    expect(f"the time stamp of the lower's {name}", lower.stat().st_mtime, LONG_AGO)
    size = lower.stat().st_size
    expect(
        f"the size of {name} in the upper", copy.stat().st_size if copy.exists() else "nothing: no copy", size
    )
    with lower.open("rb") as old, shown.open("rb") as new:
        for offset in range(0, size, MEBIBYTE):
            old.seek(offset)
            new.seek(offset)
            wanted = old.read(_COMPARED)
            if offset == 0:
                wanted = bytes([wanted[0] ^ 0xFF]) + wanted[1:]
            expect(f"that {name} at {offset} has the lower's content", new.read(_COMPARED) == wanted, True)


def read_lowers(trial: Trial) -> None:
    """Bring the files into the page cache: below the mount, where each system finds them."""
    for lower in trial.layers.lowers:
        for directory, _, files in os.walk(trial.layers.directory / lower):
            for name in files:
                with open(f"{directory}/{name}", "rb", buffering=0) as file:
                    while file.read(MEBIBYTE):
                        pass


class Copying(threading.Thread):
    """Has a file copied up, and notes when that was done.

    Attributes:
        ended: When, as time.perf_counter() counts; infinity while it runs.
        failure: Why it failed, if it did.
    """

    def __init__(self, path: str) -> None:
        """Copy up what lies at ``path``, once started."""
        super().__init__()
        self._path = path
        self.ended = math.inf
        self.failure: OSError | None = None

    def run(self) -> None:
        """Write into the file."""
        try:
            invert_first_byte(self._path)
        except OSError as failure:
            self.failure = failure
        self.ended = time.perf_counter()


def stat_on_schedule(paths: Sequence[str], copy: Copying) -> list[float]:
    """Return how many seconds each stat took, of those that were due while the copy was being made.

    A stat that is late because the one before took long has waited since it was due, as a caller of its own
    would have; else one long wait would hide all others.
    """
    waited: list[float] = []
    due = answered = time.perf_counter()
    for path in paths:
        if answered <= due:
            time.sleep(max(0.0, due - time.perf_counter()))
            # Waking up late isn't the system's fault.
            asked = time.perf_counter()
        else:
            asked = due
        if waited and due > copy.ended:
            break
        os.stat(path)
        answered = time.perf_counter()
        waited.append(answered - asked)
        due += _SECONDS_BETWEEN_STATS
    return waited
