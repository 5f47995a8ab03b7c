"""Who performs operations? One process for each identity, so that credentials are a real process's.

Each holds descriptors and maps of its own. One that hangs in a call, or that a signal ends, is an outcome
like any other.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import signal
from multiprocessing.connection import Connection, Pipe

from tests.differential.operation import Caller, Held, Operation, Outcome, perform_here

LIMIT_SECONDS = 60
"""How long one operation may take."""

_PR_SET_PDEATHSIG = 1


class Actor:
    """A process with the ids of `caller`, without capabilities unless it is root's."""

    def __init__(self, caller: Caller) -> None:
        self._connection, theirs = Pipe()
        self._pid = os.fork()
        if self._pid == 0:
            _serve(theirs, caller)
        theirs.close()

    def perform(self, root: bytes, operation: Operation | None) -> Outcome:
        """Performs an operation below `root`; None closes all that is held open there."""
        with contextlib.suppress(OSError):
            self._connection.send((root, operation))
        if not self._connection.poll(LIMIT_SECONDS):
            self.end()
            return Outcome(f"no answer within {LIMIT_SECONDS} s")
        try:
            answer = self._connection.recv()
        except EOFError:
            return Outcome(f"the process ended with {self.end()}")
        if isinstance(answer, BaseException):
            raise answer
        assert isinstance(answer, Outcome)
        return answer

    def end(self) -> int:
        """Ends the process, if it hasn't ended by itself, and returns its exit code, a signal as negative."""
        self._connection.close()
        os.kill(self._pid, signal.SIGKILL)
        _, status = os.waitpid(self._pid, 0)
        return os.waitstatus_to_exitcode(status)


def _serve(connection: Connection, caller: Caller) -> None:
    """The process: performs what it is sent until nobody sends any more."""
    try:
        _become(caller)
        held: dict[bytes, Held] = {}
        while True:
            root, operation = connection.recv()
            if operation is None:
                held.pop(root, Held()).release()
                connection.send(Outcome(None))
                continue
            try:
                answer: object = perform_here(root, operation, held.setdefault(root, Held()))
            except Exception as error:  # noqa: BLE001 - raised again on the other side
                answer = AssertionError(f"{operation}: {error!r}")
            connection.send(answer)
    except EOFError:
        pass
    finally:
        os._exit(0)


def _become(caller: Caller) -> None:
    os.setgroups(caller.groups)
    os.setresgid(caller.gid, caller.gid, caller.gid)
    os.setresuid(caller.uid, caller.uid, caller.uid)
    # After the ids, which clear it: this process isn't to outlive the tests.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


_ACTORS: dict[Caller, Actor] = {}
# They belong to who started them; a child, perhaps in other namespaces, starts its own.
os.register_at_fork(after_in_child=_ACTORS.clear)


def perform(root: bytes, operation: Operation) -> Outcome:
    """Performs `operation` below the directory `root` in the process of its caller.

    Returns:
        the outcome; an OSError is the outcome's errno, a process that ended or hangs an outcome in words.
    """
    actor = _ACTORS.get(operation.caller)
    if actor is None:
        actor = _ACTORS[operation.caller] = Actor(operation.caller)
    outcome = actor.perform(root, operation)
    if outcome.error is not None and " " in outcome.error:
        del _ACTORS[operation.caller]
    return outcome


def release(root: bytes) -> None:
    """Closes and unmaps what any caller holds below `root`: before it is unmounted."""
    for actor in _ACTORS.values():
        actor.perform(root, None)


@atexit.register
def _end_all() -> None:
    while _ACTORS:
        _ACTORS.popitem()[1].end()
