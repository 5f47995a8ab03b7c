"""``pyoverlay container run`` and ``start``: how is a container asked for?"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Final

from pyoverlay.cli.containers import arguments
from pyoverlay.cli.containers.arguments import parser
from pyoverlay.options import OptionError

if TYPE_CHECKING:
    from pyoverlay.containers.engine.keeping import Containers, Held

_RUN: Final = """
The container gets a writable layer of its own over the image's layers, and new mount, pid, uts and ipc
namespaces with its own /proc and /dev; it shares the host's network. What the image says holds where nothing
else is asked for: Entrypoint, Cmd (which CMD takes the place of; with --entrypoint, it doesn't count), Env,
WorkingDir (made if it is missing), User. Names of users and groups are looked up in the image's own
/etc/passwd and /etc/group. Volumes aren't made: what is written there is in the container's layer.

This is a chroot with amenities, not a wall: root in it is root.

The container is kept, with its changes, until it is removed: see 'pyoverlay container list', 'diff',
'commit', 'start' and 'remove'. The exit status is the command's; 128 and its number after a signal; 127 when
the command isn't found and 126 when it can't be executed; 1 when something else fails before it starts.
"""
_START: Final = """
It runs as it was first asked for, with the changes that it has. The exit status is the command's, as with
'pyoverlay container run'.
"""


def run(words: list[str]) -> int:
    """Make a container, run it, and return its command's exit status."""
    asked = _parse(words)
    from pyoverlay import sandbox  # noqa: PLC0415  # --help must not wait for it
    from pyoverlay.containers.engine.record import BindRecord  # noqa: PLC0415
    from pyoverlay.containers.engine.settings import Asked  # noqa: PLC0415

    binds = [sandbox.Bind.parse(text) for text in asked.bind]
    wanted = Asked(
        command=asked.command,
        entrypoint=asked.entrypoint,
        environment=asked.env,
        directory=asked.workdir,
        user=asked.user,
    )
    containers = arguments.containers(asked)
    with containers.made(
        asked.image,
        wanted,
        name=asked.name,
        binds=[BindRecord(bind.source, bind.target, bind.read_only) for bind in binds],
    ) as held:
        return _run(containers, held, remove=asked.rm)


def start(words: list[str]) -> int:
    """Run a container again, and return its command's exit status."""
    found = parser("start", "Run a container's command again, over what the container has changed.", _START)
    found.add_argument("name", metavar="NAME", help="the container")
    asked = found.parse_args(words)
    containers = arguments.containers(asked)
    with containers.held(asked.name) as held:
        return _run(containers, held, remove=False)


def _run(containers: Containers, held: Held, *, remove: bool) -> int:
    from pyoverlay import sandbox  # noqa: PLC0415  # --help must not wait for it
    from pyoverlay.containers.engine import running  # noqa: PLC0415

    try:
        return running.run(containers, held)
    except sandbox.SandboxError as error:
        print(f"pyoverlay: {error}", file=sys.stderr)
        return error.status
    finally:
        if remove:
            containers.remove(held)


def _parse(words: list[str]) -> argparse.Namespace:
    found = parser("run", "Run a command over an image, with a writable layer of its own.", _RUN)
    found.usage = "pyoverlay container run [option]... IMAGE [-- CMD [ARGUMENT]...]"
    found.add_argument("image", metavar="IMAGE", help="a name, or the beginning of an ID")
    found.add_argument(
        "--name", metavar="NAME", help="what the container is called (default: the image's name and a number)"
    )
    found.add_argument("--rm", action="store_true", help="remove the container when its command has ended")
    found.add_argument(
        "--env", action="append", default=[], metavar="K=V", help="set a variable; repeat it for more"
    )
    found.add_argument("--workdir", metavar="D", help="where the command starts")
    found.add_argument(
        "--user", metavar="USER[:GROUP]", help="whom the command runs as, in names or numbers of the image's"
    )
    found.add_argument(
        "--bind",
        action="append",
        default=[],
        metavar="SRC:DST[:ro]",
        help="show a file or directory of the host at DST; repeat it for more",
    )
    found.add_argument(
        "--entrypoint", metavar="E", help="the program in place of the image's; an empty word for none"
    )
    # Only the first "--" is ours, and what stands behind it nobody's but the command's.
    before, after = _split(words)
    asked = found.parse_args(before)
    asked.command = after
    for text in asked.env:
        name, equals, _ = text.partition("=")
        if not (name and equals):
            raise OptionError(f"--env {text}: write NAME=VALUE")
    return asked


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    if "--" not in words:
        return words, []
    position = words.index("--")
    return words[:position], words[position + 1 :]
