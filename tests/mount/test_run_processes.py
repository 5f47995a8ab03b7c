"""Do signals, terminals and orphans fare well under ``pyoverlay run``, and is everything gone after it?"""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest

from pyoverlay.fuse import control
from tests.harness import Stack
from tests.mount.command import (
    PYOVERLAY,
    environment,
    mounts_below,
    processes_naming,
    pyoverlay,
    running,
    succeed,
    wait_for,
)
from tests.mount.image import layers, lowers, make_image_stack


@pytest.fixture
def image(base: Path) -> Stack:
    """Two lowers, the lower of them an image."""
    return make_image_stack(base)


@pytest.fixture
def temporary(base: Path) -> Path:
    """The directory where commands put what is temporary."""
    directory = base / "temporary"
    directory.mkdir()
    return directory


def running_with_upper(
    stack: Stack, temporary: Path, script: str
) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """Start a script with an upper, and give its process when it has printed ``ready``."""
    return running(*layers(stack), script=script, variables={"TMPDIR": str(temporary)})


def uppers() -> list[str]:
    return [mount["options"]["upperdir"] for mount in control.mounts()]


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGWINCH]
)
def test_a_signal_reaches_the_command(image: Stack, temporary: Path, number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    script = f"trap 'echo got; exit 3' {name}; echo ready; while :; do sleep 0.01; done"
    with running_with_upper(image, temporary, script) as process:
        process.send_signal(number)
        assert process.communicate(timeout=60)[0] == b"got\n"
        assert process.returncode == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_signal_ends_the_command(image: Stack, temporary: Path, number: signal.Signals) -> None:
    with running_with_upper(image, temporary, "ulimit -c 0; echo ready; exec sleep 1000") as process:
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode == 128 + number
        assert list(temporary.iterdir()) == []
        assert str(image.upper) not in uppers()


def test_a_command_that_ends_takes_its_processes_along(image: Stack, temporary: Path) -> None:
    variables = {"TMPDIR": str(temporary)}
    script = "sleep 98765 & echo started; cd /"
    result = pyoverlay("run", *lowers(image), "--", "sh", "-c", script, variables=variables)
    assert succeed(result) == b"started\n"
    assert processes_naming("98765") == []
    assert list(temporary.iterdir()) == []


def test_orphans_are_reaped(image: Stack) -> None:
    script = (
        "for i in 1 2 3 4 5 6 7 8; do sh -c 'true &'; done;"
        # Until process 1 and the shell are the only ones: none is left as a zombie.
        "cd /proc; while set -- [0-9]*; [ $# -gt 2 ]; do sleep 0.01; done; echo $*"
    )
    assert succeed(pyoverlay("run", *lowers(image), "--", "sh", "-c", script)) == b"1 2\n"


def test_the_mount_is_seen_by_no_one_else(image: Stack, temporary: Path) -> None:
    with running_with_upper(image, temporary, "echo ready; cat; echo changed > /new") as process:
        assert str(image.upper) in uppers()
        (directory,) = temporary.iterdir()
        assert mounts_below(directory) == []
        assert list((directory / "merged").iterdir()) == []
        process.communicate(timeout=60)
        assert process.returncode == 0
        assert str(image.upper) not in uppers()
        assert list(temporary.iterdir()) == []
        assert (image.upper / "new").read_text() == "changed\n"


def test_a_running_commands_changes_can_be_listed(image: Stack, temporary: Path) -> None:
    with running_with_upper(image, temporary, "echo x > /new; rm /from-the-top; echo ready; cat") as process:
        # The mount points, which the image lacks, are there as long as they are in use.
        expected = ["A /dev", "D /from-the-top", "A /new", "A /proc", "A /sys"]
        assert succeed(pyoverlay("changes", image.upper)).decode().splitlines() == expected
        process.communicate(timeout=60)
        assert process.returncode == 0


def test_sigkill_leaves_no_process_and_no_mount(image: Stack, temporary: Path) -> None:
    with running_with_upper(image, temporary, "echo ready; exec sleep 87654") as process:
        process.kill()
        process.wait(timeout=60)
        wait_for(lambda: not processes_naming(image.upper) and not processes_naming("87654"))
        assert str(image.upper) not in uppers()
        assert mounts_below(temporary) == []
        # The upper isn't in use any more.
        succeed(pyoverlay("run", *layers(image), "--", "true", variables={"TMPDIR": str(temporary)}))


def _on_terminal(*words: str) -> tuple[int, int]:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(PYOVERLAY[0], [*PYOVERLAY, *words], environment())
    return pid, terminal


def _read(terminal: int, end: bytes | None = None) -> bytes:
    text = b""
    while end is None or end not in text:
        try:
            block = os.read(terminal, 4096)
        except OSError:  # EIO: the other side was closed
            block = b""
        if not block:
            break
        text += block
    return text


def test_a_terminals_interrupt_reaches_the_command_once(image: Stack) -> None:
    # Process 1 is in the terminal's process group as the command is; who passed it on would double it.
    script = (
        "trap 'echo interrupted' INT; trap 'echo done; exit 5' USR1; echo $(busybox tty); echo ready;"
        "read line; read line; kill -USR1 $$; sleep 1"
    )
    pid, terminal = _on_terminal("run", *lowers(image), "--", "sh", "-c", script)
    try:
        shown = _read(terminal, b"ready\r\n")
        os.write(terminal, b"\x03")
        shown += _read(terminal, b"interrupted\r\n")
        os.write(terminal, b"\n\n\n")
        shown += _read(terminal)
    finally:
        os.close(terminal)
        _, status = os.waitpid(pid, 0)
    assert b"/dev/console\r\n" in shown
    assert shown.count(b"interrupted") == 1
    assert b"done\r\n" in shown
    assert os.waitstatus_to_exitcode(status) == 5


def test_a_shell_has_job_control() -> None:
    pid, terminal = _on_terminal("run", "--lower=/", "--", "bash", "--norc", "-i")
    try:
        os.write(terminal, b"set -m; sleep 1000 &\nkill %1; wait %1; echo status $?; exit 4\n")
        shown = _read(terminal)
    finally:
        os.close(terminal)
        _, status = os.waitpid(pid, 0)
    assert b"status 143\r\n" in shown
    assert b"no job control" not in shown
    assert os.waitstatus_to_exitcode(status) == 4
