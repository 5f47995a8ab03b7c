"""How does a test do something in another process, as another user, or in a user namespace?"""

import contextlib
import os
import pickle
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import TypeVar

from tests.harness import libc

Result = TypeVar("Result")

_MAPPED_IDS = 65536
_outside: Connection | None = None
"""In a user namespace: the way to a process that stayed outside of it."""


def in_child(call: Callable[[], Result]) -> Result:
    """Run `call` in a forked child and return its (picklable) result, or raise what it raised.

    Anything that can hang the interpreter goes here, a mapped page of a mount above all: a page fault
    waits with the interpreter's lock held.
    """
    return _fork(call, lambda: None)


def run_as(
    uid: int,
    call: Callable[[], Result],
    *,
    gid: int | None = None,
    groups: Sequence[int] = (),
    umask: int | None = None,
) -> Result:
    """Run `call` in a forked child as user `uid` without capabilities; return its result or raise its error.

    gid: the child's group, `uid` when None; groups: its supplementary groups; umask: as inherited when None.
    """

    def become() -> None:
        group = uid if gid is None else gid
        if umask is not None:
            os.umask(umask)
        os.setgroups(list(groups))
        os.setresgid(group, group, group)
        os.setresuid(uid, uid, uid)

    return _fork(call, become)


def in_user_namespace(call: Callable[[], Result]) -> Result:
    """Run `call` in a forked child as root of a user and a mount namespace of its own.

    Ids are the same as outside, so the layers of a privileged mount serve; but the child has no rights over
    what belongs to no namespace: trusted attributes, devices. What it mounts ends with it.
    """
    return _fork(call, _enter_user_namespace)


def outside(call: Callable[..., Result], *arguments: object) -> Result:
    """Run `call` (picklable) outside of the user namespace in which we are; here if we are in none."""
    if _outside is None:
        return call(*arguments)
    _outside.send((call, arguments))
    good, value = _outside.recv()
    if good:
        return value  # type: ignore[no-any-return]
    raise value


def _enter_user_namespace() -> None:
    global _outside  # noqa: PLW0603 - in a process of its own
    ours, theirs = Pipe()
    if os.fork() == 0:
        ours.close()
        _stay_outside(theirs)
    theirs.close()
    _leave_mounts_of_others()
    libc.unshare(libc.CLONE_NEWUSER | libc.CLONE_NEWNS)
    _outside = ours
    outside(_map_ids, os.getpid())


def _leave_mounts_of_others() -> None:
    """Others' FUSE mounts mustn't live on in our namespace, which can't unmount what it inherits."""
    libc.unshare(libc.CLONE_NEWNS)
    libc.mount("none", "/", "none", libc.MS_REC | libc.MS_PRIVATE)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        mounts = [line.split() for line in table]
    for fields in reversed(mounts):
        if fields[fields.index("-") + 1].startswith("fuse."):
            with contextlib.suppress(OSError):
                libc.umount(fields[4], libc.MNT_DETACH)


def _map_ids(pid: int) -> None:
    for name in ("uid_map", "gid_map"):
        Path(f"/proc/{pid}/{name}").write_text(f"0 0 {_MAPPED_IDS}\n")


def _stay_outside(connection: Connection) -> None:
    """The process outside: calls what it is sent until nobody sends any more."""
    try:
        while True:
            call, arguments = connection.recv()
            try:
                answer: tuple[bool, object] = (True, call(*arguments))
            except Exception as error:  # noqa: BLE001 - raised again on the other side
                answer = (False, _portable(error))
            connection.send(answer)
    except EOFError:
        pass
    finally:
        os._exit(0)


def _fork(call: Callable[[], Result], prepare: Callable[[], None]) -> Result:
    receiving, sending = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(receiving)
        try:
            prepare()
            answer: tuple[bool, object] = (True, call())
        except BaseException as error:  # noqa: BLE001 - the child must never return into the test runner
            answer = (False, _portable(error))
        try:
            with open(sending, "wb") as pipe:
                pickle.dump(answer, pipe)
        finally:
            os._exit(0)
    os.close(sending)
    with open(receiving, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(pid, 0)
    if not data:
        raise RuntimeError(f"the child ended with wait status {status:#x} and no answer")
    good, value = pickle.loads(data)
    if good:
        return value  # type: ignore[no-any-return]
    raise value


def _portable(error: BaseException) -> BaseException:
    """The error itself when it can be pickled, else its traceback as an AssertionError."""
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(error.errno, error.strerror, error.filename)
    return AssertionError("in the child: " + "".join(traceback.format_exception(error)))
