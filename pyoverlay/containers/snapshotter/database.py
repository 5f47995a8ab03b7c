"""How is the database of snapshots opened, and when is it refused?

Only the database tells which directories are somebody's.  Where it can't be relied on, nothing may be
removed, as containers may still write there.  What is kept in it, and when it changes, is `store`'s.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from pyoverlay.containers.snapshotter.snapshot import SnapshotError

_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE snapshots (
    number  INTEGER PRIMARY KEY AUTOINCREMENT,
    name    TEXT NOT NULL UNIQUE,
    parent  INTEGER REFERENCES snapshots (number),
    kind    INTEGER NOT NULL,
    created INTEGER NOT NULL,
    updated INTEGER NOT NULL,
    labels  TEXT NOT NULL,
    size    INTEGER NOT NULL DEFAULT 0,
    inodes  INTEGER NOT NULL DEFAULT 0,
    answer  INTEGER NOT NULL DEFAULT 0, -- 0: not given yet, 1: given, 2: perhaps lost
    former_name   TEXT, -- what a commit whose answer isn't surely given replaced
    former_labels TEXT
) STRICT;
CREATE INDEX children ON snapshots (parent);
CREATE INDEX commits_without_answer ON snapshots (former_name) WHERE former_name IS NOT NULL;
"""


def open_database(path: Path, *, may_be_new: bool) -> sqlite3.Connection:
    """Open the database, or create it.

    Args:
        path: of its file.
        may_be_new: whether it may be created.  Where there are directories of snapshots it was lost, and a
            new one would make garbage of them all.

    Returns:
        A connection that any thread may use, in autocommit mode.

    Raises:
        SnapshotError: it is none, damaged, lost, or a newer pyoverlay's; nothing is changed.
    """
    if not may_be_new and not path.exists():
        raise _lost(path)
    try:
        database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            ((version,),) = database.execute("PRAGMA user_version")
            if version == 0 and not may_be_new:
                raise _lost(path)
            if version not in (0, _VERSION):
                raise SnapshotError(
                    f"{path} is of version {version}, and this pyoverlay knows version {_VERSION}: "
                    "use a newer pyoverlay"
                )
            _refuse_damage(database)
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            database.execute("PRAGMA foreign_keys = ON")
            if version == 0:
                _create_schema(database)
        except BaseException:
            database.close()
            raise
    except sqlite3.DatabaseError as failure:
        raise SnapshotError(f"{path} can't be used as the snapshotter's database: {failure}") from None
    return database


def _lost(path: Path) -> SnapshotError:
    return SnapshotError(
        f"the database {path} is missing or empty, and only it tells which of the snapshots beside it are in "
        "use: restore it, or remove the whole root when nothing uses it"
    )


def _refuse_damage(database: sqlite3.Connection) -> None:
    """An index that lacks entries looks to SQLite like a table with fewer rows."""
    found = database.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if found != "ok":
        raise sqlite3.DatabaseError(found)


def _create_schema(database: sqlite3.Connection) -> None:
    database.execute("BEGIN IMMEDIATE")
    for statement in _SCHEMA.split(";"):
        database.execute(statement)
    database.execute(f"PRAGMA user_version = {_VERSION}")
    database.execute("COMMIT")
