"""Costs that are promised: counted, never timed: requests, the daemon's system calls, its descriptors."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.harness import Kind, Mount, Stack, fails_with, make_stack, run_as
from tests.mount.command import pyoverlay, succeed
from tests.mount.daemons import LIMIT_SECONDS, wait_until

USER = 1000


@pytest.fixture
def stack(base: Path) -> Stack:
    """Two lowers that share a directory of some hundred files, and one file of 512 MB."""
    made = make_stack(base, lowers=2)
    for number in range(300):
        directory = made.lowers[number % 2] / "shared"
        directory.mkdir(exist_ok=True)
        (directory / f"file{number}").write_text(f"{number}\n")
    (made.lowers[1] / "data").write_bytes(os.urandom(1 << 20))
    with open(made.lowers[1] / "huge", "wb") as file:
        file.truncate(512 * 10**6)
    return made


@pytest.fixture
def mount(stack: Stack) -> Iterator[Mount]:
    """A live pyoverlay mount over the stack."""
    with Mount(Kind.PYOVERLAY, stack) as live:
        yield live


@dataclass
class Spent:
    """What the daemon did during a block: requests by operation, and system calls on layers."""

    requests: dict[str, int] = field(default_factory=dict)
    layer_syscalls: int = 0


@contextlib.contextmanager
def spending(mount: Mount) -> Iterator[Spent]:
    """Fills the `Spent` that it gives when the block has ended."""
    before = mount.inspect()
    spent = Spent()
    yield spent
    after = mount.inspect()
    spent.layer_syscalls = after["layer_syscalls"] - before["layer_syscalls"]
    for name, count in after["requests"].items():
        if count != before["requests"].get(name, 0):
            spent.requests[name] = count - before["requests"].get(name, 0)


@contextlib.contextmanager
def tracing(pid: int, output: Path) -> Iterator[list[str]]:
    """The daemon's system calls during a block, one line each as strace prints them, of all its threads."""
    lines: list[str] = []
    tracer = subprocess.Popen(
        ["strace", "-f", "-q", "-s", "512", "-p", str(pid), "-o", str(output)], stdin=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: tracer.poll() is not None or _is_traced(pid), "the tracer")
        assert tracer.poll() is None, "strace ended at once"
        yield lines
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.wait(LIMIT_SECONDS)
    lines += output.read_text(errors="surrogateescape").splitlines()


def _is_traced(pid: int) -> bool:
    for task in (Path("/proc") / str(pid) / "task").iterdir():
        status = (task / "status").read_text()
        if re.search(r"^TracerPid:\t0$", status, re.MULTILINE):
            return False
    return True


def _call(line: str) -> str:
    """The name of the system call in a line of strace -f."""
    found = re.match(r"(?:\d+ +)?(?:<\.\.\. )?(\w+)", line)
    return found.group(1) if found else ""


CALLS_ON_FILES = re.compile(
    r"open|stat|xattr|getdents|readlink|access|name_to_handle|mknod|mkdir|unlink|rename|link|chmod|chown|utime"
)
"""Names of system calls that look at or change files of a layer."""


# --- requests ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["data", "shared/file7", "shared", "none", "shared/none"])
def test_warm_stats_send_nothing(mount: Mount, name: str) -> None:
    """1,000 stats of a known name: no request at all, also for a name that is known not to exist."""
    path = mount.path / name
    exists = os.path.lexists(path)
    with spending(mount) as spent:
        for _ in range(1000):
            assert os.path.lexists(path) == exists
    assert spent == Spent()


def test_stats_after_a_listing_send_nothing(mount: Mount) -> None:
    """What a listing showed needs no lookup."""
    names = os.listdir(mount.path / "shared")
    assert len(names) == 300
    with spending(mount) as spent:
        for name in names:
            assert (mount.path / "shared" / name).stat().st_size > 0
    assert spent == Spent()


@pytest.mark.parametrize("where", ["lower", "copied up", "upper"])
@pytest.mark.parametrize("options", ["passthrough=auto", "passthrough=off", "passthrough=off,fast_path=off"])
def test_second_read_sends_no_read(stack: Stack, where: str, options: str) -> None:
    """An unchanged file that was read once is read again from the kernel's page cache, whoever opens it."""
    with Mount(Kind.PYOVERLAY, stack, *options.split(",")) as mount:
        _read_twice(mount, where)


def test_small_files_of_lowers_are_read_without_a_read(mount: Mount) -> None:
    with spending(mount) as spent:
        for number in range(300):
            assert (mount.path / f"shared/file{number}").read_text() == f"{number}\n"
    assert "READ" not in spent.requests


def _read_twice(mount: Mount, where: str) -> None:
    path = mount.path / "data"
    content = path.read_bytes()
    if where == "copied up":
        with open(path, "r+b") as file:
            file.write(b"new")
        content = b"new" + content[3:]
    elif where == "upper":
        path = mount.path / "fresh"
        path.write_bytes(content)
    assert path.read_bytes() == content
    with spending(mount) as spent:
        assert path.read_bytes() == content
    assert "READ" not in spent.requests
    assert spent.requests.get("OPEN", 0) <= 1


def test_reading_a_symlink_again(mount: Mount) -> None:
    """A symlink's target is asked for once."""
    (mount.path / "link").symlink_to("data")
    assert os.readlink(mount.path / "link") == "data"
    with spending(mount) as spent:
        for _ in range(100):
            assert os.readlink(mount.path / "link") == "data"
    assert spent == Spent()


# --- system calls on layers --------------------------------------------------------------------------------


def test_lookup_in_a_loaded_directory(mount: Mount, base: Path) -> None:
    """Names that a loaded directory doesn't have are answered without a look at any layer."""
    os.listdir(mount.path / "shared")
    assert mount.pid is not None
    with tracing(mount.pid, base / "trace") as lines, spending(mount) as spent:
        for number in range(200):
            assert not os.path.lexists(mount.path / f"shared/none{number}")
    assert spent.requests == {"LOOKUP": 200}
    assert spent.layer_syscalls == 0
    assert _between_inspections(lines) == []


def test_lookup_of_known_names_in_a_loaded_directory(mount: Mount) -> None:
    """Names that it has are answered without a look as well, when the kernel wants to know again."""
    names = os.listdir(mount.path / "shared")
    with spending(mount) as spent:
        for name in names[:200]:
            # O_EXCL makes the kernel look up a name that it knows (fs/fuse/dir.c: fuse_dentry_revalidate).
            with fails_with(errno.EEXIST):
                os.open(mount.path / "shared" / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    assert spent.requests == {"LOOKUP": 200}
    assert spent.layer_syscalls == 0


def _between_inspections(lines: list[str]) -> list[str]:
    """Calls on files in a trace, without those of the control socket, which is no layer."""
    return [line for line in lines if CALLS_ON_FILES.search(_call(line)) and "/proc/" not in line]


def test_lookup_of_names_made_meanwhile(mount: Mount) -> None:
    """A loaded directory stays loaded while we change it: new names are known, removed ones unknown."""
    directory = mount.path / "shared"
    os.listdir(directory)
    for number in range(20):
        (directory / f"new{number}").touch()
        (directory / f"file{number}").unlink()
    directory.stat()  # its times have changed, and are asked for again
    with spending(mount) as spent:
        for number in range(20):
            assert (directory / f"new{number}").exists()
            assert not (directory / f"file{number}").exists()
            assert not (directory / f"other{number}").exists()
    assert spent.layer_syscalls == 0


def test_unlinking_opens_no_data(mount: Mount, base: Path) -> None:
    """Removing a lower file of 512 MB is a whiteout: its data is neither opened nor read nor copied."""
    assert mount.pid is not None
    with tracing(mount.pid, base / "trace") as lines:
        (mount.path / "huge").unlink()
    opened = [line for line in lines if "open" in _call(line) and '"huge"' in line and "O_PATH" not in line]
    assert opened == []
    copied = [line for line in lines if re.search("copy_file_range|sendfile|splice|ioctl|pread", _call(line))]
    assert copied == []
    assert not (mount.path / "huge").exists()
    whiteout = (mount.stack.upper / "huge").lstat()
    assert (whiteout.st_mode & 0o170000, whiteout.st_rdev) == (0o020000, 0)


def test_truncating_open_copies_no_data(mount: Mount, base: Path) -> None:
    """O_TRUNC on a lower file copies its attributes, not its data."""
    assert mount.pid is not None
    with tracing(mount.pid, base / "trace") as lines:
        os.close(os.open(mount.path / "huge", os.O_WRONLY | os.O_TRUNC))
    copied = [line for line in lines if re.search("copy_file_range|sendfile|splice|pread", _call(line))]
    assert copied == []
    assert (mount.stack.upper / "huge").stat().st_size == 0


def test_renaming_a_directory_is_constant(mount: Mount) -> None:
    """Renaming an upper directory costs the same whether ten or 10,000 of its files are known."""
    costs = {}
    os.listdir(mount.path)  # a name that is looked for costs less once all names are known
    for count in (10, 10_000):
        directory = mount.path / f"directory{count}"
        directory.mkdir()
        for number in range(count):
            os.close(os.open(directory / f"file{number}", os.O_CREAT | os.O_WRONLY, 0o644))
        assert len(os.listdir(directory)) == count
        (mount.path / f"renamed{count}").exists()
        with spending(mount) as spent:
            directory.rename(mount.path / f"renamed{count}")
        costs[count] = spent
        with spending(mount) as afterwards:
            for number in range(0, count, max(1, count // 10)):
                assert (mount.path / f"renamed{count}/file{number}").stat().st_size == 0
        assert afterwards.requests.get("LOOKUP", 0) <= 10
    assert costs[10_000] == costs[10]
    # The kernel looks a rename's target up again, whatever it knows (fs/fuse/dir.c: fuse_dentry_revalidate).
    assert sum(costs[10_000].requests.values()) <= 2


def test_creating_costs_three_calls(mount: Mount) -> None:
    """One makes the file, one tells its attributes, one opens it for the kernel's own use.

    What the directory hands on is asked for once.  A fourth is for the directory, whose times have changed:
    the kernel asks for them at the next lookup.
    """
    directory = mount.path / "fresh"
    directory.mkdir()
    (directory / "first").touch()
    with spending(mount) as spent:
        for number in range(100):
            os.close(os.open(directory / f"file{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    assert spent.requests["CREATE"] == 100
    looked_up = spent.requests.get("LOOKUP", 0)
    assert spent.layer_syscalls <= 3 * 100 + spent.requests["GETATTR"] + looked_up


def test_what_a_directory_hands_on_is_asked_for_again_when_it_changed(mount: Mount) -> None:
    """Set-group-id and a new group count from the next creation on."""
    directory = mount.path / "fresh"
    directory.mkdir()
    (directory / "before").touch()
    os.chown(directory, 0, 1234)
    directory.chmod(0o2755)
    (directory / "after").touch()
    assert [(directory / name).stat().st_gid for name in ("before", "after")] == [os.getegid(), 1234]


def test_copying_up_marks_the_directory_once(mount: Mount, base: Path) -> None:
    """That entries have others' inode numbers is looked for and said once a directory."""
    (mount.path / "shared/file0").chmod(0o600)
    assert mount.pid is not None
    with tracing(mount.pid, base / "trace") as lines:
        for number in range(1, 21):
            (mount.path / f"shared/file{number}").chmod(0o600)
    impure = [line for line in lines if ".overlay.impure" in line]
    assert impure == []


def test_whiteouts_are_links(mount: Mount, base: Path) -> None:
    """Removing lower files makes one device for all of them."""
    assert mount.pid is not None
    with tracing(mount.pid, base / "trace") as lines:
        for number in range(20):
            (mount.path / f"shared/file{number}").unlink()
    calls = Counter(_call(line) for line in lines)
    assert calls["mknodat"] + calls["mknod"] == 1
    assert calls["linkat"] == 20


def test_attributes_that_are_not_there_cost_one_call_a_file(mount: Mount) -> None:
    """`ls -l` asks three for each file, and a walk lists them first: one list answers all."""
    names = sorted(os.listdir(mount.path / "shared"))
    wanted = ("system.posix_acl_access", "security.selinux", "security.capability")

    def ask(name: str) -> None:
        for attribute in wanted:
            with fails_with(errno.ENODATA):
                os.getxattr(mount.path / "shared" / name, attribute)

    # Each layer must have said once that it can have them.
    for name in names[:2]:
        ask(name)
    for calls in (len(names) - 2, 0):
        with spending(mount) as spent:
            for name in names[2:]:
                assert os.listxattr(mount.path / "shared" / name) == []
                ask(name)
        # The kernel keeps an ACL.
        assert spent.requests["GETXATTR"] >= (len(wanted) - 1) * (len(names) - 2)
        assert spent.layer_syscalls == calls


def test_opening_a_small_file_again_costs_no_call(mount: Mount) -> None:
    """At first it is opened, and asked whether it is a file of metadata only; then it is in the cache."""
    names = sorted(os.listdir(mount.path / "shared"))
    for calls in (2, 0):
        with spending(mount) as spent:
            for name in names:
                os.close(os.open(mount.path / "shared" / name, os.O_RDONLY))
        assert spent.requests["OPEN"] == len(names)
        assert spent.layer_syscalls == calls * len(names)


# --- system calls a request ---------------------------------------------------------------------------------


def test_a_request_passes_without_the_event_loop(stack: Stack, base: Path) -> None:
    """Reading the device, the pair there and back, writing the device: six calls, and what the layer costs.

    Waiting comes on top: a look at an empty device and one poll at most for each request.
    """
    with Mount(Kind.PYOVERLAY, stack, "fast_path=off") as mount:
        os.listdir(mount.path / "shared")
        assert mount.pid is not None
        with tracing(mount.pid, base / "trace") as lines, spending(mount) as spent:
            for number in range(1000):
                assert not os.path.lexists(mount.path / f"shared/none{number}")
    assert spent.requests["LOOKUP"] == 1000
    assert spent.layer_syscalls == 0
    calls = Counter(_call(line) for line in lines)
    for call in ("sendto", "read", "writev", "recvfrom", "write"):
        assert 1000 <= calls[call] < 1050, call
    assert calls["readv"] <= 2 * 1000 + 50
    assert calls["poll"] <= 1000 + 50


@pytest.mark.parametrize("name", ["fresh", "data"])
def test_a_users_write_costs_three_calls(stack: Stack, base: Path, name: str) -> None:
    """Reading the request, writing the data, writing the answer.

    That the file has no set-id bits and no capabilities to lose is asked once, and again when it may have.
    """
    with Mount(Kind.PYOVERLAY, stack, "passthrough=off") as mount:
        path = mount.path / name
        path.touch()
        path.chmod(0o666)

        def write() -> None:
            with open(path, "r+b", buffering=0) as file:
                for number in range(500):
                    file.write(b"%d" % number)

        assert mount.pid is not None
        with tracing(mount.pid, base / "trace") as lines, spending(mount) as spent:
            run_as(USER, write)
        assert spent.requests["WRITE"] == 500
        calls = Counter(_call(line) for line in lines)
        assert calls["pwrite64"] == 500
        assert sum(count for call, count in calls.items() if CALLS_ON_FILES.search(call)) < 50
        for number in range(3):
            path.chmod(0o6777)
            run_as(USER, write)
            assert path.stat().st_mode & 0o7777 == 0o777, number


def test_data_moves_in_large_requests(stack: Stack) -> None:
    """What isn't in passthrough: 1 MiB is written at once, and 256 KiB are read ahead.

    The kernel begins to read ahead with less, and may split what memory is short for.
    """
    with Mount(Kind.PYOVERLAY, stack, "passthrough=off") as mount:
        content = os.urandom(32 << 20)
        with spending(mount) as spent:
            (mount.path / "big").write_bytes(content)
        assert spent.requests["WRITE"] <= 64
        mount.remount()
        with spending(mount) as spent:
            assert (mount.path / "big").read_bytes() == content
        assert spent.requests["READ"] <= 140


def test_synchronous_writes_pass_no_pair(stack: Stack) -> None:
    """They are waited for beside pyfuse3, whose pair of sockets is too small for the largest of them."""
    with Mount(Kind.PYOVERLAY, stack, "passthrough=off") as mount:
        content = os.urandom(3 << 20)
        descriptor = os.open(mount.path / "big", os.O_WRONLY | os.O_CREAT | os.O_SYNC)
        with spending(mount) as spent:
            assert os.write(descriptor, content) == len(content)
        os.close(descriptor)
        assert spent.requests["WRITE"] <= 6
        assert (stack.upper / "big").read_bytes() == (mount.path / "big").read_bytes() == content
        assert (mount.path / "big").stat().st_size == len(content)


def test_a_huge_listing_with_a_huge_buffer(base: Path) -> None:
    """A READDIRPLUS that asks for more than the pair passes is answered with less."""
    stack = make_stack(base)
    for number in range(5000):
        (stack.lower / f"{number:0200}").touch()
    with Mount(Kind.PYOVERLAY, stack) as mount:
        descriptor = os.open(mount.path, os.O_RDONLY | os.O_DIRECTORY)
        buffer = ctypes.create_string_buffer(1 << 20)
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.syscall(217, descriptor, buffer, len(buffer)) > 0
        os.close(descriptor)
        assert len(os.listdir(mount.path)) == 5000


# --- descriptors -------------------------------------------------------------------------------------------


def _descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_no_descriptor_per_file(base: Path) -> None:
    """5,000 known files hold no descriptor of the daemon's."""
    stack = make_stack(base)
    (stack.lower / "many").mkdir()
    for number in range(5000):
        (stack.lower / f"many/file{number}").touch()
    with Mount(Kind.PYOVERLAY, stack) as mount:
        assert mount.pid is not None
        (mount.path / "many/file0").stat()
        before = _descriptors(mount.pid)
        for number in range(5000):
            (mount.path / f"many/file{number}").stat()
            if number % 10 == 0:
                (mount.path / f"many/file{number}").chmod(0o600)
        assert _descriptors(mount.pid) <= before + 10


def test_many_nodes_under_a_low_limit(base: Path) -> None:
    """A daemon that may open 256 descriptors serves 2,000 known directories with a file each."""
    stack = make_stack(base)
    for number in range(2000):
        directory = stack.lower / f"top{number % 20}/directory{number}"
        directory.mkdir(parents=True)
        (directory / "file").write_text(str(number))
    mount = Mount(Kind.PYOVERLAY, stack)
    words = ["mount", "-o", ",".join(mount.option_list()), str(stack.merged)]
    try:
        succeed(pyoverlay(*words, before=["prlimit", "--nofile=256:256"]))
        pid = int(mount.inspect()["pid"])
        for number in range(2000):
            directory = mount.path / f"top{number % 20}/directory{number}"
            assert os.listdir(directory) == ["file"]
            with open(directory / "file", "r+") as file:
                assert file.read() == str(number)
                file.write("!")
        assert _descriptors(pid) < 256
        for number in range(2000):
            path = mount.path / f"top{number % 20}/directory{number}/file"
            assert path.read_text() == f"{number}!"
    finally:
        mount.remove()
