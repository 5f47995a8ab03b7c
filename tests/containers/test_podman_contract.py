"""Does pyoverlay keep to the letter what podman expects of a mount program?

Called as containers/storage calls it: `PROGRAM -o DATA TARGET` in the directory of the layers, /dev/null at
its standard input and output, and a pipe at its standard error, which is read to its end.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers.podman_store import Podman
from tests.containers.prepared_namespace import PreparedNamespace
from tests.harness import Stack
from tests.harness.content import make_file
from tests.mount.command import processes_naming, wait_for
from tests.mount.daemons import is_mounted

FUSE_SUPER_MAGIC = 0x65735546
LIMIT_SECONDS = 60


@pytest.fixture
def layers(stack: Stack) -> Iterator[Stack]:
    """A stack whose mount is removed."""
    make_file(stack.lower / "file", "from below")
    yield stack
    if is_mounted(stack.merged):
        subprocess.run(["umount", "--lazy", stack.merged], check=True)
    wait_for(lambda: not processes_naming(stack.base))


def call(program: Path, stack: Stack, data: str) -> subprocess.CompletedProcess[bytes]:
    """Call the program as podman does, and read its standard error to the end."""
    return subprocess.run(
        [program, "-o", data, stack.merged],
        cwd=stack.base,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=LIMIT_SECONDS,
        check=False,
    )


def data_of(stack: Stack) -> str:
    """The options of a writable mount."""
    return f"lowerdir={stack.lower},upperdir={stack.upper},workdir={stack.work}"


def unmount(stack: Stack) -> None:
    """Unmount as podman does."""
    subprocess.run(["fusermount3", "-u", stack.merged], check=True)


def file_system_type(path: Path) -> int:
    """f_type of statfs(2)."""
    answer = ctypes.create_string_buffer(256)
    assert ctypes.CDLL(None).statfs(os.fsencode(path), answer) == 0
    return int.from_bytes(answer.raw[: ctypes.sizeof(ctypes.c_long)], sys.byteorder)


def test_it_is_live_when_the_program_has_ended(mount_program: Path, layers: Stack) -> None:
    result = call(mount_program, layers, data_of(layers))
    assert (result.returncode, result.stderr) == (0, b"")
    assert file_system_type(layers.merged) == FUSE_SUPER_MAGIC
    assert layers.merged.stat().st_dev != layers.base.stat().st_dev
    assert (layers.merged / "file").read_text() == "from below"


def test_the_daemon_holds_nothing_of_its_callers(mount_program: Path, layers: Stack) -> None:
    call(mount_program, layers, data_of(layers))
    wait_for(lambda: len(processes_naming(layers.base)) == 1)
    (daemon,) = processes_naming(layers.base)
    assert [os.readlink(f"/proc/{daemon}/fd/{number}") for number in range(3)] == ["/dev/null"] * 3
    assert os.readlink(f"/proc/{daemon}/cwd") == "/"
    assert os.getsid(daemon) != os.getsid(0)


def test_a_mount_without_an_upper(mount_program: Path, layers: Stack) -> None:
    assert call(mount_program, layers, f"lowerdir={layers.lower}").returncode == 0
    with pytest.raises(OSError, match="Read-only"):
        (layers.merged / "new").touch()


def test_what_it_does_not_know_is_ignored_with_a_warning(mount_program: Path, layers: Stack) -> None:
    """Buildah's `private`, and the empty word that podman leaves between commas, without one."""
    result = call(mount_program, layers, f"{data_of(layers)},,private,weird=1")
    assert result.returncode == 0
    assert result.stderr == b"pyoverlay: unknown argument ignored: weird=1\n"
    assert (layers.merged / "file").exists()


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ("lowerdir=/nowhere", "/nowhere"),
        ("upperdir=u,workdir=w", "lower"),
        ("lowerdir={lower},upperdir={upper}", "workdir"),
        ("lowerdir={lower},redirect_dir=banana", "banana"),
    ],
)
def test_a_failure_is_told(mount_program: Path, layers: Stack, data: str, complaint: str) -> None:
    result = call(mount_program, layers, data.format(lower=layers.lower, upper=layers.upper))
    assert result.returncode == 1
    assert result.stderr.startswith(b"pyoverlay: ") and complaint in result.stderr.decode()
    assert not is_mounted(layers.merged)


def test_the_same_path_is_mounted_again_at_once(mount_program: Path, layers: Stack) -> None:
    for number in range(5):
        result = call(mount_program, layers, data_of(layers))
        assert (result.returncode, result.stderr) == (0, b"")
        (layers.merged / f"{number}").touch()
        assert len(os.listdir(layers.merged)) == number + 2
        unmount(layers)
    begin = time.monotonic()
    wait_for(lambda: not processes_naming(layers.base))
    assert time.monotonic() - begin < LIMIT_SECONDS


def test_podman_shows_what_the_mount_program_says(
    base: Path, prepared_namespace: PreparedNamespace, mount_program: Path, busybox_context: Path
) -> None:
    """A mount that fails for a wrong `mountopt` of storage.conf says why, through podman."""
    with Podman(base, prepared_namespace, mount_program, mount_options="redirect_dir=banana") as podman:
        result = podman.result("podman", "build", "--quiet", "--network=none", busybox_context)
    said = result.stderr.decode()
    assert result.returncode != 0
    assert f"using mount program {mount_program}: pyoverlay: " in said and "banana" in said
    assert "exit status 1" in said
