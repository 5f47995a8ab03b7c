"""How do forwarder, pyfuse3, control socket and signals run together?

One trio run: it begins with a mount that is live already (`beginning`) and ends when that has gone or a
signal came.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Sequence
from typing import Final

import pyfuse3
import trio

from pyoverlay.fuse import device, wire
from pyoverlay.fuse.control import ControlSocket, Description
from pyoverlay.fuse.copying import CopyUpQueue
from pyoverlay.fuse.exchange import Exchange, Request
from pyoverlay.fuse.forwarder import Forwarder
from pyoverlay.fuse.operations import OverlayOperations
from pyoverlay.fuse.own_opcodes import OwnOpcodes
from pyoverlay.fuse.polling import Polling

log = logging.getLogger(__name__)

_SECONDS_FOR_REQUESTS_IN_FLIGHT: Final = 30
_MOST_TASKS: Final = 1024


class Service:
    """Serves one mount."""

    def __init__(
        self,
        exchange: Exchange,
        connection: device.Connection,
        control: ControlSocket | None,
        options: dict[str, object],
    ) -> None:
        """Serve what ``exchange`` leaves.

        Those who inspect the mount through ``control`` are shown ``options``.
        """
        self._exchange = exchange
        self._connection = connection
        self._control = control
        self._options = options
        self._filesystem = exchange.filesystem

    def run(self, kept: Sequence[Request], signals: tuple[signal.Signals, ...]) -> None:
        """Serve until the end, first the requests ``kept``.

        One of ``signals``, which are blocked until they are listened to, ends it; SIGUSR1 logs its counters.
        """
        trio.run(self._run, kept, signals)

    async def _run(self, kept: Sequence[Request], signals: tuple[signal.Signals, ...]) -> None:
        async with trio.open_nursery() as nursery:
            queue = CopyUpQueue(self._filesystem, nursery)
            self._forwarder = forwarder = Forwarder(self._exchange, kept, on_interrupt=queue.interrupt)
            own_opcodes = OwnOpcodes(self._filesystem, forwarder, queue, nursery)
            forwarder.answer_with(own_opcodes)
            operations = OverlayOperations(self._filesystem, forwarder, queue)
            Polling(forwarder.hand_over_request, forwarder.forward_expected_replies).install()
            pyfuse3.init(operations, f"/dev/fd/{forwarder.give_session_descriptor()}", set())
            try:
                nursery.start_soon(forwarder.forward_replies)
                nursery.start_soon(pyfuse3.main, 1, _MOST_TASKS)
                nursery.start_soon(self._heed_signals, signals)
                if self._control is not None:
                    nursery.start_soon(self._control.serve, self._describe)
                await forwarder.forward_requests()
                await forwarder.finish(_SECONDS_FOR_REQUESTS_IN_FLIGHT)
                queue.give_up()
                own_opcodes.give_up()
                nursery.cancel_scope.cancel()
            finally:
                forwarder.close()
        pyfuse3.close(unmount=False)

    async def _heed_signals(self, signals: tuple[signal.Signals, ...]) -> None:
        with trio.open_signal_receiver(*signals) as received:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
            async for number in received:
                if number == signal.SIGUSR1:
                    self._log_counters()
                else:
                    await self._end(signal.Signals(number))

    async def _end(self, number: signal.Signals) -> None:
        """Detach the mount; what was read from the device is still answered."""
        log.info("%s: unmounting %s", number.name, self._connection.target)
        try:
            # Not one of the threads that copies may have taken all of.
            await trio.to_thread.run_sync(self._detach, limiter=trio.CapacityLimiter(1))
        except device.MountError as failure:
            log.warning("%s", failure)
        self._forwarder.stop_reading()

    def _log_counters(self) -> None:
        requests = self._exchange.requests
        shown = ", ".join(f"{wire.opcode_name(opcode)} {count}" for opcode, count in requests.most_common())
        nodes = len(self._filesystem.nodes)
        target = self._connection.target
        log.info("%s: %d nodes, %d requests: %s", target, nodes, requests.total(), shown)

    def _detach(self) -> None:
        device.unmount(self._connection.target, lazy=True)

    def _describe(self) -> Description:
        requests = {wire.opcode_name(opcode): count for opcode, count in self._exchange.requests.items()}
        return {
            "pid": os.getpid(),
            "target": self._connection.target,
            "options": self._options,
            "requests": requests,
            "requests_by_path": self._requests_by_path(),
            "layer_syscalls": self._filesystem.stack.operations(),
            "nodes": len(self._filesystem.nodes),
        }

    def _requests_by_path(self) -> dict[str, int]:
        requests = self._exchange.requests
        at_once = self._exchange.answered_at_once
        own = sum(requests[opcode] for opcode in wire.ANSWERED_WITHOUT_FILE_SYSTEM)
        own += self._forwarder.answered + self._exchange.refused
        return {
            "fast path": at_once,
            "pyfuse3": requests.total() - at_once - own,
            "forwarder": own,
        }
