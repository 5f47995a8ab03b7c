"""A seeded script of mixed changes: which operations, in which order, on which names?

The script is fixed by its seed alone: it never looks at a mount, so that the same script runs on every file
system. It keeps a rough belief of what exists, aims half of its operations so that they should succeed and
fires the rest at names that are wrong in every way (missing, of another type, hidden by a whiteout, not
empty). That the belief is rough does no harm: what an operation should answer is said by the kernel's
overlayfs, not by this file.
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable

from tests.differential import layers, operations
from tests.differential.operation import Operation
from tests.harness.libc import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT

_FRESH_NAMES = (b"new", b"other", b"third", b"plain", b"gone", b"one", b"sub", b"dir")
_ATTRIBUTES = (b"user.colour", b"user.empty", b"user.note", b"trusted.secret", b"trusted.overlay.opaque")
_IDS = (0, 1000, 1001, 65534, -1)
_RENAME_FLAGS = {0: 10, RENAME_NOREPLACE: 4, RENAME_EXCHANGE: 5, RENAME_WHITEOUT: 1}
_AIMED = 0.5
"""How many of the operations are aimed at names that should let them succeed."""


def mixed_changes(seed: int, count: int) -> list[Operation]:
    """The script of `count` changes that belongs to `seed`, over the tree that `layers.build` makes."""
    generator = _Generator(random.Random(seed))
    return [generator.next() for _ in range(count)]


class _Generator:
    def __init__(self, source: random.Random) -> None:
        self._random = source
        self._belief = _Belief()
        makers: dict[Callable[[], Operation], int] = {
            self._create: 8,
            self._overwrite: 5,
            self._write: 7,
            self._append: 5,
            self._truncate: 6,
            self._mkdir: 8,
            self._rmdir: 5,
            self._unlink: 7,
            self._remove_tree: 3,
            self._rename: 14,
            self._link: 5,
            self._symlink: 4,
            self._mknod: 4,
            self._chmod: 6,
            self._chown: 5,
            self._utimens: 5,
            self._setxattr: 5,
            self._removexattr: 3,
            self._copy_up: 4,
            self._rewrite_whole: 3,
        }
        self._makers = list(makers)
        self._weights = list(makers.values())

    def next(self) -> Operation:
        (maker,) = self._random.choices(self._makers, self._weights)
        return maker()

    # --- names ---------------------------------------------------------------------------------------------

    def _aims(self) -> bool:
        return self._random.random() < _AIMED

    def _existing(self, *kinds: str) -> bytes:
        return self._random.choice(self._belief.names(*kinds) or [b"plain"])

    def _free(self) -> bytes:
        """A name that should be free, in a directory that should exist."""
        names = [hidden for hidden in layers.HIDDEN if self._belief.is_free(hidden)]
        if names and self._random.random() < 0.3:
            return self._random.choice(names)
        for _ in range(50):
            name = self._child(self._random.choice([b"", *self._belief.names("directory")]))
            if self._belief.is_free(name):
                return name
        return b"free-%d" % self._random.randrange(1000)

    def _child(self, directory: bytes) -> bytes:
        return os.path.join(directory, self._random.choice(_FRESH_NAMES))

    def _any(self) -> bytes:
        """Any name at all: existing, missing, hidden, below a file, in a missing directory."""
        return self._random.choice(
            [
                self._existing("file", "directory", "symlink", "special"),
                self._random.choice(layers.HIDDEN),
                self._child(self._existing("directory")),
                self._child(self._existing("file")),
                self._child(b"missing"),
            ]
        )

    def _content(self) -> bytes:
        return self._random.randbytes(self._random.choice((0, 1, 5, 100, 5000, 70_000)))

    # --- operations ----------------------------------------------------------------------------------------

    def _create(self) -> Operation:
        path = self._free() if self._aims() else self._any()
        self._belief.add(path, "file")
        mode = self._random.choice((0o666, 0o600, 0o777, 0o4755, 0o2751))
        return operations.create(path, self._content(), mode)

    def _overwrite(self) -> Operation:
        path = self._existing("file") if self._aims() else self._any()
        self._belief.add(path, "file")
        return operations.overwrite(path, self._content())

    def _file_or_any(self) -> bytes:
        return self._existing("file") if self._aims() else self._any()

    def _write(self) -> Operation:
        offset = self._random.choice((0, 3, 4096, 200_000))
        return operations.write(self._file_or_any(), offset, self._content())

    def _append(self) -> Operation:
        return operations.append(self._file_or_any(), self._content())

    def _truncate(self) -> Operation:
        return operations.truncate(self._file_or_any(), self._random.choice((0, 1, 10, 4096, 1_000_000)))

    def _copy_up(self) -> Operation:
        return operations.copy_up(self._file_or_any())

    def _rewrite_whole(self) -> Operation:
        return operations.rewrite_whole(self._file_or_any(), self._content())

    def _mkdir(self) -> Operation:
        path = self._free() if self._aims() else self._any()
        self._belief.add(path, "directory")
        return operations.mkdir(path, self._random.choice((0o777, 0o700, 0o2775, 0o1777)))

    def _rmdir(self) -> Operation:
        empty = [name for name in self._belief.names("directory") if self._belief.is_empty(name)]
        path = self._random.choice(empty) if empty and self._aims() else self._any()
        if self._belief.kind(path) == "directory" and self._belief.is_empty(path):
            self._belief.remove(path)
        return operations.rmdir(path)

    def _unlink(self) -> Operation:
        path = self._existing("file", "symlink", "special") if self._aims() else self._any()
        if self._belief.kind(path) != "directory":
            self._belief.remove(path)
        return operations.unlink(path)

    def _remove_tree(self) -> Operation:
        path = self._existing("directory") if self._aims() else self._any()
        self._belief.remove(path)
        return operations.remove_tree(path)

    def _rename(self) -> Operation:
        source = self._existing("file", "directory", "symlink", "special") if self._aims() else self._any()
        (flags,) = self._random.choices(list(_RENAME_FLAGS), list(_RENAME_FLAGS.values()))
        if self._random.random() < 0.5 and flags != RENAME_EXCHANGE:
            target = self._free()
        else:
            target = self._existing(self._belief.kind(source) or "file")
        self._belief.move(source, target, exchange=flags == RENAME_EXCHANGE)
        return operations.rename(source, target, flags)

    def _link(self) -> Operation:
        source = self._existing("file", "symlink", "special") if self._aims() else self._any()
        path = self._free() if self._aims() else self._any()
        self._belief.add(path, self._belief.kind(source) or "file")
        return operations.link(source, path)

    def _symlink(self) -> Operation:
        path = self._free() if self._aims() else self._any()
        self._belief.add(path, "symlink")
        target = self._random.choice((b"plain", b"dir/sub", b"nowhere", b"x" * 300))
        return operations.symlink(target, path)

    def _mknod(self) -> Operation:
        path = self._free() if self._aims() else self._any()
        kind, device = self._random.choice(
            (
                (stat.S_IFIFO, 0),
                (stat.S_IFSOCK, 0),
                (stat.S_IFREG, 0),
                (stat.S_IFCHR, os.makedev(1, 3)),
                (stat.S_IFCHR, 0),
            )
        )
        if (kind, device) != (stat.S_IFCHR, 0):
            self._belief.add(path, "file" if kind == stat.S_IFREG else "special")
        return operations.mknod(path, kind | 0o640, device)

    def _object_or_any(self) -> bytes:
        return self._existing("file", "directory", "special") if self._aims() else self._any()

    def _chmod(self) -> Operation:
        mode = self._random.choice((0o600, 0o755, 0o4711, 0o2755, 0o1777, 0o444, 0))
        return operations.chmod(self._object_or_any(), mode)

    def _chown(self) -> Operation:
        return operations.chown(self._object_or_any(), self._random.choice(_IDS), self._random.choice(_IDS))

    def _utimens(self) -> Operation:
        # Whole and odd nanoseconds, all old, so that a tree comparison checks them to the last digit.
        atime, mtime = (
            (layers.OLD_SECONDS + self._random.randrange(10**6)) * 10**9 + self._random.randrange(10**9)
            for _ in range(2)
        )
        return operations.utimens(self._object_or_any(), atime, mtime)

    def _setxattr(self) -> Operation:
        flags = self._random.choice((0, 0, 0, os.XATTR_CREATE, os.XATTR_REPLACE))
        value = self._random.randbytes(self._random.choice((0, 4, 200)))
        path = self._object_or_any()
        if flags == os.XATTR_REPLACE and path.startswith(b"hard-"):
            # Refused, it still copies up on the kernel's overlay (NEEDLESS_COPIES), and breaks the link.
            path = b"rich"
        return operations.setxattr(path, self._random.choice(_ATTRIBUTES), value, flags)

    def _removexattr(self) -> Operation:
        if self._random.random() < _AIMED:
            return operations.removexattr(b"rich", self._random.choice(layers.RICH_ATTRIBUTES))
        return operations.removexattr(self._object_or_any(), self._random.choice(_ATTRIBUTES))


class _Belief:
    """What the generator takes for granted: path -> "file", "directory", "symlink" or "special"."""

    def __init__(self) -> None:
        self._kinds: dict[bytes, str] = {}
        for kind, names in (
            ("file", layers.FILES),
            ("directory", layers.DIRECTORIES),
            ("symlink", layers.SYMLINKS),
            ("special", layers.SPECIALS),
            ("file", (b"was-file/inside",)),
        ):
            self._kinds.update(dict.fromkeys(names, kind))

    def kind(self, path: bytes) -> str | None:
        return self._kinds.get(path)

    def names(self, *kinds: str) -> list[bytes]:
        return sorted(path for path, kind in self._kinds.items() if kind in kinds)

    def is_free(self, path: bytes) -> bool:
        return path not in self._kinds and self._has_parent(path)

    def is_empty(self, path: bytes) -> bool:
        return not any(name.startswith(path + b"/") for name in self._kinds)

    def _has_parent(self, path: bytes) -> bool:
        parent = os.path.dirname(path)
        return parent == b"" or self._kinds.get(parent) == "directory"

    def add(self, path: bytes, kind: str) -> None:
        if self.is_free(path):
            self._kinds[path] = kind

    def remove(self, path: bytes) -> None:
        for name in [name for name in self._kinds if name == path or name.startswith(path + b"/")]:
            del self._kinds[name]

    def move(self, source: bytes, target: bytes, *, exchange: bool) -> None:
        """Follows a rename of a file; a directory is taken to stay where it is, as most get EXDEV."""
        if self._kinds.get(source) in (None, "directory") or not self._has_parent(target):
            return
        if self._kinds.get(target) == "directory" or source == target:
            return
        moved, replaced = self._kinds.pop(source), self._kinds.get(target)
        self._kinds[target] = moved
        if exchange and replaced:
            self._kinds[source] = replaced
