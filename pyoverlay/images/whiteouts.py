"""What do a layer's whiteouts amount to, wherever in its tar they stand?

They hide names of the layers beneath and nothing of their own layer (image-spec, layer.md, "Whiteouts"). So
they are looked at together, when it is known what else the layer has. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from pyoverlay.layers import marks


@dataclass(slots=True)
class Plan:
    """What has to be made.

    Attributes:
        opaque: directories that hide all beneath them; empty for the root.
        devices: paths that become whiteout devices, the higher first.
    """

    opaque: set[bytes] = field(default_factory=set)
    devices: list[bytes] = field(default_factory=list)


def plan(names: Iterable[bytes], directories: Collection[bytes], exists: Callable[[bytes], bool]) -> Plan:
    """Work out a layer's marks.

    Args:
        names: paths of the entries ``.wh.NAME`` and ``.wh..wh..opq``.
        directories: paths of the layer's directories, the empty one of its root among them.
        exists: whether the layer has anything at a path.

    Returns:
        The marks. A whiteout of a directory that the layer has makes that opaque; of another name that it
        has, nothing. Below what is gone there is nothing to hide, nor in an opaque directory.
    """
    result = Plan()
    gone: set[bytes] = set()
    for path in sorted(set(names), key=_order):
        parent, _, name = path.rpartition(b"/")
        if gone and _is_below(parent, gone):
            continue
        hidden = marks.aufs_hidden_name(name)
        if hidden is None:
            result.opaque.add(parent)
        elif parent not in result.opaque:
            target = parent + b"/" + hidden if parent else hidden
            if target in directories:
                result.opaque.add(target)
            elif not exists(target):
                gone.add(target)
                result.devices.append(target)
    return result


def _order(path: bytes) -> tuple[int, bool, bytes]:
    """Sort what lies higher first, and a directory's opaque mark before its whiteouts."""
    return (path.count(b"/"), not path.endswith(marks.AUFS_OPAQUE), path)


def _is_below(path: bytes, gone: Collection[bytes]) -> bool:
    while path:
        if path in gone:
            return True
        path = path.rpartition(b"/")[0]
    return False
