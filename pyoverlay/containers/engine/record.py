"""What is kept of a container besides its files? The document ``container.json``."""

from __future__ import annotations

import msgspec

from pyoverlay.options import OverlayError


class ContainerError(OverlayError):
    """What can't be done with a container, worded for a person."""


class Settings(msgspec.Struct, frozen=True):
    """How it runs, in the words of an image's configuration.

    Attributes:
        entrypoint: the program and its first arguments.
        cmd: the arguments after those; the program, too, where there is no entrypoint.
        env: ``NAME=VALUE``.
        working_dir: where it starts; empty for the root.
        user: ``USER[:GROUP]``; empty for root.
    """

    entrypoint: list[str] = []
    cmd: list[str] = []
    env: list[str] = []
    working_dir: str = ""
    user: str = ""

    def words(self) -> list[str]:
        """Return the program and all of its arguments."""
        return [*self.entrypoint, *self.cmd]


class BindRecord(msgspec.Struct, frozen=True):
    """A file or directory of the host that it sees, see `pyoverlay.sandbox.Bind`."""

    source: str
    target: str
    read_only: bool = False


class ContainerRecord(msgspec.Struct, frozen=True):
    """A container.

    Attributes:
        name: its name.
        image: what its image was called by when it was made.
        image_id: its image, which may be gone.
        layers: the diffIDs of the image's layers, the lowest first; pinned in the store.
        created: when it was made, in nanoseconds since the epoch, as all times here.
        settings: how it runs.
        binds: what it sees of the host.
        started: when it was last started; 0 when it never was.
        finished: when that ended; 0 when it runs, or was killed.
        exit_status: how that ended.
        pid: its process 1, as the one who started it numbers processes; 0 when it doesn't run.
    """

    name: str
    image: str
    image_id: str
    layers: list[str]
    created: int
    settings: Settings
    binds: list[BindRecord] = []
    started: int = 0
    finished: int = 0
    exit_status: int = 0
    pid: int = 0
