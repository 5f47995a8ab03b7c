"""How is a FUSE device mounted without the right to mount?

By fusermount3, which has it (setuid root) and hands the opened device back over a socket.
"""

from __future__ import annotations

import array
import os
import shutil
import socket
import subprocess

from pyoverlay.fuse.device import Label, MountError, max_transfer, permission_options
from pyoverlay.options import MountOptions


def mount(options: MountOptions, target: str, label: Label) -> int:
    """Let fusermount3 mount a FUSE device at ``target``; return its descriptor.

    Source: lib/mount.c: fuse_mount_fusermount in libfuse.  Raises MountError.
    """
    program = _program(f"can't mount on {target}: mounting")
    source = label.source.replace("\\", "\\\\").replace(",", "\\,")
    wanted = [f"fsname={source}", f"subtype={label.name}", f"max_read={max_transfer(options)}"]
    wanted += permission_options(options)
    for applies, word in (
        (not options.writable, "ro"),
        (not options.exec, "noexec"),
        (not options.atime, "noatime"),
    ):
        if applies:
            wanted.append(word)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        finished = subprocess.run(
            [program, "-o", ",".join(wanted), "--", target],
            env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
        )
        if finished.returncode:
            said = finished.stderr.decode(errors="replace").strip() or "fusermount3 failed"
            raise MountError(f"can't mount on {target}: {said}")
        return _receive_descriptor(ours)


def _receive_descriptor(connection: socket.socket) -> int:
    descriptors = array.array("i")
    _data, ancillary, _flags, _address = connection.recvmsg(1, socket.CMSG_SPACE(descriptors.itemsize))
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(payload[: descriptors.itemsize])
            os.set_inheritable(descriptors[0], False)
            return descriptors[0]
    raise MountError("fusermount3 mounted, but sent no device")


def unmount(target: str, *, lazy: bool) -> None:
    """Let fusermount3 unmount ``target``; ``lazy`` detaches it at once.  Raises MountError."""
    program = _program(f"can't unmount {target}: it")
    command = [program, "-u", *(["-z"] if lazy else []), "--", target]
    finished = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if finished.returncode:
        said = finished.stderr.decode(errors="replace").strip()
        raise MountError(f"can't unmount {target}: {said or 'fusermount3 failed'}")


def _program(what: str) -> str:
    program = shutil.which("fusermount3")
    if program is None:
        raise MountError(f"{what} needs root, or the program fusermount3 (package fuse3)") from None
    return program
