"""The daemon's life: how a mount begins, what the daemon is meanwhile, and how it ends.

Times are recorded as test properties, never asserted; every wait has a limit far beyond what is expected.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.differential.upper import leftovers
from tests.harness import Kind, Mount, Stack, fails_with, make_stack, snapshot
from tests.mount.command import PYOVERLAY, environment
from tests.mount.daemons import (
    LIMIT_SECONDS,
    adopting_orphans,
    bytes_in_preparation,
    children,
    exit_status,
    is_mounted,
    wait_for_end,
    wait_until,
)

ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

Record = Callable[[str, object], None]


@pytest.fixture
def stack(base: Path) -> Stack:
    """One lower with a few files, one of them big."""
    made = make_stack(base)
    (made.lower / "file").write_text("from the lower\n")
    (made.lower / "directory").mkdir()
    (made.lower / "directory/inner").write_text("inner\n")
    (made.lower / "big").write_bytes(b"0123456789abcdef" * (1 << 18))
    return made


@pytest.fixture
def mounted(stack: Stack) -> Iterator[Mount]:
    """A live pyoverlay mount over the stack."""
    with Mount(Kind.PYOVERLAY, stack) as mount:
        yield mount


@pytest.fixture
def adopted() -> Iterator[None]:
    """The daemons of the test become children of this process when their parents have gone."""
    with adopting_orphans():
        yield


def _pid(mount: Mount) -> int:
    assert mount.pid is not None
    return mount.pid


# --- the beginning --------------------------------------------------------------------------------------


def test_live_when_the_parent_returns(mounted: Mount) -> None:
    """The first look after the command returned finds the merged view."""
    assert is_mounted(mounted.path)
    assert sorted(os.listdir(mounted.path)) == ["big", "directory", "file"]
    assert _pid(mounted) != os.getpid()


@contextlib.contextmanager
def mounted_by_command(
    stack: Stack, *words: str, before: Sequence[str] = (), pass_fds: Sequence[int] = ()
) -> Iterator[int]:
    """Mounts as a person does, by the whole command line after the words `before`; gives the daemon's pid."""
    mount = Mount(Kind.PYOVERLAY, stack)
    command = [*before, *PYOVERLAY, "mount", *words, "-o", ",".join(mount.option_list()), str(stack.merged)]
    try:
        result = subprocess.run(
            command,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=LIMIT_SECONDS,
            pass_fds=pass_fds,
            check=False,
        )
        assert (result.returncode, result.stdout) == (0, b"")
        pid = int(mount.inspect()["pid"])
        yield pid
        mount.unmount()
        wait_for_end(pid)
    finally:
        mount.remove()


def test_what_needs_no_waiting_loads_no_pyfuse3(adopted: None, stack: Stack) -> None:
    """A mount as for a step of an image's build ends before it has needed trio and pyfuse3."""
    options = ",".join(Mount(Kind.PYOVERLAY, stack).option_list())
    before = children()
    subprocess.run([*PYOVERLAY, "mount", "-o", options, stack.merged], env=environment(), check=True)
    [pid] = children() - before
    maps = Path(f"/proc/{pid}/maps")
    (stack.merged / "new").write_text("new")
    assert sorted(os.listdir(stack.merged)) == ["big", "directory", "file", "new"]
    (stack.merged / "file").unlink()
    assert "pyfuse3" not in maps.read_text()
    (stack.merged / "directory").chmod(0o700)
    os.truncate(stack.merged / "big", 1)  # copies up
    assert "pyfuse3" in maps.read_text()
    subprocess.run(["umount", stack.merged], check=True)
    assert exit_status(pid) == 0


def test_the_command_ends_when_the_mount_is_live(adopted: None, stack: Stack) -> None:
    """It doesn't take the interpreter apart, which would be a sixth of the time that a mount takes."""
    words = ["-o", ",".join(Mount(Kind.PYOVERLAY, stack).option_list()), str(stack.merged)]
    script = "import atexit, pyoverlay.cli; atexit.register(print, 'apart'); pyoverlay.cli.main()"
    before = children()
    command = [sys.executable, "-P", "-c", script, *words]
    result = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, check=True)
    assert result.stdout == b""
    [pid] = children() - before
    subprocess.run(["umount", stack.merged], check=True)
    assert exit_status(pid) == 0


@pytest.mark.parametrize("closed", [{0}, {1}, {2}, {0, 1, 2}], ids=str)
def test_closed_standard_streams_keep_nobody_from_mounting(
    adopted: None, stack: Stack, closed: set[int]
) -> None:
    """Their numbers are no place for the mount's device: a daemon puts /dev/null there."""
    words = ["-o", ",".join(Mount(Kind.PYOVERLAY, stack).option_list()), str(stack.merged)]
    redirections = " ".join(f"{descriptor}>&-" for descriptor in sorted(closed))
    command = shlex.join([sys.executable, "-P", "-m", "pyoverlay", *words])
    before = children()
    subprocess.run(["sh", "-c", f"{command} {redirections}"], env=environment(), check=True)
    [pid] = children() - before
    (stack.merged / "file").write_text("written")
    subprocess.run(["umount", stack.merged], check=True)
    assert exit_status(pid) == 0


def test_pipes_of_the_caller_end(stack: Stack) -> None:
    """stdout, stderr and whatever else was inherited end with the command, though the daemon lives on."""
    reading, writing = os.pipe()
    # That the command returns at all says it for stdout and stderr.
    with open(reading, "rb") as pipe, mounted_by_command(stack, pass_fds=[writing]):
        os.close(writing)
        assert pipe.read() == b""
        assert is_mounted(stack.merged)


def test_daemon_is_its_own_master(stack: Stack) -> None:
    """Started on a terminal that is closed then: own session, no terminal, at /, on /dev/null, and alive."""
    mount = Mount(Kind.PYOVERLAY, stack)
    words = [*PYOVERLAY, "mount", "-o", ",".join(mount.option_list()), str(stack.merged)]
    try:
        terminal = ["script", "--quiet", "--return", "--command", shlex.join(words), "/dev/null"]
        subprocess.run(
            terminal, env=environment(), stdin=subprocess.DEVNULL, check=True, timeout=LIMIT_SECONDS
        )
        pid = int(mount.inspect()["pid"])
        assert os.getsid(pid) != os.getsid(0)
        process = Path("/proc") / str(pid)
        controlling_terminal = (process / "stat").read_text().rsplit(")", 1)[1].split()[4]
        assert controlling_terminal == "0"
        assert os.readlink(process / "cwd") == "/"
        for number in range(3):
            assert os.readlink(process / "fd" / str(number)) == "/dev/null"
        assert (stack.merged / "file").read_text() == "from the lower\n"
    finally:
        mount.remove()


def test_soft_limit_of_descriptors_is_raised(stack: Stack) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with mounted_by_command(stack, before=["prlimit", "--nofile=256:"]) as pid:
        assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (hard, hard)


@pytest.mark.parametrize("options", [[], ["-o", "passthrough=off"]], ids=["passthrough", "no passthrough"])
def test_limits_of_whoever_mounts_are_not_those_of_all(stack: Stack, options: list[str]) -> None:
    (stack.lower / "large").write_bytes(bytes(100_000))
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    with mounted_by_command(stack, *options, before=["prlimit", "--fsize=50000:", "--cpu=3600:"]) as pid:
        assert resource.prlimit(pid, resource.RLIMIT_CPU) == (hard, hard)
        (stack.merged / "large").chmod(0o600)
        (stack.merged / "new").write_bytes(bytes(200_000))
        os.truncate(stack.merged / "new", 150_000)
        assert (stack.upper / "large").stat().st_size == 100_000
        assert (stack.upper / "new").stat().st_size == 150_000


def test_log_file(stack: Stack, base: Path) -> None:
    """With -d and --log, every request is told in the file, and nothing on the terminal."""
    log = base / "log"
    with mounted_by_command(stack, "-d", "--log", str(log)):
        assert "LOOKUP" not in log.read_text()
        (stack.merged / "file").stat()
        wait_until(lambda: "LOOKUP" in log.read_text(), "the request in the log")


# --- the end --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [*ENDING_SIGNALS, None], ids=lambda one: one.name if one else "umount")
def test_exit_status_and_traces(adopted: None, stack: Stack, ending: signal.Signals | None) -> None:
    """Whatever ends it, the daemon exits with 0, its mount is gone and its work directory is clean."""
    with Mount(Kind.PYOVERLAY, stack) as mount:
        pid = _pid(mount)
        (mount.path / "new").write_text("new\n")
        (mount.path / "file").unlink()
        if ending is None:
            mount.unmount()
        else:
            os.kill(pid, ending)
        assert exit_status(pid) == 0
        assert not is_mounted(stack.merged)
    assert leftovers(stack.work) == []
    assert os.listdir(stack.merged) == []
    assert (stack.upper / "new").read_text() == "new\n"
    with Mount(Kind.PYOVERLAY, stack) as mount:
        assert sorted(os.listdir(mount.path)) == ["big", "directory", "new"]


@pytest.mark.parametrize("ending", [*ENDING_SIGNALS, None], ids=lambda one: one.name if one else "umount")
def test_end_at_the_very_beginning(adopted: None, stack: Stack, ending: signal.Signals | None) -> None:
    """The mount is live before all that serves it is imported; it can end then, too."""
    options = ",".join(Mount(Kind.PYOVERLAY, stack).option_list())
    before = children()
    subprocess.run([*PYOVERLAY, "mount", "-o", options, stack.merged], env=environment(), check=True)
    assert is_mounted(stack.merged)
    [pid] = children() - before
    if ending is None:
        subprocess.run(["umount", stack.merged], check=True)
    else:
        os.kill(pid, ending)
    assert exit_status(pid) == 0
    assert not is_mounted(stack.merged)
    assert leftovers(stack.work) == []


SIGNALLED_ONCE_MOUNTED = """
import os, sys
from pyoverlay.cli import main
from pyoverlay.fuse import device
connect = device.connect
def connect_and_signal(*words):
    connection = connect(*words)
    os.kill(os.getpid(), int(sys.argv.pop()))
    return connection
device.connect = connect_and_signal
sys.exit(main(sys.argv[1:-1]))
"""


@pytest.mark.parametrize("ending", ENDING_SIGNALS, ids=lambda one: one.name)
def test_signal_between_mounting_and_serving(stack: Stack, ending: signal.Signals) -> None:
    """A daemon that is told to end when it has mounted, but serves nothing yet, leaves no dead mount."""
    mount = Mount(Kind.PYOVERLAY, stack)
    words = ["mount", "-f", "-o", ",".join(mount.option_list()), str(stack.merged), str(int(ending))]
    try:
        result = subprocess.run(
            [sys.executable, "-c", SIGNALLED_ONCE_MOUNTED, *words],
            env=environment(),
            timeout=LIMIT_SECONDS,
            check=False,
        )
        assert result.returncode == 0
        assert not is_mounted(stack.merged)
    finally:
        mount.remove()
    assert leftovers(stack.work) == []


@pytest.mark.parametrize("ending", ENDING_SIGNALS, ids=lambda one: one.name)
def test_foreground(stack: Stack, ending: signal.Signals) -> None:
    """With -f the command itself serves, and exits with 0 when a signal ends it."""
    mount = Mount(Kind.PYOVERLAY, stack)
    command = [*PYOVERLAY, "mount", "-f", "-o", ",".join(mount.option_list())]
    with subprocess.Popen(
        [*command, str(stack.merged)],
        stdin=subprocess.DEVNULL,
        env=environment(),
    ) as process:
        try:
            wait_until(lambda: is_mounted(stack.merged) or process.poll() is not None, "the mount")
            assert (stack.merged / "file").read_text() == "from the lower\n"
            process.send_signal(ending)
            assert process.wait(LIMIT_SECONDS) == 0
            assert not is_mounted(stack.merged)
        finally:
            process.kill()
            mount.remove()
    assert leftovers(stack.work) == []


@pytest.mark.parametrize("ending", ENDING_SIGNALS, ids=lambda one: one.name)
def test_open_descriptors_are_cut_off(mounted: Mount, ending: signal.Signals) -> None:
    """What is still open when a signal ends the daemon answers ENOTCONN, and doesn't keep the mount alive."""
    directory = os.open(mounted.path, os.O_RDONLY | os.O_DIRECTORY)
    written = os.open(mounted.path / "new", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        assert os.write(written, b"kept") == 4
        os.kill(_pid(mounted), ending)
        wait_until(lambda: not is_mounted(mounted.path), "the end of the mount")
        wait_for_end(_pid(mounted))
        with fails_with(errno.ENOTCONN):
            os.stat("never looked up", dir_fd=directory)
        with fails_with(errno.ENOTCONN):
            os.open("file", os.O_RDONLY, dir_fd=directory)
        with fails_with(errno.ENOTCONN):
            os.fsync(written)
        with fails_with(errno.ENOTCONN):
            os.setxattr(written, "user.x", b"y")
    finally:
        # What close answers (flush has nobody to go to) is no part of the promise.
        for descriptor in (written, directory):
            with contextlib.suppress(OSError):
                os.close(descriptor)
    assert (mounted.stack.upper / "new").read_bytes() == b"kept"


def test_idle_unmount_ends_the_daemon(mounted: Mount, record_testsuite_property: Record) -> None:
    """umount(8) on an idle mount: the daemon goes by itself. How fast is recorded: a second is the aim."""
    subprocess.run(["umount", str(mounted.path)], check=True, timeout=LIMIT_SECONDS)
    record_testsuite_property("seconds until the daemon ended", wait_for_end(_pid(mounted)))


def test_busy_unmount_is_refused(mounted: Mount) -> None:
    """As with any file system: EBUSY while a descriptor is open, and the mount works on."""
    with open(mounted.path / "file", "rb") as file:
        with fails_with(errno.EBUSY):
            mounted.unmount()
        assert file.read() == b"from the lower\n"
        assert (mounted.path / "directory/inner").read_text() == "inner\n"
    mounted.unmount()


def test_lazy_unmount_serves_until_the_last_descriptor(mounted: Mount) -> None:
    with open(mounted.path / "file", "rb") as file:
        subprocess.run(["umount", "--lazy", str(mounted.path)], check=True, timeout=LIMIT_SECONDS)
        assert not is_mounted(mounted.path)
        assert file.read() == b"from the lower\n"
        os.stat(file.fileno())
    wait_for_end(_pid(mounted))


def test_signal_while_copying_up(adopted: None, stack: Stack) -> None:
    """A copy-up that is under way at SIGTERM ends whole or leaves nothing; the daemon exits with 0."""
    size = 256 << 20
    with open(stack.lower / "huge", "wb") as file:
        for _ in range(size >> 20):
            file.write(os.urandom(1 << 20))
    with Mount(Kind.PYOVERLAY, stack) as mount:
        pid = _pid(mount)
        caller = subprocess.Popen(
            [sys.executable, "-c", "import os, sys; os.open(sys.argv[1], os.O_RDWR)", mount.path / "huge"],
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_until(
                lambda: bytes_in_preparation(pid, stack.work) > 0 or caller.poll() is not None, "a copy-up"
            )
            os.kill(pid, signal.SIGTERM)
            assert exit_status(pid) == 0
            caller.wait(LIMIT_SECONDS)
        finally:
            caller.kill()
            caller.wait()
        assert not is_mounted(stack.merged)
    if (stack.upper / "huge").exists():
        assert (stack.upper / "huge").stat().st_size == size
        subprocess.run(["cmp", stack.upper / "huge", stack.lower / "huge"], check=True)
    assert leftovers(stack.work) == []


CYCLES = 100


def test_many_cycles(stack: Stack, record_testsuite_property: Record) -> None:
    """Mount, stat, umount on one path, again and again."""
    start = time.monotonic()
    mount = Mount(Kind.PYOVERLAY, stack)
    for cycle in range(CYCLES):
        mount.mount()
        try:
            found = (mount.path / "file").stat()
            assert found.st_size == 15, f"cycle {cycle}"
            mount.unmount()
        finally:
            mount.remove()
    record_testsuite_property("seconds for all cycles", time.monotonic() - start)
    assert leftovers(stack.work) == []
    assert snapshot(stack.upper).keys() == {b"."}


# --- the end under load ---------------------------------------------------------------------------------

WRITERS = 20
RECORD_SIZE = 64


class _Writer(threading.Thread):
    """Appends numbered records to files of its own, fsyncs each, and notes what was acknowledged."""

    def __init__(self, directory: int, number: int, started: threading.Barrier) -> None:
        super().__init__(daemon=True)
        self._directory = directory
        self._number = number
        self._everyone = started
        self.acknowledged: dict[str, int] = {}
        self.error: OSError | None = None

    def run(self) -> None:
        try:
            for generation in range(10**6):
                self._write_file(f"writer-{self._number}-{generation}")
        except OSError as error:
            self.error = error

    def _write_file(self, name: str) -> None:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND
        descriptor = os.open(name, flags, 0o644, dir_fd=self._directory)
        try:
            for number in range(5):
                written = os.write(descriptor, record(name, number))
                assert written == RECORD_SIZE
                os.fsync(descriptor)
                self.acknowledged[name] = number + 1
                if sum(self.acknowledged.values()) == 2:
                    self._everyone.wait(LIMIT_SECONDS)
        finally:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def record(name: str, number: int) -> bytes:
    """One record: tells whose it is and which, and fills its size."""
    return f"{name} {number} ".encode().ljust(RECORD_SIZE - 1, b".") + b"\n"


def test_signal_under_load_loses_nothing(adopted: None, stack: Stack) -> None:
    """SIGTERM with 20 writers at work: what an fsync acknowledged is in the upper, whole."""
    with Mount(Kind.PYOVERLAY, stack) as mount:
        # By descriptor: a path would lead below the mount point once the mount has gone.
        directory = os.open(mount.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            started = threading.Barrier(WRITERS + 1)
            writers = [_Writer(directory, number, started) for number in range(WRITERS)]
            for writer in writers:
                writer.start()
            started.wait(LIMIT_SECONDS)
            pid = _pid(mount)
            os.kill(pid, signal.SIGTERM)
            assert exit_status(pid) == 0
            for writer in writers:
                writer.join(LIMIT_SECONDS)
                assert not writer.is_alive(), "a writer hangs"
        finally:
            os.close(directory)
    for writer in writers:
        assert writer.error is not None
        assert writer.error.errno in (errno.ENOTCONN, errno.ECONNABORTED), writer.error
        for name, count in writer.acknowledged.items():
            content = (stack.upper / name).read_bytes()
            assert content.startswith(b"".join(record(name, number) for number in range(count)))
    assert sum(len(writer.acknowledged) for writer in writers) >= WRITERS
    assert leftovers(stack.work) == []
