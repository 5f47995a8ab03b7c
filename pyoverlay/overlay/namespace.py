"""How are names created, linked, removed and renamed?

The twin of fs/overlayfs/dir.c: whiteouts and opaque marks go exactly where the kernel puts them.  Each change
is one system call on the upper, prepared in the work directory where it takes more.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Final

from pyoverlay.layers import marks
from pyoverlay.layers.layer import LayerObject
from pyoverlay.layers.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, error
from pyoverlay.overlay.birth import Birth, Caller, plan_birth, read_inheritance
from pyoverlay.overlay.copy_up import CopyUps
from pyoverlay.overlay.files import KEPT_FLAGS, OpenFile
from pyoverlay.overlay.listing import Listing
from pyoverlay.overlay.lookup import Lookup
from pyoverlay.overlay.node import Directory, Node, link_key

Make = Callable[[LayerObject, bytes], None]

_SET_IDS: Final = stat.S_ISUID | stat.S_ISGID


class Namespace:
    """Changes names.  Every method may raise CopyUpNeeded or OSError, before it has changed anything."""

    def __init__(self, lookup: Lookup, listing: Listing, copy_ups: CopyUps) -> None:
        """Change names in what ``lookup`` finds."""
        self._lookup = lookup
        self._listing = listing
        self._copy_ups = copy_ups
        self._nodes = lookup.nodes
        self._ownership = lookup.ownership
        self._protection = copy_ups.protection

    # Creating

    def create(
        self, parent: Directory, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[Node, OpenFile]:
        """Create a regular file and open it (O_CREAT|O_EXCL)."""
        opened: list[int] = []

        def make(directory: LayerObject, temporary: bytes) -> None:
            opened.append(directory.create_file(temporary, flags & KEPT_FLAGS, birth.first_mode))

        birth, upper = self._begin(parent, name, stat.S_IFREG | stat.S_IMODE(mode), caller)
        try:
            self._make(upper, name, make, birth.finish)
        except BaseException:
            for descriptor in opened:
                os.close(descriptor)
            raise
        node = self._born(parent, name, opened[0])
        return node, OpenFile(node, opened[0], flags)

    def create_unnamed(
        self, parent: Directory, mode: int, flags: int, caller: Caller
    ) -> tuple[Node, OpenFile]:
        """Create a regular file without a name and open it (O_TMPFILE); `link` may give it one.

        fs/overlayfs/dir.c: ovl_create_tmpfile.  Raises OSError EOPNOTSUPP where the file system can't.
        """
        birth, upper = self._begin(parent, b"", stat.S_IFREG | stat.S_IMODE(mode), caller)
        descriptor = upper.create_unnamed_file(flags & KEPT_FLAGS, birth.first_mode)
        try:
            created = upper.unnamed(descriptor)
            try:
                birth.finish(created)
                status = created.status()
            except BaseException:
                created.close()
                raise
        except BaseException:
            os.close(descriptor)
            raise
        node = Node(stat.S_IFREG, self._lookup.numbers.number(created.layer, status.st_ino), created, None)
        node.privileged = bool(status.st_mode & _SET_IDS)
        node.protection = 0
        node.attributes = self._lookup.make_attributes(node, status)
        return node, OpenFile(node, descriptor, flags)

    def make_special(self, parent: Directory, name: bytes, mode: int, device: int, caller: Caller) -> Node:
        """Create a fifo, socket, device or regular file: mknod(2); 0/0 is a whiteout and refused."""
        if marks.is_whiteout_device(mode, device):
            raise error(errno.EPERM)
        if stat.S_ISREG(mode):
            node, opened = self.create(parent, name, mode, os.O_WRONLY, caller)
            opened.close()
            return node
        birth, upper = self._begin(parent, name, mode, caller)
        first_mode = stat.S_IFMT(mode) | birth.first_mode

        def make(directory: LayerObject, temporary: bytes) -> None:
            directory.make_special(temporary, first_mode, device)

        self._make(upper, name, make, birth.finish)
        return self._born(parent, name)

    def make_symlink(self, parent: Directory, name: bytes, target: bytes, caller: Caller) -> Node:
        """Create a symlink."""
        birth, upper = self._begin(parent, name, stat.S_IFLNK | 0o777, caller)

        def make(directory: LayerObject, temporary: bytes) -> None:
            directory.make_symlink(temporary, target)

        self._make(upper, name, make, birth.finish_owner)
        return self._born(parent, name)

    def make_directory(self, parent: Directory, name: bytes, mode: int, caller: Caller) -> Node:
        """Create a directory; over a whiteout it is opaque, so that nothing below shines through."""
        birth, upper = self._begin(parent, name, stat.S_IFDIR | stat.S_IMODE(mode), caller)
        try:
            upper.make_directory(name, birth.first_mode)
        except FileExistsError:
            self._refuse_existing(upper, name)
            self._make_directory_over_whiteout(upper, name, birth)
        else:
            created = upper.child(name)
            try:
                birth.finish(created)
            except BaseException:
                upper.remove_directory(name)
                raise
        return self._born(parent, name)

    def _make_directory_over_whiteout(self, upper: LayerObject, name: bytes, birth: Birth) -> None:
        """fs/overlayfs/dir.c: ovl_create_over_whiteout."""
        work = self._copy_ups.work
        with work.temporary() as temporary:
            work.root.make_directory(temporary, birth.first_mode)
            prepared = work.root.child(temporary)
            birth.finish(prepared)
            self._set_opaque(prepared)
            work.root.rename(temporary, upper, name, RENAME_EXCHANGE)
            work.root.remove_file(temporary)

    def link(self, node: Node, parent: Directory, name: bytes) -> Node:
        """Give a file one more name."""
        if node.unlinked and not self._lookup.attributes(node).links:
            raise error(errno.ENOENT)
        self._refuse_name(name)
        self._protection.refuse_if_immutable(parent)
        self._protection.refuse_change(node)
        source = self._copy_ups.need_upper(node)
        upper = self._copy_ups.directory(parent)

        def make(directory: LayerObject, temporary: bytes) -> None:
            directory.link(source, temporary)

        self._make(upper, name, make, None)
        if node.parent is None and not node.unlinked:
            source.settle(upper, name)
        self._nodes.add_name(node, parent, name)
        parent.attributes = None
        self._refresh_linked(node, parent)
        return node

    def _refresh_linked(self, node: Node, parent: Directory) -> None:
        """After a file got a name: take its attributes, and note where its inode number comes from."""
        status = node.real.status()
        if not node.is_directory and status.st_nlink > 1:
            self._nodes.register_hard_link(link_key(status), node)
        own = self._lookup.numbers.number(node.real.layer, status.st_ino)
        if node.inode != own:
            self._copy_ups.mark_impure(parent)
        node.attributes = self._lookup.make_attributes(node, status)

    def _begin(self, parent: Directory, name: bytes, mode: int, caller: Caller) -> tuple[Birth, LayerObject]:
        self._refuse_name(name)
        self._protection.refuse_if_immutable(parent)
        upper = self._copy_ups.directory(parent)
        if parent.inheritance is None:
            parent.inheritance = read_inheritance(upper)
        owners = self._ownership
        return plan_birth(parent.inheritance, mode, owners.creator(caller), owners), upper

    @staticmethod
    def _refuse_name(name: bytes) -> None:
        """Names that would be marks in an image can't be made."""
        if marks.is_aufs_mark(name):
            raise error(errno.EINVAL)

    def _make(
        self, upper: LayerObject, name: bytes, make: Make, finish: Callable[[LayerObject], None] | None
    ) -> None:
        """Make an object that is no directory under ``name``, replacing a whiteout if there is one."""
        try:
            make(upper, name)
        except FileExistsError:
            self._refuse_existing(upper, name)
        else:
            if finish is not None:
                try:
                    finish(upper.child(name))
                except BaseException:
                    upper.remove_file(name)
                    raise
            return
        work = self._copy_ups.work
        with work.temporary() as temporary:
            make(work.root, temporary)
            if finish is not None:
                finish(work.root.child(temporary))
            work.root.rename(temporary, upper, name)

    def _refuse_existing(self, upper: LayerObject, name: bytes) -> None:
        if not self._is_whiteout(upper, name):
            raise error(errno.EEXIST)

    def _born(self, parent: Directory, name: bytes, descriptor: int | None = None) -> Node:
        """Make the node of an object that was just created in the upper, and may be open."""
        assert parent.upper is not None
        created = parent.upper.child(name)
        status = created.status(descriptor)
        inode = self._lookup.numbers.number(created.layer, status.st_ino)
        if stat.S_ISDIR(status.st_mode):
            directory = Directory(inode, created, ())
            directory.loaded = True  # nothing is in it that we don't know of
            node: Node = directory
        else:
            node = Node(stat.S_IFMT(status.st_mode), inode, created, None)
            node.privileged = bool(status.st_mode & _SET_IDS)
        node.protection = 0
        node.attributes = self._lookup.make_attributes(node, status)
        self._nodes.add_name(node, parent, name)
        parent.attributes = None
        return node

    # Removing

    def unlink(self, parent: Directory, name: bytes) -> None:
        """Remove a name that is no directory; a lower's file is never copied up for it."""
        node = self._lookup.find(parent, name)
        self._protection.refuse_removal(parent, node)
        if node.is_directory:
            raise error(errno.EISDIR)
        upper = self._copy_ups.directory(parent)
        shows = self._lookup.lower_shows(parent, name)
        self._hold_last_name(node)
        if node.upper is None:
            self._copy_ups.work.make_whiteout(upper, name)
        elif shows:
            self._replace_by_whiteout(upper, name)
        else:
            upper.remove_file(name)
        self._lost_name(node, parent, name, covered=shows)

    def remove_directory(self, parent: Directory, name: bytes) -> None:
        """Remove a directory whose merged view is empty, with the whiteouts in its upper."""
        node = self._lookup.find(parent, name)
        self._protection.refuse_removal(parent, node)
        if not isinstance(node, Directory):
            raise error(errno.ENOTDIR)
        if not self._listing.is_empty(node):
            raise error(errno.ENOTEMPTY)
        upper = self._copy_ups.directory(parent)
        shows = self._lookup.lower_shows(parent, name)
        self._hold_last_name(node)
        if node.upper is None:
            self._copy_ups.work.make_whiteout(upper, name)
        elif shows:
            self._replace_by_whiteout(upper, name, RENAME_EXCHANGE)
        else:
            self._remove_upper_directory(upper, name)
        self._lost_name(node, parent, name, covered=shows)

    def _replace_by_whiteout(self, upper: LayerObject, name: bytes, flags: int = 0) -> None:
        """Put a whiteout in the place of an object; a directory must be exchanged for it."""
        work = self._copy_ups.work
        with work.temporary() as temporary:
            work.make_whiteout(work.root, temporary)
            work.root.rename(temporary, upper, name, flags)
            if flags & RENAME_EXCHANGE:
                work.discard(temporary)

    def _remove_upper_directory(self, upper: LayerObject, name: bytes) -> None:
        try:
            upper.remove_directory(name)
        except OSError as failure:
            if failure.errno != errno.ENOTEMPTY:
                raise
            work = self._copy_ups.work
            temporary = work.new_name()
            upper.rename(name, work.root, temporary)
            # At once, unlike a merged one: whoever has it open sees that it has no link left.
            work.root.remove_tree(temporary)

    def _hold_last_name(self, node: Node) -> None:
        """Keep a descriptor of an object that the kernel knows and that is about to lose its known names."""
        if node.referenced and node.upper is not None and not node.aliases:
            node.upper.hold_open()

    def _lost_name(self, node: Node, parent: Directory, name: bytes, *, covered: bool) -> None:
        """Take note that ``name`` is no longer ``node``'s."""
        self._nodes.remove_name(node, parent, name)
        if covered and parent.loaded:
            parent.covered.add(name)
        node.unlinked = node.parent is None
        node.attributes = None
        parent.attributes = None
        if node.upper is None:
            node.lost_names += 1
        if isinstance(node, Directory):
            node.forget_entries()
            if node.upper is not None:
                self._lookup.stack.cache.forget(node.upper)

    # Renaming

    def rename(
        self, old_parent: Directory, old_name: bytes, new_parent: Directory, new_name: bytes, flags: int
    ) -> None:
        """Rename, or exchange two names: fs/overlayfs/dir.c: ovl_rename.

        Raises OSError EXDEV for a directory that has a part in a lower, EINVAL for other flags than
        NOREPLACE and EXCHANGE.
        """
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE):
            raise error(errno.EINVAL)
        self._refuse_name(new_name)
        old, new = (old_parent, old_name), (new_parent, new_name)
        node = self._lookup.find(*old)
        target = self._find_or_none(*new)
        if target is not None and flags & RENAME_NOREPLACE:
            raise error(errno.EEXIST)
        if node is target:
            return
        self._protection.refuse_removal(old_parent, node)
        if target is None:
            self._protection.refuse_if_immutable(new_parent)
        else:
            self._protection.refuse_removal(new_parent, target)
        self._refuse_unmovable(node)
        if flags & RENAME_EXCHANGE:
            if target is None:
                raise error(errno.ENOENT)
            self._refuse_unmovable(target)
            self._exchange(node, old, target, new)
            return
        if target is not None:
            self._refuse_replacing(node, target)
        self._move(node, old, target, new)

    def _find_or_none(self, parent: Directory, name: bytes) -> Node | None:
        try:
            return self._lookup.find(parent, name)
        except FileNotFoundError:
            return None

    @staticmethod
    def _refuse_unmovable(node: Node) -> None:
        """fs/overlayfs/dir.c: ovl_can_move; we write no redirects."""
        if isinstance(node, Directory) and (node.lowers or node.upper is None):
            raise error(errno.EXDEV)

    def _refuse_replacing(self, node: Node, target: Node) -> None:
        if isinstance(target, Directory):
            if not node.is_directory:
                raise error(errno.EISDIR)
            if not self._listing.is_empty(target):
                raise error(errno.ENOTEMPTY)
        elif node.is_directory:
            raise error(errno.ENOTDIR)

    def _move(
        self,
        node: Node,
        old: tuple[Directory, bytes],
        target: Node | None,
        new: tuple[Directory, bytes],
    ) -> None:
        self._copy_ups.need_upper(node)
        old_upper, new_upper = self._copy_ups.directory(old[0]), self._copy_ups.directory(new[0])
        old_shows, new_shows = self._lookup.lower_shows(*old), self._lookup.lower_shows(*new)
        self._seal(node, new[0])
        if target is not None:
            self._hold_last_name(target)
            if isinstance(target, Directory) and target.upper is not None:
                self._empty_of_whiteouts(target.upper)
        on_whiteout = (target is None or target.upper is None) and self._is_whiteout(new_upper, new[1])
        if old_shows:
            flags = RENAME_EXCHANGE if on_whiteout else RENAME_WHITEOUT
            old_upper.rename(old[1], new_upper, new[1], flags)
        elif on_whiteout and node.is_directory:
            old_upper.rename(old[1], new_upper, new[1], RENAME_EXCHANGE)
            old_upper.remove_file(old[1])
        else:
            old_upper.rename(old[1], new_upper, new[1])
        if target is not None:
            self._lost_name(target, *new, covered=new_shows)
        self._nodes.move_name(node, old, new)
        self._moved(node, old[0], new[0])
        for (parent, name), shows in ((old, old_shows), (new, new_shows)):
            if shows and parent.loaded:
                parent.covered.add(name)

    def _exchange(
        self, node: Node, old: tuple[Directory, bytes], target: Node, new: tuple[Directory, bytes]
    ) -> None:
        self._copy_ups.need_upper(node)
        self._copy_ups.need_upper(target)
        assert old[0].upper is not None and new[0].upper is not None
        self._seal(node, new[0])
        self._seal(target, old[0])
        old[0].upper.rename(old[1], new[0].upper, new[1], RENAME_EXCHANGE)
        self._nodes.move_name(node, old, new)
        self._nodes.move_name(target, new, old)
        new[0].entries[new[1]] = node
        self._moved(node, old[0], new[0])
        self._moved(target, new[0], old[0])

    def _seal(self, node: Node, new_parent: Directory) -> None:
        """Make a directory of the upper alone opaque where a lower may have its new name."""
        if node.is_directory and new_parent.lowers and node.upper is not None:
            self._set_opaque(node.upper)

    def _moved(self, node: Node, old_parent: Directory, new_parent: Directory) -> None:
        old_parent.attributes = new_parent.attributes = None
        if isinstance(node, Directory) and new_parent is not old_parent:
            self._nodes.change_listing(node)  # of ``..``
        self._refresh_linked(node, new_parent)

    # Marks

    def _set_opaque(self, directory: LayerObject) -> None:
        directory.set_attribute(self._lookup.stack.dialect.attribute("opaque"), b"y")

    @staticmethod
    def _is_whiteout(directory: LayerObject, name: bytes) -> bool:
        try:
            status = directory.child(name).status()
        except FileNotFoundError:
            return False
        return marks.is_whiteout_device(status.st_mode, status.st_rdev)

    def _empty_of_whiteouts(self, directory: LayerObject) -> None:
        """Make an empty merged directory an empty directory (fs/overlayfs/dir.c: ovl_clear_empty)."""
        entries = directory.list_entries()
        if entries:
            self._set_opaque(directory)
            for name, _kind in entries:
                directory.remove_tree(name)
