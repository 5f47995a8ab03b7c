"""Where does a test get a file system of its own? In an image in memory, so that nobody waits for a disk."""

import contextlib
import errno
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.harness import libc
from tests.harness.mounting import Kind, Mount
from tests.harness.stack import make_stack

_MEMORY = Path("/dev/shm")
_SIZE = 1 << 30
_SECONDS_TO_LET_GO = 10
_MAKE = {"ext4": ["mkfs.ext4", "-q", "-F"], "xfs": ["mkfs.xfs", "-q", "-f"], "btrfs": ["mkfs.btrfs", "-q"]}


@contextlib.contextmanager
def file_system(kind: str) -> Iterator[Path]:
    """A fresh, mounted file system of 1 GiB at most; removed afterwards.

    kind: ext4, xfs, btrfs, tmpfs, or overlay (the kernel's, over ext4). Raises CalledProcessError when it
    can't be made or mounted.
    """
    if kind == "overlay":
        with file_system("ext4") as below, Mount(Kind.KERNEL, make_stack(below / "stack")) as mount:
            yield mount.path
        return
    directory = Path(tempfile.mkdtemp(prefix="disk-", dir=_MEMORY if _MEMORY.is_dir() else None))
    place, image = directory / "d", directory / "image"
    place.mkdir()
    try:
        if kind == "tmpfs":
            libc.mount("tmpfs", place, "tmpfs")
        else:
            with image.open("wb") as file:
                file.truncate(_SIZE)
            subprocess.run([*_MAKE[kind], str(image)], check=True)
            subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)
        os.chmod(place, 0o755)
        os.chmod(directory, 0o755)
        try:
            yield place
        finally:
            _unmount(place)
    finally:
        shutil.rmtree(directory)


def _unmount(place: Path) -> None:
    """Unmounts what a daemon that has just ended used: the kernel may let go of its files a little later."""
    deadline = time.monotonic() + _SECONDS_TO_LET_GO
    while True:
        try:
            libc.umount(place)
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.01)
