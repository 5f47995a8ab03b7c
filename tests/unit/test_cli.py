"""Is the right command found, and are the words of people, mount(8) and engines read as they are meant?"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

import pyoverlay
from pyoverlay import cli, privileges
from pyoverlay.cli import helper, mount
from pyoverlay.options import MountOptions, OverlayError

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass
class Asked:
    """What the session would have been asked for."""

    options: MountOptions
    target: str
    foreground: bool
    debug: bool
    log: str | None = None
    name: str = "pyoverlay"
    source: str | None = None


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Asked]:
    """Keep every mount that is asked for, and mount nothing."""
    mounts: list[Asked] = []

    def keep(options: MountOptions, target: str, **rest: object) -> None:
        mounts.append(Asked(options, target, **rest))  # type: ignore[arg-type]

    for module in (mount, helper):
        monkeypatch.setattr(module, "mount", keep)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/pyoverlay"])
    return mounts


def one_line(capture: pytest.CaptureFixture[str]) -> str:
    """Everything on stderr, which is one line of ours, and nothing is on stdout."""
    out, err = capture.readouterr()
    assert out == ""
    assert err.startswith("pyoverlay: ")
    assert err.count("\n") == 1
    return err


# Which command


@pytest.mark.parametrize(
    ("program", "words", "expected"),
    [
        ("pyoverlay", ["mount", "/t"], True),
        ("pyoverlay", ["mount", "/t", "-o", "lowerdir=/a"], True),
        ("pyoverlay", ["mount", "-o", "lowerdir=/a", "/t"], True),
        ("pyoverlay", ["unmount", "/t"], True),
        ("pyoverlay", ["run", "--lower", "/a", "--", "ls", "-o"], True),
        ("pyoverlay", ["run", "--lower", "/a", "-o", "ro", "ls"], True),
        ("pyoverlay", ["demo"], True),
        ("pyoverlay", ["changes", "/t", "--json"], True),
        # What mount(8) passes; the source may have any name.
        ("pyoverlay", ["overlay", "/t", "-o", "rw,lowerdir=/a"], False),
        ("pyoverlay", ["demo", "/t", "-o", "rw,lowerdir=/a"], False),
        ("pyoverlay", ["run", "/t", "-orw,lowerdir=/a"], False),
        ("pyoverlay", ["-o", "lowerdir=/a", "/t"], False),
        ("pyoverlay", ["-o", "lowerdir=/a", "mount"], False),
        ("pyoverlay", ["/t"], False),
        ("pyoverlay", ["Mount", "/t"], False),
        ("pyoverlay", [], False),
        ("mount.pyoverlay", ["mount", "/t", "-o", "rw"], False),
        ("mount.fuse.pyoverlay", ["demo", "/t"], False),
        ("fuse-overlayfs", ["-o", "lowerdir=/a", "/t"], False),
        ("fuse-overlayfs", ["mount", "/t", "-o", "lowerdir=/a"], False),
    ],
)
def test_which_command(program: str, words: list[str], expected: bool) -> None:
    assert cli.is_command(program, words) is expected


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: pyoverlay {command}")


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_wrong_words_are_one_line_and_status_1(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--no-such-flag"]) == 1
    assert f"pyoverlay {command} --help" in one_line(capsys)


@pytest.mark.parametrize("words", [["-h"], ["--help"], ["overlay", "/t", "--help"]])
def test_help_names_every_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"  {command} " in shown for command in cli.COMMANDS)


def test_no_words_show_the_help_and_fail(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 1
    assert capsys.readouterr().err.startswith("usage: pyoverlay")


@pytest.mark.parametrize("words", [["--version"], ["-V"], ["-o", "lowerdir=/a", "/t", "--version"]])
def test_version_is_one_line(
    words: list[str], asked: list[Asked], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 0
    assert capsys.readouterr().out == f"pyoverlay {pyoverlay.__version__}\n"
    assert asked == []


def test_the_version_is_the_distributions() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["version"] == pyoverlay.__version__


@pytest.mark.parametrize("words", [["--version"], ["mount", "--help"], ["mount", "-o", "wrong", "/t"]])
def test_what_needs_no_daemon_loads_no_library(words: list[str]) -> None:
    code = (
        "import sys; from pyoverlay.cli import main\n"
        f"try: main({words!r})\n"
        "except SystemExit: pass\n"
        "print(sorted({'trio', 'pyfuse3', 'rich', 'ctypes'} & sys.modules.keys()), file=sys.stderr)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert result.stderr.splitlines()[-1] == "[]"


def test_every_public_name_is_there() -> None:
    for name in pyoverlay.__all__:
        assert getattr(pyoverlay, name) is not None
    assert set(dir(pyoverlay)) == set(pyoverlay.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = pyoverlay.no_such_name


# pyoverlay mount


def test_mount_takes_options(asked: list[Asked]) -> None:
    words = ["mount", "-o", r"lowerdir=/a\:b:/c,upperdir=/u", "-oworkdir=/w,noatime", "/t"]
    assert cli.main(words) == 0
    assert asked == [Asked(asked[0].options, "/t", foreground=False, debug=False)]
    options = asked[0].options
    assert (options.lowerdir, options.upperdir, options.workdir) == (("/a:b", "/c"), "/u", "/w")
    assert not options.atime


def test_mount_takes_layers_literally(asked: list[Asked]) -> None:
    words = ["mount", "--lower", r"/a:b\,c", "--lower=/d", "--upper", "/u,v", "--work", "/w", "--", "/t"]
    assert cli.main(words) == 0
    options = asked[0].options
    assert (options.lowerdir, options.upperdir, options.workdir) == ((r"/a:b\,c", "/d"), "/u,v", "/w")


def test_mount_passes_flags(asked: list[Asked]) -> None:
    assert cli.main(["mount", "-f", "-d", "--log", "file", "--lower", "/a", "/t"]) == 0
    assert (asked[0].foreground, asked[0].debug, asked[0].log) == (True, True, "file")


@pytest.mark.parametrize(
    "words",
    [
        ["mount"],
        ["mount", "/t"],
        ["mount", "/source", "/t", "-f", "-o", "lowerdir=/a"],
        ["mount", "-o", "lowerdir=/a,no_such_option", "/t"],
        ["mount", "-o", "lowerdir=/a,index=on", "/t"],
        ["mount", "-o", "lowerdir=/a", "-s", "/t"],
        ["mount", "--lower", "/a", "--upper", "/u", "/t"],
    ],
)
def test_mount_refuses(words: list[str], asked: list[Asked], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 1
    one_line(capsys)
    assert asked == []


# The helper's forms


@pytest.mark.parametrize(
    "words",
    [
        ["-o", "lowerdir=/a:/b,upperdir=/u,workdir=/w", "/t"],
        ["-olowerdir=/a:/b,upperdir=/u,workdir=/w", "/t"],
        ["/t", "-olowerdir=/a:/b", "-oupperdir=/u", "-o", "workdir=/w"],
        ["overlay", "/t", "-o", "rw,lowerdir=/a:/b,upperdir=/u,workdir=/w"],
        ["overlay", "-o", "lowerdir=/a:/b", "/t", "-o", "upperdir=/u,workdir=/w"],
        ["mount", "/t", "-o", "rw,lowerdir=/a:/b,upperdir=/u,workdir=/w,dev,suid"],
        ["changes", "/t", "-o", "rw,lowerdir=/a:/b,upperdir=/u,workdir=/w"],
        ["one", "two", "/t", "-o", "lowerdir=/a:/b,upperdir=/u,workdir=/w"],
    ],
)
def test_helper_forms(
    words: list[str], asked: list[Asked], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(privileges, "is_administrator", lambda: True)
    assert cli.main(words) == 0
    assert [each.target for each in asked] == ["/t"]
    options = asked[0].options
    assert (options.lowerdir, options.upperdir, options.workdir) == (("/a", "/b"), "/u", "/w")
    assert options.allow_other
    assert options.suid
    assert options.dev
    assert capsys.readouterr().err == ""


def test_helper_warns_about_what_it_ignores(asked: list[Asked], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["overlay", "-s", "/t", "--weird", "--also=this", "-o", "lowerdir=/a,squash,big_writes=1"]
    assert cli.main(words) == 0
    assert capsys.readouterr().err.splitlines() == [
        f"pyoverlay: unknown argument ignored: {word}"
        for word in ("-s", "--weird", "--also=this", "squash", "big_writes=1")
    ]
    assert asked[0].target == "/t"


def test_helper_refuses_what_is_not_supported(asked: list[Asked], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["overlay", "/t", "-o", "lowerdir=/a,metacopy=on"]) == 1
    assert "metacopy=on" in one_line(capsys)
    assert asked == []


def test_helper_doesnt_take_mounts_type_for_the_target(asked: list[Asked]) -> None:
    assert cli.main(["overlay", "/t", "-o", "lowerdir=/a", "-t", "fuse.pyoverlay", "-N", "/proc/1/ns"]) == 0
    assert asked[0].target == "/t"


@pytest.mark.parametrize(
    ("flags", "expected"), [([], (False, False)), (["-f", "--debug"], (True, True)), (["-fd"], (True, True))]
)
def test_helper_flags(flags: list[str], expected: tuple[bool, bool], asked: list[Asked]) -> None:
    assert cli.main([*flags, "-o", "lowerdir=/a", "/t"]) == 0
    assert (asked[0].foreground, asked[0].debug) == expected


@pytest.mark.parametrize(
    ("program", "name"), [("fuse-overlayfs", "fuse-overlayfs"), ("mount.pyoverlay", "pyoverlay")]
)
def test_the_name_we_are_called_by(
    program: str, name: str, asked: list[Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [f"/usr/sbin/{program}"])
    assert cli.main(["mount", "/t", "-o", "lowerdir=/a"]) == 0
    assert asked[0].name == name


@pytest.mark.parametrize(
    ("program", "words", "source"),
    [
        ("pyoverlay", ["overlay", "/t"], "overlay"),
        ("pyoverlay", ["first", "second", "/t"], "second"),
        ("pyoverlay", ["/t"], None),
        ("pyoverlay", ["", "/t"], ""),
        ("fuse-overlayfs", ["overlay", "/t"], None),
    ],
)
def test_the_source_is_shown(
    program: str,
    words: list[str],
    source: str | None,
    asked: list[Asked],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", [f"/usr/bin/{program}"])
    assert cli.main([*words, "-o", "lowerdir=/a"]) == 0
    assert asked[0].source == source


def test_mount_8s_fake_flag_mounts_nothing(asked: list[Asked], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/sbin/mount.pyoverlay"])
    assert cli.main(["overlay", "/t", "-f", "-o", "lowerdir=/a"]) == 0
    assert asked == []


@pytest.mark.parametrize("words", [["-f"], ["-o", "lowerdir=/a"], ["unmuont", "/t"], ["/t"], ["/t", "-o"]])
def test_helper_refuses(words: list[str], asked: list[Asked], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 1
    one_line(capsys)
    assert asked == []


def test_a_mistyped_command_is_told_the_commands(
    asked: list[Asked], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["unmuont", "/t"]) == 1
    assert "unmount" in one_line(capsys)
    assert asked == []


# Defaults


@pytest.mark.parametrize(
    ("administrator", "user", "expected"),
    [
        # (allow_other, suid, dev, userxattr)
        (True, 0, (True, True, True, False)),
        (False, 0, (True, True, True, True)),
        (False, 1000, (False, False, False, True)),
    ],
)
def test_defaults_depend_on_who_mounts(
    administrator: bool,
    user: int,
    expected: tuple[bool, ...],
    asked: list[Asked],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(privileges, "is_administrator", lambda: administrator)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    for words in (["mount", "-o", "lowerdir=/a", "/t"], ["-o", "lowerdir=/a", "/t"]):
        assert cli.main(words) == 0
        options = asked.pop().options
        assert (options.allow_other, options.suid, options.dev, options.userxattr) == expected
        assert options.default_permissions


def test_a_users_options_win_over_the_defaults(asked: list[Asked], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privileges, "is_administrator", lambda: False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert cli.main(["mount", "-o", "lowerdir=/a,nosuid,nodev", "/t"]) == 0
    assert (asked[0].options.suid, asked[0].options.dev) == (False, False)


# Errors


def test_errors_are_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OverlayError("/t: what failed, and why")

    monkeypatch.setattr(mount, "mount", fail)
    assert cli.main(["mount", "--lower", "/a", "/t"]) == 1
    assert one_line(capsys) == "pyoverlay: /t: what failed, and why\n"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (FileNotFoundError(2, "No such file or directory", "/a"), "/a: No such file or directory"),
        (OSError("closed"), "closed"),
    ],
)
def test_errors_of_the_system_are_one_line(
    error: OSError, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(mount, "mount", fail)
    assert cli.main(["mount", "--lower", "/a", "/t"]) == 1
    assert one_line(capsys) == f"pyoverlay: {text}\n"
