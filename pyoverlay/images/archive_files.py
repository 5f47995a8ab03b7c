"""How is a directory, or a tar archive, read as a set of files with names?

What is in them, and means what, is others' business.
"""

from __future__ import annotations

import posixpath
import stat
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final, Protocol

from pyoverlay.images.errors import ImageError
from pyoverlay.images.limits import MAX_DOCUMENT

_MAX_MEMBERS: Final = 100_000


class Files(Protocol):
    """A directory, or an archive that is read as one."""

    def size(self, path: str) -> int | None:
        """Return the size of a file in bytes; None when there is none."""
        ...

    def open(self, path: str) -> IO[bytes]:
        """Open a file that is there."""
        ...


class Directory:
    """A directory's files."""

    def __init__(self, root: Path) -> None:
        """Read below `root`."""
        self._root = root

    def size(self, path: str) -> int | None:
        """See `Files.size`; a symlink is somebody's way to share blobs, a name with ``..`` nobody's."""
        if posixpath.normpath(path).startswith(("/", "..")):
            return None
        try:
            status = (self._root / path).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        # A FIFO would be waited for, and devices have no end.
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def open(self, path: str) -> IO[bytes]:
        """See `Files.open`."""
        return (self._root / path).open("rb")


@dataclass
class Archive:
    """The files of a plain tar, by name; links in it, as docker once wrote, lead to others of them."""

    file: IO[bytes]
    members: dict[str, tarfile.TarInfo] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            with tarfile.open(fileobj=self.file, mode="r:", tarinfo=_LimitedInfo) as archive:
                for member in archive:
                    self.members[posixpath.normpath(member.name)] = member
                    if len(self.members) > _MAX_MEMBERS:
                        raise ImageError(f"it has more than {_MAX_MEMBERS} files: this is no image")
        except (tarfile.TarError, OverflowError, ValueError) as error:
            raise ImageError(f"this is no image archive: {error}") from error
        except RecursionError as error:
            # tarfile calls itself for every extended header.
            raise ImageError("this is no image archive: a name in it has too many headers") from error

    def _member(self, path: str) -> tarfile.TarInfo | None:
        member = self.members.get(posixpath.normpath(path))
        if member is not None and member.issym():
            member = self.members.get(
                posixpath.normpath(posixpath.join(posixpath.dirname(path), member.linkname))
            )
        if member is not None and member.islnk():
            member = self.members.get(posixpath.normpath(member.linkname))
        return member if member is not None and member.isreg() else None

    def size(self, path: str) -> int | None:
        """See `Files.size`."""
        member = self._member(path)
        return None if member is None else member.size

    def open(self, path: str) -> IO[bytes]:
        """See `Files.open`."""
        member = self._member(path)
        assert member is not None
        # A descriptor of its own, as layers are read side by side.
        file = open(f"/proc/self/fd/{self.file.fileno()}", "rb")  # noqa: SIM115 - closed by who reads
        file.seek(member.offset_data)
        return file


class _LimitedInfo(tarfile.TarInfo):
    """A header whose extensions can't be endless."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in b"LKxXg" and self.size > MAX_DOCUMENT:
            raise tarfile.ReadError("a header is too long")
        return super()._proc_member(archive)  # type: ignore[misc,no-any-return]
