"""How does a test run pyoverlay's command line without waiting for Python's imports each time?

A process that has imported pyoverlay forks one that runs the command, as `python -m pyoverlay` does but for
the start of the interpreter. This file is both sides: the class is the tests', `serve` the other process's,
which imports nothing but the standard library and pyoverlay, for daemons come out of it.
"""

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

# What a daemon imports only once it runs.
_WARM = (
    "pyoverlay.cli.mount",
    "pyoverlay.fuse.session",
    "pyoverlay.fuse.service",
    "pyoverlay.fuse.operations",
)


class Launcher:
    """The process that forks; it starts with the first command and ends with ours."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        os.register_at_fork(after_in_child=self._forget)

    def run(self, words: list[str], cwd: Path | None = None, seconds: float = 60) -> tuple[int, str]:
        """Run `pyoverlay WORDS` and return its exit status and what it said on stdout and stderr.

        cwd: the command's current directory, ours when None. Raises TimeoutError when it takes longer than
        `seconds`; the command is killed then.
        """
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        with tempfile.NamedTemporaryFile(prefix="pyoverlay-said-") as said:
            request = {"words": words, "cwd": str(cwd or os.getcwd()), "said": said.name}
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], seconds)
            if not ready:
                self.stop()
                raise TimeoutError(f"pyoverlay {' '.join(words)} did not end within {seconds:.0f} s")
            answer = process.stdout.readline()
            if not answer:
                raise RuntimeError(f"the launcher ended with {process.wait()}")
            return int(answer), os.fsdecode(said.read())

    def stop(self) -> None:
        """End the process and whatever command it is waiting for; daemons are not its children."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.communicate()
            self._process = None

    def _forget(self) -> None:
        """A child, perhaps in other namespaces, starts a process of its own."""
        self._process = None

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
                env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            )
        return self._process


def serve() -> None:
    """Run the commands asked for on stdin, one a line, and answer each with its exit status."""
    for module in _WARM:
        importlib.import_module(module)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _command(request["words"], request["cwd"], request["said"])
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _command(words: list[str], cwd: str, said: str) -> None:
    status = 70
    try:
        null, output = os.open(os.devnull, os.O_RDONLY), os.open(said, os.O_WRONLY | os.O_APPEND)
        os.dup2(null, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(cwd)
        sys.argv = ["pyoverlay", *words]
        status = importlib.import_module("pyoverlay.cli").main()
    except SystemExit as ending:
        status = ending.code if isinstance(ending.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve()
