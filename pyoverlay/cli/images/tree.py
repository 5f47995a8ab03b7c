"""``pyoverlay image tree``: how is what each layer does drawn?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from pyoverlay.cli.images import arguments
from pyoverlay.cli.images.arguments import parser, printable, size_text

if TYPE_CHECKING:
    from rich.text import Text
    from rich.tree import Tree

    from pyoverlay.images.changes_by_layer import ImageChanges, LayerChanges, Waste

_EPILOG: Final = """
Layers are drawn from the topmost down, each with what it does to those beneath it: A (added), C (changed), D
(deleted). Of a directory deeper than --depth, the files in it are counted. Wasted is what upper layers
replace or
delete: it stays in its own layer, and is stored and sent with it.
"""
_STYLES: Final = {"A": "green", "C": "yellow", "D": "red"}


def tree(words: list[str]) -> int:
    """Draw the layers."""
    found = parser("tree", "Draw what each layer of an image adds, changes and removes.", _EPILOG)
    found.add_argument("image", metavar="IMAGE", help="a name, or the beginning of an ID")
    found.add_argument(
        "--depth", type=int, default=2, metavar="N", help="how deep directories are drawn (default: 2)"
    )
    found.add_argument(
        "--most",
        type=int,
        default=8,
        metavar="N",
        help="how many names of a directory are drawn (default: 8)",
    )
    found.add_argument("--json", action="store_true", help="print JSON, with every path")
    asked = found.parse_args(words)
    from pyoverlay.images import catalogue, inspecting  # noqa: PLC0415  # --help must not wait for it
    from pyoverlay.images.changes_by_layer import changes_by_layer  # noqa: PLC0415

    store = arguments.store(asked)
    image_id = catalogue.find_image(store, asked.image)
    changes = changes_by_layer(store, inspecting.layers_of(store, image_id))
    if asked.json:
        print(json.dumps(_as_json(changes), indent=2))
        return 0
    commands = {step.layer: step.created_by for step in inspecting.history(store, image_id) if step.layer}
    size = size_text(sum(layer.size for layer in changes.layers))
    title = f"{asked.image}  {len(changes.layers)} layers, {size}"
    drawing = _Drawing(title, max(asked.depth, 1), max(asked.most, 1))
    for layer in reversed(changes.layers):
        drawing.add_layer(layer, commands.get(layer.layer, ""))
    drawing.add_waste(changes)
    arguments.console().print(drawing.tree)
    return 0


def _as_json(changes: ImageChanges) -> dict[str, object]:
    layers = [
        {
            "DiffId": layer.layer,
            "Size": layer.size,
            "Hidden": layer.hidden,
            "Changes": [
                {"kind": change.kind, "path": change.path, "size": layer.sizes.get(change.path, 0)}
                for change in layer.changes
            ],
        }
        for layer in changes.layers
    ]
    waste = [
        {
            "kind": waste.kind,
            "path": waste.path,
            "size": waste.size,
            "layer": waste.layers[0],
            "by": waste.layers[1],
        }
        for waste in changes.waste
    ]
    return {"Layers": layers, "Wasted": changes.wasted, "Waste": waste}


@dataclass
class _Node:
    """A name in a layer: what happens to it, and what is below."""

    kind: str = ""
    size: int = 0
    below: dict[str, _Node] = field(default_factory=dict)

    def walk(self) -> Iterator[_Node]:
        pending = [self]
        while pending:
            node = pending.pop()
            yield node
            pending.extend(node.below.values())

    def total(self) -> int:
        return sum(node.size for node in self.walk())


class _Drawing:
    def __init__(self, title: str, depth: int, most: int) -> None:
        from rich.text import Text  # noqa: PLC0415  # --help must not wait for it
        from rich.tree import Tree  # noqa: PLC0415

        self.tree: Final[Tree] = Tree(Text(title, style="bold"))
        self._depth = depth
        self._most = most
        self._text = Text

    def add_layer(self, layer: LayerChanges, command: str) -> None:
        counts = {
            word: sum(change.kind == kind for change in layer.changes)
            for kind, word in (("A", "added"), ("C", "changed"), ("D", "deleted"))
        }
        said = ", ".join(f"{count} {word}" for word, count in counts.items() if count) or "nothing"
        label = self._text(
            f"{layer.layer.partition(':')[2][:12]}  {size_text(layer.size)}  {said}", style="cyan"
        )
        if layer.hidden:
            label.append(f"  ({size_text(layer.hidden)} hidden by upper layers)", style="red")
        branch = self.tree.add(label)
        if command:
            branch.add(self._text(printable(" ".join(command.split())[:90]), style="dim"))
        root = _Node()
        for change in layer.changes:
            node = root
            for name in change.path.lstrip("/").split("/"):
                node = node.below.setdefault(name, _Node())
            node.kind, node.size = change.kind, layer.sizes.get(change.path, 0)
        self._add_names(branch, root, 1)

    def _add_names(self, branch: Tree, directory: _Node, depth: int) -> None:
        named = sorted(directory.below.items(), key=lambda item: (-item[1].total(), item[0]))
        for name, node in named[: self._most]:
            inner = branch.add(self._label(name, node, counted=depth >= self._depth))
            if depth < self._depth:
                self._add_names(inner, node, depth + 1)
        if named[self._most :]:
            rest = [found for _, node in named[self._most :] for found in node.walk()]
            size = sum(node.size for node in rest)
            branch.add(self._text(f"... {len(named) - self._most} more, {size_text(size)}", style="dim"))

    def _label(self, name: str, node: _Node, *, counted: bool) -> Text:
        label = self._text(f"{node.kind or ' '} {printable(name)}", style=_STYLES.get(node.kind, ""))
        if node.below:
            label.append("/")
        details = []
        if node.below and counted:
            kinds = [found.kind for found in node.walk() if found is not node and not found.below]
            details += [f"{kinds.count(kind)} {kind}" for kind in _STYLES if kind in kinds]
        if node.total():
            details.append(size_text(node.total()))
        label.append(f"  {', '.join(details)}" if details else "", style="dim")
        return label

    def add_waste(self, changes: ImageChanges) -> None:
        branch = self.tree.add(self._text(f"wasted: {size_text(changes.wasted)}", style="bold"))
        for waste in changes.waste[: self._most]:
            branch.add(self._waste(waste, changes))
        rest = changes.waste[self._most :]
        if rest:
            size = size_text(sum(waste.size for waste in rest))
            branch.add(self._text(f"... {len(rest)} more, {size}", style="dim"))

    def _waste(self, waste: Waste, changes: ImageChanges) -> Text:
        has, hides = (changes.layers[number].layer.partition(":")[2][:12] for number in waste.layers)
        word = "deleted" if waste.kind == "D" else "replaced"
        return self._text(f"{size_text(waste.size)}  {printable(waste.path)}  in {has}, {word} by {hides}")
