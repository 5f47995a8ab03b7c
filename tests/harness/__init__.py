"""What the tests stand on: layer directories, mounts of either kind, snapshots of trees, processes of other users."""

from tests.harness.errors import fails_with
from tests.harness.mounting import (
    Kind,
    Mount,
    MountFactory,
    MountRefused,
    pyoverlay_only,
)
from tests.harness.processes import in_child, run_as
from tests.harness.snapshot import Entry, snapshot
from tests.harness.stack import Stack, make_stack

__all__ = [
    "Entry",
    "Kind",
    "Mount",
    "MountFactory",
    "MountRefused",
    "Stack",
    "fails_with",
    "in_child",
    "make_stack",
    "pyoverlay_only",
    "run_as",
    "snapshot",
]
