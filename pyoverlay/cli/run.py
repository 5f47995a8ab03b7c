"""``pyoverlay run``: how is a command in a sandbox asked for?"""

from __future__ import annotations

import argparse
import sys
from typing import Final

from pyoverlay.cli import arguments
from pyoverlay.cli.mount import asked_options
from pyoverlay.options import OptionError

_EPILOG: Final = """
The command gets new mount, pid, uts and ipc namespaces, the merged view as its root, and over that its own
/proc, a /dev with null, zero, full, random, urandom, tty and new terminals, and /sys read-only.  It starts
with PATH, HOME and TERM only, and shares the host's network.  This is a chroot with amenities, not a wall:
root in it is root.

Without --upper the changes go to a temporary directory in TMPDIR and are thrown away.  A mount point that the
layers lack, /proc say, is created in the upper, and removed again if nobody has put anything into it.

The exit status is the command's; 128 and its number after a signal; 127 when the command isn't found and 126
when it can't be executed; 1 when something else fails before it starts.
"""


def main(words: list[str]) -> int:
    """Run the command, and return its exit status.

    Raises OverlayError when the words are wrong.
    """
    asked = _parse(words)
    options = asked_options(asked)
    from pyoverlay import sandbox  # noqa: PLC0415  # --help must not wait for it

    command = sandbox.Command(
        words=tuple(asked.command),
        environment=dict(_variable(text) for text in asked.env),
        directory=asked.workdir,
        user=_user(asked.user),
        binds=tuple(sandbox.Bind.parse(text) for text in asked.bind),
    )
    try:
        return sandbox.run(options, command)
    except sandbox.SandboxError as error:
        print(f"pyoverlay: {error}", file=sys.stderr)
        return error.status


def _parse(words: list[str]) -> argparse.Namespace:
    parser = arguments.ArgumentParser(
        "run", "Run a command with the merged view of some directories as its root directory.", _EPILOG
    )
    parser.usage = (
        "pyoverlay run --lower DIR [--lower DIR]... [--upper DIR --work DIR] [option]... -- CMD [ARGUMENT]..."
    )
    arguments.add_layers(parser)
    parser.add_argument(
        "-o", dest="options", action="append", default=[], metavar="OPTIONS", help="mount options"
    )
    parser.add_argument(
        "--bind",
        action="append",
        default=[],
        metavar="SRC:DST[:ro]",
        help="show a file or directory of the host at DST; repeat it for more",
    )
    parser.add_argument(
        "--env", action="append", default=[], metavar="K=V", help="set a variable; repeat it for more"
    )
    parser.add_argument("--workdir", default="/", metavar="D", help="where the command starts (default: /)")
    parser.add_argument(
        "--user", default="0:0", metavar="UID:GID", help="whom the command runs as, in numbers (default: 0:0)"
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="CMD", help=argparse.SUPPRESS)
    asked = parser.parse_args(words)
    # Only the first "--" is ours; argparse's versions differ in whether they take it away.
    if asked.command[:1] == ["--"]:
        del asked.command[0]
    if not asked.command:
        raise OptionError("no command is given: write it after --; see 'pyoverlay run --help'")
    return asked


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise OptionError(f"--env {text}: write NAME=VALUE")
    return name, value


def _user(text: str) -> tuple[int, int]:
    user, _, group = text.partition(":")
    if not (user.isascii() and user.isdigit() and group.isascii() and group.isdigit()):
        raise OptionError(f"--user {text}: write UID:GID in numbers")
    return int(user), int(group)
