"""Are the words of ``pyoverlay run`` read as meant, and wrong ones refused before anything is done?"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyoverlay import cli, sandbox
from pyoverlay.options import MountOptions, OptionError
from pyoverlay.sandbox import Bind, Command, SandboxError


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[MountOptions, Command]]:
    """Keep what is asked for, and run nothing; the exit status is 42."""
    runs: list[tuple[MountOptions, Command]] = []

    def keep(options: MountOptions, command: Command) -> int:
        runs.append((options, command))
        return 42

    monkeypatch.setattr(sandbox, "run", keep)
    return runs


Runs = list[tuple[MountOptions, Command]]


def test_everything_is_passed_on(asked: Runs, tmp_path: Path) -> None:
    words = ["run", "--lower", "/b:c", "--lower", "/a", "--upper", "/u", "--work", "/w", "-o", "noatime"]
    words += ["--bind", f"{tmp_path}:/data", "--bind", "/dev/null:/n:ro", "--env", "A=1", "--env", "B=x=y"]
    words += ["--workdir", "/srv", "--user", "5:6", "--", "ls", "-o", "--", "--help"]
    assert cli.main(words) == 42
    options, command = asked[0]
    assert (options.lowerdir, options.upperdir, options.workdir) == (("/b:c", "/a"), "/u", "/w")
    assert not options.atime
    assert command == Command(
        words=("ls", "-o", "--", "--help"),
        environment={"A": "1", "B": "x=y"},
        directory="/srv",
        user=(5, 6),
        binds=(Bind(str(tmp_path), "/data"), Bind("/dev/null", "/n", read_only=True)),
    )


def test_a_command_needs_no_dashes_before_it(asked: Runs) -> None:
    assert cli.main(["run", "--lower", "/a", "ls", "--", "-l", "--user"]) == 42
    assert asked[0][1] == Command(words=("ls", "--", "-l", "--user"))


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--lower", "/a"],
        ["--lower", "/a", "--"],
        ["--", "ls"],
        ["--lower", "/a", "--env", "A", "--", "ls"],
        ["--lower", "/a", "--env", "=b", "--", "ls"],
        ["--lower", "/a", "--user", "root", "--", "ls"],
        ["--lower", "/a", "--user", "1", "--", "ls"],
        ["--lower", "/a", "--user", "1:-1", "--", "ls"],
        ["--lower", "/a", "--bind", "/no/such/path:/x", "--", "ls"],
        ["--lower", "/a", "--bind", "/:x", "--", "ls"],
        ["--lower", "/a", "--bind", "/:/", "--", "ls"],
        ["--lower", "/a", "--bind", "/:/x:rx", "--", "ls"],
        ["--lower", "/a", "--bind", "/", "--", "ls"],
        ["--lower", "/a", "-o", "no_such_option", "--", "ls"],
        ["--lower", "/a", "--upper", "/u", "--", "ls"],
    ],
)
def test_wrong_words_are_one_line_and_status_1(
    words: list[str], asked: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", *words]) == 1
    assert asked == []
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("pyoverlay: ")
    assert err.count("\n") == 1


def test_a_failure_has_its_own_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> int:
        raise SandboxError("ls: command not found", 127)

    monkeypatch.setattr(sandbox, "run", fail)
    assert cli.main(["run", "--lower", "/a", "--", "ls"]) == 127
    assert capsys.readouterr().err == "pyoverlay: ls: command not found\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/:/x", Bind("/", "/x")),
        ("/:/x:ro", Bind("/", "/x", read_only=True)),
        ("/:/x:rw", Bind("/", "/x")),
        ("/:/x/../y//z/", Bind("/", "/y/z")),
        ("/://x", Bind("/", "/x")),
    ],
)
def test_binds(text: str, expected: Bind) -> None:
    assert Bind.parse(text) == expected


def test_a_relative_source_is_the_callers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("source").touch()
    bind = Bind.parse("source:/x")
    assert bind.source == os.path.join(tmp_path, "source")
    assert not bind.is_directory()
    with pytest.raises(OptionError, match="missing"):
        Bind.parse("missing:/x")
