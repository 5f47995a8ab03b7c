"""``pyoverlay demo``: how do image layers work?  Told on real mounts in a temporary directory.

Nothing that is shown is made up: what the tables say is read from the merged view and from the layers.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pyoverlay.cli import arguments
from pyoverlay.options import OverlayError

if TYPE_CHECKING:
    from rich.console import Console

    from pyoverlay.api import Change

LAYERS: Final[Mapping[str, tuple[str, ...]]] = {
    "layer 3": ("file9", "data/file10", "data/file11"),
    "layer 2": ("file5", "file6", "file7", "file8"),
    "layer 1": ("file1", "file2", "file3", "file4"),
}
"""Each lower, topmost first -> its files."""

CONTAINER: Final = "container layer"
_STYLES: Final = {"layer 1": "green", "layer 2": "yellow", "layer 3": "cyan", CONTAINER: "magenta"}
_KINDS: Final = {"A": ("added", "green"), "C": ("changed", "yellow"), "D": ("deleted", "red")}

_MARKS: Final = {
    "opaque": "opaque: nothing of this directory shows from the layers below",
    "origin": "origin: which lower object it is a copy of, so that its inode number stays",
    "impure": "impure: the directory holds such copies",
    "uuid": "uuid: identifies this overlay to statfs",
}


@dataclass
class _Stage:
    """The directories of the demonstration."""

    base: Path
    layers: dict[str, Path] = field(init=False)
    upper: Path = field(init=False)
    work: Path = field(init=False)
    merged: Path = field(init=False)

    def __post_init__(self) -> None:
        self.layers = {name: self.base / name.replace(" ", "-") for name in LAYERS}
        self.upper, self.work, self.merged = (self.base / name for name in ("upper", "work", "merged"))
        for directory in (*self.layers.values(), self.upper, self.work, self.merged):
            directory.mkdir()
        for layer, files in LAYERS.items():
            for name in files:
                path = self.layers[layer] / name
                path.parent.mkdir(exist_ok=True)
                path.write_text(f"{name} of {layer}\n")

    def stack(self) -> dict[str, Path]:
        """Every layer that may hold a file, topmost first."""
        return {CONTAINER: self.upper} | self.layers


def main(words: list[str]) -> int:
    """Tell the story, and return 0.

    Raises OverlayError when nothing can be mounted, or when a lower was changed.
    """
    parser = arguments.ArgumentParser(
        "demo", "Show how image layers work, on real mounts in a temporary directory that is removed again."
    )
    parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="pyoverlay-demo-") as base:
        _tell(_Stage(Path(base)), _Picture(_console()))
    return 0


def _console() -> Console:
    from rich.console import Console  # noqa: PLC0415  # --help must not wait for it

    if sys.stdout.isatty():
        return Console(highlight=False)
    return Console(highlight=False, color_system=None, width=100)


def _tell(stage: _Stage, picture: _Picture) -> None:
    from pyoverlay.api import Overlay  # noqa: PLC0415  # --help must not wait for it

    lowers = list(stage.layers.values())
    before = {name: _checksum(path) for name, path in stage.layers.items()}
    picture.layers("1. Three layers of an image, as directories on disk")
    with Overlay(lower=lowers, target=stage.merged) as merged:
        files = _files(merged)
        picture.merged(f"2. Stacked, they are one directory with {len(files)} files", _sources(stage, files))
    overlay = Overlay(lower=lowers, upper=stage.upper, work=stage.work, target=stage.merged)
    with overlay as merged:
        picture.commands("3. A container layer on top takes what a container does", _act(merged))
        picture.merged("4. What the container sees then", _sources(stage, _files(merged)))
    picture.upper("5. The container layer as it lies on disk, with its marks", stage.upper)
    picture.changes("6. pyoverlay changes: what docker diff would say", overlay.changes())
    after = {name: _checksum(path) for name, path in stage.layers.items()}
    picture.checksums("7. The layers of the image are untouched", before, after)
    if before != after:
        raise OverlayError("a lower layer was changed, which must never happen; please report this")


def _act(merged: Path) -> list[tuple[str, str]]:
    """Do in the merged view what a container might; return it as shell commands, with what each is about."""
    with (merged / "file2").open("a") as file:
        file.write("changed\n")
    (merged / "file12").write_text("new\n")
    (merged / "file6").unlink()
    shutil.rmtree(merged / "data")
    (merged / "data").mkdir()
    (merged / "data" / "file13").write_text("new\n")
    return [
        ("echo changed >> file2", "one file of layer 1 is changed"),
        ("echo new > file12", "one is added"),
        ("rm file6", "one of layer 2 is removed"),
        ("rm -r data && mkdir data", "a directory of layer 3 is replaced"),
        ("echo new > data/file13", "by one with another file"),
    ]


def _files(directory: Path) -> list[str]:
    found = [
        os.path.relpath(os.path.join(parent, name), directory)
        for parent, _, names in os.walk(directory)
        for name in names
    ]
    return sorted(found, key=lambda path: int("".join(filter(str.isdigit, path))))


def _sources(stage: _Stage, files: Iterable[str]) -> dict[str, str]:
    """Name the topmost layer that holds each file."""
    stack = stage.stack()
    return {name: next(layer for layer, path in stack.items() if (path / name).is_file()) for name in files}


def _checksum(directory: Path) -> str:
    """Digest everything that a change of a tree would show in: names, attributes, times, contents."""
    digest = hashlib.sha256()
    for path in sorted([directory, *directory.rglob("*")]):
        status = path.lstat()
        attributes = [(name, os.getxattr(path, name)) for name in sorted(os.listxattr(path))]
        facts = (
            status.st_mode,
            status.st_uid,
            status.st_gid,
            status.st_nlink,
            status.st_mtime_ns,
            attributes,
        )
        content = path.read_bytes() if path.is_file() else b""
        digest.update(repr((str(path), facts, content)).encode())
    return digest.hexdigest()


def _on_disk(path: Path) -> tuple[str, list[str]]:
    """Say what an entry of the upper is, and explain it line by line."""
    status = path.lstat()
    if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
        return "character device 0/0", ["whiteout: the file of this name below is deleted"]
    lines = []
    for name in sorted(os.listxattr(path)):
        prefix, _, mark = name.rpartition(".")
        if prefix.endswith(".overlay") and mark in _MARKS:
            value = os.getxattr(path, name)
            shown = value.decode() if value.isalnum() else f"({len(value)} bytes)"
            lines.append(f"{name} = {shown}")
            lines.append(f"  {_MARKS[mark]}")
    kind = "directory" if stat.S_ISDIR(status.st_mode) else "file"
    return kind, lines or [f"a {kind} like any other: it is new"]


class _Picture:
    """What is shown, drawn by rich; without colours and lines when nobody looks at a terminal."""

    def __init__(self, console: Console) -> None:
        from rich import box  # noqa: PLC0415  # --help must not wait for it

        self._console = console
        self._box = box.ROUNDED if console.is_terminal else box.ASCII

    def _table(self, title: str, *columns: str) -> None:
        from rich.table import Table  # noqa: PLC0415

        self._console.print()
        self._console.print(title, style="bold", markup=False)
        self.table = Table(*columns, box=self._box, show_header=any(columns), header_style="dim")

    def _row(self, *cells: str, style: str = "") -> None:
        from rich.text import Text  # noqa: PLC0415

        self.table.add_row(*(Text(cell) for cell in cells), style=style)

    def _draw(self) -> None:
        self._console.print(self.table)

    def layers(self, title: str) -> None:
        self._table(title, "", "")
        for layer, files in LAYERS.items():
            self._row(layer, "  ".join(files), style=_STYLES[layer])
        self._draw()

    def merged(self, title: str, sources: Mapping[str, str]) -> None:
        stack = [layer for layer in reversed(_STYLES) if layer != CONTAINER or layer in sources.values()]
        self._table(title, "merged view", *stack)
        for name, source in sources.items():
            self._row(name, *(name if layer == source else "" for layer in stack), style=_STYLES[source])
        self._draw()

    def commands(self, title: str, commands: Iterable[tuple[str, str]]) -> None:
        self._table(title, "", "")
        for command, meaning in commands:
            self._row(f"$ {command}", meaning)
        self._draw()

    def upper(self, title: str, upper: Path) -> None:
        self._table(title, "in the upper", "what it is", "what that means")
        for path in sorted(upper.rglob("*")):
            kind, lines = _on_disk(path)
            self._row(str(path.relative_to(upper)), kind, "\n".join(lines), style=_STYLES[CONTAINER])
        self._draw()

    def changes(self, title: str, changes: Iterable[Change]) -> None:
        self._table(title, "", "", "")
        for change in changes:
            meaning, style = _KINDS[change.kind]
            self._row(change.kind, change.path, meaning, style=style)
        self._draw()

    def checksums(self, title: str, before: Mapping[str, str], after: Mapping[str, str]) -> None:
        self._table(title, "", "sha256 before", "sha256 after", "")
        for layer, digest in before.items():
            same = "same" if after[layer] == digest else "DIFFERENT"
            self._row(layer, digest[:16], after[layer][:16], same, style=_STYLES[layer])
        self._draw()
