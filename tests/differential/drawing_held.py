"""Which operation on what is held open comes next? The part of `drawing` about descriptors and maps."""

from __future__ import annotations

import fcntl
import os
from dataclasses import replace

from tests.differential import descriptors as held
from tests.differential.drawing import ATTRIBUTES, OFFSETS, SIZES, Draw, in_family
from tests.differential.drawn_layers import DIRECTORY_MODES, NAMES
from tests.differential.operation import ROOT, Caller, Operation

_SLOTS, _MAPS = 4, 2
_ACCESS = (os.O_RDONLY, os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR)
_FLAGS = (0, 0, 0, os.O_APPEND, os.O_TRUNC, os.O_SYNC, os.O_NOFOLLOW, os.O_NOATIME)
_CREATE_FLAGS = (os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_CREAT | os.O_TRUNC)
_DIRECTORY_FLAGS = (os.O_RDONLY, os.O_RDONLY | os.O_DIRECTORY, os.O_PATH)
_WHENCE = (os.SEEK_SET, os.SEEK_SET, os.SEEK_CUR, os.SEEK_END)
_LOCKS = (fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN)


def _slot(draw: Draw, *kinds: str) -> tuple[Caller, int]:
    """Something that is held open, if there is anything."""
    slots = [key for key, kind in draw.world.slots.items() if not kinds or kind in kinds]
    return draw.pick(slots) if slots and not draw.happens(3) else (ROOT, draw.dice.below(_SLOTS))


def _beside(draw: Draw, caller: Caller, *kinds: str) -> int:
    """A slot of the same caller."""
    slots = [
        slot
        for (holder, slot), kind in draw.world.slots.items()
        if holder == caller and (not kinds or kind in kinds)
    ]
    return draw.pick(slots or [0])


def _map(draw: Draw) -> tuple[Caller, int]:
    maps = sorted(draw.world.maps, key=lambda key: (key[0].uid, key[1]))
    return draw.pick(maps) if maps else (ROOT, 0)


def _name_inside(draw: Draw) -> bytes:
    """A name that may be in a directory that is held."""
    names = [os.path.basename(path) for path in draw.world.tree]
    return draw.pick(names) if names and draw.happens(60) else draw.pick(NAMES)


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
    caller, slot = _slot(draw, "file")
    return replace(held.read_at(slot, draw.pick(OFFSETS), 1 << 17), caller=caller)


@in_family("held")
def _read_on(draw: Draw) -> Operation:
    caller, slot = _slot(draw, "file")
    return replace(held.read_on(slot, draw.pick((10, 5000))), caller=caller)


@in_family("held", 2)
def _write_at(draw: Draw) -> Operation:
    caller, slot = _slot(draw, "file")
    return replace(held.write_at(slot, draw.pick(OFFSETS), draw.content()), caller=caller)


@in_family("held", 2)
def _write_on(draw: Draw) -> Operation:
    caller, slot = _slot(draw, "file")
    return replace(held.write_on(slot, draw.content()), caller=caller)


@in_family("held")
def _seek(draw: Draw) -> Operation:
    caller, slot = _slot(draw, "file")
    return replace(held.seek(slot, draw.pick(OFFSETS), draw.pick(_WHENCE)), caller=caller)


@in_family("held", 2)
def _resize(draw: Draw) -> Operation:
    caller, slot = _slot(draw, "file")
    return replace(held.resize(slot, draw.pick(SIZES)), caller=caller)


@in_family("held")
def _copy_range(draw: Draw) -> Operation:
    caller, source = _slot(draw, "file")
    target = _beside(draw, caller, "file")
    sizes = draw.pick(SIZES), draw.pick(OFFSETS), draw.pick(OFFSETS)
    return replace(held.copy_range(source, target, *sizes), caller=caller)


@in_family("held")
def _synchronise(draw: Draw) -> Operation:
    caller, slot = _slot(draw)
    return replace(held.synchronise(slot), caller=caller)


@in_family("held")
def _lock(draw: Draw) -> Operation:
    caller, slot = _slot(draw)
    return replace(held.lock(slot, draw.pick(_LOCKS)), caller=caller)


@in_family("held")
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


# --- their attributes --------------------------------------------------------------------------------------


@in_family("held attributes", 3)
def _status_of(draw: Draw) -> Operation:
    caller, slot = _slot(draw)
    return replace(held.status_of(slot), caller=caller)


@in_family("held attributes")
def _chmod_of(draw: Draw) -> Operation:
    caller, slot = _slot(draw)
    directory = draw.world.slots.get((caller, slot)) == "directory"
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
    return replace(held.setxattr_of(slot, *draw.attribute(), flags), caller=caller)


@in_family("held attributes")
def _removexattr_of(draw: Draw) -> Operation:
    caller, slot = _slot(draw)
    name = draw.attribute_of(draw.rich()) if draw.happens(70) else draw.pick(ATTRIBUTES)
    return replace(held.removexattr_of(slot, name), caller=caller)


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
    return replace(held.hold_below(slot, directory, _name_inside(draw), flags), caller=caller)


@in_family("held names", 2)
def _listing_of(draw: Draw) -> Operation:
    caller, slot = _slot(draw, "directory")
    return replace(held.listing_of(slot), caller=caller)


@in_family("held names")
def _status_below(draw: Draw) -> Operation:
    caller, slot = _slot(draw, "directory")
    return replace(held.status_below(slot, _name_inside(draw)), caller=caller)


@in_family("held names", 2)
def _mkdir_below(draw: Draw) -> Operation:
    caller, slot = _slot(draw, "directory")
    return replace(held.mkdir_below(slot, _name_inside(draw), draw.pick(DIRECTORY_MODES)), caller=caller)


@in_family("held names")
def _remove_below(draw: Draw) -> Operation:
    caller, slot = _slot(draw, "directory")
    return replace(held.remove_below(slot, _name_inside(draw)), caller=caller)


@in_family("held names")
def _rename_below(draw: Draw) -> Operation:
    caller, slot = _slot(draw, "directory")
    names = _name_inside(draw), _name_inside(draw)
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
    private = draw.happens(30)
    return replace(held.map_file(draw.dice.below(_MAPS), slot, draw.happens(40), private), caller=caller)


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
