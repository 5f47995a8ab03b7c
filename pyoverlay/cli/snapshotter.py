"""``pyoverlay snapshotter``: how is the snapshotter for containerd started?"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Final

from pyoverlay.cli import arguments
from pyoverlay.options import OverlayError

_LIBRARIES: Final = {"grpc": "grpcio", "google.protobuf": "protobuf"}
_MOUNT_HELPER: Final = "mount.fuse3"
_SYSTEM_DIRECTORIES: Final = ("/usr/sbin", "/sbin")
_EPILOG: Final = """
It answers until SIGTERM.  In containerd's config.toml:

  [proxy_plugins.pyoverlay]
    type = "snapshot"
    address = "SOCK"

containerd itself mounts what a container needs, by mount.fuse3(8) (Debian's package fuse3), so containers run
on when the snapshotter ends, and it can be restarted at any time.  docs/containerd.md tells the rest.
"""


def main(words: list[str]) -> int:
    """Answer containerd until a signal says to end, and return 0.

    Raises OverlayError when a library is missing, or when root or socket can't be used.
    """
    parser = arguments.ArgumentParser(
        "snapshotter", "Keep containerd's images and containers as layers: a proxy snapshotter.", _EPILOG
    )
    parser.add_argument("--root", metavar="DIR", required=True, help="where snapshots are kept")
    parser.add_argument("--address", metavar="SOCK", required=True, help="the Unix socket to listen on")
    parser.add_argument(
        "--program",
        metavar="PATH",
        help="the pyoverlay that mount.fuse3 calls to mount: a path, or a name in containerd's PATH "
        "(default: this one)",
    )
    parser.add_argument("-d", "--debug", action="store_true", help="log more")
    asked = parser.parse_args(words)
    _require_libraries()
    if os.geteuid() != 0:
        raise OverlayError("the snapshotter makes layers of any owner: run it as root, as containerd is")
    program = asked.program or _own_program()
    from pyoverlay.containers.snapshotter import server  # noqa: PLC0415  # --help must not need gRPC

    server.set_up_log(debug=asked.debug)
    _warn_without_mount_helper()
    server.serve(Path(os.path.abspath(asked.root)), Path(os.path.abspath(asked.address)), program)
    return 0


def _require_libraries() -> None:
    missing = [name for module, name in _LIBRARIES.items() if not _is_installed(module)]
    if missing:
        raise OverlayError(
            f"the snapshotter needs {' and '.join(missing)}, which isn't installed: "
            "pip install 'pyoverlay-fuse[containerd]'"
        )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _warn_without_mount_helper() -> None:
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *_SYSTEM_DIRECTORIES])
    if shutil.which(_MOUNT_HELPER, path=path) is None:
        logging.getLogger(__name__).warning(
            "there is no %s, by which containerd mounts: install it (Debian's package fuse3)", _MOUNT_HELPER
        )


def _own_program() -> str:
    """Return a path by which another process calls what we were called as."""
    found = shutil.which(sys.argv[0])
    if found is None:
        found = shutil.which("pyoverlay")
    if found is None:
        raise OverlayError(
            "there is no command 'pyoverlay' that containerd could call to mount: name it with --program"
        )
    return os.path.abspath(found)
