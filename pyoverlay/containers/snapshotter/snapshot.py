"""What is a snapshot, and what can be wrong with asking for one?

The words are containerd's (snapshots/snapshotter.go); nothing here knows SQLite, gRPC or the disk.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pyoverlay.options import OverlayError

UID_MAPPING: Final = "containerd.io/snapshot/uidmapping"
GID_MAPPING: Final = "containerd.io/snapshot/gidmapping"
"""Labels that ask for shifted ids, as ``CONTAINER:HOST:COUNT``."""

_LONGEST_LABEL: Final = 4096
_UNPACKED: Final = re.compile("extract-[^ ]+ [a-z0-9]+:[0-9a-f]+")


class SnapshotError(OverlayError):
    """What was asked for can't be done; each kind is one status code of gRPC."""


class SnapshotNotFoundError(SnapshotError):
    """No snapshot has this name."""


class SnapshotExistsError(SnapshotError):
    """A snapshot has this name already."""


class SnapshotStateError(SnapshotError):
    """A snapshot isn't in the state that this needs."""


class SnapshotArgumentError(SnapshotError):
    """What was asked for makes no sense, whatever the state."""


class Kind(enum.IntEnum):
    """What may be done with a snapshot; the numbers are the API's."""

    VIEW = 1
    """Read-only, and never committed."""
    ACTIVE = 2
    """Written to, and then committed or removed."""
    COMMITTED = 3
    """Never changed again; the only kind that is a parent."""


@dataclass(frozen=True)
class Usage:
    """What a snapshot takes on disk, without its parents: bytes in blocks, and inodes."""

    size: int = 0
    inodes: int = 0


@dataclass(frozen=True)
class Information:
    """What is told about a snapshot.

    ``name`` is called key as long as it isn't committed; ``parent`` is a name, or empty; times are
    nanoseconds since 1970.
    """

    name: str
    parent: str
    kind: Kind
    created: int
    updated: int
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Snapshot:
    """Where a snapshot is on disk: its directory's number, and its parents', the nearest first."""

    number: int
    kind: Kind
    parents: tuple[int, ...]
    labels: Mapping[str, str]


def is_unpacked(key: str) -> bool:
    """Tell whether containerd made a snapshot to unpack a layer of an image into it, and no container's.

    The form is ``extract-UNIQUE CHAINID`` (snapshots/snapshotter.go: UnpackKeyFormat) after containerd's own
    ``NAMESPACE/NUMBER/``.  No container's name has a space in it.
    """
    return _UNPACKED.fullmatch(key.rpartition("/")[2]) is not None


def check_name(name: str, what: str) -> None:
    """Raise SnapshotArgumentError when ``name``, shown as ``what``, can't be a snapshot's."""
    if not name:
        raise SnapshotArgumentError(f"the {what} is empty")


def check_labels(labels: Mapping[str, str]) -> None:
    """Raise SnapshotArgumentError for a label that is too long (containerd: labels/validate.go)."""
    for name, value in labels.items():
        if len(name.encode()) + len(value.encode()) > _LONGEST_LABEL:
            raise SnapshotArgumentError(
                f"the label {name[:64]!r} and its value are longer than {_LONGEST_LABEL} bytes together"
            )


def field(information: Information, path: tuple[str, ...]) -> str | None:
    """Return the value of a field that a filter names, or None (snapshots/storage/metastore.go).

    Args:
        information: of the snapshot.
        path: ``kind``, ``name``, ``parent``, or ``labels`` and the pieces of a label's name between dots.
    """
    match path:
        case ("kind", *_):
            return information.kind.name.lower()
        case ("name", *_):
            return information.name
        case ("parent", *_):
            return information.parent
        case ("labels", *pieces):
            return information.labels.get(".".join(pieces))
    return None
