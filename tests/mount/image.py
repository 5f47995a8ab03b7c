"""What does a small image look like, for commands to run in?"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.harness import Stack, make_stack

BUSYBOX = Path("/bin/busybox")
LONG_AGO = 10**18
_PROGRAMS = (
    "sh",
    "ls",
    "cat",
    "env",
    "id",
    "stat",
    "readlink",
    "touch",
    "rm",
    "pwd",
    "sleep",
    "echo",
    "mkdir",
    "true",
)


def make_image_stack(base: Path) -> Stack:
    """Create two lowers, the lower of them an image with a shell and without any directory to mount on."""
    stack = make_stack(base / "stack", lowers=2)
    top, image = stack.lowers
    (image / "bin").mkdir()
    shutil.copy(BUSYBOX, image / "bin/busybox")
    for name in _PROGRAMS:
        (image / "bin" / name).symlink_to("busybox")
    (image / "etc").mkdir()
    (image / "etc/passwd").write_text("root:x:0:0::/home/root:/bin/sh\nuser:x:5:6::/home/user:/bin/sh\n")
    (top / "from-the-top").write_text("top\n")
    for directory in (top, image):
        os.utime(directory, ns=(LONG_AGO, LONG_AGO))
    return stack


def lowers(stack: Stack) -> list[str]:
    """The words for the command line that name the lowers."""
    return [f"--lower={lower}" for lower in stack.lowers]


def layers(stack: Stack) -> list[str]:
    """The words for the command line that name all layers."""
    return [*lowers(stack), f"--upper={stack.upper}", f"--work={stack.work}"]
