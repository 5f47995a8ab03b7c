"""How does a Redis server run in a merged view, and how is it asked?"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bench.errors import BenchError
from bench.programs import SHARED, Chroot, failure_of

DATA_DIRECTORY: Final = "/var/lib/redis"
"""Where it writes its log of changes (AOF) and its dumps, in the merged view."""

_SOCKET: Final = "socket"
_LOG: Final = "log"
_SECONDS_TO_START: Final = 30

_COMMAND: Final = (
    f"redis-server --port 0 --unixsocket {SHARED}/{_SOCKET} --logfile {SHARED}/{_LOG} --dir {DATA_DIRECTORY} "
    "--appendonly yes --appendfsync everysec --auto-aof-rewrite-percentage 0 --save"
).split()
_COMMAND.append("")


@contextlib.contextmanager
def redis_server(chroot: Chroot) -> Iterator[socket.socket]:
    """Run a server that logs each change and dumps when told to; yield a connection.

    Raises BenchError with the server's log when it doesn't start.
    """
    server = chroot.start(*_COMMAND)
    try:
        with _connected(server, chroot.shared) as connection:
            yield connection
            connection.sendall(b"SHUTDOWN NOSAVE\r\n")
            server.wait()
    finally:
        server.kill()
        server.communicate()


def _connected(server: subprocess.Popen[bytes], directory: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    until = time.monotonic() + _SECONDS_TO_START
    while server.poll() is None and time.monotonic() < until:
        try:
            connection.connect(str(directory / _SOCKET))
            return connection
        except (FileNotFoundError, ConnectionRefusedError):
            time.sleep(0.01)
    connection.close()
    log = directory / _LOG
    said = log.read_bytes() if log.exists() else b""
    if server.poll() is None:
        raise BenchError(f"redis-server didn't listen within {_SECONDS_TO_START} s: {said[-200:]!r}")
    raise BenchError(failure_of(server.returncode, _COMMAND, said))


def ask(connection: socket.socket, request: bytes, expected: bytes) -> None:
    """Send one or more commands and wait for the answers.

    Raises BenchError when they aren't the expected ones.
    """
    connection.sendall(request)
    answer = b""
    while len(answer) < len(expected):
        piece = connection.recv(65536)
        if not piece:
            raise BenchError("redis-server ended the connection")
        answer += piece
        if not expected.startswith(answer):
            raise BenchError(f"redis-server answered {answer[-200:]!r}")
