"""What does a snapshotter do?  Database and directories kept in step, so that every step may be the last.

A snapshot's directory is made before the transaction that names it ends; removing a snapshot takes its name
away first, and its directory later.  So what a killed process leaves is at worst a directory without a
snapshot, and those are removed at the start and at every clean-up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from pyoverlay.containers.snapshotter import filters
from pyoverlay.containers.snapshotter.directories import Directories
from pyoverlay.containers.snapshotter.mounts import Mount, Mounts, check_shifts
from pyoverlay.containers.snapshotter.snapshot import (
    Information,
    Kind,
    Snapshot,
    SnapshotArgumentError,
    SnapshotError,
    Usage,
    check_labels,
    check_name,
    field,
    is_unpacked,
)
from pyoverlay.containers.snapshotter.store import Store
from pyoverlay.fuse import occupation


class Snapshotter:
    """The snapshots below one root.  Its methods may be called from any thread; all raise SnapshotError."""

    def __init__(self, root: Path, program: str) -> None:
        """Take hold of a root directory, and remove what a process that was killed left there.

        Args:
            root: the directory; created when it isn't there.
            program: how containerd calls pyoverlay to mount: a path, or a name in its PATH.

        Raises:
            SnapshotError: the root can't be used, or another process uses it.
        """
        self._directories = Directories(root)
        try:
            self._store = Store(root / "metadata.db", may_be_new=not self._directories.orphans(frozenset()))
            self._mounts = Mounts(self._directories, program)
            self.clean_up()
        except BaseException:
            self._directories.close()
            raise

    def close(self) -> None:
        """Give the root up."""
        self._store.close()
        self._directories.close()

    def create(self, kind: Kind, key: str, parent: str, labels: Mapping[str, str]) -> Mount:
        """Create an active snapshot or a view on a committed parent, or on nothing.

        Returns:
            How to mount it.
        """
        check_name(key, "key")
        check_labels(labels)
        check_shifts(labels)
        snapshot = self._store.create(kind, key, parent, labels, self._make_directories)
        return self._mounts.of(snapshot, unpacked=is_unpacked(key))

    def _make_directories(self, snapshot: Snapshot) -> None:
        parent = snapshot.parents[0] if snapshot.parents else None
        self._directories.make(snapshot.number, parent, writable=snapshot.kind is Kind.ACTIVE)

    def acknowledge(self, name: str) -> None:
        """Take note that the answer which told of the snapshot ``name`` was given."""
        self._store.acknowledge(name)

    def doubt(self, name: str) -> None:
        """Take note that the answer which would have told of the snapshot ``name`` has no receiver."""
        self._store.doubt(name)

    def mount(self, key: str) -> Mount:
        """Return how to mount an active snapshot or a view.

        An upper has one writer: while an active snapshot is mounted, all further mounts of it, to see what
        has changed in a running container, are read-only.
        """
        snapshot = self._store.mountable(key)
        return self._mounts.of(snapshot, read_only=self._is_written_to(snapshot), unpacked=is_unpacked(key))

    def _is_written_to(self, snapshot: Snapshot) -> bool:
        if snapshot.kind is not Kind.ACTIVE or not snapshot.parents:
            return False
        layer = self._directories.layer(snapshot.number)
        try:
            return occupation.is_upper_of_live_mount(str(layer))
        except OSError as failure:
            raise SnapshotError(f"the layer {layer}: {failure.strerror}") from failure

    def commit(self, key: str, name: str, labels: Mapping[str, str]) -> None:
        """Make the active snapshot ``key`` the committed one ``name``, which has these labels only."""
        check_name(name, "name")
        check_labels(labels)
        number = self._store.find(key).number
        self._store.commit(key, number, name, self._directories.usage(number), labels)

    def remove(self, name: str) -> None:
        """Remove a snapshot without children; what it takes on disk is freed by the next `clean_up`."""
        self._store.remove(name)

    def information(self, name: str) -> Information:
        """Return what is told about a snapshot."""
        return self._store.information(name)

    def update(self, name: str, labels: Mapping[str, str], fields: Iterable[str]) -> Information:
        """Change labels, see `Store.update`; return what is told about the snapshot then."""
        check_labels(labels)
        check_shifts(labels)
        return self._store.update(name, labels, fields)

    def list_information(self, texts: Iterable[str]) -> Iterator[Information]:
        """Return what is told about the snapshots that match any of the filters, or about all, by name."""
        try:
            wanted = filters.parse(texts)
        except filters.FilterError as failure:
            raise SnapshotArgumentError(str(failure)) from None
        return (
            each
            for each in self._store.list_information()
            if wanted.matches(lambda path, each=each: field(each, path))  # type: ignore[misc]
        )

    def usage(self, name: str) -> Usage:
        """Return what a snapshot takes on disk without its parents; a view takes nothing."""
        snapshot, measured = self._store.usage(name)
        return self._directories.usage(snapshot.number) if snapshot.kind is Kind.ACTIVE else measured

    def clean_up(self) -> None:
        """Remove the directories that belong to no snapshot."""
        orphans: list[str] = []
        self._store.while_no_snapshot_is_made(lambda owned: orphans.extend(self._directories.orphans(owned)))
        self._directories.remove(orphans)
