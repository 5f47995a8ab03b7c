"""How does a container run? As a command in a sandbox, over its layers, with its state kept."""

from __future__ import annotations

import time
from typing import Final

import msgspec

from pyoverlay import sandbox
from pyoverlay.containers.engine import occupation
from pyoverlay.containers.engine.keeping import Containers, Held
from pyoverlay.containers.engine.settings import environment
from pyoverlay.options import MountOptions, parse_options
from pyoverlay.privileges import default_options

_LONGEST_HOST_NAME: Final = 64


def run(containers: Containers, held: Held) -> int:
    """Run a container that is held exclusively, until its command ends.

    As `pyoverlay.sandbox.run`: only for a process with one thread and nothing left to do but exit.

    Returns:
        The command's exit status.

    Raises:
        SandboxError: it couldn't be run; nothing is left mounted.
        ImageError: a layer is missing.
    """
    options = _options(containers, held)
    command = _command(held)
    merged = containers.directory(held.record.name) / "merged"
    occupation.begin_running(held.lock)
    record = msgspec.structs.replace(held.record, started=time.time_ns(), finished=0, exit_status=0, pid=0)
    containers.write(record)
    status = 1
    try:
        status = sandbox.run(
            options,
            command,
            merged=str(merged),
            started=lambda pid: containers.write(msgspec.structs.replace(record, pid=pid)),
        )
    except sandbox.SandboxError as error:
        status = error.status
        raise
    finally:
        ended = msgspec.structs.replace(record, finished=time.time_ns(), exit_status=status)
        containers.write(ended)
    return status


def _options(containers: Containers, held: Held) -> MountOptions:
    directory = containers.directory(held.record.name)
    privileged, defaults = default_options()
    return parse_options(
        defaults,
        unknown=None,
        privileged=privileged,
        lower=[str(lower) for lower in containers.lowers(held.record)],
        upper=str(containers.upper(held.record.name)),
        work=str(directory / "work"),
    )


def _command(held: Held) -> sandbox.Command:
    settings = held.record.settings
    host_name = held.record.name[:_LONGEST_HOST_NAME]
    return sandbox.Command(
        words=tuple(settings.words()),
        environment=environment(settings, host_name),
        directory=settings.working_dir or "/",
        user=settings.user,
        binds=tuple(sandbox.Bind(bind.source, bind.target, bind.read_only) for bind in held.record.binds),
        host_name=host_name,
        make_directory=True,
    )
