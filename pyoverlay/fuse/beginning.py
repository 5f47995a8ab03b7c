"""Who answers before what serves a mount is imported?

trio and pyfuse3 take longer to import than all else that mounting takes, and many a mount, as of a step of an
image's build, ends before it has needed them.  So the mount is live before: this thread answers what needs no
waiting.  They are imported when something must wait, by another thread, while this one goes on; what waits is
kept for pyfuse3.
"""

from __future__ import annotations

import importlib
import logging
import os
import select
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Final

from pyoverlay.fuse.exchange import Exchange, Request
from pyoverlay.fuse.wire import Opcode

log = logging.getLogger(__name__)

_SECONDS_OF_A_THREAD_TURN: Final = 0.00005
"""A request waits for the importing thread for this long at each system call, not for Python's 5 ms."""
_PATIENCE_MS: Final = 1
"""Without a request for so long, nobody asks for anything."""
_MOST_AT_ONCE: Final = 64
"""After as many requests the other descriptors are looked at, however many more are there."""


def serve_until_imported(exchange: Exchange, module: str, others: Sequence[int]) -> list[Request] | None:
    """Serve until a module is needed, and then until it has been imported.

    Args:
        exchange: the mount's messages; nothing was read from it yet.
        module: its full name.
        others: descriptors that are readable when something else needs it.

    Returns:
        The requests that wait for the module, in their order; None when the mount has gone without any.

    Raises whatever the import raises.
    """
    kept: list[Request] = []
    if not _serve_until(exchange, others, kept, needed=_waits) and not _waits(kept):
        return None
    _serve_while_importing(exchange, module, kept)
    return kept


def _waits(kept: Sequence[Request]) -> bool:
    """Tell whether a request waits: INIT has been answered, libfuse just wants it, too."""
    return any(request.opcode != Opcode.INIT for request in kept)


def _serve_while_importing(exchange: Exchange, module: str, kept: list[Request]) -> None:
    done, importing_ends = os.pipe()
    failures: list[BaseException] = []

    def import_it() -> None:
        try:
            importlib.import_module(module)
        except BaseException as failure:  # noqa: BLE001 - it is raised again in the thread that waits
            failures.append(failure)
        finally:
            os.close(importing_ends)

    usual_turn = sys.getswitchinterval()
    sys.setswitchinterval(_SECONDS_OF_A_THREAD_TURN)
    thread = threading.Thread(target=import_it, name="import")
    thread.start()
    try:
        _serve_until(exchange, [done], kept)
    finally:
        thread.join()
        sys.setswitchinterval(usual_turn)
        os.close(done)
        if failures:
            raise failures[0]


def _serve_until(
    exchange: Exchange,
    others: Sequence[int],
    kept: list[Request],
    needed: Callable[[Sequence[Request]], bool] = lambda _kept: False,
) -> bool:
    """Serve until one of the descriptors ``others`` is readable or what was ``kept`` is ``needed``.

    Returns:
        Whether the mount is still there.
    """
    poll = select.poll()
    for descriptor in (exchange.device, *others):
        poll.register(descriptor, select.POLLIN)
    while True:
        ready = [descriptor for descriptor, _events in _wait(poll, exchange)]
        if exchange.device in ready and not _receive_what_is_there(exchange, kept):
            return False
        if needed(kept) or len(ready) > (exchange.device in ready):
            return True


def _wait(poll: select.poll, exchange: Exchange) -> list[tuple[int, int]]:
    """Wait for somebody, and do meanwhile what was put off until nobody asks for anything."""
    ready = poll.poll(_PATIENCE_MS)
    while not ready and exchange.filesystem.tidy_up():
        ready = poll.poll(0)
    return ready or poll.poll()


def _receive_what_is_there(exchange: Exchange, kept: list[Request]) -> bool:
    waits = False
    for _ in range(_MOST_AT_ONCE):
        size = exchange.read() if waits else exchange.read_soon()
        if not size:
            return size is None
        request = exchange.receive(size)
        if request is not None:
            kept.append(request._replace(message=bytes(request.message)))
            waits = True
    return True
