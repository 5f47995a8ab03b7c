"""Does the snapshotter start again after it was killed between any two steps, with nothing lost or doubled?

A child does what containerd would ask for, and ends, without a word and without cleaning up, before the first
of its steps, the second, and so on: before each statement for the database, each change of a directory, and
each answer.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pyoverlay.containers.snapshotter.snapshot import Kind, SnapshotNotFoundError
from pyoverlay.containers.snapshotter.snapshotter import Snapshotter

_STEPS = {"os.mkdir", "os.chmod", "os.chown", "os.remove", "os.rmdir"}
_LAST = 200


def _remove(name: str) -> Callable[[Snapshotter], None]:
    def remove(snapshotter: Snapshotter) -> None:
        with contextlib.suppress(SnapshotNotFoundError):
            snapshotter.remove(name)

    return remove


# What is asked for, and the snapshots that there are when it was answered.
_ASKED: list[tuple[Callable[[Snapshotter], object], set[str]]] = [
    (lambda asked: asked.create(Kind.ACTIVE, "a", "", {"x": "1"}), {"a"}),
    (lambda asked: asked.commit("a", "one", {"y": "2"}), {"one"}),
    (lambda asked: asked.create(Kind.ACTIVE, "b", "one", {}), {"one", "b"}),
    (lambda asked: asked.commit("b", "two", {}), {"one", "two"}),
    (lambda asked: asked.create(Kind.VIEW, "v", "two", {}), {"one", "two", "v"}),
    (_remove("v"), {"one", "two"}),
    (_remove("two"), {"one"}),
    (lambda asked: asked.clean_up(), {"one"}),
]
# Whose answer tells of which snapshot.
_ANSWERS = ["a", "one", "b", "two", "v", None, None, None]


def _names(snapshotter: Snapshotter) -> set[str]:
    return {each.name for each in snapshotter.list_information([])}


def _check(snapshotter: Snapshotter, root: Path) -> None:
    """Every snapshot has a directory and every directory a snapshot, whatever was under way."""
    directories = os.listdir(root / "snapshots")
    assert len(directories) == len(_names(snapshotter))
    for name in directories:
        assert (root / "snapshots" / name / "fs").is_dir()


def _killed_before_step(number: int, root: Path) -> tuple[bool, int]:
    """Ask for everything in a child that is killed; return whether it was, and how much it had answered."""
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        _ask_until_killed(number, root, sending)
    os.close(sending)
    with open(receiving, "rb") as pipe:
        answered = len(pipe.read())
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 9), f"the child failed with {code}"
    return code == 9, answered


def _ask_until_killed(number: int, root: Path, answers: int) -> None:
    left = number

    def step(*_: object) -> None:
        nonlocal left
        if left == 0:
            os._exit(9)
        left -= 1

    connect = sqlite3.connect

    def connect_and_count(*words: object, **more: object) -> sqlite3.Connection:
        database = connect(*words, **more)  # type: ignore[call-overload]
        database.set_trace_callback(step)
        assert isinstance(database, sqlite3.Connection)
        return database

    try:
        sqlite3.connect = connect_and_count  # type: ignore[assignment]
        sys.addaudithook(lambda event, _: step() if event in _STEPS else None)
        snapshotter = Snapshotter(root, "pyoverlay")
        for (ask, _), told in zip(_ASKED, _ANSWERS, strict=True):
            ask(snapshotter)
            step()
            os.write(answers, b".")
            if told is not None:
                snapshotter.acknowledge(told)
        os._exit(0)
    finally:
        os._exit(1)


def test_killed_between_any_two_steps(base: Path) -> None:
    for number in range(_LAST):
        root = base / f"root-{number}"
        killed, answered = _killed_before_step(number, root)
        for layer in root.glob("snapshots/*/fs"):
            (layer / "d/e").mkdir(parents=True)
        with contextlib.closing(Snapshotter(root, "pyoverlay")) as again:
            _check(again, root)
            before = _ASKED[answered - 1][1] if answered else set()
            after = _ASKED[answered][1] if answered < len(_ASKED) else before
            assert _names(again) in (before, after)
            # Whoever got no answer asks once more, and for the rest.
            for ask, expected in _ASKED[answered:]:
                ask(again)
                if ask is _ASKED[6][0] and _names(again) == {"one", "b"}:
                    # What may be known by its former key only is garbage at the second look.
                    again.remove("b")
                assert _names(again) == expected
            again.clean_up()
            _check(again, root)
            assert again.information("one").labels == {"y": "2"}
        if not killed:
            break
    else:
        pytest.fail(f"more than {_LAST} steps")
    assert number > 50
