"""``pyoverlay container list``, ``inspect`` and ``diff``: how is what is known of containers printed?"""

from __future__ import annotations

import datetime as dt
import json
import shlex
from typing import Final

from pyoverlay.cli.changes import print_changes
from pyoverlay.cli.containers import arguments
from pyoverlay.cli.containers.arguments import parser
from pyoverlay.cli.images.arguments import size_text
from pyoverlay.cli.images.listing import print_table

_LONGEST_COMMAND: Final = 40
"""Characters of a command in the table."""


def list_containers(words: list[str]) -> int:
    """Print a table of the containers, the newest first."""
    found = parser("list", "List the containers: the newest first, with the size of what each has changed.")
    found.add_argument("--json", action="store_true", help="print JSON")
    asked = found.parse_args(words)
    from pyoverlay.containers.engine import inspecting  # noqa: PLC0415  # --help must not wait for it

    containers = arguments.containers(asked)
    rows = inspecting.rows(containers)
    if asked.json:
        print(json.dumps(rows, indent=2))
        return 0
    print_table(
        ("NAME", "IMAGE", "COMMAND", "CREATED", "STATUS", "SIZE"),
        [
            (
                row["Name"],
                row["Image"],
                _shortened(shlex.join(row["Command"])),
                dt.datetime.fromisoformat(row["Created"][:19]).strftime("%Y-%m-%d %H:%M"),
                row["Status"],
                size_text(row["Size"]),
            )
            for row in rows
        ],
    )
    return 0


def _shortened(command: str) -> str:
    line = " ".join(command.split())
    return line if len(line) <= _LONGEST_COMMAND else f"{line[: _LONGEST_COMMAND - 3]}..."


def inspect(words: list[str]) -> int:
    """Print docker's JSON about containers."""
    found = parser(
        "inspect",
        "Show containers as JSON, in the shape of docker container inspect.",
        "GraphDriver.Data has the container's directories. MergedDir is mounted only while the container\n"
        "runs, and only for its processes: it is /proc/PID/root, with State.Pid.",
    )
    found.add_argument("names", nargs="+", metavar="NAME", help="a container")
    asked = found.parse_args(words)
    from pyoverlay.containers.engine import inspecting  # noqa: PLC0415  # --help must not wait for it

    containers = arguments.containers(asked)
    described = [inspecting.inspect(containers, containers.record(name)) for name in asked.names]
    print(json.dumps(described, indent=4))
    return 0


def diff(words: list[str]) -> int:
    """Print what a container changed."""
    found = parser(
        "diff", "List what a container added (A), changed (C) and deleted (D), as docker diff does."
    )
    found.add_argument("name", metavar="NAME", help="the container")
    found.add_argument("--json", action="store_true", help="print JSON")
    asked = found.parse_args(words)
    from pyoverlay.containers.engine import inspecting  # noqa: PLC0415  # --help must not wait for it

    containers = arguments.containers(asked)
    changes = inspecting.changes(containers, containers.record(asked.name))
    print_changes(changes, as_json=asked.json)
    return 0
