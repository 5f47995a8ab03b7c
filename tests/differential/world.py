"""What exists in the tree, and what is held open? From that the next operation is drawn."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from tests.differential.operation import Caller, Operation
from tests.differential.operations import entry_type


def scan(root: bytes) -> dict[bytes, str]:
    """Every name below a directory, with its kind: file, directory, symlink or special."""
    tree = {}
    pending = [b""]
    while pending:
        directory = pending.pop()
        with os.scandir(os.path.join(root, directory)) as entries:
            for entry in entries:
                path = os.path.join(directory, entry.name)
                tree[path] = entry_type(entry)
                if tree[path] == "directory":
                    pending.append(path)
    return dict(sorted(tree.items()))


@dataclass(frozen=True)
class Slot:
    """What is held open.

    kind: file, directory or special, or "place" for what was opened with O_PATH; flags: of open(2); path:
    its name when it was opened.
    """

    kind: str
    flags: int
    path: bytes

    @property
    def readable(self) -> bool:
        """Whether read(2) is allowed."""
        return self.flags & os.O_ACCMODE != os.O_WRONLY

    @property
    def writable(self) -> bool:
        """Whether write(2) is allowed."""
        return self.flags & os.O_ACCMODE != os.O_RDONLY


@dataclass
class World:
    """What exists, and what is held open: (caller, slot) -> what, (caller, number) of maps."""

    root: bytes = b""
    """Where one of the two is mounted."""
    tree: dict[bytes, str] = field(default_factory=dict)
    slots: dict[tuple[Caller, int], Slot] = field(default_factory=dict)
    maps: set[tuple[Caller, int]] = field(default_factory=set)
    gone: list[bytes] = field(default_factory=list)
    """Names that were there once."""
    _lost: set[tuple[Caller, int]] = field(default_factory=set)
    """What is held open and was removed, or has another name."""
    set_ids: bool = True
    """Whether modes may have set-id bits; if not, files may have capabilities."""
    maps_move_times: bool = True
    """Whether the upper's file system gives a file that is written through a map a new mtime."""

    def update(self, tree: dict[bytes, str]) -> None:
        """Takes note of what exists now."""
        self.gone += [path for path in self.tree if path not in tree and path not in self.gone]
        self.tree = tree
        for key, slot in list(self.slots.items()):
            if slot.path not in tree:
                self._lost.add(key)
            elif key in self._lost and slot.kind != "file":
                self._let_be(key)
            if slot.kind == "special" and tree.get(slot.path) != "special":
                self._let_be(key)

    def _let_be(self, key: tuple[Caller, int]) -> None:
        """No script changes what isn't under its name any more: see the table of allowed differences."""
        self.slots.pop(key, None)
        self._lost.discard(key)

    def _renamed(self, operation: Operation) -> None:
        names = {
            os.path.basename(name.rstrip(b"/")) for name in operation.arguments if isinstance(name, bytes)
        }
        for key, slot in list(self.slots.items()):
            if slot.kind in ("directory", "special") and os.path.basename(slot.path) in names:
                self._let_be(key)

    def attributes(self, path: bytes) -> list[bytes]:
        """The extended attributes of a name, none if there is no such name."""
        try:
            names = os.listxattr(os.path.join(self.root, path), follow_symlinks=False)
        except OSError:
            return []
        # On XFS it is how an ACL is stored; the kernel above FUSE doesn't know that it goes with it.
        return [os.fsencode(name) for name in names if not name.startswith("trusted.SGI_ACL")]

    def took_place(self, operation: Operation) -> None:
        """Takes note of an operation that succeeded, if it is about what is held open."""
        if operation.name in ("rename", "rename_below"):
            self._renamed(operation)
        slot = operation.arguments[0] if operation.arguments else None
        if not isinstance(slot, int):
            return
        key = operation.caller, slot
        if operation.name in ("hold", "hold_below", "hold_again"):
            self.slots[key] = self._held(operation)
            self._lost.discard(key)
        elif operation.name == "let_go":
            self.slots.pop(key, None)
        elif operation.name == "map_file":
            self.maps.add(key)
        elif operation.name == "unmap":
            self.maps.discard(key)

    def _held(self, operation: Operation) -> Slot:
        source = operation.arguments[1]
        flags = operation.arguments[3 if operation.name == "hold_below" else 2]
        assert isinstance(flags, int)
        if isinstance(source, bytes):
            path, kind = os.path.normpath(source), "file"
        else:
            assert isinstance(source, int)
            other = self.slots.get((operation.caller, source), Slot("file", 0, b""))
            path, kind = other.path, other.kind
        if operation.name == "hold_below":
            name = operation.arguments[2]
            assert isinstance(name, bytes)
            path = os.path.join(path, name)
        if operation.name != "hold_again" or kind == "place":
            kind = self.tree.get(path, "file") if path != b"." else "directory"
        if kind == "symlink":
            kind = "file"
        return Slot("place" if flags & os.O_PATH else kind, flags, path)

    def forget_held(self) -> None:
        """Nothing is held any more."""
        self.slots.clear()
        self._lost.clear()
        self.maps.clear()
