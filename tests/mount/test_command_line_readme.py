"""Do the examples of the README and of docs/ work when they are pasted, and print what is said there?"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.command import PYOVERLAY, REPOSITORY, environment, mounts_below

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```\n", flags=re.MULTILINE | re.DOTALL)
_MARK = "--- the next example ---"


PAGES = {"README.md": 8, "docs/images.md": 6}
"""Each page with examples -> how many it has at least."""


def examples(page: str) -> list[tuple[str, str]]:
    """The pasteable blocks, as shell scripts, each with the output that the page shows right after it."""
    found: list[tuple[str, str]] = []
    for match in _BLOCK.finditer((REPOSITORY / page).read_text(encoding="utf-8")):
        language, text = match.groups()
        if language == "sh":
            found.append((text, ""))
        elif language == "python":
            found.append((f"python3 - <<'END OF PYTHON'\n{text}END OF PYTHON\n", ""))
        elif language == "text":
            found[-1] = (found[-1][0], text)
    return found


@pytest.fixture
def launchers(base: Path) -> Iterator[Path]:
    """A directory with the commands `pyoverlay` and `python3` as a venv has them."""
    directory = base / "bin"
    directory.mkdir()
    for name, command in (("pyoverlay", PYOVERLAY), ("python3", PYOVERLAY[:1])):
        (directory / name).write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
        (directory / name).chmod(0o755)
    yield directory
    for line in reversed(mounts_below(base)):
        subprocess.run(["umount", "--lazy", line.split()[4]], check=False)


@pytest.mark.parametrize("page", PAGES)
def test_the_examples(page: str, launchers: Path, base: Path) -> None:
    scripts = examples(page)
    assert len(scripts) > PAGES[page]
    script = "set -e\n" + f"echo '{_MARK}'\n".join(text for text, _ in scripts)
    path = f"{launchers}:{environment()['PATH']}"
    result = subprocess.run(
        ["bash", "-c", script],
        env=environment({"PATH": path, "TMPDIR": str(base), "LC_ALL": "C"}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (result.stderr, result.returncode) == ("", 0)
    assert result.stdout.split(f"{_MARK}\n") == [output for _, output in scripts]
    assert mounts_below(base) == []
