"""How do forwarder, pyfuse3, control socket and signals run together?

One trio run: it begins with a mounted device and ends when the mount has gone or a signal came.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from typing import Final

import pyfuse3
import trio

from pyoverlay.fuse import device, wire
from pyoverlay.fuse.control import ControlSocket, Description
from pyoverlay.fuse.copying import CopyUpQueue
from pyoverlay.fuse.forwarder import Forwarder
from pyoverlay.fuse.operations import OverlayOperations
from pyoverlay.fuse.polling import Polling
from pyoverlay.layers.stack import Stack
from pyoverlay.overlay.filesystem import OverlayFilesystem

log = logging.getLogger(__name__)

_SECONDS_FOR_REQUESTS_IN_FLIGHT: Final = 30
_MOST_TASKS: Final = 1024


class Service:
    """Serves one mounted device."""

    def __init__(self, stack: Stack, connection: device.Connection, options: dict[str, object]) -> None:
        """Serve ``stack`` at ``connection``; ``options`` are shown to those who inspect the mount."""
        self._stack = stack
        self._connection = connection
        self._options = options
        self._filesystem = OverlayFilesystem(stack)

    def run(self, on_ready: Callable[[], None], end_signals: tuple[signal.Signals, ...]) -> None:
        """Serve until the end; ``on_ready`` is called when the mount answers."""
        trio.run(self._run, on_ready, end_signals)

    async def _run(self, on_ready: Callable[[], None], end_signals: tuple[signal.Signals, ...]) -> None:
        async with trio.open_nursery() as nursery:
            queue = CopyUpQueue(self._filesystem, nursery)
            self._forwarder = forwarder = Forwarder(
                self._connection.descriptor,
                self._filesystem,
                on_ready=on_ready,
                on_interrupt=queue.interrupt,
            )
            control = self._open_control_socket()
            operations = OverlayOperations(self._filesystem, forwarder, queue)
            Polling(forwarder.hand_over_request, forwarder.forward_expected_replies).install()
            pyfuse3.init(operations, f"/dev/fd/{forwarder.give_session_descriptor()}", set())
            try:
                nursery.start_soon(forwarder.forward_replies)
                nursery.start_soon(pyfuse3.main, 1, _MOST_TASKS)
                nursery.start_soon(self._end_on_signal, end_signals)
                if control is not None:
                    nursery.start_soon(control.serve)
                await forwarder.forward_requests()
                await forwarder.finish(_SECONDS_FOR_REQUESTS_IN_FLIGHT)
                queue.give_up()
                nursery.cancel_scope.cancel()
            finally:
                if control is not None:
                    control.close()
                forwarder.close()
                self._filesystem.close()
        pyfuse3.close(unmount=False)

    async def _end_on_signal(self, end_signals: tuple[signal.Signals, ...]) -> None:
        """Detach the mount on a signal; what was read from the device is still answered."""
        with trio.open_signal_receiver(*end_signals) as received:
            async for number in received:
                log.info("%s: unmounting %s", signal.Signals(number).name, self._connection.target)
                try:
                    await trio.to_thread.run_sync(self._detach)
                except device.MountError as failure:
                    log.warning("%s", failure)
                self._forwarder.stop_reading()

    def _detach(self) -> None:
        device.unmount(self._connection.target, lazy=True)

    def _open_control_socket(self) -> ControlSocket | None:
        try:
            return ControlSocket(self._connection.device_number, self._describe)
        except OSError as failure:
            log.warning("no control socket: %s", failure)
            return None

    def _describe(self) -> Description:
        requests = {wire.opcode_name(opcode): count for opcode, count in self._forwarder.requests.items()}
        return {
            "pid": os.getpid(),
            "target": self._connection.target,
            "options": self._options,
            "requests": requests,
            "requests_by_path": self._requests_by_path(),
            "layer_syscalls": self._stack.operations(),
            "nodes": len(self._filesystem.nodes),
        }

    def _requests_by_path(self) -> dict[str, int]:
        requests = self._forwarder.requests
        at_once = self._forwarder.answered_at_once
        interrupts = requests[wire.Opcode.INTERRUPT]
        return {
            "fast path": at_once,
            "pyfuse3": requests.total() - at_once - interrupts,
            "forwarder": interrupts,
        }
