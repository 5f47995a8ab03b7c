"""What does each layer of an image add, change and remove, and how many bytes does nobody see any more?

A file that an upper layer replaces or removes stays in its own layer, and is stored, pushed and pulled with
it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pyoverlay.images.digests import Digest
from pyoverlay.images.stacking import lower_directories, opened
from pyoverlay.images.store import Store
from pyoverlay.layers import syscalls
from pyoverlay.layers.changes import Change, ChangeKind, find_changes

Tree = dict[str, "Tree | Hidden"]


@dataclass(frozen=True, slots=True)
class Hidden:
    """A file that could be hidden: its layer's number, the lowest 0, and its bytes."""

    layer: int
    size: int


@dataclass
class Waste:
    """A path whose bytes in lower layers nobody sees.

    Attributes:
        path: with a slash in front.
        size: bytes.
        kind: whether the upper layer replaced it or removed it.
        layers: numbers of the layer that has it and of the one that hides it.
    """

    path: str
    size: int
    kind: ChangeKind
    layers: tuple[int, int]


@dataclass
class LayerChanges:
    """What one layer does.

    Attributes:
        layer: its diffID.
        size: bytes of its files.
        changes: what is added, changed or removed; directories that are only on the way to others are left
            out.
        sizes: bytes of each added or changed file by path.
        hidden: bytes of its files that upper layers hide.
    """

    layer: Digest
    size: int
    changes: list[Change]
    sizes: dict[str, int]
    hidden: int = 0


@dataclass
class ImageChanges:
    """What all layers do, the lowest first, and what is wasted, the most first."""

    layers: list[LayerChanges] = field(default_factory=list)
    waste: list[Waste] = field(default_factory=list)

    @property
    def wasted(self) -> int:
        """Bytes that are stored and not seen."""
        return sum(waste.size for waste in self.waste)


def changes_by_layer(store: Store, layers: Sequence[Digest]) -> ImageChanges:
    """Compare each layer with all those beneath it.

    Args:
        store: has the layers.
        layers: an image's, the lowest first.

    Raises:
        OverlayError: a layer is missing or can't be read.
    """
    result = ImageChanges()
    shown: Tree = {}
    for number, diff_id in enumerate(layers):
        directory = store.layer_directory(diff_id)
        beneath = [str(path) for path in lower_directories(store, layers[:number])]
        known = store.record_of(diff_id)
        if known is not None and known.opaque_root:
            _hide_all(shown, number, result)
            beneath = []
        implied = {os.fsdecode(b"/" + path) for path in known.implied} if known else set()
        found = find_changes(str(directory), beneath)
        changes = list(_own(found, implied))
        layer = LayerChanges(diff_id, known.size if known else 0, changes, {})
        result.layers.append(layer)
        with opened([directory]) as (root,):
            for change in changes:
                _apply(change, number, root, shown, result)
    for waste in result.waste:
        result.layers[waste.layers[0]].hidden += waste.size
    result.waste.sort(key=lambda waste: (-waste.size, waste.path))
    return result


def _own(changes: Sequence[Change], implied: set[str]) -> Iterator[Change]:
    """Leave out directories that changed only as something below them did, for all the tar says."""
    for change in changes:
        if change.kind is not ChangeKind.CHANGED or change.path not in implied:
            yield change


def _apply(change: Change, number: int, root: int, shown: Tree, result: ImageChanges) -> None:
    *parents, name = change.path.lstrip("/").split("/")
    place = shown
    for parent in parents:
        inner = place.get(parent)
        if not isinstance(inner, dict):
            inner = place[parent] = {}
        place = inner
    old = place.get(name)
    status = None if change.kind is ChangeKind.DELETED else _status(root, change.path)
    if status is not None and stat.S_ISDIR(status.st_mode) and isinstance(old, dict):
        return
    if old is not None:
        _hide(change.path, old, change.kind, number, result)
    if status is None:
        place.pop(name, None)
    elif stat.S_ISDIR(status.st_mode):
        place[name] = {}
    else:
        size = status.st_size if stat.S_ISREG(status.st_mode) else 0
        place[name] = Hidden(number, size)
        result.layers[number].sizes[change.path] = size


def _status(root: int, path: str) -> os.stat_result:
    """Ask in the layer, as the path from the file system's root may be longer than the kernel takes."""
    descriptor = syscalls.open_beneath(root, os.fsencode(path.lstrip("/")), os.O_PATH | os.O_NOFOLLOW)
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


def _hide(path: str, old: Tree | Hidden, kind: ChangeKind, number: int, result: ImageChanges) -> None:
    sizes: dict[int, int] = {}
    for file in _files(old):
        sizes[file.layer] = sizes.get(file.layer, 0) + file.size
    result.waste += [Waste(path, size, kind, (layer, number)) for layer, size in sizes.items() if size]


def _hide_all(shown: Tree, number: int, result: ImageChanges) -> None:
    for name, old in shown.items():
        _hide(f"/{name}", old, ChangeKind.DELETED, number, result)
    shown.clear()


def _files(tree: Tree | Hidden) -> Iterator[Hidden]:
    pending = [tree]
    while pending:
        found = pending.pop()
        if isinstance(found, Hidden):
            yield found
        else:
            pending.extend(found.values())
