"""How is /dev/fuse opened, mounted and unmounted?

With the right to mount, mount(2); without it, `fusermount`.  It knows nothing of the overlay.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from dataclasses import dataclass

from pyoverlay.layers import syscalls
from pyoverlay.options import MountOptions, OverlayError

log = logging.getLogger(__name__)

MAX_TRANSFER = 1024 * 1024
"""Bytes in one READ or WRITE: as much as the kernel is ready for (fs/fuse: FUSE_MAX_MAX_PAGES)."""
MAX_PAIR_TRANSFER = 128 * 1024
"""Bytes in one READ or WRITE that passes a socket pair with the default send buffer."""
READAHEAD = 256 * 1024
"""Bytes that the kernel reads ahead: it asks half as often as with its own 128 KiB, for files read in order
and maps read all over.  With more, a map of which little is read costs more than all others gain."""

_READAHEAD_SETTING = "/sys/class/bdi/{}/read_ahead_kb"


class MountError(OverlayError):
    """The mount, or its end, failed."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A mounted FUSE device: descriptor, mount point, and the mount's device number (``0:57``)."""

    descriptor: int
    target: str
    device_number: str


@dataclass(frozen=True, slots=True)
class Label:
    """How the mount table shows a mount: as of type ``fuse.NAME``, and from where."""

    name: str
    source: str


def refuse_bad_target(target: str) -> None:
    """Raise MountError when ``target`` can't be mounted on."""
    try:
        status = os.stat(target)
    except FileNotFoundError:
        raise MountError(f"mount point {target}: no such directory: create it first") from None
    except OSError as failure:
        hint = ": a dead mount? try umount -l" if failure.errno == errno.ENOTCONN else ""
        raise MountError(f"mount point {target}: {failure.strerror}{hint}") from None
    if not stat.S_ISDIR(status.st_mode):
        raise MountError(f"mount point {target}: not a directory")


def refuse_missing_device() -> None:
    """Raise MountError when there is no usable /dev/fuse."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as failure:
        raise MountError(
            f"/dev/fuse: {failure.strerror}: load the fuse module (modprobe fuse), "
            "or give this container the device"
        ) from None


def connect(options: MountOptions, target: str, label: Label) -> Connection:
    """Mount a FUSE device at ``target`` (an absolute path), shown as ``label`` says.

    Raises MountError with nothing mounted.
    """
    try:
        descriptor = _mount(options, target, label)
    except PermissionError:
        from pyoverlay.fuse import fusermount  # noqa: PLC0415 - root needs nothing of what it imports

        descriptor = fusermount.mount(options, target, label)
    except OSError as failure:
        raise MountError(f"can't mount on {target}: {failure.strerror}") from None
    os.set_blocking(descriptor, False)
    number = device_number(target)
    assert number is not None
    return Connection(descriptor, target, number)


def _mount(options: MountOptions, target: str, label: Label) -> int:
    descriptor = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    data = [
        f"fd={descriptor}",
        f"rootmode={stat.S_IFDIR:o}",
        f"user_id={os.geteuid()}",
        f"group_id={os.getegid()}",
        f"max_read={max_transfer(options)}",
        *permission_options(options),
    ]
    try:
        syscalls.mount(
            os.fsencode(label.source),
            os.fsencode(target),
            b"fuse." + os.fsencode(label.name),
            _mount_flags(options),
            ",".join(data).encode(),
        )
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def max_transfer(options: MountOptions) -> int:
    """Return how many bytes one READ or WRITE has at most: those of the fast path pass no pair."""
    return MAX_TRANSFER if options.fast_path else MAX_PAIR_TRANSFER


def raise_readahead(device_number: str, options: MountOptions) -> None:
    """Let the kernel read ahead `READAHEAD` of a mount that has answered INIT, where we may say so.

    It would be 128 KiB: no more is offered in INIT, though requests may be larger.
    """
    size = min(READAHEAD, max_transfer(options))
    try:
        with open(_READAHEAD_SETTING.format(device_number), "w", encoding="ascii") as setting:
            setting.write(f"{size // 1024}\n")
    except OSError as failure:
        log.debug("the kernel reads ahead what it does by itself: %s", failure)


def permission_options(options: MountOptions) -> list[str]:
    """Return the mount options that say who may use a mount."""
    wanted = []
    if options.default_permissions:
        wanted.append("default_permissions")
    if options.allow_other:
        wanted.append("allow_other")
    return wanted


def _mount_flags(options: MountOptions) -> int:
    flags = 0
    for applies, flag in (
        (not options.writable, syscalls.MS_RDONLY),
        (not options.suid, syscalls.MS_NOSUID),
        (not options.dev, syscalls.MS_NODEV),
        (not options.exec, syscalls.MS_NOEXEC),
        (not options.atime, syscalls.MS_NOATIME),
    ):
        if applies:
            flags |= flag
    return flags


def unmount(target: str, *, lazy: bool = False) -> None:
    """Unmount ``target``; ``lazy`` detaches it at once, though files are open.

    Raises MountError.
    """
    flags = syscalls.UMOUNT_NOFOLLOW | (syscalls.MNT_DETACH if lazy else 0)
    try:
        syscalls.unmount(os.fsencode(target), flags)
    except PermissionError:
        from pyoverlay.fuse import fusermount  # noqa: PLC0415 - as above

        fusermount.unmount(target, lazy=lazy)
    except OSError as failure:
        raise MountError(f"can't unmount {target}: {_unmount_reason(failure)}") from None


def _unmount_reason(failure: OSError) -> str:
    if failure.errno == errno.EBUSY:
        return "in use: end what has files open or its working directory there, or detach it with --lazy"
    if failure.errno == errno.EINVAL:
        return "not a mount point"
    return failure.strerror or "it failed"


def device_number(target: str) -> str | None:
    """Return the ``major:minor`` of what is mounted at ``target``, None when nothing is.

    Read from /proc/self/mountinfo, without a request to the mount's daemon.
    """
    wanted = _escape(os.fsencode(target))
    found = None
    with open("/proc/self/mountinfo", "rb") as lines:
        for line in lines:
            fields = line.split(b" ")
            if fields[4] == wanted:
                found = fields[2].decode("ascii")
    return found


def _escape(path: bytes) -> bytes:
    """fs/proc_namespace.c escapes blanks, newlines, backslashes and hashes in octal."""
    return b"".join(b"\\%03o" % byte if byte in b" \t\n\\#" else bytes([byte]) for byte in path)
