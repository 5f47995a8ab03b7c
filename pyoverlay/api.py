"""How does a Python program mount an overlay, end it, and ask what was changed?

A mount is served by a process of its own, started with this interpreter; nothing is forked from the caller's
process, which may have threads.  This file knows commands, paths and the daemon's answers, not FUSE.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, cast

from pyoverlay.fuse import control, device
from pyoverlay.layers.changes import Change, ChangeKind, find_changes
from pyoverlay.options import OverlayError, join_lowerdir

__all__ = ["Change", "ChangeKind", "Overlay", "OverlayError", "changes", "inspect", "unmount"]

_DAEMON_END_LIMIT: Final = 60
"""Seconds that a daemon may need after its mount has gone."""

AnyPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]


class Overlay:
    """An overlay mount, for as long as a ``with`` block lasts or until `unmount`.

    ::

        with Overlay(lower=["layer2", "layer1"], upper="upper", work="work") as merged:
            (merged / "file").write_text("changed")
    """

    def __init__(
        self,
        lower: AnyPath | Sequence[AnyPath],
        upper: AnyPath | None = None,
        work: AnyPath | None = None,
        *,
        target: AnyPath | None = None,
        options: str | Iterable[str] = (),
    ) -> None:
        """Describe a mount; nothing is done yet.

        Args:
            lower: the lower directories, topmost first (or the only one); never written.
            upper: the directory that takes the changes; None mounts read-only.
            work: an empty directory on the upper's file system, outside of the upper; needed with it.
            target: the directory to mount on; None makes a temporary one, removed after the unmount.
            options: mount options as for ``pyoverlay mount -o``, one text or several.
        """
        lowers = [lower] if isinstance(lower, str | bytes | os.PathLike) else lower
        self.lower: Final = tuple(_absolute(path) for path in lowers)
        self.upper: Final = None if upper is None else _absolute(upper)
        self.work: Final = None if work is None else _absolute(work)
        self.options: Final = (options,) if isinstance(options, str) else tuple(options)
        self._target: Final = None if target is None else Path(_absolute(target))
        self._mounted: Path | None = None

    def mount(self) -> Path:
        """Mount, and return the directory of the merged view when the mount is live.

        Raises:
            OverlayError: it can't be mounted, or is already; nothing is mounted or left behind.
        """
        if self._mounted is not None:
            raise OverlayError(f"{self._mounted}: this overlay is mounted already")
        target = self._target or Path(tempfile.mkdtemp(prefix="pyoverlay-"))
        try:
            _run_mount(self._mount_words(target))
        except BaseException:
            # Also when interrupted: the daemon may just have got live.
            with contextlib.suppress(OverlayError):
                device.unmount(str(target), lazy=True)
            self._remove_target(target)
            raise
        self._mounted = target
        return target

    def unmount(self, *, lazy: bool = False) -> None:
        """Unmount and wait until the daemon has gone; nothing when it isn't mounted.

        Args:
            lazy: detach the mount even while it is in use, and don't wait.

        Raises:
            OverlayError: the mount is in use.
        """
        if self._mounted is None:
            return
        unmount(self._mounted, lazy=lazy)
        target, self._mounted = self._mounted, None
        self._remove_target(target)

    def changes(self) -> list[Change]:
        """Return what the upper changed against the lowers, mounted or not.

        Returns:
            The changes, sorted by path; see `pyoverlay.layers.changes`.

        Raises:
            OverlayError: there is no upper, or a layer can't be read.
        """
        if self.upper is None:
            raise OverlayError("an overlay without an upper directory is read-only and has no changes")
        return find_changes(self.upper, self.lower)

    def __enter__(self) -> Path:
        return self.mount()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.unmount()
        except OverlayError:
            # Something in the merged view is still open, by a traceback's frames for one.
            self.unmount(lazy=True)

    def _mount_words(self, target: Path) -> list[str]:
        words = [f"-o{text}" for text in self.options if text]
        words += [f"--lower={path}" for path in self.lower]
        if self.upper is not None:
            words.append(f"--upper={self.upper}")
        if self.work is not None:
            words.append(f"--work={self.work}")
        return [*words, "--", str(target)]

    def _remove_target(self, target: Path) -> None:
        if self._target is None:
            with contextlib.suppress(OSError):
                target.rmdir()


def unmount(target: AnyPath, *, lazy: bool = False) -> None:
    """Unmount a pyoverlay mount and wait until its daemon has gone.

    Args:
        target: the directory that it is mounted on.
        lazy: detach it even while it is in use, and don't wait: the daemon goes with the last user.

    Raises:
        OverlayError: no pyoverlay is mounted there, it is in use, or it is still used from elsewhere.
    """
    path = _absolute(target)
    with _daemon(path) as daemon:
        device.unmount(path, lazy=lazy)
        if daemon is not None and not lazy:
            _wait_for_end(daemon, path)


def changes(path: AnyPath, lower: Sequence[AnyPath] | None = None) -> list[Change]:
    """Return what a mount's upper, or an upper directory, changed.

    Args:
        path: the directory that a pyoverlay is mounted on, or an upper directory.
        lower: the upper's lowers, topmost first.  When None, they are those of the mount, or of a live mount
            that uses the upper; if there is none, only the marks in the upper can tell, see
            `pyoverlay.layers.changes.find_changes`.

    Returns:
        The changes, sorted by path.

    Raises:
        OverlayError: a directory can't be read, or the mount has no upper.
    """
    absolute = _absolute(path)
    if lower is not None:
        return find_changes(absolute, [_absolute(layer) for layer in lower])
    mounted = _mounted_at(absolute)
    if mounted is None:
        mounted = _mount_using(absolute)
    if mounted is None:
        return find_changes(absolute, None)
    upper, lowers = mounted
    if upper is None:
        raise OverlayError(f"{absolute}: this mount has no upper directory, so nothing was changed")
    return find_changes(upper, lowers)


def inspect(target: AnyPath) -> dict[str, object]:
    """Return what a mount's daemon tells about it, in the shape of docker's ``GraphDriver``.

    Args:
        target: the directory that a pyoverlay is mounted on.

    Returns:
        ``Name``; ``Data`` with ``LowerDir`` (joined by colons), ``UpperDir``, ``WorkDir`` (these two only of
        a mount that has them) and ``MergedDir``; ``Options``; ``Pid`` of the daemon; ``Requests``, how many
        the daemon served by operation; ``RequestsByPath``, how many of them were answered at once and how
        many by pyfuse3; ``LayerSyscalls``, how many system calls on layers that took.

    Raises:
        OverlayError: no pyoverlay is mounted there.
    """
    answer = control.inspect(_absolute(target))
    options = cast("dict[str, object]", answer["options"])
    data: dict[str, object] = {"LowerDir": join_lowerdir(_lowers(options))}
    for key, name in (("UpperDir", "upperdir"), ("WorkDir", "workdir")):
        if options[name] is not None:
            data[key] = options[name]
    data["MergedDir"] = answer["target"]
    return {
        "Name": "pyoverlay",
        "Data": data,
        "Options": options,
        "Pid": answer["pid"],
        "Requests": answer["requests"],
        "RequestsByPath": answer["requests_by_path"],
        "LayerSyscalls": answer["layer_syscalls"],
    }


def _absolute(path: AnyPath) -> str:
    return os.path.abspath(os.fsdecode(path))


def _lowers(options: dict[str, object]) -> tuple[str, ...]:
    return tuple(cast("Sequence[str]", options["lowerdir"]))


def _layers(answer: dict[str, object]) -> tuple[str | None, tuple[str, ...]]:
    options = cast("dict[str, object]", answer["options"])
    return cast("str | None", options["upperdir"]), _lowers(options)


def _mounted_at(path: str) -> tuple[str | None, tuple[str, ...]] | None:
    try:
        return _layers(control.inspect(path))
    except OverlayError:
        return None


def _mount_using(upper: str) -> tuple[str | None, tuple[str, ...]] | None:
    for answer in control.mounts():
        used, lowers = _layers(answer)
        # A daemon in another mount namespace may mean other directories by the same paths.
        with contextlib.suppress(OSError):
            if used is not None and os.path.samefile(used, upper):
                return used, lowers
    return None


def _run_mount(words: list[str]) -> None:
    package_parent = str(Path(__file__).resolve().parents[1])
    inherited = os.environ.get("PYTHONPATH")
    python_path = package_parent + (os.pathsep + inherited if inherited else "")
    # -P: a directory "pyoverlay" or "trio" where the caller happens to stand must not be imported.
    result = subprocess.run(
        [sys.executable, "-P", "-m", "pyoverlay", "mount", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": python_path},
        check=False,
    )
    if result.returncode != 0:
        text = os.fsdecode(result.stderr).strip().removeprefix("pyoverlay: ")
        raise OverlayError(text or f"pyoverlay mount failed with status {result.returncode}")


@contextlib.contextmanager
def _daemon(target: str) -> Iterator[int | None]:
    """Hold the daemon behind a mount by a pidfd; None when it has died, but its mount is still there."""
    try:
        pid = cast("int", control.inspect(target)["pid"])
        descriptor = os.pidfd_open(pid)
    except (OverlayError, ProcessLookupError):
        if not _is_dead_mount(target):
            raise
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _is_dead_mount(target: str) -> bool:
    try:
        os.stat(target)
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


def _wait_for_end(daemon: int, target: str) -> None:
    ended, _, _ = select.select([daemon], [], [], _DAEMON_END_LIMIT)
    if not ended:
        raise OverlayError(
            f"{target} is unmounted, but its daemon still runs after {_DAEMON_END_LIMIT} seconds: "
            "another mount namespace uses the mount, or a layer's file system doesn't answer"
        )
