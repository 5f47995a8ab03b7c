"""How does a Debian become many layers, package by package?

The merged tree of `bench.rootfs` is cut apart by dpkg's own lists: the packages, sorted by name, are dealt
like cards, the first to the topmost layer, and so on, and again from the top.  What no package owns (dpkg's
state, caches) is in the lowest layer.  Each layer holds the directories of its files, so that /usr/share/doc
merges from nearly all of them, as in an image built in as many steps.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from bench.layers import LayerRecipe, kernel_overlay
from bench.programs import run
from bench.rootfs import SUITE, XATTRS, extract_layers
from bench.workloads.workload import Scale

_LISTS: Final = "var/lib/dpkg/info"


def dealt_rootfs(layers: int) -> Callable[[Scale], LayerRecipe]:
    """Return what names a Debian over that many layers, the same at each scale."""
    return lambda _scale: LayerRecipe(f"debian-{SUITE}-dealt-over-{layers}", partial(_build, layers))


def _build(layers: int, directory: Path) -> None:
    making = directory / "making"
    making.mkdir()
    with kernel_overlay(making, extract_layers(making)) as view:
        for number, paths in enumerate(deal(view, layers)):
            layer = directory / str(number)
            layer.mkdir()
            _copy(view, layer, paths, making)
    shutil.rmtree(making)


def deal(tree: Path, layers: int) -> list[list[str]]:
    """Return the paths in a Debian's tree that each layer gets, directories before what is in them.

    Each path but a directory's is in exactly one layer.
    """
    layer_of = _layers_by_packages(tree, layers)
    dealt: defaultdict[int, set[str]] = defaultdict(set)
    for path, layer in layer_of.items():
        _add_with_directories(dealt[layer], path)
    for directory, names, files in os.walk(tree):
        below = os.path.relpath(directory, tree)
        for name in (*names, *files):
            path = os.path.normpath(f"{below}/{name}")
            if path not in layer_of:
                _add_with_directories(dealt[layers - 1], path)
    return [sorted(dealt[layer]) for layer in range(layers)]


def _layers_by_packages(tree: Path, layers: int) -> dict[str, int]:
    """Return the layer of each path that a package owns; of several packages, the first one's."""
    layer_of: dict[str, int] = {}
    directories: dict[str, str] = {}
    for number, package in enumerate(sorted((tree / _LISTS).glob("*.list"))):
        for listed in package.read_text(encoding="utf-8").splitlines():
            path = _as_in_tree(tree, listed.strip("/"), directories)
            if path and os.path.lexists(tree / path):
                layer_of.setdefault(path, number % layers)
    return layer_of


def _as_in_tree(tree: Path, path: str, directories: dict[str, str]) -> str:
    """Return where a listed path really is: of /bin/sh, usr/bin/sh, as /bin is a symlink. "" for the root."""
    parent, _, name = path.rpartition("/")
    if parent not in directories:
        directories[parent] = os.path.relpath(os.path.realpath(tree / parent), tree)
    # dpkg's lists name the root, too: "/."
    return os.path.normpath(f"{directories[parent]}/{name}") if name not in ("", ".") else ""


def _add_with_directories(paths: set[str], path: str) -> None:
    while path and path not in paths:
        paths.add(path)
        path = path.rpartition("/")[0]


def _copy(tree: Path, layer: Path, paths: list[str], workplace: Path) -> None:
    """Copy some paths of a tree, with all that belongs to each."""
    names, archive = workplace / "names", workplace / "archive"
    names.write_bytes(b"".join(os.fsencode(path) + b"\0" for path in (".", *paths)))
    how = [f"--file={archive}", "--numeric-owner", *XATTRS]
    chosen = ["--null", "--no-recursion", f"--files-from={names}"]
    run("tar", "--create", *how, f"--directory={tree}", *chosen)
    run("tar", "--extract", *how, f"--directory={layer}")
