"""Where and how are the two overlays of a drawn script mounted? Variants by name, and rooms that hold one.

A room is the file systems of a variant and, if it is to be so, a user namespace. It knows nothing of layers'
contents, of operations or of mounts.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.differential.allowed import (
    ALL_PASSED_THROUGH,
    BTRFS,
    OVERLAY_LOWER,
    RESERVES_BLOCKS,
    SEVERAL_FILE_SYSTEMS,
    WITHOUT_HANDLES,
)
from tests.harness import Kind
from tests.harness.disk import file_system
from tests.harness.processes import in_user_namespace

Result = TypeVar("Result")


@dataclass(frozen=True)
class Variant:
    """One way to mount both.

    name: as in VARIANTS; ours: which pyoverlay; upper: the file system of upper and work directory; lowers:
    the file systems of the lowers in turn, topmost first; userxattr: whether both are mounted with
    `userxattr` in a user namespace, in which the callers live, too; passthrough: that option of pyoverlay's.
    """

    name: str
    ours: Kind = Kind.PYOVERLAY
    upper: str = "ext4"
    lowers: tuple[str, ...] = ("ext4",)
    userxattr: bool = False
    passthrough: str = "auto"

    @property
    def options(self) -> tuple[str, ...]:
        """The mount options of both."""
        return ("userxattr",) if self.userxattr else ()

    @property
    def own_options(self) -> tuple[str, ...]:
        """The mount options of pyoverlay alone."""
        return () if self.passthrough == "auto" else (f"passthrough={self.passthrough}",)

    @property
    def circumstances(self) -> frozenset[str]:
        """What the table of allowed differences has lines for."""
        told = {
            WITHOUT_HANDLES: self.userxattr or "overlay" in self.lowers,
            SEVERAL_FILE_SYSTEMS: len({self.upper, *self.lowers}) > 1,
            OVERLAY_LOWER: "overlay" in self.lowers,
            BTRFS: self.upper == "btrfs",
            RESERVES_BLOCKS: self.upper in ("btrfs", "xfs"),
            ALL_PASSED_THROUGH: self.passthrough == "all",
        }
        return frozenset(name for name, holds in told.items() if holds)

    @property
    def prefix(self) -> str:
        """The prefix of overlay's own attributes."""
        return "user.overlay." if self.userxattr else "trusted.overlay."


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("ext4"),
        Variant("slow-path", ours=Kind.SLOW_PATH),
        Variant("passthrough-off", passthrough="off"),
        Variant("passthrough-all", passthrough="all"),
        Variant("userxattr", userxattr=True),
        Variant("xfs", upper="xfs", lowers=("xfs",)),
        Variant("btrfs", upper="btrfs", lowers=("btrfs",)),
        Variant("tmpfs", upper="tmpfs", lowers=("tmpfs",)),
        Variant("mixed", lowers=("overlay", "xfs", "btrfs", "tmpfs", "ext4")),
    )
}


@dataclass(frozen=True)
class Room:
    """A variant, and where each of its file systems is mounted."""

    variant: Variant
    places: dict[str, Path]

    def run(self, call: Callable[[], Result]) -> Result:
        """Runs `call` where the variant's callers live; its result and its errors must be picklable."""
        return in_user_namespace(call) if self.variant.userxattr else call()

    @contextmanager
    def directories(self, height: int) -> Iterator[tuple[Path, list[Path]]]:
        """A fresh directory for upper and work directory, and one for each of `height` lowers."""
        kinds = self.variant.lowers
        with ExitStack() as made:
            base = made.enter_context(_directory(self.places[self.variant.upper]))
            lowers = [self.places[kinds[number % len(kinds)]] for number in range(height)]
            yield base, [made.enter_context(_directory(place)) for place in lowers]


@contextmanager
def _directory(place: Path) -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="overlay-", dir=place))
    try:
        directory.chmod(0o755)
        yield directory
    finally:
        shutil.rmtree(directory)


@contextmanager
def open_room(variant: Variant) -> Iterator[Room]:
    """A room on fresh file systems; they are removed afterwards."""
    with ExitStack() as mounts:
        kinds = dict.fromkeys((variant.upper, *variant.lowers))
        yield Room(variant, {kind: mounts.enter_context(file_system(kind)) for kind in kinds})
