"""Where do the layers of one test lie? Directories only; it knows nothing of mounts."""

from dataclasses import dataclass
from pathlib import Path


@dataclass
class Stack:
    """The directories of one overlay, all below `base`. `lowers` is ordered as lowerdir is: topmost first."""

    base: Path
    lowers: list[Path]
    upper: Path
    work: Path
    merged: Path

    @property
    def lower(self) -> Path:
        """The topmost lower."""
        return self.lowers[0]


def make_stack(base: Path, lowers: int = 1) -> Stack:
    """Create the directories of an overlay with `lowers` lower layers below `base` and return them.

    The names are short (`l1` is the topmost lower) because the kernel takes no more than a page of options.
    """
    base.mkdir(parents=True, exist_ok=True)
    stack = Stack(
        base=base,
        lowers=[base / f"l{number}" for number in range(1, lowers + 1)],
        upper=base / "u",
        work=base / "w",
        merged=base / "m",
    )
    for directory in (*stack.lowers, stack.upper, stack.work, stack.merged):
        directory.mkdir()
    return stack
