"""``pyoverlay inspect``: what does a mount's daemon tell about it?"""

from __future__ import annotations

import json

from pyoverlay.cli import arguments


def main(words: list[str]) -> int:
    """Print the answer of the mount's daemon as JSON, and return 0.

    Raises OverlayError when TARGET is no pyoverlay mount.
    """
    parser = arguments.ArgumentParser(
        "inspect",
        "Show the layers, options and counters of the mount at TARGET, as JSON in the shape of docker's "
        "GraphDriver.",
    )
    parser.add_argument("target", metavar="TARGET", help="the directory that is mounted on")
    asked = parser.parse_args(words)
    from pyoverlay import api  # noqa: PLC0415  # --help must not wait for it

    print(json.dumps(api.inspect(asked.target), indent=2))
    return 0
