"""How does another process ask a daemon about its mount?

Each daemon listens on a Unix socket named after its mount's device number, in a directory of the
user's; it answers one JSON object a connection.  Asking never touches the mount itself.  The socket is there
before trio is, which only serves it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from pyoverlay.fuse.device import device_number
from pyoverlay.options import OverlayError

if TYPE_CHECKING:
    import trio

Description = dict[str, Any]

_SECONDS_TO_ANSWER: Final = 10


def _directories() -> list[str]:
    """Where sockets may be, in the order in which a daemon tries to make one."""
    directories = ["/run/pyoverlay"] if os.geteuid() == 0 else []
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        directories.append(os.path.join(runtime, "pyoverlay"))
    directories.append(f"/tmp/pyoverlay-{os.geteuid()}")
    return directories


class ControlSocket:
    """The daemon's side."""

    def __init__(self, number: str) -> None:
        """Listen for the mount with device ``number`` (``0:57``): who asks waits for `serve`.

        Raises OSError when no directory can hold the socket.
        """
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self.path = self._bind(number)
        self._identity = _identity(self.path)
        self._socket.listen()

    def _bind(self, number: str) -> str:
        failure: OSError | None = None
        for directory in _directories():
            path = os.path.join(directory, number)
            try:
                os.makedirs(directory, mode=0o700, exist_ok=True)
                _refuse_foreign(directory)
                with _locked(directory):
                    # A mount number is used by one mount at a time: what is there is a dead daemon's.
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(path)
                    self._socket.bind(path)
                    os.chmod(path, 0o600)
                return path
            except OSError as error:
                failure = error
        self._socket.close()
        assert failure is not None
        raise failure

    def fileno(self) -> int:
        """Return the descriptor that is readable when somebody asks."""
        return self._socket.fileno()

    async def serve(self, describe: Callable[[], Description]) -> None:
        """Answer what ``describe`` returns until cancelled."""
        import json  # noqa: PLC0415 - a mount doesn't wait for what most of them never need

        import trio  # noqa: PLC0415

        async def answer(stream: trio.SocketStream) -> None:
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(json.dumps(describe()).encode())
                await stream.aclose()

        listener = trio.SocketListener(trio.socket.from_stdlib_socket(self._socket))
        await trio.serve_listeners(answer, [listener])

    def close(self) -> None:
        """Remove the socket, if it isn't that of a newer mount with our old number."""
        with contextlib.suppress(OSError), _locked(os.path.dirname(self.path)):
            if _identity(self.path) == self._identity:
                os.unlink(self.path)
        self._socket.close()


def _identity(path: str) -> tuple[int, int]:
    """What tells a socket from a later one of its name, which may have its inode number as well."""
    status = os.stat(path)
    return status.st_ino, status.st_ctime_ns


@contextlib.contextmanager
def _locked(directory: str) -> Iterator[None]:
    """Let no other daemon put its socket there meanwhile, or take one away."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _refuse_foreign(directory: str) -> None:
    status = os.stat(directory, follow_symlinks=False)
    if status.st_uid != os.geteuid():
        raise PermissionError(1, "belongs to another user", directory)


def inspect(target: str) -> Description:
    """Ask the daemon behind a mount point about its mount.

    Returns ``pid``, ``target``, ``options``, ``requests`` (count by opcode) and ``layer_syscalls``.
    Raises OverlayError when ``target`` is no pyoverlay mount that can be asked.
    """
    number = device_number(mount_point(target))
    if number is not None:
        for directory in _directories():
            with contextlib.suppress(OSError, ValueError):
                return _ask(os.path.join(directory, number))
    raise OverlayError(f"{target}: no pyoverlay is mounted here, or not by you")


def mount_point(target: str) -> str:
    """Return the absolute path of a mount point, without a request to what is mounted there."""
    path = os.path.abspath(target)
    directory, name = os.path.split(path)
    return os.path.join(os.path.realpath(directory), name) if name else path


def mounts() -> list[Description]:
    """Ask all daemons of this user that can be reached."""
    answers = []
    for directory in _directories():
        with contextlib.suppress(OSError):
            for name in sorted(os.listdir(directory)):
                with contextlib.suppress(OSError, ValueError):
                    answers.append(_ask(os.path.join(directory, name)))
    return answers


def _ask(path: str) -> Description:
    import json  # noqa: PLC0415

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_SECONDS_TO_ANSWER)
        connection.connect(path)
        pieces = []
        while piece := connection.recv(65536):
            pieces.append(piece)
    answer = json.loads(b"".join(pieces))
    if not isinstance(answer, dict):
        raise ValueError("no JSON object")
    return answer
