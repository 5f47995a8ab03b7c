"""Which operation on what is held open comes next? The part of `drawing` about descriptors and maps."""

from __future__ import annotations

import fcntl
import os
from dataclasses import replace

from tests.differential import descriptors as held
from tests.differential.drawing import ATTRIBUTES, OFFSETS, SIZES, Draw, in_family
from tests.differential.drawn_layers import DIRECTORY_MODES, NAMES
from tests.differential.operation import ROOT, Caller, Operation
from tests.differential.tally import Aim
from tests.harness.libc import (
    COLLAPSE_RANGE,
    INSERT_RANGE,
    KEEP_SIZE,
    PUNCH_HOLE,
    ZERO_RANGE,
)

_SLOTS, _MAPS = 4, 2
_ACCESS = (os.O_RDONLY, os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR)
_FLAGS = (0, 0, 0, os.O_APPEND, os.O_TRUNC, os.O_SYNC, os.O_NOFOLLOW, os.O_NOATIME)
_CREATE_FLAGS = (os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_CREAT | os.O_TRUNC)
_DIRECTORY_FLAGS = (os.O_RDONLY, os.O_RDONLY | os.O_DIRECTORY, os.O_PATH)
_WHENCE = (os.SEEK_SET, os.SEEK_SET, os.SEEK_CUR, os.SEEK_END)
_MOVING_RANGES = (COLLAPSE_RANGE, INSERT_RANGE)
_ALLOCATIONS = (
    *(0, 0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE),
    *(*_MOVING_RANGES, PUNCH_HOLE, 0x400),
)
_LOCKS = (fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN)


def _slot(draw: Draw, *kinds: str, readable: bool = False, writable: bool = False) -> tuple[Caller, int]:
    """Something that is held open, if there is anything; to fail, more often than not what isn't right."""
    slots = draw.world.slots
    right = [
        key
        for key, slot in slots.items()
        if (slot.kind in kinds if kinds else slot.kind != "place")
        and (slot.readable or not readable)
        and (slot.writable or not writable)
    ]
    if draw.aim is Aim.FAILURE and draw.happens(75):
        right = [key for key in slots if key not in right]
    elif not right or draw.happens(3):
        right = list(slots)
    return draw.pick(right) if right else (ROOT, _SLOTS)


def _beside(draw: Draw, caller: Caller, *kinds: str) -> int:
    """A slot of the same caller."""
    slots = [
        number
        for (holder, number), slot in draw.world.slots.items()
        if holder == caller and (not kinds or slot.kind in kinds)
    ]
    return draw.pick(slots or [0])


def _rich_slot(draw: Draw) -> tuple[Caller, int]:
    """Something held open that has extended attributes, if there is one among a few."""
    for _ in range(6):
        key = _slot(draw)
        slot = draw.world.slots.get(key)
        if slot is not None and (draw.aim is Aim.FAILURE or draw.world.attributes(slot.path)):
            return key
    return _slot(draw)


def _map(draw: Draw) -> tuple[Caller, int]:
    maps = sorted(draw.world.maps, key=lambda key: (key[0].uid, key[1]))
    if not maps or (draw.aim is Aim.FAILURE and draw.happens(75)):
        return ROOT, _MAPS
    return draw.pick(maps)


def _inside(draw: Draw, holder: tuple[Caller, int]) -> bytes:
    """A name that may be in a directory that is held."""
    slot = draw.world.slots.get(holder)
    if slot is not None and draw.aim is not Aim.FAILURE and draw.happens(80):
        inside = [path for path in draw.world.tree if os.path.dirname(path) == slot.path.lstrip(b".")]
        if inside:
            return os.path.basename(draw.pick(inside))
    return _new_inside(draw)


def _new_inside(draw: Draw) -> bytes:
    """A name that may be missing from a directory that is held; to fail, one that may be there."""
    names = [os.path.basename(path) for path in draw.world.tree]
    there = names and draw.aim is Aim.FAILURE
    return draw.pick(names) if there and draw.happens(60) else draw.pick(NAMES)


# --- opening -----------------------------------------------------------------------------------------------


@in_family("opening", 4)
def _hold(draw: Draw) -> Operation:
    flags = draw.pick(_ACCESS) | draw.pick(_FLAGS)
    return held.hold(draw.dice.below(_SLOTS), draw.existing("file"), flags)


@in_family("opening", 2)
def _hold_new(draw: Draw) -> Operation:
    flags = draw.pick(_ACCESS) | draw.pick(_CREATE_FLAGS)
    path = draw.free() if draw.happens(70) else draw.existing("file", "symlink")
    return held.hold(draw.dice.below(_SLOTS), path, flags, draw.mode())


@in_family("opening directories")
@in_family("opening", 3)
def _hold_directory(draw: Draw) -> Operation:
    return held.hold(draw.dice.below(_SLOTS), draw.existing("directory"), draw.pick(_DIRECTORY_FLAGS))


@in_family("opening")
def _hold_odd(draw: Draw) -> Operation:
    flags = draw.pick((os.O_RDONLY, os.O_RDWR, os.O_PATH, os.O_PATH | os.O_NOFOLLOW))
    return held.hold(draw.dice.below(_SLOTS), draw.existing("symlink", "special"), flags)


# --- descriptors -------------------------------------------------------------------------------------------


@in_family("held", 2)
def _read_at(draw: Draw) -> Operation:
    caller, slot = _slot(draw, "file", readable=True)
    return replace(held.read_at(slot, draw.pick(OFFSETS), 1 << 17), caller=caller)


@in_family("held")
def _read_on(draw: Draw) -> Operation:
    caller, slot = _slot(draw, "file", readable=True)
    return replace(held.read_on(slot, draw.pick((10, 5000))), caller=caller)


@in_family("held contents", 2)
def _write_at(draw: Draw) -> Operation:
    caller, slot = _slot(draw, "file", writable=True)
    return replace(held.write_at(slot, draw.pick(OFFSETS), draw.content()), caller=caller)


@in_family("held contents", 2)
def _write_on(draw: Draw) -> Operation:
    caller, slot = _slot(draw, "file", writable=True)
    return replace(held.write_on(slot, draw.content()), caller=caller)


@in_family("held")
def _seek(draw: Draw) -> Operation:
    caller, slot = _slot(draw, "file")
    return replace(held.seek(slot, draw.pick(OFFSETS), draw.pick(_WHENCE)), caller=caller)


@in_family("held contents", 2)
def _resize(draw: Draw) -> Operation:
    caller, slot = _slot(draw, "file", writable=True)
    return replace(held.resize(slot, draw.pick(SIZES)), caller=caller)


@in_family("held contents")
def _copy_range(draw: Draw) -> Operation:
    caller, source = _slot(draw, "file", readable=True)
    target = _beside(draw, caller, "file", "special" if draw.aim is Aim.FAILURE else "file")
    sizes = draw.pick(SIZES), draw.pick(OFFSETS), draw.pick(OFFSETS)
    return replace(held.copy_range(source, target, *sizes), caller=caller)


@in_family("held")
def _synchronise(draw: Draw) -> Operation:
    caller, slot = _slot(draw)
    return replace(held.synchronise(slot), caller=caller)


@in_family("held contents")
def _lock(draw: Draw) -> Operation:
    caller, slot = _slot(draw)
    return replace(held.lock(slot, draw.pick(_LOCKS)), caller=caller)


@in_family("held contents")
def _lock_record(draw: Draw) -> Operation:
    caller, slot = _slot(draw, "file")
    return replace(held.lock_record(slot, draw.pick(_LOCKS), draw.pick(OFFSETS), 100), caller=caller)


@in_family("held")
def _let_go(draw: Draw) -> Operation:
    caller, slot = _slot(draw)
    return replace(held.let_go(slot), caller=caller)


@in_family("held")
def _hold_again(draw: Draw) -> Operation:
    caller, other = _slot(draw, "file")
    flags = draw.pick(_ACCESS) | draw.pick(_FLAGS)
    return replace(held.hold_again(draw.dice.below(_SLOTS), other, flags), caller=caller)


@in_family("held contents")
def _reserve(draw: Draw) -> Operation:
    caller, slot = _slot(draw, "file", writable=True)
    return replace(held.reserve(slot, draw.pick(OFFSETS), draw.pick(SIZES)), caller=caller)


@in_family("held contents", 2)
def _allocate(draw: Draw) -> Operation:
    caller, slot = _slot(draw, "file", writable=True)
    mode = draw.pick(_ALLOCATIONS)
    offset = -1 if mode in _MOVING_RANGES else draw.pick(OFFSETS)
    return replace(held.allocate(slot, mode, offset, draw.pick(SIZES)), caller=caller)


@in_family("held contents")
def _seek_data(draw: Draw) -> Operation:
    caller, slot = _slot(draw, "file", readable=True)
    offset = draw.pick((0, 0, 3, 4096, 150_000))
    return replace(held.seek_data(slot, offset, draw.pick((os.SEEK_DATA, os.SEEK_HOLE))), caller=caller)


# --- their attributes --------------------------------------------------------------------------------------


@in_family("held attributes", 3)
def _status_of(draw: Draw) -> Operation:
    caller, slot = _slot(draw)
    return replace(held.status_of(slot), caller=caller)


@in_family("held attributes")
def _chmod_of(draw: Draw) -> Operation:
    caller, slot = _slot(draw)
    held_there = draw.world.slots.get((caller, slot))
    directory = held_there is not None and held_there.kind == "directory"
    mode = draw.pick(DIRECTORY_MODES) if directory else draw.mode()
    return replace(held.chmod_of(slot, mode), caller=caller)


@in_family("held attributes")
def _chown_of(draw: Draw) -> Operation:
    caller, slot = _slot(draw)
    return replace(held.chown_of(slot, *draw.ids()), caller=caller)


@in_family("held attributes")
def _utimens_of(draw: Draw) -> Operation:
    caller, slot = _slot(draw)
    return replace(held.utimens_of(slot, draw.time(), draw.time()), caller=caller)


@in_family("held attributes")
def _setxattr_of(draw: Draw) -> Operation:
    caller, slot = _slot(draw)
    flags = draw.pick((0, 0, os.XATTR_CREATE, os.XATTR_REPLACE))
    name, value = draw.attribute()
    there = draw.world.slots.get((caller, slot))
    if name == b"unknown.name" and caller != ROOT and there is not None and there.kind == "special":
        name = b"user.note"  # the kernel copies up for nothing, which such a caller can't imitate
    return replace(held.setxattr_of(slot, name, value, flags), caller=caller)


@in_family("held attributes")
def _removexattr_of(draw: Draw) -> Operation:
    caller, slot = _rich_slot(draw)
    held_there = draw.world.slots.get((caller, slot))
    name = draw.attribute_of(held_there.path) if held_there is not None else draw.pick(ATTRIBUTES)
    return replace(held.removexattr_of(slot, name), caller=caller)


@in_family("held attributes")
def _flags_of(draw: Draw) -> Operation:
    caller, slot = _slot(draw)
    return replace(held.flags_of(slot), caller=caller)


@in_family("held attributes")
def _room_of(draw: Draw) -> Operation:
    caller, slot = _slot(draw)
    return replace(held.room_of(slot), caller=caller)


@in_family("held attributes")
def _xattrs_of(draw: Draw) -> Operation:
    caller, slot = _slot(draw)
    return replace(held.xattrs_of(slot), caller=caller)


# --- names -------------------------------------------------------------------------------------------------


@in_family("held names")
def _hold_below(draw: Draw) -> Operation:
    caller, directory = _slot(draw, "directory")
    flags = draw.pick(_ACCESS) | draw.pick((0, os.O_CREAT))
    slot = draw.dice.below(_SLOTS)
    name = _inside(draw, (caller, directory))
    return replace(held.hold_below(slot, directory, name, flags), caller=caller)


@in_family("held names", 2)
def _listing_of(draw: Draw) -> Operation:
    caller, slot = _slot(draw, "directory", readable=True)
    return replace(held.listing_of(slot), caller=caller)


@in_family("held names")
def _names_again(draw: Draw) -> Operation:
    caller, slot = _slot(draw, "directory", readable=True)
    return replace(held.names_again(slot, draw.pick((300, 1000))), caller=caller)


@in_family("held names")
def _status_below(draw: Draw) -> Operation:
    caller, slot = _slot(draw, "directory")
    return replace(held.status_below(slot, _inside(draw, (caller, slot))), caller=caller)


@in_family("held names", 2)
def _mkdir_below(draw: Draw) -> Operation:
    caller, slot = _slot(draw, "directory")
    return replace(held.mkdir_below(slot, _new_inside(draw), draw.pick(DIRECTORY_MODES)), caller=caller)


@in_family("held names")
def _remove_below(draw: Draw) -> Operation:
    caller, slot = _slot(draw, "directory")
    return replace(held.remove_below(slot, _inside(draw, (caller, slot))), caller=caller)


@in_family("held names")
def _rename_below(draw: Draw) -> Operation:
    caller, slot = _slot(draw, "directory")
    names = _inside(draw, (caller, slot)), _new_inside(draw)
    other = _beside(draw, caller, "directory")
    return replace(held.rename_below(slot, names[0], other, names[1]), caller=caller)


@in_family("held names")
def _link_of(draw: Draw) -> Operation:
    caller, slot = _slot(draw, "file")
    return replace(held.link_of(slot, draw.free()), caller=caller)


# --- maps --------------------------------------------------------------------------------------------------


@in_family("mapping")
@in_family("maps", 2)
def _map_file(draw: Draw) -> Operation:
    caller, slot = _slot(draw, "file")
    writable = draw.happens(40)
    # allowed.py: a write through a shared map of a file that may have a capability; on tmpfs
    differs = not draw.world.set_ids or not draw.world.maps_move_times
    private = draw.happens(30) or (writable and differs)
    return replace(held.map_file(draw.dice.below(_MAPS), slot, writable, private), caller=caller)


@in_family("maps", 2)
def _map_read(draw: Draw) -> Operation:
    caller, number = _map(draw)
    return replace(held.map_read(number), caller=caller)


@in_family("maps", 2)
def _map_write(draw: Draw) -> Operation:
    caller, number = _map(draw)
    return replace(held.map_write(number, draw.pick(OFFSETS), draw.content()), caller=caller)


@in_family("maps")
def _unmap(draw: Draw) -> Operation:
    caller, number = _map(draw)
    return replace(held.unmap(number), caller=caller)
