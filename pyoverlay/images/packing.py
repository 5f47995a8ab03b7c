"""How does an upper directory become a changeset tar?

The reverse of `unpacking`: whiteouts and opaque directories become ``.wh.`` files, in front of what lies
beside them; further names of a file become hard links; attributes travel in PAX records. Entries are sorted
by name, so that the same upper gives the same bytes. The upper is read raw, whoever wrote it, as
`pyoverlay.layers.changes` reads it.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from collections.abc import Callable
from typing import IO, Final

from pyoverlay.images.errors import ImageError, shown
from pyoverlay.images.tar_entries import BLOCK, ENCODING, ERRORS, XATTR_KEYWORD, format_time
from pyoverlay.layers import changes, marks
from pyoverlay.layers.layer import DescriptorCache, Layer, LayerObject

_OPEN_DIRECTORIES: Final = 128
_PIECE: Final = 1 << 20
_NEVER: Final = (b"security.selinux", b"system.nfs4_acl")
"""What another host can't use (umoci leaves out the same)."""
_FUSE_OVERLAYFS: Final = b"user.fuseoverlayfs."
_REDIRECTS: Final = tuple(
    dialect.attribute(mark) for dialect in (marks.TRUSTED, marks.USER) for mark in ("redirect", "metacopy")
)
_TYPES: Final = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}

Wanted = Callable[[bytes], bool]
"""Whether a path, without a slash in front, belongs into the tar."""


def pack(upper: str, target: IO[bytes], *, epoch: int | None = None, wanted: Wanted | None = None) -> None:
    """Write an upper directory as a changeset tar.

    Args:
        upper: its path.
        target: takes the tar.
        epoch: SOURCE_DATE_EPOCH, in seconds: later times are written as this one
            (https://reproducible-builds.org/specs/source-date-epoch/).
        wanted: leaves out what it says no to, and what lies below that; None: everything goes in.

    Raises:
        ImageError: the upper can't be read, or has a mark that a tar has no word for: a directory that was
            moved, or a file without its data.
    """
    try:
        descriptor = os.open(upper, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ImageError(f"{upper}: {error.strerror}; an upper is a directory") from error
    cache = DescriptorCache(_OPEN_DIRECTORIES)
    layer = Layer(upper, descriptor, cache, writable=False)
    try:
        _Packer(layer, target, epoch, wanted or (lambda _path: True)).pack()
    finally:
        cache.close()
        layer.close()


class _Packer:
    def __init__(self, layer: Layer, target: IO[bytes], epoch: int | None, wanted: Wanted) -> None:
        self._layer = layer
        self._target = target
        self._latest = None if epoch is None else epoch * 10**9
        self._wanted = wanted
        self._links: dict[tuple[int, int], bytes] = {}

    def pack(self) -> None:
        pending: list[tuple[bytes, LayerObject]] = [(b"", self._layer.root)]
        while pending:
            path, found = pending.pop()
            try:
                status = found.status()
                self._entry(path, found, status)
                if stat.S_ISDIR(status.st_mode):
                    pending += reversed(self._inside(path, found))
            except OSError as error:
                place = f"{self._layer.path}/{shown(path)}"
                raise ImageError(f"{place}: it can't be packed: {error.strerror}") from error
        # Two blocks of zeros end a tar, and none more (pax(1)).
        self._target.write(bytes(2 * BLOCK))

    def _inside(self, path: bytes, directory: LayerObject) -> list[tuple[bytes, LayerObject]]:
        """Write a directory's marks, and return what else is in it, sorted."""
        prefix = path + b"/" if path else b""
        opaque = changes.is_opaque(directory)
        hidden: set[bytes] = set()
        inside = []
        for name in sorted(name for name, _ in directory.list_entries()):
            child = directory.child(name)
            if marks.is_aufs_mark(name):
                # AUFS's own files say nothing to others.
                meant = marks.aufs_hidden_name(name)
            elif changes.is_whiteout(child, child.status()):
                meant = name
            else:
                if self._wanted(prefix + name):
                    inside.append((prefix + name, child))
                continue
            if meant is not None and self._wanted(prefix + meant):
                hidden.add(meant)
        if opaque:
            # Nothing is left beneath it to be hidden.
            self._whiteout(prefix + marks.AUFS_OPAQUE)
        else:
            for name in sorted(hidden):
                self._whiteout(prefix + marks.aufs_whiteout(name))
        return inside

    # Entries

    def _whiteout(self, path: bytes) -> None:
        info = tarfile.TarInfo()
        info.mode = 0
        self._write_header(info, path, {})

    def _entry(self, path: bytes, found: LayerObject, status: os.stat_result) -> None:
        kind = stat.S_IFMT(status.st_mode)
        if kind not in _TYPES:
            return  # A socket is nothing without the process that made it; tar has no word for it.
        info = tarfile.TarInfo()
        info.type = _TYPES[kind]
        info.mode = stat.S_IMODE(status.st_mode)
        info.uid, info.gid = status.st_uid, status.st_gid
        records: dict[str, str] = {}
        self._set_time(info, records, status)
        if kind != stat.S_IFDIR and status.st_nlink > 1:
            first = self._links.setdefault((status.st_dev, status.st_ino), path)
            if first != path:
                info.type = tarfile.LNKTYPE
                info.linkname = first.decode(ENCODING, ERRORS)
                self._write_header(info, path, records)
                return
        self._add_attributes(path, found, records)
        if kind == stat.S_IFLNK:
            info.linkname = found.read_link().decode(ENCODING, ERRORS)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            info.devmajor, info.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
        if kind == stat.S_IFREG:
            self._write_file(info, path, found, records)
        else:
            self._write_header(info, (path or b".") + b"/" if kind == stat.S_IFDIR else path, records)

    def _set_time(self, info: tarfile.TarInfo, records: dict[str, str], status: os.stat_result) -> None:
        time = status.st_mtime_ns
        if self._latest is not None:
            time = min(time, self._latest)
        info.mtime = time // 10**9
        if time % 10**9:
            records["mtime"] = format_time(time)

    def _add_attributes(self, path: bytes, found: LayerObject, records: dict[str, str]) -> None:
        for name in sorted(found.list_attributes()):
            if name in _REDIRECTS:
                raise ImageError(
                    f"{self._layer.path}/{shown(path)}: the layer says with {shown(name)} that it lies "
                    "elsewhere, which no tar can; mount it, and pack a copy of what is shown"
                )
            seen = _visible(name)
            if seen is not None:
                value = found.attribute(name).decode(ENCODING, ERRORS)
                records[(XATTR_KEYWORD + seen).decode(ENCODING, ERRORS)] = value

    # Bytes

    def _write_header(self, info: tarfile.TarInfo, path: bytes, records: dict[str, str]) -> None:
        info.name = path.decode(ENCODING, ERRORS)
        info.pax_headers = records
        self._target.write(info.tobuf(tarfile.PAX_FORMAT, ENCODING, ERRORS))

    def _write_file(
        self, info: tarfile.TarInfo, path: bytes, found: LayerObject, records: dict[str, str]
    ) -> None:
        descriptor = found.open(os.O_RDONLY | os.O_NONBLOCK)
        try:
            info.size = os.fstat(descriptor).st_size
            self._write_header(info, path, records)
            left = info.size
            while left:
                piece = os.read(descriptor, min(left, _PIECE))
                if not piece:
                    raise OSError(errno.EIO, "it got shorter while it was read")
                self._target.write(piece)
                left -= len(piece)
            self._target.write(bytes(-info.size % BLOCK))
        finally:
            os.close(descriptor)


def _visible(name: bytes) -> bytes | None:
    """Return the name under which an attribute travels; None: it doesn't."""
    if name in _NEVER or name.startswith(_FUSE_OVERLAYFS):
        return None
    for dialect in (marks.TRUSTED, marks.USER):
        shown_name = marks.from_disk(dialect, name)
        if shown_name != name:
            return shown_name
    return name
