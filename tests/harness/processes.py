"""How does a test do something in another process, perhaps as another user?"""

import os
import pickle
import traceback
from collections.abc import Callable, Sequence
from typing import TypeVar

Result = TypeVar("Result")


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
