"""``pyoverlay container commit`` and ``remove``: how does a container end?"""

from __future__ import annotations

from typing import Final

from pyoverlay.cli.containers import arguments
from pyoverlay.cli.containers.arguments import parser

_COMMIT: Final = """
The layer of the container's changes goes on top of its image's layers; the configuration says how the
container ran (variables, command, user, directory), changed by the instructions of --change, in their order:
CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR. The container stays as it is. With
SOURCE_DATE_EPOCH set, the same container gives the same image, byte by byte.

A running container isn't paused: what it writes meanwhile is in the image or isn't.
"""


def commit(words: list[str]) -> int:
    """Make an image of a container, print the image's ID, and return 0."""
    found = parser("commit", "Make an image of a container.", _COMMIT)
    found.add_argument("name", metavar="NAME", help="the container")
    found.add_argument("image", metavar="IMAGE", help="the image's name: [REGISTRY/]NAME[:TAG]")
    found.add_argument("--message", default="", metavar="TEXT", help="a comment for the history")
    found.add_argument("--author", default="", metavar="NAME", help="who made it")
    found.add_argument(
        "--change",
        action="append",
        default=[],
        metavar="TEXT",
        help="""an instruction as in a Dockerfile, 'CMD ["ls"]' say; repeat it for more""",
    )
    asked = found.parse_args(words)
    from pyoverlay.containers.engine import committing  # noqa: PLC0415  # --help must not wait for it
    from pyoverlay.images import references  # noqa: PLC0415

    image_id = committing.commit(
        arguments.containers(asked),
        asked.name,
        references.normalize(asked.image),
        author=asked.author,
        message=asked.message,
        changes=asked.change,
    )
    print(image_id)
    return 0


def remove(words: list[str]) -> int:
    """Remove containers, and print their names."""
    found = parser(
        "remove",
        "Remove containers, with all that they changed.",
        "A running container is refused, unless --force ends it, by SIGKILL.",
    )
    found.add_argument("names", nargs="+", metavar="NAME", help="a container")
    found.add_argument("--force", action="store_true", help="end it first if it is running")
    asked = found.parse_args(words)
    from pyoverlay.containers.engine import occupation  # noqa: PLC0415  # --help must not wait for it
    from pyoverlay.containers.engine.record import ContainerError  # noqa: PLC0415

    containers = arguments.containers(asked)
    for name in asked.names:
        containers.record(name)
    for name in asked.names:
        try:
            with containers.held(name, kill=asked.force) as held:
                containers.remove(held)
        except occupation.RunningError as error:
            raise ContainerError(f"{error}: end it first, or write --force") from error
        print(name)
    return 0
