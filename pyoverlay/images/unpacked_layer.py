"""How is a whole tar unpacked into a directory, and what is known of it then?

The pieces put together: `tar_reader` reads, `unpacking` makes files, `record` keeps the rest. Where the
directory is, and who may see it, is others' business.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

import msgspec

from pyoverlay.images.compression import Decompressed
from pyoverlay.images.errors import ImageError
from pyoverlay.images.limits import Limits
from pyoverlay.images.record import RecordWriter
from pyoverlay.images.storing import Privileges
from pyoverlay.images.tar_reader import TarReader
from pyoverlay.images.unpacking import Unpacker
from pyoverlay.layers import marks

Advanced = Callable[[int], None]
"""Told how many compressed bytes of a layer were read so far; may raise to stop."""


class LayerRecord(msgspec.Struct, frozen=True):
    """What is known of a layer.

    Attributes:
        diff_id: the digest of its tar.
        size: bytes of its files.
        tar_size: bytes of its tar.
        entries: how many the tar has.
        implied: directories that the tar only names as parents, by their paths' bytes; empty for the root.
        opaque_root: whether nothing of the layers beneath shows.
        owners: whether its files have the owners that the tar says.
        devices: whether its device nodes were made.
        trusted: whether its marks are ``trusted.overlay.*``, not ``user.overlay.*``.
    """

    diff_id: str
    size: int
    tar_size: int
    entries: int
    implied: list[bytes] = []
    opaque_root: bool = False
    owners: bool = True
    devices: bool = True
    trusted: bool = True

    def privileges(self) -> Privileges:
        """Return what its unpacking could do."""
        dialect = marks.TRUSTED if self.trusted else marks.USER
        return Privileges(owners=self.owners, devices=self.devices, dialect=dialect)


def unpack(
    directory: Path,
    stream: Decompressed,
    limits: Limits,
    *,
    record: IO[bytes] | None = None,
    advanced: Advanced | None = None,
) -> tuple[LayerRecord, list[str]]:
    """Unpack a tar into an empty directory that nobody else uses.

    Args:
        directory: where.
        stream: the tar.
        limits: what is refused.
        record: takes what makes the tar again (see `record`); None keeps nothing.
        advanced: see `Advanced`.

    Returns:
        What is known of the layer, and what a person should be told.

    Raises:
        ImageError: see `TarReader` and `Unpacker`.
    """
    may = Privileges.of_this_process()
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    writer = RecordWriter(record) if record is not None else None
    unpacker = Unpacker(descriptor, may, writer.content if writer else None)
    try:
        _inherit_nothing(descriptor)
        reader = TarReader(
            stream,
            limits=limits,
            consumed=lambda: stream.consumed,
            literal=writer.literal if writer else _ignore,
            advanced=(lambda _size: advanced(stream.consumed)) if advanced else None,
        )
        for entry in reader:
            unpacker.add(entry, reader.content())
        unpacked = unpacker.finish()
        if writer:
            writer.close()
        elif not reader.ended:
            raise ImageError("the archive is cut short: its end is missing")
        opaque_root = unpacker.opaque_root
    finally:
        unpacker.close()
        os.close(descriptor)
    known = LayerRecord(
        diff_id=reader.digest(),
        size=unpacked.size,
        tar_size=reader.size,
        entries=unpacked.entries,
        implied=unpacked.implied,
        opaque_root=opaque_root,
        owners=may.owners,
        devices=may.devices,
        trusted=may.dialect is marks.TRUSTED,
    )
    return known, unpacked.warnings


def _ignore(_data: bytes) -> None:
    pass


def _inherit_nothing(directory: int) -> None:
    """Keep a default ACL and a set-group-ID bit above the store from spreading into the layer."""
    for name in ("system.posix_acl_default", "system.posix_acl_access"):
        with contextlib.suppress(OSError):
            os.removexattr(directory, name)
    os.fchown(directory, os.geteuid(), os.getegid())
    os.fchmod(directory, 0o700)
