"""What is the life of the snapshotter's process: take hold of root and socket, answer, end on a signal?"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import stat
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import grpc

from pyoverlay.containers.snapshotter.service import Service
from pyoverlay.containers.snapshotter.snapshot import SnapshotError
from pyoverlay.containers.snapshotter.snapshotter import Snapshotter

log = logging.getLogger(__name__)

_THREADS: Final = 16
_SECONDS_FOR_REQUESTS_IN_FLIGHT: Final = 10
_END_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def serve(root: Path, address: Path, program: str) -> None:
    """Answer containerd until SIGTERM, SIGINT or SIGHUP.

    Args:
        root: where snapshots are kept; created when it isn't there.
        address: the Unix socket to listen on; one that a killed process left is replaced.
        program: how containerd calls pyoverlay to mount: a path, or a name in its PATH.

    Raises:
        SnapshotError: root or address can't be used; nothing is changed.
    """
    # Before there are threads, which inherit it: the signals are waited for.
    signal.pthread_sigmask(signal.SIG_BLOCK, _END_SIGNALS)
    with contextlib.closing(Snapshotter(root, program)) as snapshotter, _listening(snapshotter, address):
        _tell_service_manager("READY=1")
        log.info("answering at %s for %s", address, root)
        number = signal.sigwait(_END_SIGNALS)
        log.info("%s: ending", signal.Signals(number).name)
        _tell_service_manager("STOPPING=1")


def set_up_log(*, debug: bool) -> None:
    """Log to stderr; ``debug`` logs more."""
    logging.basicConfig(
        stream=sys.stderr,
        format="pyoverlay snapshotter: %(levelname)s: %(message)s",
        level=logging.DEBUG if debug else logging.INFO,
    )


@contextlib.contextmanager
def _listening(snapshotter: Snapshotter, address: Path) -> Iterator[None]:
    server = grpc.server(ThreadPoolExecutor(_THREADS, thread_name_prefix="request"))
    server.add_generic_rpc_handlers((Service(snapshotter).handler(),))
    _clear_address(address)
    umask = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{address}")
    except RuntimeError as failure:
        raise SnapshotError(f"the socket {address} can't be listened on: {failure}") from None
    finally:
        os.umask(umask)
    server.start()
    try:
        yield
    finally:
        server.stop(_SECONDS_FOR_REQUESTS_IN_FLIGHT).wait()
        with contextlib.suppress(FileNotFoundError):
            address.unlink()


def _clear_address(address: Path) -> None:
    """Remove a socket that nobody listens on.  Raises SnapshotError when the address can't be ours."""
    try:
        address.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not stat.S_ISSOCK(address.lstat().st_mode):
            raise SnapshotError(f"{address} is there and no socket: remove it, or choose another --address")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.connect(os.fspath(address))
    except ConnectionRefusedError:
        address.unlink()
    except FileNotFoundError:
        pass
    except OSError as failure:
        raise SnapshotError(f"the socket {address} can't be used: {failure.strerror or failure}") from None
    else:
        raise SnapshotError(
            f"another process listens on {address}: end that one, or choose another --address"
        )


def _tell_service_manager(state: str) -> None:
    """Tell systemd, if it waits for it: sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, contextlib.suppress(OSError):
        manager.sendto(state.encode(), address.replace("@", "\0", 1))
