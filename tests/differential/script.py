"""How is a failing script told? As a runnable Python file, as short as can be.

    PYTHONPATH=. python FILE    as root, in the repository's directory

A script is layers and operations, both values. Minimising it leaves out one part after the other as long as
the same kind of difference remains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from tests.differential import operations
from tests.differential.drawn_layers import Item, Layers, build, sensible
from tests.differential.operation import DEFAULT_UMASK, ROOT, Operation
from tests.differential.pair import COMPARE, FORGET, REMOUNT, MismatchError, Pair
from tests.differential.variants import VARIANTS, Room, open_room
from tests.harness import snapshot
from tests.harness.processes import outside

Part = TypeVar("Part")


@dataclass(frozen=True)
class Script:
    """What is done (`operations`) over which lower layers, topmost first, and in which variant."""

    layers: Layers
    operations: tuple[Operation, ...]
    variant: str = "ext4"

    def run(self) -> None:
        """Runs it to its end on both; raises MismatchError."""
        with open_room(VARIANTS[self.variant]) as room:
            room.run(lambda: self.run_in(room))

    def run_in(self, room: Room) -> None:
        """Runs it in a room of its variant; raises MismatchError."""
        with live_pair(self.layers, room) as pair:
            pair.perform_all(self.operations)
            pair.finish()
            pair.cross()

    def failure(self, room: Room) -> MismatchError | None:
        """Runs it in a room of its variant and returns in what the two differed, if they did."""
        try:
            self.run_in(room)
        except MismatchError as error:
            return error
        return None

    def __str__(self) -> str:
        layers = "\n".join(
            "    (\n" + "".join(f"        {item!r},\n" for item in layer) + "    )," for layer in self.layers
        )
        done = "\n".join(f"    {_source(operation)}," for operation in self.operations)
        return _TEMPLATE.format(layers=layers, operations=done, variant=self.variant)


_TEMPLATE = """\
# Run as root in the repository's directory: PYTHONPATH=. python FILE
from tests.differential import descriptors, operations
from tests.differential.drawn_layers import Item
from tests.differential.pair import COMPARE, FORGET, REMOUNT
from tests.differential.script import Script

LAYERS = (
{layers}
)
OPERATIONS = (
{operations}
)

if __name__ == "__main__":
    Script(LAYERS, OPERATIONS, "{variant}").run()
"""


def _source(operation: Operation) -> str:
    for name, turn in (("COMPARE", COMPARE), ("FORGET", FORGET), ("REMOUNT", REMOUNT)):
        if operation == turn:
            return name
    words = ", ".join(_value(argument) for argument in operation.arguments)
    module = "operations" if hasattr(operations, operation.name) else "descriptors"
    text = f"{module}.{operation.name}({words})"
    caller = operation.caller
    if caller != ROOT:
        text += f".by({', '.join(map(str, (caller.uid, caller.gid, *caller.groups)))})"
    if operation.umask != DEFAULT_UMASK:
        text += f".with_umask({operation.umask:#o})"
    return text


def _value(value: object) -> str:
    if isinstance(value, bytes) and len(value) > 20 and len(set(value)) == 1:
        return f"{value[:1]!r} * {len(value)}"
    return oct(value) if type(value) is int and value > 64 else repr(value)


@contextmanager
def live_pair(layers: Layers, room: Room) -> Iterator[Pair]:
    """Both mounted over the layers, which must be byte for byte the same afterwards."""
    variant = room.variant
    with room.directories(len(layers)) as (base, lowers):
        outside(build, lowers, layers, variant.prefix)
        for lower in lowers:
            # relatime: the first readlink of a symlink moves its atime, the following ones don't
            snapshot(lower)
        before = [snapshot(lower, exact=True) for lower in lowers]
        pair = Pair(
            base,
            lowers,
            *variant.options,
            own_options=variant.own_options,
            prefix=variant.prefix,
            ours=variant.ours,
            circumstances=variant.circumstances,
        )
        with pair:
            yield pair
        if [snapshot(lower, exact=True) for lower in lowers] != before:
            raise MismatchError("lower", "a lower layer was changed")


def minimise(script: Script, failure: MismatchError, room: Room) -> Script:
    """A shorter script that fails in the same kind of way as `script`, which nothing shortens further."""

    def fails(candidate: Script) -> bool:
        found = candidate.failure(room)
        return found is not None and found.what == failure.what

    while True:
        shorter = _fewer_items(_fewer_operations(script, fails), fails)
        if shorter == script:
            return script
        script = shorter


def _fewer_operations(script: Script, fails: Callable[[Script], bool]) -> Script:
    """The script without operations that it doesn't need."""
    return replace(
        script, operations=_shortened(script.operations, lambda part: fails(replace(script, operations=part)))
    )


def _fewer_items(script: Script, fails: Callable[[Script], bool]) -> Script:
    """The script with what it needs of its layers."""
    items = tuple((number, item) for number, layer in enumerate(script.layers) for item in layer)
    height = len(script.layers)

    def layers(part: Sequence[tuple[int, Item]]) -> Layers:
        return sensible(tuple(tuple(item for at, item in part if at == number) for number in range(height)))

    kept = _shortened(items, lambda part: fails(replace(script, layers=layers(part))))
    shorter = tuple(layer for layer in layers(kept) if layer) or ((),)
    if fails(replace(script, layers=shorter)):
        return replace(script, layers=shorter)
    return replace(script, layers=layers(kept))


def _shortened(parts: tuple[Part, ...], fails: Callable[[tuple[Part, ...]], bool]) -> tuple[Part, ...]:
    """Leaves out ever smaller runs of parts (delta debugging) as long as it still fails."""
    size = max(1, len(parts) // 2)
    while True:
        start = 0
        while start < len(parts):
            candidate = parts[:start] + parts[start + size :]
            if fails(candidate):
                parts = candidate
            else:
                start += size
        if size == 1:
            return parts
        size = max(1, size // 2)
