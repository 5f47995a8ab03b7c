"""What would the kernel's VFS ask of the core? A caller of `OverlayFilesystem` without a mount.

It looks every component up before it asks for more, as the kernel does, and counts what it was told of, so
that everything can be forgotten again. It may not know how the core answers.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

from pyoverlay.layers.stack import Stack
from pyoverlay.layers.syscalls import error
from pyoverlay.options import MountOptions
from pyoverlay.overlay.filesystem import Caller, Change, Node, OverlayFilesystem
from pyoverlay.overlay.node import ROOT_NODEID, Directory
from tests.harness import Stack as LayerDirectories

ROOT_USER = Caller(0, 0, 0o022)
NAMES_OF_EVERY_DIRECTORY = (b".", b"..")

Result = TypeVar("Result")


def mount_options(layers: LayerDirectories, **others: Any) -> MountOptions:  # noqa: ANN401 - fields of MountOptions
    """The options of a mount of `layers`."""
    given: dict[str, Any] = {
        "lowerdir": tuple(str(lower) for lower in layers.lowers),
        "upperdir": str(layers.upper),
        "workdir": str(layers.work),
    }
    return MountOptions(**(given | others))


def open_descriptors() -> int:
    """How many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


class Vfs:
    """An overlay that is used by paths (bytes, relative to its root)."""

    def __init__(self, layers: LayerDirectories, **others: Any) -> None:  # noqa: ANN401 - fields of MountOptions
        """Open the layers with `others` as options."""
        self.stack = Stack(mount_options(layers, **others))
        self.stack.prepare_work_directory()
        self.told: Counter[int] = Counter()
        self.fs = OverlayFilesystem(self.stack)

    def close(self) -> None:
        """Close everything; the work directory is left clean."""
        self.fs.close()
        self.stack.clean_work_directory()
        self.stack.close()

    def start_anew(self) -> None:
        """Forget all there is in memory, as a new mount of the same layers."""
        self.fs.close()
        self.fs = OverlayFilesystem(self.stack)
        self.told.clear()

    def run(self, operation: Callable[[], Result]) -> Result:
        """Run an operation with whatever it asks for."""
        return self.fs.run(operation)

    # Names

    def tell(self, node: Node) -> Node:
        """Count that the VFS was told of `node`."""
        self.fs.remember(node)
        self.told[node.nodeid] += 1
        return node

    def forget(self, nodeid: int) -> None:
        """Forget a node altogether."""
        self.fs.forget(nodeid, self.told.pop(nodeid, 0))

    def forget_everything(self) -> None:
        """Forget every node, the oldest first."""
        for nodeid in list(self.told):
            self.forget(nodeid)

    def node(self, path: bytes) -> Node:
        """Walk to `path`, told of every node on the way."""
        node: Node = self.fs.node(ROOT_NODEID)
        for name in path.split(b"/"):
            if name:
                parent = node.nodeid
                node = self.tell(self.run(lambda parent=parent, name=name: self.fs.lookup(parent, name)))  # type: ignore[misc]
        return node

    def directory(self, path: bytes) -> Directory:
        """Walk to a directory."""
        node = self.node(path)
        assert isinstance(node, Directory)
        return node

    def exists(self, path: bytes) -> bool:
        """Whether there is something at `path`."""
        try:
            self.node(path)
        except FileNotFoundError:
            return False
        return True

    def _place(self, path: bytes) -> tuple[int, bytes]:
        parent, _slash, name = path.rpartition(b"/")
        return self.node(parent).nodeid, name

    def _free_place(self, path: bytes) -> tuple[int, bytes]:
        place = self._place(path)
        if self.exists(path):
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        return place

    # Operations

    def create(
        self, path: bytes, content: bytes = b"", mode: int = 0o644, caller: Caller = ROOT_USER
    ) -> Node:
        """Create a file with contents."""
        parent, name = self._free_place(path)
        node, handle = self.run(lambda: self.fs.create(parent, name, mode, os.O_WRONLY, caller))
        self.tell(node)
        self.fs.write(handle, 0, content)
        self.fs.release(handle)
        return node

    def mkdir(self, path: bytes, mode: int = 0o755, caller: Caller = ROOT_USER) -> Node:
        """Create a directory."""
        parent, name = self._free_place(path)
        return self.tell(self.run(lambda: self.fs.make_directory(parent, name, mode, caller)))

    def symlink(self, path: bytes, target: bytes, caller: Caller = ROOT_USER) -> Node:
        """Create a symlink."""
        parent, name = self._free_place(path)
        return self.tell(self.run(lambda: self.fs.make_symlink(parent, name, target, caller)))

    def mknod(self, path: bytes, mode: int, device: int = 0, caller: Caller = ROOT_USER) -> Node:
        """Create a fifo, socket or device."""
        parent, name = self._free_place(path)
        return self.tell(self.run(lambda: self.fs.make_special(parent, name, mode, device, caller)))

    def link(self, path: bytes, new_path: bytes) -> Node:
        """Give a file one more name."""
        node = self.node(path)
        parent, name = self._free_place(new_path)
        if node.is_directory:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        return self.tell(self.run(lambda: self.fs.link(node.nodeid, parent, name)))

    def unlink(self, path: bytes) -> None:
        """Remove a name."""
        self.node(path)
        parent, name = self._place(path)
        self.run(lambda: self.fs.unlink(parent, name))

    def rmdir(self, path: bytes) -> None:
        """Remove a directory."""
        self.node(path)
        parent, name = self._place(path)
        self.run(lambda: self.fs.remove_directory(parent, name))

    def rename(self, path: bytes, new_path: bytes, flags: int = 0) -> None:
        """Rename; what the VFS itself refuses (a directory moved below itself) is refused here."""
        node = self.node(path)
        place, new_place = self._place(path), self._place(new_path)
        self._refuse_loop(node, new_path)
        if flags & 2:
            self._refuse_loop(self.node(new_path), path)
        elif self.exists(new_path):
            self._refuse_loop(self.node(new_path), path, errno.ENOTEMPTY)
        self.run(lambda: self.fs.rename(*place, *new_place, flags))

    def _refuse_loop(self, node: Node, path: bytes, number: int = errno.EINVAL) -> None:
        above: Node | None = self.node(path.rpartition(b"/")[0])
        if above is not None and not above.is_directory:
            raise error(errno.ENOTDIR)
        while above is not None:
            if above is node:
                raise OSError(number, os.strerror(number))
            if above.parent is None:
                return
            above = above.parent

    def change(self, path: bytes, **change: int) -> None:
        """Change attributes (the fields of `Change`)."""
        nodeid = self.node(path).nodeid
        self.run(lambda: self.fs.change_attributes(nodeid, Change(**change)))

    def set_attribute(self, path: bytes, name: bytes, value: bytes) -> None:
        """Set an extended attribute."""
        nodeid = self.node(path).nodeid
        self.run(lambda: self.fs.set_extended_attribute(nodeid, name, value))

    def open(self, path: bytes, flags: int = os.O_RDONLY) -> int:
        """Open a file; return its handle."""
        nodeid = self.node(path).nodeid
        return self.run(lambda: self.fs.open(nodeid, flags))

    def read(self, path: bytes) -> bytes:
        """Read a whole file."""
        handle = self.open(path)
        try:
            return os.pread(self.fs.descriptor_for_reading(handle), 1 << 24, 0)
        finally:
            self.fs.release(handle)

    def write(self, path: bytes, content: bytes, flags: int = 0) -> None:
        """Write to the beginning of a file."""
        handle = self.open(path, os.O_WRONLY | flags)
        try:
            self.fs.write(handle, 0, content)
        finally:
            self.fs.release(handle)

    def names(self, path: bytes = b"") -> list[bytes]:
        """List a directory, without `.` and `..`."""
        nodeid = self.node(path).nodeid
        entries = list(self.run(lambda: self.fs.read_directory(nodeid, 0)))
        assert [name for name, _node, _next in entries[:2]] == list(NAMES_OF_EVERY_DIRECTORY)
        return [name for name, _node, _next in entries[2:]]

    def tree(self, path: bytes = b"") -> dict[bytes, tuple[int, int, bytes]]:
        """The whole merged tree: {path: (type and mode, links of a file, contents or target)}."""
        found: dict[bytes, tuple[int, int, bytes]] = {}
        for name in self.names(path):
            below = path + b"/" + name if path else name
            node = self.node(below)
            shown = self.fs.attributes(node)
            content = b""
            if node.is_regular:
                content = self.read(below)
            elif stat.S_ISLNK(shown.mode):
                content = self.fs.read_link(node.nodeid)
            found[below] = shown.mode, 0 if node.is_directory else shown.links, content
            if node.is_directory:
                found |= self.tree(below)
        return found
