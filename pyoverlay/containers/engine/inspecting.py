"""What is to be said about a container? In docker's shapes: list, inspect, diff."""

from __future__ import annotations

import datetime as dt
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pyoverlay.containers.engine.keeping import Containers
from pyoverlay.containers.engine.record import ContainerRecord
from pyoverlay.layers.changes import Change, find_changes
from pyoverlay.layers.layer import DescriptorCache, Layer, LayerObject

_OPEN_DIRECTORIES: Final = 64
_KILLED: Final = 137
"""The exit status of what ended by SIGKILL, as nobody was left to tell."""
_NEVER: Final = "0001-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True)
class State:
    """What a container is doing; `exit_status` says how it ended, where it has."""

    status: Literal["created", "running", "exited"]
    exit_status: int = 0

    def __str__(self) -> str:
        return f"exited {self.exit_status}" if self.status == "exited" else self.status


def state(containers: Containers, record: ContainerRecord) -> State:
    """Return what a container is doing."""
    if containers.runner(record.name) is not None:
        return State("running")
    if not record.started:
        return State("created")
    return State("exited", record.exit_status if record.finished else _KILLED)


def rows(containers: Containers) -> list[dict[str, Any]]:
    """Return all containers, the newest first, each as a row of a list."""
    return [
        {
            "Name": record.name,
            "Image": record.image,
            "Command": record.settings.words(),
            "Created": _time(record.created),
            "Status": str(state(containers, record)),
            "Size": upper_size(containers.upper(record.name)),
        }
        for record in containers.records()
    ]


def changes(containers: Containers, record: ContainerRecord) -> list[Change]:
    """Return what a container changed, as ``docker diff`` shows it; it may be running.

    Raises:
        OverlayError: a layer can't be read.
    """
    lowers = [str(lower) for lower in containers.lowers(record)]
    return find_changes(str(containers.upper(record.name)), lowers)


def upper_size(upper: Path) -> int:
    """Return the bytes of an upper's files, each counted once whatever names it has."""
    cache = DescriptorCache(_OPEN_DIRECTORIES)
    descriptor = os.open(upper, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    layer = Layer(str(upper), descriptor, cache, writable=False)
    seen: set[int] = set()
    size = 0
    pending: list[LayerObject] = [layer.root]
    try:
        while pending:
            for name, kind in _listed(pending.pop()):
                if stat.S_ISDIR(kind.st_mode):
                    pending.append(name)
                elif kind.st_ino not in seen:
                    seen.add(kind.st_ino)
                    size += kind.st_size if stat.S_ISREG(kind.st_mode) else 0
    finally:
        cache.close()
        layer.close()
    return size


def _listed(directory: LayerObject) -> list[tuple[LayerObject, os.stat_result]]:
    """Return what is in a directory; what a running container removes meanwhile isn't."""
    found = []
    try:
        for name, _ in directory.list_entries():
            child = directory.child(name)
            found.append((child, child.status()))
    except FileNotFoundError:
        pass
    return found


def inspect(containers: Containers, record: ContainerRecord) -> dict[str, Any]:
    """Return what ``docker container inspect`` shows of a container, as far as it has the like.

    GraphDriver.Data.MergedDir shows the merged view below ``/proc/PID/root`` of State.Pid only: its mount is
    in a mount namespace of its own, and only while it runs.
    """
    settings = record.settings
    words = settings.words()
    directory = containers.directory(record.name)
    now = state(containers, record)
    running = now.status == "running"
    return {
        "Name": record.name,
        "Created": _time(record.created),
        "Path": words[0],
        "Args": words[1:],
        "State": {
            "Status": now.status,
            "Running": running,
            "Pid": record.pid if running else 0,
            "ExitCode": now.exit_status,
            "StartedAt": _time(record.started),
            "FinishedAt": _time(record.finished),
        },
        "Image": record.image_id,
        "GraphDriver": {
            "Name": "pyoverlay",
            "Data": {
                "LowerDir": ":".join(str(lower) for lower in containers.lowers(record)),
                "UpperDir": str(containers.upper(record.name)),
                "WorkDir": str(directory / "work"),
                "MergedDir": str(directory / "merged"),
            },
        },
        "RootFS": {"Type": "layers", "Layers": record.layers},
        "SizeRw": upper_size(containers.upper(record.name)),
        "Mounts": [
            {"Type": "bind", "Source": bind.source, "Destination": bind.target, "RW": not bind.read_only}
            for bind in record.binds
        ],
        "Config": {
            "Hostname": record.name,
            "Image": record.image,
            "User": settings.user,
            "Env": settings.env,
            "Entrypoint": settings.entrypoint,
            "Cmd": settings.cmd,
            "WorkingDir": settings.working_dir,
        },
    }


def _time(nanoseconds: int) -> str:
    """Return a time as docker writes it (RFC 3339), with what it writes for none."""
    if not nanoseconds:
        return _NEVER
    seconds, rest = divmod(nanoseconds, 10**9)
    return f"{dt.datetime.fromtimestamp(seconds, dt.UTC):%Y-%m-%dT%H:%M:%S}.{rest:09}Z"
