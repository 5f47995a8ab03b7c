"""Which snapshots are there?  What SQLite keeps about them, one transaction a step.

Every method is one transaction: after it returned, its change is there whatever happens to this process or
this machine; before that, none of it.  A snapshot's number is its directory's name and is never given twice.

An answer may get lost: the process is killed after the transaction and before the answer, or containerd no
longer waits for it.  containerd then knows nothing of what was done, and asks again, or goes on with what it
knows.  So what may not have been answered is marked until `Store.acknowledge`, and a restarted process, or
this one after `Store.doubt`, gives way: a snapshot that is created
once more is the same one, and a commit is undone when its former key is asked for (`Store.find`) or its name
is removed as garbage.

It knows the disk only through `Store.create`'s callback.  The rules are containerd's
(snapshots/storage/bolt.go).
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from pyoverlay.containers.snapshotter.database import open_database
from pyoverlay.containers.snapshotter.snapshot import (
    Information,
    Kind,
    Snapshot,
    SnapshotArgumentError,
    SnapshotError,
    SnapshotExistsError,
    SnapshotNotFoundError,
    SnapshotStateError,
    Usage,
)

_INFORMATION: Final = """
SELECT this.name, coalesce(parent.name, ''), this.kind, this.created, this.updated, this.labels
FROM snapshots AS this LEFT JOIN snapshots AS parent ON parent.number = this.parent
"""
_PARENTS: Final = """
WITH RECURSIVE chain (number, depth) AS (
    SELECT parent, 1 FROM snapshots WHERE number = ?
    UNION ALL
    SELECT snapshots.parent, depth + 1 FROM snapshots JOIN chain ON snapshots.number = chain.number
)
SELECT number FROM chain WHERE number IS NOT NULL ORDER BY depth
"""


class Store:
    """The database.  Its methods may be called from any thread."""

    def __init__(self, path: Path, *, may_be_new: bool = True) -> None:
        """Open the database, or create it.

        Args:
            path: of its file.
            may_be_new: whether it may be created, see `open_database`.

        Raises SnapshotError when it can't be used.
        """
        self._path = path
        self._lock = threading.Lock()
        self._acknowledged: set[str] = set()
        self._last_number = 0
        self._database = open_database(path, may_be_new=may_be_new)
        with self._transaction():
            # Those of a process that was killed.
            self._database.execute("UPDATE snapshots SET answer = 2 WHERE answer = 0")

    def close(self) -> None:
        """Close the database."""
        with self._transaction():
            pass
        self._database.close()

    def acknowledge(self, name: str) -> None:
        """Take note that whoever asked knows of the snapshot ``name``: its answer was given.

        It is written with the next transaction; an answer that nobody knows of is only taken as perhaps lost.
        """
        self._acknowledged.add(name)

    def doubt(self, name: str) -> None:
        """Take note that whoever asked for the snapshot ``name`` went away without its answer."""
        with self._transaction():
            self._database.execute("UPDATE snapshots SET answer = 2 WHERE name = ? AND answer = 0", (name,))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of it or nothing, and no other thread's between."""
        with self._lock:
            try:
                self._database.execute("BEGIN IMMEDIATE")
                acknowledged = self._write_acknowledged()
                yield
                self._database.execute("COMMIT")
            except sqlite3.OperationalError as failure:
                self._roll_back()
                raise SnapshotError(f"the database {self._path} can't be written: {failure}") from failure
            except BaseException:
                self._roll_back()
                raise
            self._acknowledged -= acknowledged

    def _roll_back(self) -> None:
        # A full disk has ended the transaction already.
        if self._database.in_transaction:
            self._database.execute("ROLLBACK")

    def _write_acknowledged(self) -> set[str]:
        names = self._acknowledged.copy()
        for name in names:
            self._write_acknowledgement(name)
        return names

    def _write_acknowledgement(self, name: str) -> None:
        self._database.execute(
            "UPDATE snapshots SET answer = 1, former_name = NULL, former_labels = NULL WHERE name = ?",
            (name,),
        )

    def create(
        self,
        kind: Kind,
        key: str,
        parent: str,
        labels: Mapping[str, str],
        make_directory: Callable[[Snapshot], None],
    ) -> Snapshot:
        """Add an active snapshot or a view.

        Args:
            kind: which of the two.
            key: its name.
            parent: the name of a committed snapshot, or empty.
            labels: its labels.
            make_directory: makes the snapshot's directory; called just before the transaction ends, so that
                no snapshot is ever without its directory.

        Raises:
            SnapshotNotFoundError: there is no such parent.
            SnapshotArgumentError: the parent isn't committed.
            SnapshotExistsError: the key is taken.
        """
        with self._transaction():
            above = self._committed_parent(parent) if parent else None
            known = self._number(key)
            if known is not None:
                return self._created_before(known, kind, key, above, labels)
            now = time.time_ns()
            number = self._unused_number()
            self._database.execute(
                "INSERT INTO snapshots (number, name, parent, kind, created, updated, labels)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (number, key, above, kind, now, now, _stored(labels)),
            )
            snapshot = Snapshot(number, kind, self._parents(number), labels)
            make_directory(snapshot)
            return snapshot

    def _unused_number(self) -> int:
        """Return a number that no snapshot has had, and none that failed to be made in this process.

        A transaction that is rolled back gives its number back, but its directory may be there, and a
        clean-up about to remove it.
        """
        ((last,),) = self._database.execute(
            "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'snapshots'"
        )
        self._last_number = max(self._last_number, int(last)) + 1
        return self._last_number

    def _created_before(
        self, number: int, kind: Kind, key: str, parent: int | None, labels: Mapping[str, str]
    ) -> Snapshot:
        """Return what a former process created, if nobody may have been told; else refuse it."""
        changed = self._database.execute(
            "UPDATE snapshots SET labels = ?, answer = 0"
            " WHERE number = ? AND kind = ? AND parent IS ? AND answer = 2",
            (_stored(labels), number, kind, parent),
        ).rowcount
        if not changed:
            raise SnapshotExistsError(f"snapshot {key!r} exists already")
        return Snapshot(number, kind, self._parents(number), labels)

    def _committed_parent(self, name: str) -> int:
        found = self._database.execute(
            "SELECT number, kind FROM snapshots WHERE name = ?", (name,)
        ).fetchone()
        if found is None:
            raise SnapshotNotFoundError(f"the parent {name!r} doesn't exist")
        number, kind = found
        if kind != Kind.COMMITTED:
            raise SnapshotArgumentError(f"the parent {name!r} isn't committed")
        # In this very transaction: a commit that has children is never undone.
        self._write_acknowledgement(name)
        return int(number)

    def mountable(self, key: str) -> Snapshot:
        """Return where an active snapshot or a view is.

        Raises SnapshotNotFoundError, or SnapshotStateError when it is committed.
        """
        snapshot = self.find(key)
        if snapshot.kind is Kind.COMMITTED:
            raise SnapshotStateError(f"snapshot {key!r} is committed, and only a view on it can be mounted")
        return snapshot

    def find(self, name: str) -> Snapshot:
        """Return where a snapshot of any kind is.  Raises SnapshotNotFoundError.

        Whoever asks for the key of a snapshot that was committed never got the answer to that commit.
        """
        with self._lock:
            found = self._find(name)
        if found is None:
            with self._transaction():
                self._undo_commit(name)
                found = self._find(name)
        if found is None:
            raise _not_found(name)
        return found

    def _find(self, name: str) -> Snapshot | None:
        found = self._database.execute(
            "SELECT number, kind, labels FROM snapshots WHERE name = ?", (name,)
        ).fetchone()
        if found is None:
            return None
        number, kind, labels = found
        return Snapshot(number, Kind(kind), self._parents(number), json.loads(labels))

    def _undo_commit(self, key: str) -> bool:
        """Make a snapshot that was committed active again, if nobody may have been told; tell whether."""
        undone = self._database.execute(
            "UPDATE snapshots SET name = former_name, labels = former_labels, kind = ?, size = 0, inodes = 0,"
            " answer = 1, former_name = NULL, former_labels = NULL WHERE former_name = ? AND answer = 2",
            (Kind.ACTIVE, key),
        )
        return undone.rowcount > 0

    def commit(self, key: str, number: int, name: str, usage: Usage, labels: Mapping[str, str]) -> None:
        """Make an active snapshot a committed one, under another name.

        Args:
            key: the active snapshot's.
            number: its number, which ``usage`` was measured of.
            name: what it is called from now on.
            usage: what it takes on disk.
            labels: its labels from now on; the former ones go.

        Raises:
            SnapshotExistsError: ``name`` is taken.
            SnapshotNotFoundError: there is no such snapshot.
            SnapshotStateError: it isn't active.
        """
        with self._transaction():
            if self._number(name) is not None:
                raise SnapshotExistsError(f"snapshot {name!r} exists already")
            found = self._database.execute(
                "SELECT kind FROM snapshots WHERE name = ? AND number = ?", (key, number)
            ).fetchone()
            if found is None:
                raise _not_found(key)
            if found[0] != Kind.ACTIVE:
                raise SnapshotStateError(f"snapshot {key!r} isn't active, so it can't be committed")
            now = time.time_ns()
            self._database.execute(
                "UPDATE snapshots SET former_name = name, former_labels = labels, answer = 0, name = ?,"
                " kind = ?, created = ?, updated = ?, labels = ?, size = ?, inodes = ? WHERE number = ?",
                (name, Kind.COMMITTED, now, now, _stored(labels), usage.size, usage.inodes, number),
            )

    def remove(self, name: str) -> None:
        """Forget a snapshot; its directory has no owner from then on.

        A committed one whose answer may have been lost becomes active again instead: whoever takes it for
        garbage may still know its key, or else removes that next.

        Raises SnapshotNotFoundError, or SnapshotStateError when it is a parent.
        """
        with self._transaction():
            number = self._number(name)
            if number is None and self._undo_commit(name):
                number = self._number(name)
            if number is None:
                raise _not_found(name)
            child = self._database.execute(
                "SELECT name FROM snapshots WHERE parent = ?", (number,)
            ).fetchone()
            if child is not None:
                raise SnapshotStateError(
                    f"snapshot {name!r} is the parent of {child[0]!r}, so it can't be removed"
                )
            former = self._database.execute(
                "SELECT former_name FROM snapshots WHERE number = ?", (number,)
            ).fetchone()[0]
            if former is None or self._number(former) is not None or not self._undo_commit(former):
                self._database.execute("DELETE FROM snapshots WHERE number = ?", (number,))

    def information(self, name: str) -> Information:
        """Return what is told about a snapshot.  Raises SnapshotNotFoundError."""
        self.find(name)
        with self._lock:
            found = self._information(name)
        self.acknowledge(name)
        return found

    def _information(self, name: str) -> Information:
        row = self._database.execute(f"{_INFORMATION} WHERE this.name = ?", (name,)).fetchone()
        if row is None:
            raise _not_found(name)
        return _read(row)

    def list_information(self) -> list[Information]:
        """Return what is told about all snapshots, by name."""
        with self._lock:
            return [_read(row) for row in self._database.execute(f"{_INFORMATION} ORDER BY this.name")]

    def usage(self, name: str) -> tuple[Snapshot, Usage]:
        """Return a snapshot and what was measured when it was committed (nothing before)."""
        snapshot = self.find(name)
        with self._lock:
            found = self._database.execute(
                "SELECT size, inodes FROM snapshots WHERE number = ?", (snapshot.number,)
            ).fetchone()
        if found is None:
            raise _not_found(name)
        return snapshot, Usage(*found)

    def update(self, name: str, labels: Mapping[str, str], fields: Iterable[str]) -> Information:
        """Change a snapshot's labels.

        Args:
            name: the snapshot's.
            labels: the new labels.
            fields: ``labels`` to replace them all, ``labels.NAME`` to set one; none replace them all.

        Raises:
            SnapshotNotFoundError: there is no such snapshot.
            SnapshotArgumentError: another field is named; those never change.
        """
        self.find(name)
        with self._transaction():
            changed = dict(self._information(name).labels)
            for field in list(fields) or ["labels"]:
                kind, _, label = field.partition(".")
                if field == "labels":
                    changed = dict(labels)
                elif kind == "labels":
                    changed[label] = labels.get(label, "")
                else:
                    raise SnapshotArgumentError(f"the field {field!r} of snapshot {name!r} can't be changed")
            self._database.execute(
                "UPDATE snapshots SET labels = ?, updated = ? WHERE name = ?",
                (_stored(changed), time.time_ns(), name),
            )
            return self._information(name)

    def while_no_snapshot_is_made(self, act: Callable[[frozenset[int]], None]) -> None:
        """Call ``act`` with the numbers of all snapshots; none is made before it returns."""
        with self._transaction():
            act(frozenset(number for (number,) in self._database.execute("SELECT number FROM snapshots")))

    def _number(self, name: str) -> int | None:
        found = self._database.execute("SELECT number FROM snapshots WHERE name = ?", (name,)).fetchone()
        return None if found is None else int(found[0])

    def _parents(self, number: int) -> tuple[int, ...]:
        return tuple(parent for (parent,) in self._database.execute(_PARENTS, (number,)))


def _not_found(name: str) -> SnapshotNotFoundError:
    return SnapshotNotFoundError(f"snapshot {name!r} doesn't exist")


def _stored(labels: Mapping[str, str]) -> str:
    """Write labels as JSON; one without a value is one that isn't there (metadata/boltutil/helpers.go)."""
    return json.dumps({name: value for name, value in labels.items() if value})


def _read(row: tuple[str, str, int, int, int, str]) -> Information:
    name, parent, kind, created, updated, labels = row
    return Information(name, parent, Kind(kind), created, updated, json.loads(labels))
