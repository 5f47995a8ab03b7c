"""Do mount(8), fstab, systemd, mount.fuse3, containerd and Apptainer mount pyoverlay, each in its own way?

They look for programs in the system's directories only.  So they run in a mount namespace of their own, in
which a directory with pyoverlay, under both of its names, lies over /usr/local/bin.
"""

from __future__ import annotations

import configparser
import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.containers.mount_program import write_mount_program
from tests.containers.prepared_namespace import PreparedNamespace
from tests.harness import Stack
from tests.harness.content import is_whiteout, left_in_work
from tests.mount.command import REPOSITORY, wait_for
from tests.mount.daemons import wait_for_end

pytestmark = pytest.mark.lowers(2)

_README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


class Machine:
    """A mount namespace in which pyoverlay is installed for all."""

    def __init__(self, namespace: PreparedNamespace) -> None:
        self._namespace = namespace
        self.seen = namespace.outside

    def run(self, *words: str | Path, status: int = 0) -> str:
        """Run a command there, and return what it said on stdout and stderr."""
        result = self._namespace.run(words)
        said = os.fsdecode(result.stdout + result.stderr)
        assert result.returncode == status, said
        return said

    def start(self, *words: str | Path) -> subprocess.Popen[bytes]:
        """Start a command there, with a pipe at its stderr."""
        return subprocess.Popen([*self._namespace.entering, *words], stderr=subprocess.PIPE)

    def shown(self, target: Path) -> list[tuple[str, str]]:
        """Type and source of every mount at `target`."""
        fields = [line.split() for line in self.run("cat", "/proc/self/mountinfo").splitlines()]
        dashes = [(each, each.index("-")) for each in fields if each[4] == str(target)]
        return [(each[dash + 1], each[dash + 2]) for each, dash in dashes]


@pytest.fixture
def machine(tmp_path: Path, stack: Stack) -> Iterator[Machine]:
    """A machine whose mounts end with it."""
    for name in ("pyoverlay", "fuse-overlayfs"):
        write_mount_program(tmp_path, name)
    with PreparedNamespace(f"mount --bind {shlex.quote(str(tmp_path))} /usr/local/bin") as namespace:
        yield Machine(namespace)


@pytest.fixture
def stack(stack: Stack) -> Stack:
    """Two lowers with a file each."""
    for number, lower in enumerate(stack.lowers):
        (lower / f"file{number}").write_text(f"layer {number}\n")
    return stack


def options(stack: Stack, *more: str) -> str:
    lowers = ":".join(str(lower) for lower in stack.lowers)
    return ",".join([f"lowerdir={lowers},upperdir={stack.upper},workdir={stack.work}", *more])


def check_and_unmount(machine: Machine, stack: Stack, *umount: str) -> None:
    """Both lowers show, a change goes to the upper, and after umount(8) nothing is left of the mount."""
    merged = machine.seen(stack.merged)
    assert sorted(path.name for path in merged.iterdir()) == ["file0", "file1"]
    (merged / "file1").write_text("changed\n")
    assert (stack.upper / "file1").read_text() == "changed\n"
    machine.run("umount", stack.merged, *umount)
    assert machine.shown(stack.merged) == []
    wait_for(lambda: not _daemons(stack))
    assert left_in_work(stack.work) == []


def _daemons(stack: Stack) -> list[Path]:
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"upperdir={stack.upper},".encode() in (directory / "cmdline").read_bytes():
                found.append(directory)
    return found


# mount(8) and fstab


def fstab(stack: Stack, *more: str) -> Path:
    """The README's line, with the directories of the test."""
    (line,) = re.findall(r"^overlay +/merged +fuse\.pyoverlay .*$", _README, flags=re.MULTILINE)
    for name, directory in (("/merged", stack.merged), ("/app", stack.lowers[0]), ("/base", stack.lowers[1])):
        line = line.replace(name, str(directory))
    line = line.replace("/upper", str(stack.upper)).replace("/work", str(stack.work))
    path = stack.base / "fstab"
    path.write_text(re.sub(r"(lowerdir=\S+)", ",".join([r"\1", *more]), line) + "\n")
    return path


def test_a_line_of_fstab(machine: Machine, stack: Stack) -> None:
    assert machine.run("mount", "--fstab", fstab(stack), stack.merged) == ""
    assert machine.shown(stack.merged) == [("fuse.pyoverlay", "overlay")]
    check_and_unmount(machine, stack)


def test_what_fstab_tells_to_others_is_no_matter(machine: Machine, stack: Stack) -> None:
    words = ("noauto", "nofail", "_netdev", "x-systemd.requires=/srv", "comment=x", "noatime", "private")
    table = fstab(stack, *words)
    assert machine.run("mount", "--fstab", table, stack.merged) == ""
    check_and_unmount(machine, stack)


def test_mount_a_mounts_once(machine: Machine, stack: Stack) -> None:
    table = fstab(stack)
    for _ in range(2):
        assert machine.run("mount", "--all", "--fstab", table) == ""
        assert len(machine.shown(stack.merged)) == 1
    check_and_unmount(machine, stack)


def test_a_remount_is_refused_and_told_how(machine: Machine, stack: Stack) -> None:
    machine.run("mount", "-t", "fuse.pyoverlay", "overlay", stack.merged, "-o", options(stack))
    said = machine.run("mount", "-o", "remount,ro", stack.merged, status=1)
    assert said.startswith("pyoverlay: a pyoverlay mount can't be remounted")
    (words,) = re.findall(r"(mount -i -o remount,ro) TARGET", said)
    new = machine.seen(stack.merged) / "new"
    new.touch()
    machine.run(*words.split(), stack.merged)
    with pytest.raises(OSError, match="Read-only file system"):
        new.unlink()
    machine.run("mount", "-i", "-o", "remount,rw", stack.merged)
    new.unlink()
    check_and_unmount(machine, stack)


@pytest.mark.parametrize("name", ["a b", "a:b", "a\\b", "a'b", "$a`b`", "ä#b"])
def test_names_that_pass_through_a_shell(machine: Machine, stack: Stack, name: str) -> None:
    lower = stack.base / name
    shutil.copytree(stack.lowers[0], lower)
    shown = str(lower).replace("\\", "\\\\").replace(":", "\\:")
    text = f"lowerdir={shown}:{stack.lowers[1]},upperdir={stack.upper},workdir={stack.work}"
    assert machine.run("mount", "-t", "fuse.pyoverlay", "overlay", stack.merged, "-o", text) == ""
    check_and_unmount(machine, stack)


def test_what_fails_is_told_and_mounts_nothing(machine: Machine, stack: Stack) -> None:
    words = ("mount", "-t", "fuse.pyoverlay", "overlay", stack.merged, "-o")
    said = machine.run(*words, f"lowerdir={stack.base}/missing", status=1)
    assert said.startswith("pyoverlay: ")
    assert f"{stack.base}/missing" in said
    assert machine.shown(stack.merged) == []


# systemd


def test_the_readmes_unit_for_systemd(machine: Machine, stack: Stack) -> None:
    (text,) = re.findall(r"^```ini\n(\[Unit\].*?^\[Mount\].*?)^```$", _README, flags=re.MULTILINE | re.DOTALL)
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # names in units have capitals
    unit.read_string(text)
    where = unit["Mount"]["Where"]
    name = machine.run("systemd-escape", "--path", "--suffix=mount", where).strip()
    assert f"/etc/systemd/system/{name}" in _README
    assert f"systemctl enable --now '{name}'\n" in _README
    (stack.base / name).write_text(text)
    assert machine.run("systemd-analyze", "verify", "--man=no", stack.base / name) == ""
    given = dict(
        zip(("/app", "/base", "/upper", "/work"), [*stack.lowers, stack.upper, stack.work], strict=True)
    )
    asked = unit["Mount"]["Options"]
    for path, directory in given.items():
        assert path in unit["Unit"]["RequiresMountsFor"].split()
        asked = asked.replace(path, str(directory))
    # src/core/mount.c: mount_enter_mounting, and mount_enter_unmounting.
    mount = ("mount", unit["Mount"]["What"], stack.merged, "-t", unit["Mount"]["Type"], "-o", asked)
    assert machine.run(*mount) == ""
    assert machine.shown(stack.merged) == [("fuse.pyoverlay", "overlay")]
    check_and_unmount(machine, stack, "-c")


# mount.fuse3, containerd


@pytest.mark.parametrize(
    ("source", "shown"),
    [("pyoverlay#overlay", ("fuse.pyoverlay", "overlay")), ("pyoverlay#", ("fuse.pyoverlay", "pyoverlay"))],
)
def test_mount_fuse3(machine: Machine, stack: Stack, source: str, shown: tuple[str, str]) -> None:
    assert machine.run("mount.fuse3", source, stack.merged, "-o", options(stack)) == ""
    assert machine.shown(stack.merged) == [shown]
    check_and_unmount(machine, stack)


def test_as_containerds_fuse_overlayfs_snapshotter_mounts(machine: Machine, stack: Stack) -> None:
    # mount/mount_linux.go: mountWithHelper; each option is a word of its own.
    words = [word for option in options(stack).split(",") for word in ("-o", option)]
    assert machine.run("mount.fuse3", "overlay", stack.merged, *words, "-t", "fuse-overlayfs") == ""
    assert machine.shown(stack.merged) == [("fuse.fuse-overlayfs", "fuse-overlayfs")]
    check_and_unmount(machine, stack)


# Apptainer, and other callers of fuse-overlayfs


def test_as_apptainer_mounts(
    machine: Machine, stack: Stack, record_property: Callable[[str, object], None]
) -> None:
    """It kills what isn't mounted within 2 s, or hasn't ended 0.5 s after umount; times are recorded only."""
    process = machine.start("fuse-overlayfs", "-f", "-o", options(stack), stack.merged)
    wait_for(lambda: machine.shown(stack.merged) != [])
    machine.seen(stack.merged).joinpath("usr").mkdir()
    assert process.poll() is None
    machine.run("umount", stack.merged)
    record_property("seconds until it has ended", wait_for_end(process.pid))
    _, said = process.communicate()
    assert (process.returncode, said) == (0, b"")
    assert (stack.upper / "usr").is_dir()
    assert left_in_work(stack.work) == []


def test_killed_in_the_foreground_it_can_be_mounted_anew(machine: Machine, stack: Stack) -> None:
    process = machine.start("fuse-overlayfs", "-f", "-o", options(stack), stack.merged)
    wait_for(lambda: machine.shown(stack.merged) != [])
    machine.run("umount", "--lazy", stack.merged)
    process.kill()
    process.communicate()
    assert machine.run("fuse-overlayfs", "-o", options(stack), stack.merged) == ""
    check_and_unmount(machine, stack)


def test_usr1_logs_counters(machine: Machine, stack: Stack) -> None:
    process = machine.start("fuse-overlayfs", "-f", "-o", options(stack), stack.merged)
    wait_for(lambda: machine.shown(stack.merged) != [])
    assert machine.seen(stack.merged).joinpath("file0").read_text() == "layer 0\n"
    process.send_signal(signal.SIGUSR1)
    assert process.stderr is not None
    line = process.stderr.readline().decode()
    assert re.search(rf"{stack.merged}: \d+ nodes, \d+ requests: .*\bLOOKUP \d+\b.*\bOPEN 1\b", line)
    check_and_unmount(machine, stack)
    process.communicate()
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("lowerdir=L1:/missing", "/missing"),
        ("lowerdir=L1::L2", "data-only"),
        ("lowerdir=L1,upperdir=U", "needs a workdir"),
        ("upperdir=U,workdir=W", "no lower directory"),
        ("lowerdir=L1,redirect_dir=on", "redirect_dir=on"),
        ("lowerdir=L1,upperdir=U,workdir=W", "no mount point"),
    ],
)
def test_what_fuse_overlayfs_refuses(machine: Machine, stack: Stack, text: str, complaint: str) -> None:
    names = {"L1": stack.lowers[0], "L2": stack.lowers[1], "U": stack.upper, "W": stack.work}
    for name, directory in names.items():
        text = re.sub(rf"\b{name}\b", str(directory), text)
    words = ["fuse-overlayfs", "-o", text, *([] if complaint == "no mount point" else [str(stack.merged)])]
    said = machine.run(*words, status=1)
    assert said.startswith("pyoverlay: ")
    assert said.count("\n") == 1
    assert complaint in said
    assert machine.shown(stack.merged) == []


def test_many_flags_and_words_that_only_others_know(machine: Machine, stack: Stack) -> None:
    lowers = [str(stack.lowers[0])]
    # As the kernel and podman escape a colon, and as fuse-overlayfs in C wants it.
    for name, escaped in (("a:b", "a\\:b"), ("c:d", "c\\\\:d")):
        shutil.copytree(stack.lowers[1], stack.base / name)
        lowers.append(f"{stack.base}/{escaped}")
    said = machine.run(
        "fuse-overlayfs",
        *("-s", "--weird", "-olowerdir=" + ":".join(lowers)),
        *("-o", f"upperdir={stack.upper},workdir={stack.work},volatile"),
        *("-o", 'context="system_u:object_r:container_file_t:s0:c1,c2",timeout=1.5,threaded=1,static_nlink'),
        *("-o", "clone_fd,auto_unmount,fsname=x,subtype=y,private,noxattrs,rw"),
        *("ignored", "source", stack.merged),
    )
    ignored = ["-s", "--weird", "clone_fd", "auto_unmount", "fsname=x", "subtype=y", "noxattrs"]
    assert said.splitlines() == [f"pyoverlay: unknown argument ignored: {word}" for word in ignored]
    assert machine.shown(stack.merged) == [("fuse.fuse-overlayfs", "fuse-overlayfs")]
    merged = machine.seen(stack.merged)
    assert sorted(path.name for path in merged.iterdir()) == ["file0", "file1"]
    (merged / "file1").write_text("changed\n")
    machine.run("umount", stack.merged)
    assert (stack.upper / "file1").read_text() == "changed\n"


@pytest.mark.parametrize("name", ["pyoverlay", "fuse-overlayfs"])
def test_the_version_is_one_line(machine: Machine, name: str) -> None:
    assert re.fullmatch(r"pyoverlay \d+\.\d+\.\d+\n", machine.run(name, "--version"))


def test_whiteouts_are_devices_whatever_fuse_overlayfs_is_asked_for(machine: Machine, stack: Stack) -> None:
    words = ("fuse-overlayfs", "-o", options(stack), stack.merged)
    machine.run("env", "FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT=1", *words)
    os.unlink(machine.seen(stack.merged) / "file0")
    machine.run("umount", stack.merged)
    assert is_whiteout(stack.upper / "file0")
    assert os.listdir(stack.upper) == ["file0"]
