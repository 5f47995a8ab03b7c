"""Which look at the tree comes next? The part of `drawing` about what changes nothing."""

from __future__ import annotations

import os

from tests.differential import operations
from tests.differential.drawing import OFFSETS, Draw, in_family
from tests.differential.operation import Operation


@in_family("looking", 2)
def _status(draw: Draw) -> Operation:
    return operations.status(draw.existing() if draw.happens(60) else draw.any())


@in_family("looking")
def _status_of_target(draw: Draw) -> Operation:
    return operations.status_of_target(draw.existing("symlink", "file"))


@in_family("looking", 2)
def _listing(draw: Draw) -> Operation:
    return operations.listing(draw.existing("directory"))


@in_family("looking")
def _names_in_pieces(draw: Draw) -> Operation:
    return operations.names_in_pieces(draw.existing("directory"), draw.pick((300, 1000, 4096)))


@in_family("looking")
def _enter(draw: Draw) -> Operation:
    return operations.enter(draw.existing("directory"))


@in_family("looking", 2)
def _read(draw: Draw) -> Operation:
    return operations.read(draw.existing("file"), draw.pick(OFFSETS))


@in_family("looking")
def _readlink(draw: Draw) -> Operation:
    return operations.readlink(draw.existing("symlink"))


@in_family("looking")
def _access(draw: Draw) -> Operation:
    return operations.access(draw.existing(), draw.pick((os.R_OK, os.W_OK, os.X_OK)))


@in_family("looking")
def _room(draw: Draw) -> Operation:
    return operations.room(draw.existing())


@in_family("looking")
def _birth(draw: Draw) -> Operation:
    return operations.birth(draw.existing())


@in_family("looking")
def _flags(draw: Draw) -> Operation:
    return operations.flags(draw.existing("file", "directory"))
