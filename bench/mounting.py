"""How is a system mounted for one trial, and how does it go away again?

Runs in the process of a trial, which is the parent of the daemons that it starts.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench import kernel
from bench.errors import BenchError

if TYPE_CHECKING:
    from bench.layers import LayerSet
    from bench.systems import System

_SECONDS_TO_MOUNT: Final = 60
_SECONDS_TO_END: Final = 60
_SECONDS_TO_BE_LEFT: Final = 10
"""For a process of the work that is about to end."""
_SECONDS_TO_CALM_DOWN: Final = 60
_CALM_SECONDS: Final = 0.02
_CALM_SHARE: Final = 0.05
"""A daemon that uses less than this share of a CPU is idle."""


@dataclass
class MountedSystem:
    """A mounted system.

    Attributes:
        root: The merged view.
        upper: The upper directory, None for a system without layers and in a read-only mount.
        daemon_pids: The processes that serve it.
        connection: The name of its FUSE connection, None when it has none.
        mount_seconds: From the call of the mount program until a stat of the root was answered.
        unmount_seconds: From umount2(2) until the mount and its processes were gone; 0 while mounted.
    """

    system: System
    layers: LayerSet
    place: Path
    root: Path
    upper: Path | None
    daemon_pids: list[int] = field(default_factory=list)
    connection: int | None = None
    mount_seconds: float = 0
    unmount_seconds: float = 0
    is_mounted: bool = False
    writes: bool = True

    def processor_seconds(self) -> float:
        """Return the CPU time that its processes have used."""
        return sum(kernel.processor_seconds(pid) for pid in self.daemon_pids)

    def resident_bytes(self) -> int:
        """Return what its processes have in memory."""
        return sum(kernel.resident_bytes(pid) for pid in self.daemon_pids)

    def mount(self) -> None:
        """Mount, over an upper that may have been used before.

        Raises BenchError with what the program said.
        """
        before = set(kernel.children(os.getpid()))
        started = time.perf_counter()
        if self.system.has_layers:
            self._run_mount_program()
        else:
            kernel.bind_mount(self.place / "copy", self.root, read_only=not self.writes)
        os.stat(self.root)
        self.mount_seconds = time.perf_counter() - started
        self.daemon_pids = [pid for pid in kernel.children(os.getpid()) if pid not in before]
        points = [point for point in kernel.mount_points(self.root) if point.target == self.root]
        if not points:
            raise BenchError(f"{self.system.name}: its mount program succeeded, but nothing is mounted")
        self.connection = points[0].minor if points[0].is_fuse else None
        self.is_mounted = True

    def _run_mount_program(self) -> None:
        work = None if self.upper is None else self.place / "work"
        command = self.system.mount_command(self.layers.lowers, self.upper, work, self.root)
        output = self.place / "mount-output"
        with output.open("w") as out:
            ran = subprocess.run(
                command,
                cwd=self.layers.directory,
                env={**os.environ, **kernel.MOUNT_ENVIRONMENT, **self.system.environment()},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                timeout=_SECONDS_TO_MOUNT,
                check=False,
            )
        if ran.returncode != 0:
            said = " ".join(output.read_text(errors="replace").split()) or "and said nothing"
            raise BenchError(f"can't be mounted: exit status {ran.returncode}, {said[-300:]}")

    def unmount(self) -> None:
        """Unmount and wait until its processes have ended; a second call does nothing.

        Raises BenchError when it is busy, or doesn't end.
        """
        if not self.is_mounted:
            return
        started = time.perf_counter()
        self._detach()
        self.is_mounted = False
        self._wait_for_processes(started + _SECONDS_TO_END)
        self.unmount_seconds = time.perf_counter() - started

    def _detach(self) -> None:
        until = time.monotonic() + _SECONDS_TO_BE_LEFT
        while True:
            try:
                kernel.unmount(self.root)
                return
            except OSError as failure:
                if failure.errno != errno.EBUSY or time.monotonic() > until:
                    raise BenchError(f"{self.system.name}: can't be unmounted: {failure}") from failure
                time.sleep(0.01)

    def _wait_for_processes(self, until: float) -> None:
        for pid in self.daemon_pids:
            while not _has_ended(pid):
                if time.perf_counter() > until:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                    raise BenchError(
                        f"{self.system.name}: process {pid} still ran {_SECONDS_TO_END} s after unmounting"
                    )
                time.sleep(0.0005)

    def wait_until_idle(self) -> None:
        """Wait until the daemon has done what the kernel sent it without anybody waiting, as FORGET.

        A system without a daemon is given the same pause.  Raises BenchError when it doesn't come to rest.
        """
        until = time.monotonic() + _SECONDS_TO_CALM_DOWN
        used = self.processor_seconds()
        while True:
            time.sleep(_CALM_SECONDS)
            used_before, used = used, self.processor_seconds()
            if used - used_before < _CALM_SECONDS * _CALM_SHARE:
                return
            if time.monotonic() > until:
                raise BenchError(
                    f"{self.system.name}: still busy {_SECONDS_TO_CALM_DOWN} s after its last request"
                )


def prepare(
    system: System,
    layers: LayerSet,
    place: Path,
    *,
    writes: bool,
    read_only: bool = False,
    fill_upper: Callable[[Path], None] | None = None,
) -> MountedSystem:
    """Make what a mount needs below ``place``, an empty directory; mounts nothing.

    Args:
        system: What is to be mounted.
        layers: The lowers.
        place: Where mount point, upper and work directory are made.
        writes: A system without layers gets a copy of the merged tree, else that tree itself, read-only.
        read_only: Whether it is a mount without an upper.
        fill_upper: Writes what the upper holds before it is mounted; without layers, the copy.
    """
    root = place / "merged"
    root.mkdir()
    upper = None
    if system.has_layers and not read_only:
        upper = place / "upper"
        upper.mkdir()
        (place / "work").mkdir()
    elif not system.has_layers and (writes or fill_upper):
        subprocess.run(["cp", "-a", "--reflink=auto", str(layers.merged), str(place / "copy")], check=True)
    elif not system.has_layers:
        (place / "copy").symlink_to(layers.merged)
    if fill_upper is not None:
        fill_upper(upper or place / "copy")
        os.sync()
    return MountedSystem(system, layers, place, root, upper, writes=writes)


def remove_everything(place: Path, process: int | None = None) -> None:
    """Clear away what a trial left below ``place``: mounts, whatever state they are in, processes, files.

    Args:
        place: The trial's directory.
        process: The trial's process, when it still runs.

    Every process that descends from a trial is killed: this one adopted those whose parents have ended.
    Raises BenchError when something stays mounted; then nothing is deleted.
    """
    for point in kernel.mount_points(place):
        if point.is_fuse:
            with contextlib.suppress(OSError):
                kernel.abort_fuse(point.minor)
    _kill_descendants(process)
    for point in kernel.mount_points(place):
        with contextlib.suppress(OSError):
            kernel.unmount(point.target, lazy=True)
    left = kernel.mount_points(place)
    if left:
        raise BenchError(f"{left[0].target}: can't be unmounted; unmount it by hand, and remove {place}")
    shutil.rmtree(place, ignore_errors=True)


def _kill_descendants(process: int | None) -> None:
    """Kill all children, first ``process``, so that it starts no others; again for those that they leave."""
    victims = [] if process is None else [process]
    while victims := victims or kernel.children(os.getpid()):
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in victims:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        victims = []
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _has_ended(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True
