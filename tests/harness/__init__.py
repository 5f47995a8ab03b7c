"""What the tests stand on: layers, mounts of either kind, snapshots of trees, other users' processes."""

from tests.harness.errors import fails_with
from tests.harness.mounting import (
    Kind,
    Mount,
    MountFactory,
    MountRefusedError,
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
    "MountRefusedError",
    "Stack",
    "fails_with",
    "in_child",
    "make_stack",
    "pyoverlay_only",
    "run_as",
    "snapshot",
]
