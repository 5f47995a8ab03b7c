"""``pyoverlay unmount``: how does a person end a mount?"""

from __future__ import annotations

from pyoverlay.cli import arguments


def main(words: list[str]) -> int:
    """Unmount, and return 0 when the daemon has gone.

    Raises OverlayError when TARGET is no pyoverlay mount, or is in use.
    """
    parser = arguments.ArgumentParser(
        "unmount", "End the mount at TARGET, and wait until its daemon has gone."
    )
    parser.add_argument("target", metavar="TARGET", help="the directory that is mounted on")
    parser.add_argument(
        "-l",
        "--lazy",
        action="store_true",
        help="detach it even while it is in use, and don't wait: the daemon goes with the last user",
    )
    asked = parser.parse_args(words)
    from pyoverlay import api  # noqa: PLC0415  # --help must not wait for it

    api.unmount(asked.target, lazy=asked.lazy)
    return 0
