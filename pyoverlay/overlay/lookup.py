"""How is a name found through the stack?

The twin of fs/overlayfs/namei.c: whiteouts, opaque directories, redirects, metacopy, origin.  What was
found becomes a `Node`, known to its parent directory from then on.  It changes nothing on disk.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from typing import Final

from pyoverlay.layers import marks
from pyoverlay.layers.layer import Layer, LayerObject
from pyoverlay.layers.stack import Stack
from pyoverlay.layers.syscalls import error
from pyoverlay.overlay import shown
from pyoverlay.overlay.idmapped import undo_shift
from pyoverlay.overlay.node import NOT_WATCHED, Directory, InodeNumbers, Node, link_key
from pyoverlay.overlay.node_table import NodeTable
from pyoverlay.overlay.ownership import Ownership
from pyoverlay.overlay.shown import Attributes

_ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG})
_PROBES_BEFORE_LOADING: Final = 8
"""How often names are looked for in the layers of a directory before it is read as a whole.  Reading it takes
about six system calls a layer, and looking for a name two in each that lacks it."""
_BLOCK: Final = 512
_NO_UUID: Final = bytes(16)


@dataclass(slots=True)
class DirectoryMarks:
    """The marks on a layer's directory: ``opaque`` hides all below, ``redirect`` renames it there."""

    opaque: bool = False
    has_attribute_whiteouts: bool = False
    redirect: marks.Redirect | None = None


class Lookup:
    """Finds names and makes nodes."""

    def __init__(self, stack: Stack) -> None:
        """Look things up in ``stack``."""
        self.stack = stack
        self._follows_redirects = stack.options.redirect_dir == "follow"
        self.ownership: Final = Ownership(stack.options)
        self._shown_ids: Final = self.ownership.ids
        if self._shown_ids is not None:
            for lower in stack.lowers:
                if lower.idmapped and lower.records is None:
                    undo_shift(lower, self._shown_ids)
        layers: list[Layer] = [stack.upper] if stack.upper else []
        self.numbers: Final = InodeNumbers(layers + list(stack.lowers))
        self._longest_name = max(
            layer.status_of_file_system().f_namemax for layer in layers + list(stack.lowers)
        )
        self._opaque_attributes: Final = frozenset(marks.OPAQUE_ATTRIBUTES)
        self.root: Final = self._make_root()
        self.nodes: Final = NodeTable(self.root)

    def _make_root(self) -> Directory:
        upper = self.stack.upper
        lowers = tuple(layer.root for layer in self.stack.lowers)
        # Unlike any other merged directory's, its number is the upper's (fs/overlayfs/super.c: ovl_get_root).
        top = upper.root if upper else lowers[0]
        inode = self.numbers.number(top.layer, top.status().st_ino)
        return Directory(inode, upper.root if upper else None, lowers)

    # Names

    def find(self, parent: Directory, name: bytes) -> Node:
        """Return the node that ``name`` is in ``parent``.

        Raises OSError ENOENT; EPERM for a redirect or metacopy file that may not be followed, EINVAL for a
        malformed redirect, ELOOP where a lower contains the upper.
        """
        known = parent.entries.get(name)
        if isinstance(known, Node):
            if known.referenced or not known.link_key or parent.upper is None:
                return known
            known = (parent.upper,)
        if len(name) > self._longest_name:
            raise error(errno.ENAMETOOLONG)
        if known is None and (parent.loaded or parent.unlinked or marks.is_aufs_mark(name)):
            raise error(errno.ENOENT)
        node = self._search(parent, name, known)
        if node is None:
            parent.entries.pop(name, None)
            raise error(errno.ENOENT)
        self.nodes.found_name(node, parent, name)
        return node

    def wants_loading(self, parent: Directory) -> bool:
        """Count a lookup in a directory that isn't loaded; tell whether loading it now pays."""
        if parent.loaded:
            return False
        looked_up = parent.lookups_unloaded
        parent.lookups_unloaded = looked_up + 1
        if not looked_up:
            return False  # a directory on the way to others
        contributors = len(parent.lowers) + (parent.upper is not None)
        return looked_up * contributors >= _PROBES_BEFORE_LOADING

    def _search(self, parent: Directory, name: bytes, known: tuple[LayerObject, ...] | None) -> Node | None:
        """fs/overlayfs/namei.c: ovl_lookup.  ``known`` are the directories in which the name was seen."""
        directories = parent.contributors() if known is None else known
        objects: list[LayerObject] = []
        status: os.stat_result | None = None
        for directory in directories:
            seen = self._status(directory, name)
            hides_below = known is None and self._has_aufs_whiteout(directory, name)
            if seen is None:
                if hides_below:
                    break
                continue
            if not stat.S_ISDIR(seen.st_mode):
                names = self._attributes_of_empty(directory, name, seen)
                if objects or self._says_whiteout(seen, names):
                    break
                if directory.layer is self.stack.upper:
                    return self._make_upper_file(parent, directory.child(name), seen)
                return self._make_lower_file(parent, directory, name, seen, names)
            self._refuse_trap(seen)
            candidate = directory.child(name)
            objects.append(candidate)
            status = status or seen
            if hides_below or not self._merges_below(candidate, parent, objects):
                break
        return self._make_directory(objects, status) if status else None

    def _merges_below(self, candidate: LayerObject, parent: Directory, objects: list[LayerObject]) -> bool:
        """Read a directory's marks; a redirect adds the objects it leads to."""
        if candidate.layer is self.stack.lowers[-1]:
            return False
        found = self.directory_marks(candidate)
        if found.opaque:
            return False
        if found.redirect is not None:
            if not self._follows_redirects:
                raise error(errno.EPERM)
            self._follow(found.redirect, candidate, parent, objects)
            return False
        return True

    def _follow(
        self, redirect: marks.Redirect, origin: LayerObject, parent: Directory, objects: list[LayerObject]
    ) -> None:
        """Go on below ``origin``'s layer under the name that its redirect gives."""
        below = self._layers_below(origin.layer)
        starts = [layer.root for layer in below]
        if not redirect.absolute:
            starts = [directory for directory in parent.lowers if directory.layer in below]
        path = redirect
        for start in starts:
            target, below_it = self._descend(start, path)
            if target is not None:
                objects.append(target)
            if below_it is None:
                return
            if below_it.absolute and not path.absolute:
                self._follow(below_it, start, parent, objects)
                return
            path = below_it

    def _descend(
        self, start: LayerObject, path: marks.Redirect
    ) -> tuple[LayerObject | None, marks.Redirect | None]:
        """Walk down in one layer: the directory, and its path in those below, None when all is hidden there.

        A directory on the way that was renamed itself changes the path below, also when what lies in it is
        absent here (fs/overlayfs/namei.c: ovl_lookup_layer, ovl_check_redirect).
        """
        current, absolute, hidden = start, path.absolute, False
        renamed: tuple[bytes, ...] = ()
        for position, component in enumerate(path.names):
            seen = self._status(current, component)
            if seen is None:
                hidden |= self._has_aufs_whiteout(current, component)
                return None, None if hidden else marks.Redirect(renamed + path.names[position:], absolute)
            if not stat.S_ISDIR(seen.st_mode):
                return None, None
            current = current.child(component)
            found = self.directory_marks(current)
            if found.opaque or found.redirect is None:
                hidden |= found.opaque
                renamed += (component,)
            elif found.redirect.absolute:
                absolute, hidden, renamed = True, False, found.redirect.names  # out of what was opaque, too
            else:
                renamed += found.redirect.names
        return current, None if hidden else marks.Redirect(renamed, absolute)

    def _layers_below(self, layer: Layer) -> tuple[Layer, ...]:
        lowers = self.stack.lowers
        return lowers if layer is self.stack.upper else lowers[lowers.index(layer) + 1 :]

    def lower_shows(self, parent: Directory, name: bytes) -> bool:
        """Tell whether a lower would show ``name`` if the upper had nothing there.

        fs/overlayfs/namei.c: ovl_lower_positive.
        """
        if not parent.lowers:
            return False
        if parent.loaded:
            known = parent.entries.get(name)
            if isinstance(known, Node):
                return known.upper is None or name in parent.covered
            return name in parent.covered or (known is not None and known[0] is not parent.upper)
        for directory in parent.lowers:
            seen = self._status(directory, name)
            if seen is not None:
                return not self._says_whiteout(seen, self._attributes_of_empty(directory, name, seen))
            if self._has_aufs_whiteout(directory, name):
                return False
        return False

    # One object

    @staticmethod
    def _status(directory: LayerObject, name: bytes) -> os.stat_result | None:
        try:
            return directory.status_of(name)
        except OSError as failure:
            if failure.errno in _ABSENT:
                return None
            raise

    def _has_aufs_whiteout(self, directory: LayerObject, name: bytes) -> bool:
        return self._status(directory, marks.aufs_whiteout(name)) is not None

    def _says_whiteout(self, status: os.stat_result, names: tuple[bytes, ...] | None) -> bool:
        """Tell a whiteout by its device number, or by the attributes of an empty file in a lower."""
        if marks.is_whiteout_device(status.st_mode, status.st_rdev):
            return True
        return names is not None and self.stack.dialect.attribute("whiteout") in names

    def _attributes_of_empty(
        self, directory: LayerObject, name: bytes, status: os.stat_result
    ) -> tuple[bytes, ...] | None:
        """Return the names of the attributes of a lower's empty file, which may be more than that."""
        if status.st_size or not stat.S_ISREG(status.st_mode) or directory.layer.writable:
            return None
        return self._attribute_names(directory.child(name))

    def _refuse_trap(self, status: os.stat_result) -> None:
        """A lower that contains the upper or the work directory must not show it (ovl_setup_trap)."""
        if (status.st_dev, status.st_ino) in self.stack.traps:
            raise error(errno.ELOOP)

    def _suspect_metacopy(
        self,
        parent: Directory,
        directory: LayerObject,
        name: bytes,
        status: os.stat_result,
    ) -> tuple[bytes, ...] | None:
        """Refuse a lower file of metadata only, asking just those that may be one.

        Such a file has no data blocks, but one block of attributes may be counted; an overlay that made it
        has marked its directory as impure.  Opening a file asks for certain; so does the lookup of an upper
        file, whose attributes are read anyway.  Returns the names of the attributes, if they were read.
        """
        if not stat.S_ISREG(status.st_mode):
            return None
        allocated = status.st_blocks * _BLOCK
        if allocated < status.st_size or (
            allocated <= status.st_blksize and directory in self._impure_lowers(parent)
        ):
            return self._refuse_metacopy(self._attribute_names(directory.child(name)))
        return None

    def _impure_lowers(self, directory: Directory) -> tuple[LayerObject, ...]:
        """Return those of a directory's lowers in which a copy-up left something; asked of the layers once.

        fs/overlayfs/util.c: ovl_set_impure.
        """
        if directory.impure_lowers is None:
            impure = self.stack.dialect.attribute("impure")
            directory.impure_lowers = tuple(
                lower for lower in directory.lowers if impure in lower.list_attributes()
            )
        return directory.impure_lowers

    def verify_data(self, node: Node) -> None:
        """Raise OSError EPERM when a regular file's data isn't where its name is; asked of the layer once."""
        if node.verified or node.upper is not None:
            return
        self._refuse_metacopy(self.attribute_names(node))
        node.verified = True

    def _refuse_metacopy(self, names: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """Raise OSError EPERM when a regular file's data is elsewhere (``metacopy``)."""
        if self.stack.dialect.attribute("metacopy") in names:
            raise error(errno.EPERM)
        return names

    def attribute_names(self, node: Node) -> tuple[bytes, ...]:
        """Return the extended attributes that a node may have on disk, read once until we change them.

        What the kernel removes by itself (capabilities, when a file is written) may still be among them.
        """
        if node.attribute_names is None:
            node.attribute_names = self._attribute_names(node.real)
        return node.attribute_names

    def present_attributes(self, node: Node) -> tuple[bytes, ...]:
        """Return the extended attributes that a node has on disk, as listed there.

        What was read of a lower stays true, and so does it of an upper that nothing can be removed from.
        """
        if node.attribute_names and node.upper is not None:
            node.attribute_names = None
        return self.attribute_names(node)

    @staticmethod
    def _attribute_names(candidate: LayerObject) -> tuple[bytes, ...]:
        return tuple(candidate.list_attributes())

    def directory_marks(self, directory: LayerObject) -> DirectoryMarks:
        """Read the marks of a layer's directory, in every dialect."""
        found = self.attribute_marks(directory)
        if not found.opaque:
            found.opaque = self._status(directory, marks.AUFS_OPAQUE) is not None
        return found

    def attribute_marks(self, directory: LayerObject) -> DirectoryMarks:
        """Read those of the marks that are extended attributes."""
        found = DirectoryMarks()
        for name in directory.list_attributes():
            if name in self._opaque_attributes:
                value = directory.attribute(name)
                found.opaque |= marks.is_opaque(name, value)
                found.has_attribute_whiteouts |= marks.holds_xattr_whiteouts(name, value)
            elif name == self.stack.dialect.attribute("redirect"):
                found.redirect = self._parse_redirect(directory.attribute(name))
        return found

    @staticmethod
    def _parse_redirect(value: bytes) -> marks.Redirect:
        try:
            return marks.parse_redirect(value)
        except ValueError:
            raise error(errno.EINVAL) from None

    # Nodes

    def _make_lower_file(
        self,
        parent: Directory,
        directory: LayerObject,
        name: bytes,
        status: os.stat_result,
        names: tuple[bytes, ...] | None,
    ) -> Node:
        """``names`` are those of an empty file's extended attributes."""
        if names is None:
            names = self._suspect_metacopy(parent, directory, name, status)
        else:
            self._refuse_metacopy(names)
        inode = self.numbers.number(directory.layer, status.st_ino)
        node = Node(stat.S_IFMT(status.st_mode), inode, None, directory)
        node.attribute_names = names
        node.attributes = self.make_attributes(node, status)
        return node

    def _make_upper_file(self, parent: Directory, upper: LayerObject, status: os.stat_result) -> Node:
        # Also with one name left: a descriptor may be open that came by another.
        known = self.nodes.hard_link(link_key(status))
        if known is not None:
            return known
        inode = self._upper_inode(parent, upper.name, upper, status)
        node = Node(stat.S_IFMT(status.st_mode), inode, upper, None)
        if status.st_nlink > 1:
            self.nodes.register_hard_link(link_key(status), node)
        node.attributes = self.make_attributes(node, status)
        return node

    def _make_directory(self, objects: list[LayerObject], status: os.stat_result) -> Directory:
        """A merged directory has the number of its topmost lower (fs/overlayfs/inode.c: ovl_getattr)."""
        top = objects[0]
        upper = top if top.layer is self.stack.upper else None
        lowers = tuple(objects if upper is None else objects[1:])
        numbered = lowers[0] if lowers else top
        real = status if numbered is top else numbered.status()
        directory = Directory(self.numbers.number(numbered.layer, real.st_ino), upper, lowers)
        directory.attributes = self.make_attributes(directory, status)
        return directory

    def _upper_inode(self, parent: Directory, name: bytes, upper: LayerObject, status: os.stat_result) -> int:
        """Return the inode number that the file had before it was copied up, else its own."""
        attribute = self.stack.dialect.attribute("origin")
        own = self.numbers.number(upper.layer, status.st_ino)
        names = upper.list_attributes()
        if self.stack.dialect.attribute("metacopy") in names:
            raise error(errno.EPERM)
        if attribute not in names:
            return own
        origin = marks.decode_origin(upper.attribute(attribute))
        if origin is None:
            return own
        return self._origin_inode(parent, name, origin, stat.S_IFMT(status.st_mode)) or own

    def _origin_inode(
        self, parent: Directory, name: bytes, origin: marks.Origin, file_type: int
    ) -> int | None:
        """fs/overlayfs/namei.c: ovl_check_origin_fh."""
        for layer in self.stack.lowers:
            if origin.uuid != (layer.uuid or _NO_UUID):
                continue
            try:
                found = layer.open_handle(origin.handle_type, origin.handle)
            except PermissionError:
                return self._same_name_inode(parent, name, origin)
            except OSError:
                continue
            try:
                status = found.status()
            finally:
                found.close()
            if stat.S_IFMT(status.st_mode) == file_type and status.st_nlink == 1:
                return self.numbers.number(layer, status.st_ino)
        return None

    def _same_name_inode(self, parent: Directory, name: bytes, origin: marks.Origin) -> int | None:
        """Without the right to open by handle: compare with the handle of the lower file of the same name."""
        for directory in parent.lowers:
            candidate = directory.child(name)
            try:
                if candidate.handle() == (origin.handle_type, origin.handle):
                    status = candidate.status()
                    return (
                        self.numbers.number(candidate.layer, status.st_ino) if status.st_nlink == 1 else None
                    )
            except OSError:
                continue
        return None

    # Attributes

    def attributes(self, node: Node) -> Attributes:
        """Return what stat shows of ``node``."""
        if node.attributes is None or node.unseen & NOT_WATCHED:
            node.attributes = self.make_attributes(node, node.real.status())
        return node.attributes

    def make_attributes(self, node: Node, status: os.stat_result) -> Attributes:
        """Turn the status of a node's real object into what the merged tree shows."""
        links = status.st_nlink
        if isinstance(node, Directory):
            # No directory is loaded to count its merged subdirectories (fs/overlayfs/inode.c: ovl_getattr).
            links = 1 if node.is_merged else links
        elif node.upper is None and node.rare is not None:
            links = max(links - node.lost_names, 0)
        user, group = status.st_uid, status.st_gid
        if self._shown_ids is not None:
            user, group = self._shown_ids.owner(user, group)
        return shown.pack(status, node.inode, links, user, group)
