"""Do the commands do what they say, in every form that people, mount(8) and engines call them?"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyoverlay.fuse import control
from tests.harness import Stack
from tests.harness.libc import MNT_DETACH, umount
from tests.mount.command import (
    PYOVERLAY,
    REPOSITORY,
    environment,
    fail,
    is_running,
    mounts_below,
    pyoverlay,
    start,
    succeed,
    wait_for,
)

pytestmark = pytest.mark.lowers(2)


@pytest.fixture
def stack(stack: Stack) -> Iterator[Stack]:
    """Two lowers with files; whatever is mounted below the base is unmounted afterwards."""
    for number, lower in enumerate(stack.lowers):
        (lower / f"file{number}").write_text(f"layer {number}\n")
    yield stack
    for line in reversed(mounts_below(stack.base)):
        with contextlib.suppress(OSError):
            umount(line.split()[4].encode().decode("unicode_escape"), MNT_DETACH)


def options(stack: Stack, *more: str) -> str:
    lowers = ":".join(str(lower) for lower in stack.lowers)
    return ",".join([f"lowerdir={lowers},upperdir={stack.upper},workdir={stack.work}", *more])


def mount(stack: Stack, *more: str) -> None:
    assert succeed(pyoverlay("mount", "-o", options(stack, *more), stack.merged)) == b""


def daemon(stack: Stack) -> int:
    pid = control.inspect(str(stack.merged))["pid"]
    assert isinstance(pid, int)
    return pid


def check(stack: Stack) -> None:
    """The stack is mounted, both lowers show, and a change goes to the upper."""
    assert sorted(path.name for path in stack.merged.iterdir()) == ["file0", "file1"]
    (stack.merged / "file1").write_text("changed\n")
    assert (stack.upper / "file1").read_text() == "changed\n"


# mount


def test_mount_with_options(stack: Stack) -> None:
    mount(stack)
    check(stack)


def test_mount_with_layers_as_flags(stack: Stack) -> None:
    words = [word for lower in stack.lowers for word in ("--lower", lower)]
    words += ["--upper", stack.upper, "--work", stack.work, stack.merged]
    assert succeed(pyoverlay("mount", *words)) == b""
    check(stack)


def test_mount_with_relative_paths(stack: Stack) -> None:
    words = ["mount", "-o", "lowerdir=l1:l2,upperdir=u,workdir=w", "m"]
    assert succeed(pyoverlay(*words, cwd=stack.base)) == b""
    check(stack)


@pytest.mark.parametrize(
    "form",
    [
        ["-o", "OPTIONS", "TARGET"],
        ["-oOPTIONS", "TARGET"],
        ["TARGET", "-o", "OPTIONS"],
        ["overlay", "TARGET", "-o", "rw,OPTIONS,dev,suid"],
        ["-o", "OPTIONS", "-o", "noatime", "overlay", "TARGET"],
        ["demo", "TARGET", "-o", "OPTIONS"],
    ],
)
def test_the_helpers_forms(stack: Stack, form: list[str]) -> None:
    words = [word.replace("OPTIONS", options(stack)).replace("TARGET", str(stack.merged)) for word in form]
    # Both pipes end with the command, although the daemon lives on: engines wait for that.
    assert succeed(pyoverlay(*words)) == b""
    check(stack)


def test_the_helper_warns_and_mounts(stack: Stack) -> None:
    result = pyoverlay("-o", options(stack, "squash_all"), "--weird", stack.merged)
    assert (result.returncode, result.stdout) == (0, b"")
    assert result.stderr.decode().splitlines() == [
        "pyoverlay: unknown argument ignored: --weird",
        "pyoverlay: unknown argument ignored: squash_all",
    ]
    check(stack)


def test_mount_refuses_what_the_helper_ignores(stack: Stack) -> None:
    line = fail(pyoverlay("mount", "-o", options(stack, "squash_all"), stack.merged))
    assert "squash_all" in line
    assert mounts_below(stack.merged) == []


def test_by_mount_8(stack: Stack, tmp_path: Path) -> None:
    # mount(8) looks in the system's directories only, so ours is put over one of them, for mount(8) alone.
    launcher = tmp_path / "pyoverlay"
    launcher.write_text(
        f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(REPOSITORY))} exec {shlex.join(PYOVERLAY)} "$@"\n'
    )
    launcher.chmod(0o755)
    script = (
        'set -e; mount --bind "$1" /usr/local/bin; mount -t fuse.pyoverlay overlay "$2" -o "$3";'
        'ls "$2"; findmnt -n -o FSTYPE,SOURCE --target "$2"; echo changed > "$2/file1"; umount "$2"'
    )
    arguments = [str(tmp_path), str(stack.merged), options(stack, "nodev")]
    words = ["unshare", "--mount", "sh", "-c", script, "sh", *arguments]
    result = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.split() == ["file0", "file1", "fuse.pyoverlay", "overlay"]
    assert (stack.upper / "file1").read_text() == "changed\n"


def test_under_fuse_overlayfs_name(stack: Stack, tmp_path: Path) -> None:
    launcher = tmp_path / "fuse-overlayfs"
    launcher.write_text(f"#!{sys.executable}\nimport sys\nfrom pyoverlay.cli import main\nsys.exit(main())\n")
    launcher.chmod(0o755)
    words = [str(launcher), "-o", options(stack), str(stack.merged)]
    result = subprocess.run(words, env=environment(), capture_output=True, timeout=60, check=False)
    assert succeed(result) == b""
    (line,) = mounts_below(stack.merged)
    assert "fuse.fuse-overlayfs fuse-overlayfs" in line
    check(stack)


def test_in_the_foreground_until_unmounted(stack: Stack) -> None:
    with start("mount", "-f", "-o", options(stack), stack.merged) as process:
        wait_for(lambda: os.path.ismount(stack.merged))
        check(stack)
        assert daemon(stack) == process.pid
        assert succeed(pyoverlay("unmount", stack.merged)) == b""
        assert process.wait(timeout=60) == 0


def test_in_the_foreground_until_interrupted(stack: Stack) -> None:
    with start("-f", "-o", options(stack), stack.merged, stderr=subprocess.PIPE) as process:
        wait_for(lambda: os.path.ismount(stack.merged))
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert mounts_below(stack.merged) == []


def test_debug_logs_every_request(stack: Stack) -> None:
    log = stack.base / "log"
    assert succeed(pyoverlay("mount", "-d", "--log", log, "-o", options(stack), stack.merged)) == b""
    os.mkdir(stack.merged / "new")
    assert succeed(pyoverlay("unmount", stack.merged)) == b""
    assert "MKDIR" in log.read_text().upper()


# unmount


def test_unmount_waits_for_the_daemon(stack: Stack) -> None:
    mount(stack)
    pid = daemon(stack)
    assert succeed(pyoverlay("unmount", stack.merged)) == b""
    assert not is_running(pid)
    assert mounts_below(stack.merged) == []


def test_unmount_of_a_relative_path_and_through_a_symlink(stack: Stack) -> None:
    for word in ("m", "link/m"):
        (stack.base / "link").unlink(missing_ok=True)
        (stack.base / "link").symlink_to(".")
        mount(stack)
        assert succeed(pyoverlay("unmount", word, cwd=stack.base)) == b""
        assert mounts_below(stack.merged) == []


def test_unmount_of_a_mount_in_use(stack: Stack) -> None:
    mount(stack)
    pid = daemon(stack)
    with (stack.merged / "file0").open() as file:
        line = fail(pyoverlay("unmount", stack.merged))
        assert str(stack.merged) in line
        assert "--lazy" in line
        assert succeed(pyoverlay("unmount", "--lazy", stack.merged)) == b""
        assert mounts_below(stack.merged) == []
        assert is_running(pid)
        assert file.read() == "layer 0\n"
    wait_for(lambda: not is_running(pid))


def test_unmount_of_what_a_dead_daemon_left(stack: Stack) -> None:
    mount(stack)
    pid = daemon(stack)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not is_running(pid))
    assert mounts_below(stack.merged)
    assert succeed(pyoverlay("unmount", stack.merged)) == b""
    assert mounts_below(stack.merged) == []
    mount(stack)
    check(stack)


def test_unmount_of_what_is_no_pyoverlay(stack: Stack) -> None:
    assert str(stack.merged) in fail(pyoverlay("unmount", stack.merged))
    assert str(stack.base / "missing") in fail(pyoverlay("unmount", stack.base / "missing"))
    # Not even when something else is mounted there.
    subprocess.run(["mount", "--bind", stack.lower, stack.merged], check=True)
    assert str(stack.merged) in fail(pyoverlay("unmount", stack.merged))
    assert mounts_below(stack.merged)


# changes


def test_changes_of_a_mount_and_of_its_upper(stack: Stack) -> None:
    mount(stack)
    (stack.merged / "file0").unlink()
    (stack.merged / "file1").write_text("changed")
    (stack.merged / "directory").mkdir()
    (stack.merged / "directory/new").touch()
    expected = b"A /directory\nA /directory/new\nD /file0\nC /file1\n"
    assert succeed(pyoverlay("changes", stack.merged)) == expected
    assert succeed(pyoverlay("changes", stack.upper)) == expected
    assert succeed(pyoverlay("unmount", stack.merged)) == b""
    lowers = [word for lower in stack.lowers for word in ("--lower", lower)]
    assert succeed(pyoverlay("changes", stack.upper, *lowers)) == expected
    # From marks alone; the mount has left one of origin on file1.
    assert succeed(pyoverlay("changes", stack.upper)) == expected


def test_changes_as_json(stack: Stack) -> None:
    name = os.fsdecode(b'\xff new\n"line"')
    (stack.upper / name).touch()
    (stack.upper / "file0").touch()
    lowers = [f"--lower={lower}" for lower in stack.lowers]
    found = json.loads(succeed(pyoverlay("changes", "--json", stack.upper, *lowers)))
    assert found == [{"kind": "C", "path": "/file0"}, {"kind": "A", "path": f"/{name}"}]
    assert os.fsencode(found[1]["path"]) == b'/\xff new\n"line"'
    empty = succeed(pyoverlay("changes", "--json", stack.work, *lowers))
    assert json.loads(empty) == []


def test_changes_prints_names_as_they_are(stack: Stack) -> None:
    (stack.upper / os.fsdecode(b"\xff\xe4")).touch()
    lowers = [f"--lower={lower}" for lower in stack.lowers]
    variables = {"PYTHONIOENCODING": "ascii"}
    result = pyoverlay("changes", stack.upper, *lowers, variables=variables)
    assert succeed(result) == b"A /\xff\xe4\n"


def test_changes_of_what_is_no_directory(stack: Stack) -> None:
    for path in (stack.base / "missing", stack.lower / "file0"):
        assert str(path) in fail(pyoverlay("changes", path))


def test_changes_of_a_mount_without_upper(stack: Stack) -> None:
    assert succeed(pyoverlay("mount", f"--lower={stack.lower}", stack.merged)) == b""
    assert str(stack.merged) in fail(pyoverlay("changes", stack.merged))


def test_a_reader_that_has_seen_enough(stack: Stack) -> None:
    for number in range(2000):
        (stack.upper / f"{number:0200}").touch()
    with start("changes", stack.upper, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"A /")
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""


# inspect


def test_inspect(stack: Stack) -> None:
    mount(stack, "noatime", "timeout=3")
    (stack.merged / "file0").read_text()
    found = json.loads(succeed(pyoverlay("inspect", stack.merged)))
    assert found["Name"] == "pyoverlay"
    assert found["Data"] == {
        "LowerDir": f"{stack.lowers[0]}:{stack.lowers[1]}",
        "UpperDir": str(stack.upper),
        "WorkDir": str(stack.work),
        "MergedDir": str(stack.merged),
    }
    assert (found["Options"]["atime"], found["Options"]["timeout"]) == (False, 3)
    assert found["Requests"]["OPEN"] == 1
    assert found["Pid"] == daemon(stack)
    assert is_running(found["Pid"])


def test_inspect_of_what_is_no_mount(stack: Stack) -> None:
    assert str(stack.merged) in fail(pyoverlay("inspect", stack.merged))
