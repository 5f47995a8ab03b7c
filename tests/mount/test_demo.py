"""Does ``pyoverlay demo`` tell its story on real mounts, and leave nothing behind?"""

from __future__ import annotations

import os
import pty
import re
from pathlib import Path

import pytest

from tests.mount.command import PYOVERLAY, environment, fail, mounts_below, pyoverlay, succeed

LAYERS = {
    "layer 1": ["file1", "file2", "file3", "file4"],
    "layer 2": ["file5", "file6", "file7", "file8"],
    "layer 3": ["file9", "data/file10", "data/file11"],
}


@pytest.fixture
def temporary(base: Path) -> Path:
    """The directory where commands put what is temporary."""
    directory = base / "temporary"
    directory.mkdir()
    return directory


def parts(text: str) -> list[str]:
    """What is shown under each of the numbered titles."""
    found = re.split(r"^\d\. .*$", text, flags=re.MULTILINE)
    assert len(found) == 8
    return found[1:]


def rows(part: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in part.splitlines() if "|" in line]


def test_the_story(temporary: Path) -> None:
    shown = succeed(pyoverlay("demo", variables={"TMPDIR": str(temporary)})).decode("ascii")
    assert "\x1b" not in shown
    assert all(line == line.rstrip() and len(line) <= 100 for line in shown.splitlines())
    layers, merged, commands, container, upper, changes, checksums = parts(shown)

    assert {row[0]: row[1].split() for row in rows(layers)} == LAYERS
    header, _, *files = rows(merged)
    sources = {row[0]: [header[index] for index, cell in enumerate(row) if index and cell] for row in files}
    assert sources == {name: [layer] for layer, names in LAYERS.items() for name in names}
    assert len(rows(commands)) == 5

    seen = {row[0] for row in rows(container)[2:]}
    expected = set(sources) - {"file6", "data/file10", "data/file11"} | {"file12", "data/file13"}
    assert seen == expected
    assert "whiteout" in upper
    assert "trusted.overlay.opaque = y" in upper
    assert [" ".join(row[:2]) for row in rows(changes)] == [
        "C /data",
        "D /data/file10",
        "D /data/file11",
        "A /data/file13",
        "A /file12",
        "C /file2",
        "D /file6",
    ]
    assert [(row[0], row[1] == row[2], row[3]) for row in rows(checksums)[2:]] == [
        (layer, True, "same") for layer in reversed(LAYERS)
    ]


def test_nothing_is_left(temporary: Path) -> None:
    succeed(pyoverlay("demo", variables={"TMPDIR": str(temporary)}))
    assert list(temporary.iterdir()) == []
    assert mounts_below(temporary) == []


def test_on_a_terminal_it_is_in_colour() -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        variables = environment({"TERM": "xterm-256color"})
        variables.pop("NO_COLOR", None)
        os.execve(PYOVERLAY[0], [*PYOVERLAY, "demo"], variables)
    shown = b""
    try:
        while block := os.read(terminal, 4096):
            shown += block
    except OSError:  # EIO: the other side was closed
        pass
    finally:
        os.close(terminal)
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert b"\x1b[" in shown
    assert b"file11" in shown


def test_where_nothing_can_be_mounted_it_says_so(temporary: Path) -> None:
    without_fuse = ["unshare", "--mount", "sh", "-c", 'mount --bind /dev/null /dev/fuse && exec "$@"', "sh"]
    result = pyoverlay("demo", variables={"TMPDIR": str(temporary)}, before=without_fuse)
    assert result.returncode == 1
    # What goes before the first mount is shown already.
    assert result.stdout.startswith(b"\n1. ")
    assert b"\n2. " not in result.stdout
    result.stdout = b""
    assert "can't mount" in fail(result)
    assert list(temporary.iterdir()) == []
