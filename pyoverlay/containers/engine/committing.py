"""How does what a container changed become one more layer, of an image for others to use?

As with docker, the new image's configuration says how the container ran: its variables, command, user and
directory. A container that runs isn't paused, as podman's aren't: what it writes meanwhile is in the layer or
isn't. A layer that changed too quickly to be read is read again.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

from pyoverlay.containers.engine import instructions
from pyoverlay.containers.engine.keeping import Containers
from pyoverlay.containers.engine.occupation import RunningError
from pyoverlay.containers.engine.record import ContainerError, ContainerRecord
from pyoverlay.images import committing
from pyoverlay.images.committing import Beneath, Commit
from pyoverlay.images.digests import Digest, parse_digest
from pyoverlay.images.errors import ImageError

_TRIES: Final = 5
"""How often the upper of a running container is read."""


def commit(
    containers: Containers,
    name: str,
    image: str,
    *,
    author: str = "",
    message: str = "",
    changes: Sequence[str] = (),
) -> Digest:
    """Make an image of a container, and return the image's ID.

    Args:
        containers: where it is.
        name: the container.
        image: the full name of the image; another image that has it loses it.
        author: who made it; empty when nobody says.
        message: what the history says about it.
        changes: instructions as in a Dockerfile, see `instructions`.

    Raises:
        ContainerError: there is no such container; a running one changes too quickly.
        OptionError: an instruction is wrong.
        ImageError: the upper can't be packed; nothing is added.
    """
    with _readable(containers, name) as (record, running):
        wanted = Commit(
            upper=str(containers.upper(name)),
            base=Beneath(
                (containers.directory(name) / "config").read_bytes(),
                [parse_digest(layer) for layer in record.layers],
            ),
            names=[image],
            author=author,
            message=message,
            created_by=" ".join(record.settings.words()),
            changes=_configuration(containers, record, changes),
            epoch=committing.source_date_epoch(),
        )
        for tries_left in reversed(range(_TRIES if running else 1)):
            try:
                return committing.commit(containers.store, wanted)
            except ImageError as error:
                if not running:
                    raise
                if not tries_left:
                    raise ContainerError(
                        f"{error}; container {name} is running: try again when it has ended"
                    ) from error
    raise AssertionError("unreachable")


@contextlib.contextmanager
def _readable(containers: Containers, name: str) -> Iterator[tuple[ContainerRecord, bool]]:
    """Keep a container from being started and removed, if it doesn't run; gives whether it does, too."""
    with contextlib.ExitStack() as resources:
        try:
            held = resources.enter_context(containers.held(name, shared=True))
        except RunningError:
            yield containers.record(name), True
        else:
            yield held.record, False


def _configuration(containers: Containers, record: ContainerRecord, changes: Sequence[str]) -> dict[str, Any]:
    """Return the members of the image's ``config`` that the container or the instructions set."""
    settings = record.settings
    image = json.loads((containers.directory(record.name) / "config").read_bytes()).get("config") or {}
    config: dict[str, Any] = {
        "Env": settings.env,
        "Entrypoint": settings.entrypoint or None,
        "Cmd": settings.cmd or None,
        "WorkingDir": settings.working_dir,
        "User": settings.user,
    }
    # What is empty and wasn't in the image's says nothing.
    config = {name: value for name, value in config.items() if value or name in image}
    for text in changes:
        instructions.apply(text, config, image)
    return config
