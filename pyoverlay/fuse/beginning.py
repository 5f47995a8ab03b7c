"""Who answers while what serves a mount is still being imported?

trio and pyfuse3 take longer to import than all else that mounting takes.  So the mount is live before: this
thread answers what needs no waiting, while another one imports; what must wait is kept for pyfuse3.
"""

from __future__ import annotations

import importlib
import logging
import os
import select
import sys
import threading
from typing import Final

from pyoverlay.fuse.exchange import Exchange, Request

log = logging.getLogger(__name__)

_SECONDS_OF_A_THREAD_TURN: Final = 0.0005
"""A request waits for the importing thread for this long, not for Python's 5 ms."""


def serve_while_importing(exchange: Exchange, module: str) -> list[Request]:
    """Serve until a module has been imported.

    Args:
        exchange: the mount's messages; nothing was read from it yet.
        module: its full name.

    Returns:
        The requests that wait for the module, in their order.

    Raises whatever the import raises.
    """
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
        return _serve_until(exchange, done)
    finally:
        thread.join()
        sys.setswitchinterval(usual_turn)
        os.close(done)
        if failures:
            raise failures[0]


def _serve_until(exchange: Exchange, done: int) -> list[Request]:
    kept: list[Request] = []
    poll = select.poll()
    poll.register(exchange.device, select.POLLIN)
    poll.register(done, select.POLLIN)
    while True:
        ready = [descriptor for descriptor, _events in poll.poll()]
        if exchange.device in ready and not _receive_what_is_there(exchange, kept):
            poll.unregister(exchange.device)  # the mount has gone
        if done in ready:
            return kept


def _receive_what_is_there(exchange: Exchange, kept: list[Request]) -> bool:
    while size := exchange.read():
        request = exchange.receive(size)
        if request is not None:
            kept.append(request._replace(message=bytes(request.message)))
    return size is None
