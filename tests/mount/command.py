"""How do these tests start pyoverlay's commands, and what do they look at outside of a mount?"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 60
PYOVERLAY = (sys.executable, "-m", "pyoverlay")


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment, in which pyoverlay is found."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), **(more or {})}


def pyoverlay(
    *words: str | Path,
    variables: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    text: bytes = b"",
    before: Sequence[str] = (),
) -> subprocess.CompletedProcess[bytes]:
    """Run ``pyoverlay WORDS`` to its end, with `text` on its standard input and after the words `before`."""
    return subprocess.run(
        [*before, *PYOVERLAY, *(os.fspath(word) for word in words)],
        env=environment(variables),
        cwd=cwd,
        input=text,
        capture_output=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )


def start(
    *words: str | Path, stderr: int | None = None, variables: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start ``pyoverlay WORDS`` with pipes at its standard input and output."""
    return subprocess.Popen(
        [*PYOVERLAY, *(os.fspath(word) for word in words)],
        env=environment(variables),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
    )


def succeed(result: subprocess.CompletedProcess[bytes]) -> bytes:
    """Return what a command printed; it must have succeeded without a word on stderr."""
    assert (result.returncode, result.stderr.decode()) == (0, "")
    return result.stdout


def fail(result: subprocess.CompletedProcess[bytes], status: int = 1) -> str:
    """Return the one line that a command failed with; it must have failed with `status`."""
    line = result.stderr.decode()
    assert result.returncode == status, line
    assert result.stdout == b""
    assert line.startswith("pyoverlay: ")
    assert line.endswith("\n")
    assert line.count("\n") == 1, line
    return line


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds; there is no event to wait for."""
    end = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.01)


def mounts_below(path: Path) -> list[str]:
    """The lines of this process's mount table about mount points at or below `path`."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        return [line for line in table if (line.split()[4] + "/").startswith(f"{path}/")]


def is_running(pid: int) -> bool:
    """Whether a process is there and hasn't ended; one that process 1 hasn't reaped yet has."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
    except OSError:
        return False
    return state.split()[0] not in "ZX"


def kill_all_naming(text: str | Path) -> None:
    """Kill the processes with `text` in their command line, and wait until there are none."""

    def none_is_left() -> bool:
        left = processes_naming(text)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not left

    wait_for(none_is_left)


@contextlib.contextmanager
def running(
    *words: str | Path, script: str, variables: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A shell script under ``pyoverlay run WORDS`` that has printed ``ready``; killed afterwards."""
    with start("run", *words, "--", "sh", "-c", script, variables=variables) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()


def processes_naming(text: str | Path) -> list[int]:
    """The processes with `text` in their command line, but this one."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        pid = int(directory.name)
        try:
            command = directory.joinpath("cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(text) in command and is_running(pid) and pid != os.getpid():
            found.append(pid)
    return found
