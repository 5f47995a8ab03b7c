"""In what may pyoverlay differ from the kernel's overlayfs? One table, each line with its reason.

Whatever compares the two, answers or trees, asks here; nothing else is let pass. The lines are told to people
in docs/fidelity.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from tests.differential.layers import RECENT_SECONDS
from tests.differential.operation import Operation, Outcome

_REFUSED_ATTRIBUTES = frozenset(
    (name, error) for name in ("setxattr", "setxattr_of") for error in ("ENODATA", "EEXIST", "EOPNOTSUPP")
)

_STATUS, _LINKS, _BLOCKS, _ATIME = 9, 1, 7, 8
"""How many fields a status has, and where in it is what: `operations.shown`."""

Answers = Callable[[Operation, Outcome, Outcome], bool]
"""Whether two answers to one operation, the kernel's and pyoverlay's, differ in the allowed way."""


WITHOUT_HANDLES = "the kernel can't open all of the lowers' files by handle"
OVERLAY_LOWER = "a lower lies on an overlay"
SEVERAL_FILE_SYSTEMS = "the layers lie on several file systems, with inode numbers that meet"
BTRFS = "the upper is on btrfs"
ALL_PASSED_THROUGH = "all larger files of lowers are treated as program text (`passthrough=all`)"
RESERVES_BLOCKS = "the upper's file system reserves blocks ahead of what is written"


@dataclass(frozen=True, slots=True)
class Difference:
    """One allowed difference: where, what the kernel does, what pyoverlay does, and why.

    answers: recognises it in the answers to an operation.
    circumstance: where only; see below.
    ends_slots: descriptors or names show different files afterwards; all are closed and forgotten on both.
    ends_script: the trees differ afterwards, so that nothing more can be compared.
    needless_copy: (operation, errno) of calls that change nothing, for which the kernel copies up.
    needless_mark: the same, for an opaque mark on the first name that hides nothing.
    mark: an attribute of overlay's own that is left out of pictures of uppers, by the name after the prefix.
    whiteout_fields: the fields of a whiteout that are left out of pictures of uppers.
    """

    where: str
    kernel: str
    pyoverlay: str
    reason: str
    answers: Answers | None = None
    circumstance: str | None = None
    ends_slots: bool = False
    ends_script: bool = False
    needless_copy: frozenset[tuple[str, str]] = frozenset()
    needless_mark: frozenset[tuple[str, str]] = frozenset()
    mark: str | None = None
    whiteout_fields: frozenset[str] = frozenset()


def _status_but(field: int, expected: Outcome, actual: Outcome) -> bool:
    """Two statuses that differ in a field as they may, and perhaps in other such fields."""
    before, after = expected.value, actual.value
    if not (isinstance(before, tuple) and isinstance(after, tuple) and len(before) == len(after) == _STATUS):
        return False
    other = {at for at in range(_STATUS) if before[at] != after[at]}
    less = all(after[at] < before[at] for at in other - {_ATIME})
    moved = _ATIME not in other or RECENT_SECONDS * 10**9 in (before[_ATIME], after[_ATIME])
    return field in other <= {_LINKS, _BLOCKS, _ATIME} and less and moved


def _fewer_links(operation: Operation, expected: Outcome, actual: Outcome) -> bool:
    """The status of what is held open, with a link count that is lower here."""
    return isinstance(operation.arguments[0], int) and _status_but(_LINKS, expected, actual)


def _fewer_blocks(_: Operation, expected: Outcome, actual: Outcome) -> bool:
    """The status of a regular file that takes less room here."""
    return _status_but(_BLOCKS, expected, actual)


def _another_access(_: Operation, expected: Outcome, actual: Outcome) -> bool:
    """The status of what was read, with the time of access that it had before, on one of the two."""
    return _status_but(_ATIME, expected, actual)


def _other_blocks(expected: Outcome, actual: Outcome) -> tuple[int, int] | None:
    """The blocks in two statuses that are else the same; None if they aren't."""
    before, after = expected.value, actual.value
    if not (isinstance(before, tuple) and isinstance(after, tuple) and len(before) == len(after) == _STATUS):
        return None
    moved = RECENT_SECONDS * 10**9 in (before[_ATIME], after[_ATIME])
    same = before[:_BLOCKS] == after[:_BLOCKS] and (moved or before[_ATIME] == after[_ATIME])
    return (before[_BLOCKS], after[_BLOCKS]) if same else None


def _one_block_more(_: Operation, expected: Outcome, actual: Outcome) -> bool:
    """The status of a file with a block of 4 KiB more here."""
    blocks = _other_blocks(expected, actual)
    return blocks is not None and blocks[1] == blocks[0] + 8


def _one_block_apart(_: Operation, expected: Outcome, actual: Outcome) -> bool:
    """The status of a file with a block of 4 KiB more or less here."""
    blocks = _other_blocks(expected, actual)
    return blocks is not None and abs(blocks[1] - blocks[0]) == 8


def _any_blocks(_: Operation, expected: Outcome, actual: Outcome) -> bool:
    """The status of a file with any number of blocks."""
    return _other_blocks(expected, actual) is not None


def _changes_unlinked(operation: Operation, expected: Outcome, actual: Outcome) -> bool:
    """A change through a descriptor that the kernel can't copy up any more."""
    changing = operation.name.endswith("_of") or operation.name in ("hold_again", "resize")
    works = actual.succeeded or _refuses_attribute(operation, actual)
    return changing and expected.error in ("EEXIST", "ENOENT", "ESTALE") and works


def _refuses_attribute(operation: Operation, actual: Outcome) -> bool:
    """An attribute that isn't set, for which nothing is copied up."""
    return (operation.name, actual.error) in _REFUSED_ATTRIBUTES


def _changes_removed_directory(operation: Operation, expected: Outcome, actual: Outcome) -> bool:
    """A change through the descriptor of a lower's directory whose name is a whiteout by now."""
    if not operation.name.endswith("_of") or expected.error not in ("ENOTDIR", "EIO"):
        return False
    return actual.error == "ENOENT" or _refuses_attribute(operation, actual)


def _more_holes(operation: Operation, expected: Outcome, actual: Outcome) -> bool:
    """Data is found later, a hole earlier, than in the kernel's copy."""
    if operation.name != "seek_data":
        return False
    before, after = expected.value, actual.value
    if operation.arguments[2] == os.SEEK_DATA:
        later = isinstance(before, int) and isinstance(after, int) and after > before
        return later or (expected.succeeded and actual.error == "ENXIO")
    return isinstance(before, int) and isinstance(after, int) and after < before


def _other_holes(operation: Operation, expected: Outcome, actual: Outcome) -> bool:
    """Data or a hole is found elsewhere, or none at all."""
    return operation.name == "seek_data" and {expected.error, actual.error} <= {None, "ENXIO"}


def _stale_map(operation: Operation, expected: Outcome, actual: Outcome) -> bool:
    """The kernel's map doesn't show what is read from the file, the same on both, or ends too early."""
    if operation.name in ("map_read", "map_write") and expected.error == "EFAULT":
        return actual.succeeded
    if operation.name == "map_write" and isinstance(expected.value, int) and isinstance(actual.value, int):
        return expected.value < actual.value
    if operation.name not in ("map_file", "map_read") or not (expected.succeeded and actual.succeeded):
        return False
    before, after = expected.value, actual.value
    assert isinstance(before, tuple) and isinstance(after, tuple)
    return not before[0] and before[2] == after[2]


def _older_data(operation: Operation, expected: Outcome, actual: Outcome) -> bool:
    """Something else is read through a descriptor, or seen in a map."""
    reading = operation.name in ("read_at", "read_on", "map_file", "map_read")
    return reading and (actual.succeeded or (operation.name == "map_read" and actual.error == "EFAULT"))


def _is_busy(operation: Operation, expected: Outcome, actual: Outcome) -> bool:
    """What is held open can't be opened anew for writing."""
    return operation.name == "hold_again" and expected.succeeded and actual.error == "ETXTBSY"


def _finds_one_file(operation: Operation, expected: Outcome, actual: Outcome) -> bool:
    """The two names of one file have one number here, and two in the kernel's answer."""
    if operation.name not in ("link", "link_of", "link_target"):
        return False
    before, after = expected.value, actual.value
    if not isinstance(before, tuple) or not isinstance(after, tuple):
        return False
    return (before[0], after[0]) == (False, True) and before[1:] == after[1:]


def _keeps_hidden_names(operation: Operation, expected: Outcome, actual: Outcome) -> bool:
    """A directory that shows nothing is removed here, and not by the kernel."""
    removing = operation.name in ("rmdir", "remove_tree", "remove_below", "rename", "rename_below")
    return removing and expected.error == "ENOTEMPTY" and actual.succeeded


def _copies_across(operation: Operation, expected: Outcome, actual: Outcome) -> bool:
    """A range of a file on another file system is copied."""
    return operation.name == "copy_range" and expected.error == "EXDEV" and actual.succeeded


def _lists_new_names(operation: Operation, expected: Outcome, actual: Outcome) -> bool:
    """The same names and some more, through a descriptor."""
    before, after = expected.value, actual.value
    if operation.name == "names_again" and isinstance(before, tuple) and isinstance(after, tuple):
        before, after = before[0], after[0]
    elif operation.name != "listing_of":
        return False
    if not isinstance(before, list) or not isinstance(after, list):
        return False
    return set(before) < set(after)


ALLOWED = (
    Difference(
        where="`st_ino` of what was copied up, in a user namespace or from an overlay",
        kernel="the lower's until the name is looked up again, then the upper's",
        pyoverlay="the lower's for as long as it is mounted, and afterwards where the names are the same",
        reason="it opens no origin by its handle there; pyoverlay compares handles, or remembers",
        answers=_finds_one_file,
        ends_slots=True,
        circumstance=WITHOUT_HANDLES,
    ),
    Difference(
        where="`rmdir` of a directory whose names are all hidden by whiteouts that are attributes",
        kernel="ENOTEMPTY",
        pyoverlay="removes it",
        reason="it shows nothing",
        answers=_keeps_hidden_names,
        circumstance=OVERLAY_LOWER,
        ends_script=True,
    ),
    Difference(
        where="`copy_file_range` from a lower on another file system",
        kernel="EXDEV",
        pyoverlay="copies",
        reason="the kernel above FUSE reads and writes then, as programs do that meet EXDEV",
        answers=_copies_across,
        circumstance=SEVERAL_FILE_SYSTEMS,
        ends_script=True,
    ),
    Difference(
        where="a listing of a directory that was opened before, on btrfs",
        kernel="without the names that were made since it was opened",
        pyoverlay="with them",
        reason="POSIX leaves it open; it lists like this on the other file systems",
        answers=_lists_new_names,
        circumstance=BTRFS,
    ),
    Difference(
        where="the mark `origin`",
        kernel="on what was copied up",
        pyoverlay="the same, but for what it can't name by handle",
        reason="optional, a file handle: its effect, st_ino after copy-up, is compared in the merged view",
        mark="origin",
    ),
    Difference(
        where="the block of a file's attributes, on ext4",
        kernel="isn't needed",
        pyoverlay="may be needed for the mark",
        reason="the same",
        answers=_one_block_more,
        circumstance=WITHOUT_HANDLES,
    ),
    Difference(
        where="blocks of a file of many pieces, on ext4",
        kernel="with one for the list of the pieces, where there are more than four",
        pyoverlay="the same",
        reason="pieces that happen to lie one after the other on the disk are one",
        answers=_one_block_apart,
    ),
    Difference(
        where="blocks of a file that was written to, on XFS and btrfs",
        kernel="with what is reserved for more",
        pyoverlay="the same, reserved and given back at other times",
        reason="the file system decides by when it is closed and written back",
        answers=_any_blocks,
        circumstance=RESERVES_BLOCKS,
    ),
    Difference(
        where="holes of such a file",
        kernel="what is reserved is data when it was read, else a hole",
        pyoverlay="the same, reserved and read at other times",
        reason="the same; what is read is zeros in both cases",
        answers=_other_holes,
        circumstance=RESERVES_BLOCKS,
    ),
    Difference(
        where="atime of what was read, listed or followed",
        kernel="moves with relatime, for what is in the upper",
        pyoverlay="moves when the upper's file is read, O_NOATIME or not; not when the kernel answers",
        reason="nobody asks FUSE's daemon then, and the daemon's own descriptors read for all",
        answers=_another_access,
    ),
    Difference(
        where="the mark `impure`",
        kernel="on directories with copied-up entries, removed when they are gone",
        pyoverlay="on directories that have or had some",
        reason="a hint that a directory's d_ino must be looked up; shows nothing by itself",
        mark="impure",
    ),
    Difference(
        where="the mark `uuid`",
        kernel="on a fresh upper",
        pyoverlay="never",
        reason="a random number for f_fsid; FUSE has its own f_fsid",
        mark="uuid",
    ),
    Difference(
        where="mode, group, links, time and ACL of a whiteout",
        kernel="mode 000, group 0; one whiteout, linked everywhere, with the time of the first",
        pyoverlay="one each, with mode, group and ACL as the directory gives them",
        reason="any of them hides a name, and nobody sees more of it",
        whiteout_fields=frozenset({"mode", "gid", "nlink", "mtime", "xattrs"}),
    ),
    Difference(
        where="`rename` of an upper directory to a directory that isn't empty",
        kernel="ENOTEMPTY, and an opaque mark on the directory that stays where it is",
        pyoverlay="ENOTEMPTY",
        reason="the kernel checks after it has marked; on a directory of the upper alone it hides nothing",
        needless_mark=frozenset({("rename", "ENOTEMPTY"), ("rename_below", "ENOTEMPTY")}),
    ),
    Difference(
        where="`setxattr` that is refused: XATTR_REPLACE, XATTR_CREATE, an unknown namespace",
        kernel="ENODATA, EEXIST, EOPNOTSUPP after a copy-up",
        pyoverlay="the same error, nothing copied up",
        reason="nothing is to be changed, so nothing need be copied",
        needless_copy=_REFUSED_ATTRIBUTES,
    ),
    Difference(
        where="a write through a shared map of a file with a capability, without passthrough",
        kernel="the capability stays",
        pyoverlay="falls, as at a write(2)",
        reason="the daemon writes the page; no script draws it",
    ),
    Difference(
        where="mtime after a write through a shared map, on tmpfs, of a file with set-id bits",
        kernel="stays, as tmpfs doesn't hear of it",
        pyoverlay="moves, as the daemon writes the page",
        reason="that is what POSIX says; no script draws it",
    ),
    Difference(
        where="root writes to a file that has set-id bits and a capability",
        kernel="the capability falls",
        pyoverlay="both fall",
        reason="the message that asks for it could be a chown(2)'s, at which both fall; no script draws it",
    ),
    Difference(
        where="a stranger's `chown` that names no owner, of a file with set-id bits open for writing",
        kernel="EPERM",
        pyoverlay="the bits fall",
        reason="FUSE's message is that in which a write asks for it; no script draws it",
    ),
    Difference(
        where="`fallocate` that cuts a range out or puts one in",
        kernel="where the upper's file system can",
        pyoverlay="EOPNOTSUPP",
        reason="FUSE passes on allocating, punching holes and zeroing; no script draws what the kernel can",
    ),
    Difference(
        where="holes of a copied-up file, where blocks can't be shared",
        kernel="keeps a hole at the beginning of each MiB",
        pyoverlay="keeps every hole",
        reason="takes no more room than the lower's file",
        answers=_more_holes,
    ),
    Difference(
        where="blocks of such a file",
        kernel="more than the lower's has",
        pyoverlay="as many as the lower's has",
        reason="the same",
        answers=_fewer_blocks,
    ),
    Difference(
        where="`lseek(SEEK_DATA)`, `lseek(SEEK_HOLE)` of a directory",
        kernel="EINVAL for a merged one",
        pyoverlay="an offset",
        reason="FUSE answers by itself; no script draws it",
    ),
    Difference(
        where="`fstat` of a lower's file that was unlinked while it is open",
        kernel="the links that it had",
        pyoverlay="counts down, to 0",
        reason="that is what POSIX says; programs look for 0",
        answers=_fewer_links,
    ),
    Difference(
        where="changing a lower's file that was unlinked while it is open, and opening it again to write",
        kernel="EEXIST or ENOENT",
        pyoverlay="works, on a copy without a name",
        reason="that is what POSIX says",
        answers=_changes_unlinked,
        ends_slots=True,
    ),
    Difference(
        where="changing a lower's fifo, socket or device that was unlinked while it is open",
        kernel="it is copied up to its old name, and is there again",
        pyoverlay="works, on a copy without a name",
        reason="what was removed stays removed; no script draws it",
    ),
    Difference(
        where="changing a lower's directory that was removed while it is open",
        kernel="ENOTDIR, or EIO where the directory above was removed, too",
        pyoverlay="ENOENT",
        reason="the kernel comes upon the whiteout; ENOENT is what others say. (A new directory of "
        "that name is changed by the kernel in its place, which no script draws)",
        answers=_changes_removed_directory,
    ),
    Difference(
        where="a map made through a descriptor that is older than the file's copy-up",
        kernel="shows the lower's data for ever",
        pyoverlay="shows the file's data",
        reason="that is what POSIX says",
        answers=_stale_map,
    ),
    Difference(
        where="program text, read through a descriptor that is older than the file's copy-up",
        kernel="shows the file's data",
        pyoverlay="shows the lower's data",
        reason="the kernel reads it by itself, and can't be turned to another file",
        answers=_older_data,
        circumstance=ALL_PASSED_THROUGH,
        ends_slots=True,
    ),
    Difference(
        where="program text that is open: opening it to write through `/proc/self/fd`",
        kernel="works",
        pyoverlay="ETXTBSY, as if it were running",
        reason="the same; by its name it can be opened",
        answers=_is_busy,
        circumstance=ALL_PASSED_THROUGH,
        ends_script=True,
    ),
)

MARKS = frozenset(line.mark for line in ALLOWED if line.mark)
WHITEOUT_FIELDS = frozenset().union(*(line.whiteout_fields for line in ALLOWED))
NEEDLESS_COPIES = frozenset().union(*(line.needless_copy for line in ALLOWED))
NEEDLESS_MARKS = frozenset().union(*(line.needless_mark for line in ALLOWED))


def allowed(
    operation: Operation,
    expected: Outcome,
    actual: Outcome,
    circumstances: frozenset[str] = frozenset(),
) -> Difference | None:
    """The line of the table that lets these two answers differ; None if they mustn't."""
    for line in ALLOWED:
        if line.circumstance is not None and line.circumstance not in circumstances:
            continue
        if line.answers is not None and line.answers(operation, expected, actual):
            return line
    return None
