"""How do layers get their contents and marks, and how does a test read the marks in an upper?"""

import os
import stat
import struct
from pathlib import Path

OPAQUE = "trusted.overlay.opaque"
WHITEOUT = "trusted.overlay.whiteout"
ACCESS_ACL = "system.posix_acl_access"
DEFAULT_ACL = "system.posix_acl_default"
CAPABILITY = "security.capability"

# CAP_NET_RAW, permitted and effective: what ping carries (struct vfs_cap_data, revision 2).
NET_RAW = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)

_NO_ID = 0xFFFFFFFF


def make_file(path: Path, content: str | bytes = b"", mode: int = 0o644) -> Path:
    """Write a file with exactly this mode, its missing parents with it; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    return path


def make_directory(path: Path, mode: int = 0o755) -> Path:
    """Make a directory with exactly this mode, its missing parents with it; return its path."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(mode)
    return path


def make_symlink(path: Path, target: str) -> Path:
    """Make a symlink, its missing parents with it; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    return path


def make_whiteout(path: Path) -> None:
    """Put a whiteout as the kernel writes it, a 0/0 character device, into a layer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mknod(path, stat.S_IFCHR | 0o000, os.makedev(0, 0))


def make_xattr_whiteout(path: Path) -> None:
    """Put a whiteout of nested overlays into a lower: a marked empty file in a directory marked `x`."""
    make_file(path)
    os.setxattr(path, WHITEOUT, b"y")
    os.setxattr(path.parent, OPAQUE, b"x")


def make_opaque(directory: Path, attribute: str = OPAQUE) -> Path:
    """Make a directory opaque (and the directory itself if it is missing); return its path."""
    make_directory(directory)
    os.setxattr(directory, attribute, b"y")
    return directory


def is_whiteout(path: Path) -> bool:
    """Whether a layer holds a whiteout device at `path`."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(directory: Path) -> bool:
    """Whether a directory of a layer carries the kernel's opaque mark."""
    return attribute(directory, OPAQUE) == b"y"


def attribute(path: Path | bytes, name: str) -> bytes | None:
    """An extended attribute of `path` itself, None when it has none of that name."""
    if name not in os.listxattr(path, follow_symlinks=False):
        return None
    return os.getxattr(path, name, follow_symlinks=False)


def names(directory: Path) -> list[str]:
    """The sorted names in a directory."""
    return sorted(os.listdir(directory))


def left_in_work(work: Path) -> list[str]:
    """What lies in a work directory's `work` and must not; the kernel may keep one whiteout there."""
    return [name for name in names(work / "work") if not is_whiteout(work / "work" / name)]


def posix_acl(
    owner: int,
    group: int,
    other: int,
    users: dict[int, int] | None = None,
    mask: int = 7,
    groups: dict[int, int] | None = None,
) -> bytes:
    """An ACL in the form of system.posix_acl_* (struct posix_acl_xattr_header, version 2).

    owner, group, other, mask: permission bits 0-7; users, groups: others' permissions by id. Without them
    there is no mask entry: such an ACL says the same as a mode.
    """
    entries = [(0x01, owner, _NO_ID)]
    entries += [(0x02, permissions, uid) for uid, permissions in sorted((users or {}).items())]
    entries += [(0x04, group, _NO_ID)]
    entries += [(0x08, permissions, gid) for gid, permissions in sorted((groups or {}).items())]
    if users or groups:
        entries += [(0x10, mask, _NO_ID)]
    entries += [(0x20, other, _NO_ID)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def described(path: Path) -> dict[str, object]:
    """What a copy-up must keep of an object besides type and content; overlay's own attributes left out."""
    status = os.lstat(path)
    xattrs = {
        name: os.getxattr(path, name, follow_symlinks=False)
        for name in os.listxattr(path, follow_symlinks=False)
        if not name.startswith("trusted.overlay.")
    }
    return {
        "mode": oct(status.st_mode),
        "owner": (status.st_uid, status.st_gid),
        "size": status.st_size if not stat.S_ISDIR(status.st_mode) else None,
        "atime": status.st_atime_ns,
        "mtime": status.st_mtime_ns,
        "rdev": status.st_rdev,
        "xattrs": xattrs,
    }
