"""What did an upper change against its lowers: which paths are added (A), changed (C) and deleted (D)?

The rule is docker diff's (daemon/archive/changes.go), worked out from the upper as containers-storage does
(archive.OverlayChanges), so that unchanged lower trees aren't walked:

- a name of the upper that no lower shows is A, one that a lower shows is C, a whiteout of one is D;
- a directory of the upper that merges and has its lower's mode, owner, modification time and extended
  attributes was only copied up for something below it, and is no change itself;
- an opaque directory is compared entry by entry with what it hides: D for what is missing;
- every parent of a change is C.

Layers are read raw, without a mount, whoever wrote them: the kernel, pyoverlay, fuse-overlayfs, or who
unpacked an image.  This file knows layers and marks, not mounts or daemons.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from pyoverlay.layers import marks
from pyoverlay.layers.layer import DescriptorCache, Layer, LayerObject
from pyoverlay.layers.recorded import keep_records, spelling_of
from pyoverlay.options import OverlayError

_OPEN_DIRECTORIES: Final = 128
_DIALECTS: Final = (marks.TRUSTED, marks.USER)
_FUSE_OVERLAYFS_PREFIX: Final = b"user.fuseoverlayfs."
_ORIGIN_ATTRIBUTES: Final = (
    *(dialect.attribute(mark) for dialect in _DIALECTS for mark in ("origin", "metacopy")),
    _FUSE_OVERLAYFS_PREFIX + b"origin",
)
_ABSENT: Final = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
_NO_ATTRIBUTE: Final = (errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM)


class ChangeKind(enum.StrEnum):
    """What happened to a path, in docker diff's letters."""

    ADDED = "A"
    CHANGED = "C"
    DELETED = "D"


@dataclass(frozen=True, slots=True)
class Change:
    """One changed path.

    Attributes:
        kind: what happened to it.
        path: from the root of the merged view, with a slash in front; str with surrogateescape.
    """

    kind: ChangeKind
    path: str

    def __str__(self) -> str:
        return f"{self.kind} {self.path}"


def find_changes(upper: str, lowers: Sequence[str] | None) -> list[Change]:
    """Return what an upper changed.

    Args:
        upper: the upper directory; it may be in use by a live mount.
        lowers: its lowers, topmost first.  None: they aren't known, and the upper's marks are all there is to
            judge from.  Then an opaque directory and what has a mark of origin or metacopy is C, other names
            are A, and so is all that lies in an opaque or added directory; what an opaque one hides isn't
            listed.
            So a file that was moved shows as C rather than A; one that was deleted and created again, or had
            several hard links in its lower, as A rather than C; a directory that was only copied up as C.

    Returns:
        The changes, sorted by path as bytes.

    Raises:
        OverlayError: a layer isn't a readable directory, or holds a mark that makes no sense.
    """
    cache = DescriptorCache(_OPEN_DIRECTORIES)
    with contextlib.ExitStack() as resources:
        resources.callback(cache.close)
        layers = []
        for path in (upper, *(lowers or ())):
            layers.append(_open_layer(path, cache))
            resources.callback(layers[-1].close)
        comparison = _Comparison(layers) if lowers is not None else _Judgement(layers)
        return _with_parents(comparison.changes())


def _open_layer(path: str, cache: DescriptorCache) -> Layer:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise OverlayError(f"{path}: {error.strerror}; a layer is a directory") from error
    # Not to be written, though it may be an upper.
    layer = Layer(path, descriptor, cache, writable=False)
    spelling = spelling_of(layer)
    if spelling is not None:
        keep_records(layer, spelling)
    return layer


def _with_parents(changes: Iterable[tuple[bytes, ChangeKind]]) -> list[Change]:
    kinds = dict(changes)
    for path in list(kinds):
        parent = path.rpartition(b"/")[0]
        while parent and parent not in kinds:
            kinds[parent] = ChangeKind.CHANGED
            parent = parent.rpartition(b"/")[0]
    return [Change(kind, os.fsdecode(path)) for path, kind in sorted(kinds.items())]


@dataclass(frozen=True, slots=True)
class _Found:
    """What a stack shows under a name: one object that is no directory, or the directories that merge."""

    status: os.stat_result
    objects: tuple[LayerObject, ...]

    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)


@dataclass(frozen=True, slots=True)
class _Step:
    """What one layer has to say about a name; `ends`: nothing below this layer counts."""

    object: LayerObject | None
    status: os.stat_result | None
    ends: bool


class _Comparison:
    """The merged view against what the lowers alone show."""

    def __init__(self, layers: list[Layer]) -> None:
        self._upper = layers[0]
        self._roots = tuple(layer.root for layer in layers)

    def changes(self) -> Iterator[tuple[bytes, ChangeKind]]:
        pending = deque([(b"", self._roots, self._roots[1:])])
        while pending:
            path, shown, hidden = pending.pop()
            try:
                for name in self._names(shown, hidden):
                    child = path + b"/" + name
                    now, before = self._lookup(shown, name), self._lookup(hidden, name)
                    kind = self._judge(now, before)
                    if kind is not None:
                        yield child, kind
                    if now is not None and now.is_directory() and not _is_same(now, before):
                        kept = before is not None and before.is_directory()
                        pending.append((child, now.objects, before.objects if before and kept else ()))
            except OSError as error:
                raise _unreadable(self._upper, path, error) from error

    def _judge(self, now: _Found | None, before: _Found | None) -> ChangeKind | None:
        if now is None:
            # A whiteout of a name that no lower has is left over, and hides nothing.
            return None if before is None else ChangeKind.DELETED
        if before is None:
            return ChangeKind.ADDED
        if _is_same(now, before):
            return None
        if now.is_directory() and before.is_directory():
            return ChangeKind.CHANGED if _directory_differs(now, before) else None
        return ChangeKind.CHANGED

    def _names(self, shown: tuple[LayerObject, ...], hidden: tuple[LayerObject, ...]) -> set[bytes]:
        """Return the names that may differ: the upper's, where all else is the lowers' own."""
        merges = _identities(shown[1:]) == _identities(hidden)
        if shown[0].layer is self._upper and merges:
            return _listed(shown[:1])
        return _listed(shown + hidden)

    def _lookup(self, directories: tuple[LayerObject, ...], name: bytes) -> _Found | None:
        """Find a name through a stack of directories (fs/overlayfs/namei.c: ovl_lookup)."""
        objects: list[LayerObject] = []
        status: os.stat_result | None = None
        names: tuple[bytes, ...] = (name,)
        pending = deque(directories)
        while pending:
            step = _look(pending.popleft(), names)
            if step.object is not None and step.status is not None:
                is_directory = stat.S_ISDIR(step.status.st_mode)
                if status is None:
                    status = step.status
                elif not is_directory:
                    break
                objects.append(step.object)
                redirect = _redirect(step.object) if is_directory else None
                if redirect is not None and redirect.absolute:
                    names = redirect.names
                    pending = deque(self._roots_below(step.object.layer))
                elif redirect is not None:
                    names = names[:-1] + redirect.names
            if step.ends:
                break
        return None if status is None else _Found(status, tuple(objects))

    def _roots_below(self, layer: Layer) -> tuple[LayerObject, ...]:
        return self._roots[self._roots.index(layer.root) + 1 :]


class _Judgement:
    """What an upper's marks alone tell, see `find_changes`."""

    def __init__(self, layers: list[Layer]) -> None:
        self._upper = layers[0]

    def changes(self) -> Iterator[tuple[bytes, ChangeKind]]:
        # (path, directory, whether lowers show through it)
        pending = deque([(b"", self._upper.root, True)])
        while pending:
            path, directory, merges = pending.pop()
            try:
                for name in _listed([directory]):
                    child = path + b"/" + name
                    step = _look(directory, (name,))
                    if step.object is None or step.status is None:
                        if merges and step.ends:
                            yield child, ChangeKind.DELETED
                        continue
                    is_directory = stat.S_ISDIR(step.status.st_mode)
                    opaque = is_directory and step.ends
                    known = merges and (opaque or _has_any(step.object, _ORIGIN_ATTRIBUTES))
                    yield child, ChangeKind.CHANGED if known else ChangeKind.ADDED
                    if is_directory:
                        pending.append((child, step.object, known and not opaque))
            except OSError as error:
                raise _unreadable(self._upper, path, error) from error


def _look(directory: LayerObject, names: tuple[bytes, ...]) -> _Step:
    """Walk `names` in one layer (fs/overlayfs/namei.c: ovl_lookup_layer, ovl_lookup_single)."""
    ends = False
    found = directory
    status: os.stat_result | None = None
    for name in names:
        if status is not None and not stat.S_ISDIR(status.st_mode):
            return _Step(None, None, ends=True)
        hides_below = _status(found.child(marks.aufs_whiteout(name))) is not None
        found = found.child(name)
        status = _status(found)
        if status is None:
            return _Step(None, None, ends or hides_below)
        if is_whiteout(found, status):
            return _Step(None, None, ends=True)
        ends = ends or hides_below or not stat.S_ISDIR(status.st_mode) or is_opaque(found)
    return _Step(found, status, ends)


def _status(found: LayerObject) -> os.stat_result | None:
    try:
        return found.status()
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise


def is_whiteout(found: LayerObject, status: os.stat_result) -> bool:
    """Whether a layer's object, with this lstat, is a whiteout: a device 0/0, or one by xattr."""
    if marks.is_whiteout_device(status.st_mode, status.st_rdev):
        return True
    empty = stat.S_ISREG(status.st_mode) and status.st_size == 0
    return empty and _has_any(found, [dialect.attribute("whiteout") for dialect in _DIALECTS])


def is_opaque(directory: LayerObject) -> bool:
    """Whether a layer's directory hides all that lies beneath it, in whichever dialect it says so."""
    for name in marks.OPAQUE_ATTRIBUTES:
        value = _attribute(directory, name)
        if value is not None and marks.is_opaque(name, value):
            return True
    return _status(directory.child(marks.AUFS_OPAQUE)) is not None


def _redirect(directory: LayerObject) -> marks.Redirect | None:
    for dialect in _DIALECTS:
        value = _attribute(directory, dialect.attribute("redirect"))
        if value is not None:
            try:
                return marks.parse_redirect(value)
            except ValueError as error:
                raise OSError(errno.EINVAL, str(error)) from error
    return None


def _has_any(found: LayerObject, names: Iterable[bytes]) -> bool:
    return any(_attribute(found, name) is not None for name in names)


def _attribute(found: LayerObject, name: bytes) -> bytes | None:
    try:
        return found.attribute(name)
    except OSError as error:
        if error.errno in _NO_ATTRIBUTE or error.errno in _ABSENT:
            return None
        raise


def _listed(directories: Iterable[LayerObject]) -> set[bytes]:
    """Return every name that a directory speaks of, be it by a whiteout."""
    names: set[bytes] = set()
    for directory in directories:
        try:
            entries = directory.list_entries()
        except OSError as error:
            if error.errno not in _ABSENT:
                raise
            continue  # A live mount removed it just now.
        for name, _kind in entries:
            spoken_of = marks.aufs_hidden_name(name) if marks.is_aufs_mark(name) else name
            if spoken_of is not None:
                names.add(spoken_of)
    return names


def _identities(objects: Iterable[LayerObject]) -> list[tuple[int, int]]:
    identities = []
    for found in objects:
        status = _status(found)
        if status is not None:
            identities.append((status.st_dev, status.st_ino))
    return identities


def _is_same(now: _Found, before: _Found | None) -> bool:
    """Whether both are the same objects of lowers, so that nothing in or below them differs."""
    return before is not None and _identities(now.objects) == _identities(before.objects)


def _directory_differs(now: _Found, before: _Found) -> bool:
    new, old = now.status, before.status
    if (new.st_mode, new.st_uid, new.st_gid) != (old.st_mode, old.st_uid, old.st_gid):
        return True
    # Not the size: it tells how the file system stores a directory.
    if not _same_time(new.st_mtime_ns, old.st_mtime_ns):
        return True
    return _visible_attributes(now.objects[0]) != _visible_attributes(before.objects[0])


def _same_time(one: int, other: int) -> bool:
    """Compare nanoseconds; whole seconds come from an archive that kept no more (archive.sameFsTime)."""
    (seconds, rest), (other_seconds, other_rest) = divmod(one, 10**9), divmod(other, 10**9)
    return seconds == other_seconds and (rest == other_rest or 0 in (rest, other_rest))


def _visible_attributes(found: LayerObject) -> dict[bytes, bytes | None]:
    return {
        name: _attribute(found, name)
        for name in found.list_attributes()
        if not name.startswith(_FUSE_OVERLAYFS_PREFIX)
        and not any(marks.is_own_attribute(dialect, name) for dialect in _DIALECTS)
    }


def _unreadable(upper: Layer, path: bytes, error: OSError) -> OverlayError:
    return OverlayError(
        f"can't tell the changes in {upper.path}: {os.fsdecode(path) or '/'} of a layer: {error.strerror}"
    )
