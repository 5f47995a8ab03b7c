"""What is the small image of the tests with engines? busybox, and a few files to change."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

_FILE: Final = """\
FROM scratch
COPY bin /bin
RUN mkdir /d /e && echo old | tee /d/f /d/g /e/h > /dev/null && chmod 4711 /e/h && chown 5:6 /e/h
"""

MADE_ANEW: Final = "rm -rf /d && mkdir /d && echo new > /d/g"
"""A script that leaves only the file g in /d."""


def write_context(directory: Path) -> Path:
    """Fill a directory, which is made, with what a build takes, `Dockerfile` among it; return it."""
    programs = directory / "bin"
    programs.mkdir(parents=True)
    shutil.copy("/bin/busybox", programs)
    applets = subprocess.run(["busybox", "--list"], capture_output=True, text=True, check=True).stdout.split()
    for name in applets:
        if name != "busybox":
            (programs / name).symlink_to("busybox")
    (directory / "Dockerfile").write_text(_FILE)
    return directory
