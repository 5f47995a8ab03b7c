"""Are the words of ``pyoverlay snapshotter`` read as meant, and what is missing told?"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pyoverlay import cli
from pyoverlay.containers.snapshotter import server

REPOSITORY = Path(__file__).resolve().parents[2]
WORDS = ["snapshotter", "--root", "r", "--address", "/run/a"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, Path, str]]:
    """Keep what is asked for, and serve nothing."""
    served: list[tuple[Path, Path, str]] = []
    monkeypatch.setattr(server, "serve", lambda *words: served.append(words))
    monkeypatch.setattr(server, "set_up_log", lambda *, debug: None)  # noqa: ARG005
    return served


Served = list[tuple[Path, Path, str]]


def one_line(capture: pytest.CaptureFixture[str]) -> str:
    out, err = capture.readouterr()
    assert out == ""
    assert err.startswith("pyoverlay: ")
    assert err.count("\n") == 1
    return err


def test_paths_are_made_absolute(asked: Served) -> None:
    assert cli.main([*WORDS, "--program", "name"]) == 0
    assert asked == [(Path.cwd() / "r", Path("/run/a"), "name")]


def test_its_program_is_the_one_that_was_called(
    asked: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "pyoverlay"
    program.touch(0o755)
    monkeypatch.setattr(sys, "argv", [str(program)])
    assert cli.main(WORDS) == 0
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [str(REPOSITORY / "pyoverlay/__main__.py")])
    assert cli.main(WORDS) == 0
    assert [program for _, _, program in asked] == [str(program)] * 2


def test_a_program_that_cant_be_found(
    asked: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [str(REPOSITORY / "pyoverlay/__main__.py")])
    assert cli.main(WORDS) == 1
    assert "--program" in one_line(capsys)
    assert asked == []


@pytest.mark.parametrize(
    "words", [[], ["--root", "r"], ["--address", "a"], ["--root", "r", "--address", "a", "x"]]
)
def test_wrong_words(words: list[str], asked: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["snapshotter", *words]) == 1
    one_line(capsys)
    assert asked == []


def test_missing_libraries_are_named(
    asked: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def find(name: str) -> object:
        if name == "google.protobuf":
            raise ModuleNotFoundError(name)
        return None

    monkeypatch.setattr(importlib.util, "find_spec", find)
    assert cli.main(WORDS) == 1
    line = one_line(capsys)
    assert "grpcio and protobuf" in line
    assert "pyoverlay-fuse[containerd]" in line
    assert asked == []


def test_whoever_isnt_root_is_told(
    asked: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert cli.main(WORDS) == 1
    assert "root" in one_line(capsys)
    assert asked == []


def test_a_missing_mount_helper_is_told(
    asked: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert cli.main([*WORDS, "--program", "name"]) == 0
    assert caplog.messages == []
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    assert cli.main([*WORDS, "--program", "name"]) == 0
    (message,) = caplog.messages
    assert "mount.fuse3" in message and "fuse3" in message
    assert len(asked) == 2


def test_nothing_else_loads_grpc() -> None:
    code = (
        "import sys; from pyoverlay.cli import main\n"
        "try: main(['snapshotter', '--help'])\n"
        "except SystemExit: pass\n"
        "import pyoverlay.api, pyoverlay.fuse.session\n"
        "print(sorted({'grpc', 'google.protobuf', 'sqlite3'} & sys.modules.keys()), file=sys.stderr)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert result.stderr.splitlines()[-1] == "[]"
