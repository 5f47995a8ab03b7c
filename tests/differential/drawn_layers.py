"""Which lower layers does a drawn script stand on? One to six, drawn as values, built on disk.

Names are few, so that layers meet in them: directories merge, are opaque, are replaced by files and replace
some; whiteouts hide what a layer below shows. A whiteout that hides nothing is left out: the kernel lists it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

from tests.differential.dice import Dice
from tests.differential.layers import access_list, capability, make_old

NAMES = (b"a", b"b", b"c", b"d", b"e", b"sub", b"new\nline", b"\xff\xfe", b" -x,y:z\\", b"l" * 255)
MODES = (0o644, 0o755, 0o600, 0o666, 0o777, 0o700, 0o4755, 0o2755, 0o6711, 0o1777, 0o440, 0)
DIRECTORY_MODES = (0o755, 0o777, 0o700, 0o2775, 0o1777, 0o711, 0o555)
OWNERS = ((0, 0), (0, 0), (1000, 1000), (1000, 1001), (1001, 1001), (65534, 65534))
TARGETS = (b"a", b"../b", b"a/b", b"nowhere", b".", b"sub/", b"/proc/nowhere", b"c" * 300)
SIZES = (0, 3, 100, 4096, 5000, 70_000)
NULL, ZERO, NOWHERE = os.makedev(1, 3), os.makedev(1, 5), os.makedev(240, 0)

_KINDS = {
    "directory": 6,
    "opaque": 2,
    "file": 9,
    "sparse": 1,
    "link": 3,
    "symlink": 2,
    "whiteout": 6,
    "fifo": 1,
    "socket": 1,
    "character": 1,
    "block": 1,
}
_DIRECTORIES = ("directory", "opaque")
_LINKABLE = ("file", "sparse", "symlink", "fifo")

Attributes = tuple[tuple[str, bytes], ...]


@dataclass(frozen=True)
class Item:
    """One object of a layer. `target`: of a symlink, or the name that a hard link shares; size in bytes."""

    kind: str
    path: bytes
    mode: int = 0o644
    owner: tuple[int, int] = (0, 0)
    size: int = 0
    target: bytes = b""
    xattrs: Attributes = ()

    def __repr__(self) -> str:
        said = [f"{self.kind!r}, {self.path!r}"]
        for part in fields(self)[2:]:
            value = getattr(self, part.name)
            if value != part.default:
                said.append(f"{part.name}={oct(value) if part.name == 'mode' else repr(value)}")
        return f"Item({', '.join(said)})"


Layer = tuple[Item, ...]
"""Parents before their children."""
Layers = tuple[Layer, ...]
"""Topmost first."""


# --- drawing -----------------------------------------------------------------------------------------------


def allowed_mode(mode: int, *, set_ids: bool) -> int:
    """The mode of a file in a script with set-id bits, or in one with capabilities; never both.

    When root writes to a file with both, the capability falls and the bits stay; the message in which FUSE
    asks for it could be a chown(2)'s, at which both fall.
    """
    return mode if set_ids else mode & ~(stat.S_ISUID | stat.S_ISGID)


def draw_layers(dice: Dice, *, set_ids: bool) -> Layers:
    """One to six layers, with set-id bits or with capabilities."""
    return sensible(tuple(_draw_layer(dice, set_ids) for _ in range(1 + dice.below(6))))


def _draw_layer(dice: Dice, set_ids: bool) -> Layer:
    kinds: dict[bytes, str] = {}
    items = []
    for _ in range(4 + dice.below(12)):
        path = b"/".join(_draw_name(dice) for _ in range(dice.weighted({1: 4, 2: 5, 3: 2})))
        for parent in parents(path):
            if parent not in kinds:
                kinds[parent] = "directory"
                items.append(Item("directory", parent, dice.pick(DIRECTORY_MODES), dice.pick(OWNERS)))
        if path not in kinds:
            items.append(_draw_item(dice, path, kinds, set_ids))
            kinds[path] = items[-1].kind
    return tuple(items)


def _draw_name(dice: Dice) -> bytes:
    return dice.pick(NAMES if dice.happens(20) else NAMES[:4])


def _draw_item(dice: Dice, path: bytes, kinds: dict[bytes, str], set_ids: bool) -> Item:
    kind = dice.weighted(_KINDS)
    linkable = [name for name, of in kinds.items() if of in _LINKABLE]
    if kind == "link" and not linkable:
        kind = "file"
    directory = kind in _DIRECTORIES
    mode = dice.pick(DIRECTORY_MODES) if directory else allowed_mode(dice.pick(MODES), set_ids=set_ids)
    target = {"symlink": TARGETS, "link": linkable}.get(kind, (b"",))
    return Item(
        kind,
        path,
        mode,
        dice.pick(OWNERS),
        dice.pick(SIZES) if kind == "file" else 0,
        dice.pick(target),
        _draw_attributes(dice, kind, set_ids),
    )


def _draw_attributes(dice: Dice, kind: str, set_ids: bool) -> Attributes:
    choices: list[Attributes] = [(), (), (), (("trusted.secret", b"\x01\0"),)]
    acl = ("system.posix_acl_access", access_list(user=1000))
    if kind == "file":
        choices += [(("user.colour", b"green"),), (acl,)]
        choices += [] if set_ids else [(("security.capability", capability()),)]
    elif kind in _DIRECTORIES:
        inherited = ("system.posix_acl_default", access_list(user=1001))
        choices += [(("user.colour", b""),), (inherited,), (inherited, acl)]
    return dice.pick(choices)


def parents(path: bytes) -> Iterator[bytes]:
    """The directories above a path, outermost first."""
    for index, byte in enumerate(path):
        if byte == ord("/"):
            yield path[:index]


# --- what makes sense --------------------------------------------------------------------------------------


def sensible(layers: Layers) -> Layers:
    """The layers without items that nothing carries, and without whiteouts that hide nothing."""
    view: dict[bytes, str] = {}
    kept = []
    for layer in reversed(layers):
        items = _carried(layer, view)
        for item in items:
            _lay_over(view, item)
        kept.append(items)
    return tuple(reversed(kept))


def _carried(layer: Layer, view: dict[bytes, str]) -> Layer:
    kinds: dict[bytes, str] = {}
    items = []
    for item in layer:
        above = [kinds.get(parent) for parent in parents(item.path)]
        if item.path in kinds or any(kind not in _DIRECTORIES for kind in above):
            continue
        if item.kind == "whiteout" and (item.path not in view or "opaque" in above):
            continue
        if item.kind == "link" and kinds.get(item.target) not in _LINKABLE:
            continue
        kinds[item.path] = item.kind
        items.append(item)
    return tuple(items)


def _lay_over(view: dict[bytes, str], item: Item) -> None:
    if item.kind == "directory" and view.get(item.path) in _DIRECTORIES:
        return
    for path in [path for path in view if path == item.path or path.startswith(item.path + b"/")]:
        del view[path]
    if item.kind != "whiteout":
        view[item.path] = item.kind


# --- building ----------------------------------------------------------------------------------------------


def build(directories: list[Path], layers: Layers, prefix: str) -> None:
    """Fills empty directories with the layers; `prefix` is that of overlay's own attributes."""
    for directory, layer in zip(directories, layers, strict=True):
        for item in layer:
            _make(directory, item, prefix)
        make_old(directory)


def _make(directory: Path, item: Item, prefix: str) -> None:
    root = os.fsencode(directory)
    item = replace(item, path=os.path.join(root, item.path))
    if item.kind == "link":
        item = replace(item, target=os.path.join(root, item.target))
    if item.kind == "whiteout":
        _whiteout(item, prefix)
    else:
        _MAKERS[item.kind](item)
    if item.kind in ("whiteout", "link"):
        return
    os.chown(item.path, *item.owner, follow_symlinks=False)
    if item.kind != "symlink":
        os.chmod(item.path, item.mode)
    for name, value in item.xattrs:
        os.setxattr(item.path, name, value, follow_symlinks=False)
    if item.kind == "opaque":
        os.setxattr(item.path, prefix + "opaque", b"y")


def _file(item: Item) -> None:
    with open(item.path, "wb") as file:
        file.write((b"%d " % (item.size + item.path[-1])) * (item.size // 2))
        file.truncate(item.size)


def _sparse(item: Item) -> None:
    with open(item.path, "wb") as file:
        file.write(b"head")
        file.seek(200_000)
        file.write(b"middle")
        file.truncate(500_000)


def _whiteout(item: Item, prefix: str) -> None:
    try:
        os.mknod(item.path, stat.S_IFCHR)
    except PermissionError:
        # On an overlay, where a whiteout is told by an attribute, below a directory that says so.
        os.mknod(item.path, stat.S_IFREG)
        os.setxattr(item.path, prefix + "whiteout", b"y")
        os.setxattr(os.path.dirname(item.path), prefix + "opaque", b"x")


def _node(kind: int, device: int = 0) -> Callable[[Item], None]:
    return lambda item: os.mknod(item.path, kind | 0o600, device)


_MAKERS: dict[str, Callable[[Item], None]] = {
    "directory": lambda item: os.mkdir(item.path),
    "opaque": lambda item: os.mkdir(item.path),
    "file": _file,
    "sparse": _sparse,
    "link": lambda item: os.link(item.target, item.path, follow_symlinks=False),
    "symlink": lambda item: os.symlink(item.target, item.path),
    "fifo": _node(stat.S_IFIFO),
    "socket": _node(stat.S_IFSOCK),
    "character": _node(stat.S_IFCHR, ZERO),
    "block": _node(stat.S_IFBLK, NOWHERE),
}
