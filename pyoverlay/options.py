"""What may be asked of a mount, and how is it written: the ``-o`` grammar and `MountOptions`.

Two dialects are read, because both kinds of callers exist: kernel overlayfs's (``mount -t overlay -o ...``,
fs/overlayfs/params.c) and fuse-overlayfs's (container engines that name a mount program). This module only
reads and writes text. It may not know whether a path exists, what the kernel supports, or who the user is
(the caller says so with ``privileged``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Final, Literal, NoReturn, get_args

Fsync = Literal["auto", "strict", "volatile"]
Xino = Literal["off", "auto", "on"]
RedirectDir = Literal["nofollow", "follow"]
Passthrough = Literal["auto", "all", "off"]
XattrPermissions = Literal[0, 1, 2]
IdRange = tuple[int, int, int]
"""The first id on disk, the first that is shown, how many."""

MAXIMUM_LOWERS: Final = 500
"""Lower directories in one mount (fs/overlayfs/params.h: OVL_MAX_STACK)."""

MAXIMUM_TIMEOUT: Final = 1e12
"""Seconds; whatever is longer says the same and would not fit every format that carries a timeout."""

_IDS: Final = 2**32 - 1
"""How many user ids there are; the one after them is -1, nobody's."""


class OverlayError(Exception):
    """An error worded for a person: what failed, on which path, why, and what to do."""


class OptionError(OverlayError):
    """A mount option that is wrong, incomplete, contradictory or not supported."""


@dataclass(frozen=True, slots=True)
class MountOptions:
    """Everything that one mount was asked to be.

    Paths are kept as they were given (relative ones too), as str with surrogateescape for bytes that are not
    UTF-8. `timeout` is in seconds. `xino`, `redirect_dir` and `fsync` mean what they mean to kernel overlayfs
    (Documentation/filesystems/overlayfs.rst).
    """

    lowerdir: tuple[str, ...]
    """The lower directories, topmost first."""
    upperdir: str | None = None
    workdir: str | None = None
    read_only: bool = False
    """Asked for with ``ro``; a mount without upperdir is read-only as well, see `writable`."""
    suid: bool = True
    dev: bool = True
    exec: bool = True
    atime: bool = True
    allow_other: bool = True
    default_permissions: bool = True
    userxattr: bool = False
    fsync: Fsync = "auto"
    acl: bool = True
    xino: Xino = "auto"
    redirect_dir: RedirectDir = "follow"
    timeout: float = 1e9
    fast_path: bool = True
    passthrough: Passthrough = "auto"
    uidmapping: tuple[IdRange, ...] = ()
    """Users on disk and those shown for them; empty: each is itself."""
    gidmapping: tuple[IdRange, ...] = ()
    squash_to_root: bool = False
    """Show root as the owner of everything, but for what squash_to_uid and squash_to_gid say."""
    squash_to_uid: int | None = None
    squash_to_gid: int | None = None
    xattr_permissions: XattrPermissions = 0
    """Keep owners and modes of a fresh upper in attributes: 1 in security.*, 2 in user.*; 0: on the files."""

    @property
    def volatile(self) -> bool:
        """Whether syncs are skipped, and an unclean end makes the upper unmountable."""
        return self.fsync == "volatile"

    @property
    def shifts_ids(self) -> bool:
        """Whether other ids are shown than are on disk, each its own."""
        return bool(self.uidmapping or self.gidmapping)

    @property
    def writable(self) -> bool:
        """Whether anything may be changed through the mount."""
        return self.upperdir is not None and not self.read_only


# Spelling -> (field, value). noallow_other and nodefault_permissions are ours alone: without them, not every
# MountOptions could be written.
_FLAGS: Final[dict[str, tuple[str, bool]]] = {
    "ro": ("read_only", True),
    "rw": ("read_only", False),
    "suid": ("suid", True),
    "nosuid": ("suid", False),
    "dev": ("dev", True),
    "nodev": ("dev", False),
    "exec": ("exec", True),
    "noexec": ("exec", False),
    "atime": ("atime", True),
    "noatime": ("atime", False),
    "allow_other": ("allow_other", True),
    "noallow_other": ("allow_other", False),
    "default_permissions": ("default_permissions", True),
    "nodefault_permissions": ("default_permissions", False),
    "userxattr": ("userxattr", True),
    "acl": ("acl", True),
    "noacl": ("acl", False),
    "squash_to_root": ("squash_to_root", True),
}

_CHOICES: Final[dict[str, dict[str, object]]] = {
    # 0 and 1 are fuse-overlayfs's.
    "fsync": {**{value: value for value in get_args(Fsync)}, "0": "volatile", "1": "auto"},
    "xino": {value: value for value in get_args(Xino)},
    "redirect_dir": {"off": "off", "nofollow": "nofollow", "follow": "follow"},
    "fast_path": {"on": True, "off": False},
    "passthrough": {value: value for value in get_args(Passthrough)},
    "xattr_permissions": {str(value): value for value in get_args(XattrPermissions)},
}

# Features of the kernel that we don't have: "off" is fine, but asking for one must not pass unheard.
_REFUSED: Final[dict[str, str]] = {
    "index": "hard links are broken by copy-up, as in the kernel with index=off",
    "nfs_export": "file handles for NFS need the kernel's index, which pyoverlay doesn't keep",
    "metacopy": "a copy-up always copies the data as well",
    "verity": "fs-verity digests of lower files are not checked",
    "redirect_dir": "renaming a lower directory answers EXDEV, and programs copy it then; "
    "redirects written by others are followed with redirect_dir=follow",
}
# SELinux labels: a FUSE mount takes them from the kernel's policy. Their values come quoted.
_CONTEXTS: Final = ("context", "fscontext", "defcontext", "rootcontext")
# What mount(8) and fstab pass on that concerns mount(8) and systemd, or that FUSE doesn't tell apart;
# and the kernel's uuid=, which only chooses the f_fsid that statfs reports.
_MOUNT_WORDS: Final = frozenset(
    "defaults auto noauto nofail _netdev silent loud async nomand noiversion "
    "user nouser users nousers owner noowner group nogroup "
    "relatime norelatime strictatime nostrictatime diratime nodiratime lazytime nolazytime uuid "
    "private rprivate slave rslave shared rshared unbindable runbindable".split()
)
# Of fuse-overlayfs and of FUSE, for what is done here in one way only, and never wrongly.
_FUSE_WORDS: Final = frozenset(
    "threaded static_nlink writeback fast_ino fast_ino_check ino32_t "
    "kernel_cache splice_read splice_write splice_move".split()
)


def parse_options(
    texts: Iterable[str],
    *,
    unknown: Callable[[str], None] | None,
    privileged: bool,
    lower: Iterable[str] | None = None,
    upper: str | None = None,
    work: str | None = None,
) -> MountOptions:
    r"""Read the values of all ``-o`` arguments.

    Options are parted at commas; ``\,`` is a literal comma, and so is one between the quotes of
    ``context="a,b"``. In the paths of lowerdir, upperdir and workdir a backslash takes the meaning from
    the character after it, as in the kernel.

    Args:
        texts: the values, in the order given; where two disagree, the later one wins.
        unknown: called with each option that means nothing to us, which is then ignored; None refuses it.
        privileged: choose root's defaults (allow_other, default_permissions, suid, dev) rather than a user's
            (default_permissions, nosuid, nodev), to whom ``userxattr`` applies whatever is said.
        lower: lower directories, topmost first, taken literally, in place of lowerdir.
        upper: the upper directory, taken literally, in place of upperdir.
        work: the work directory, taken literally, in place of workdir.

    Returns:
        The options, complete and free of contradictions. Paths have not been looked at.

    Raises:
        OptionError: an option is unknown, wrong, unsupported, missing, or contradicts another.
    """
    reader = _Reader(unknown, privileged)
    for text in texts:
        for option in _split_at_commas(text):
            reader.take(option)
    return reader.finish(None if lower is None else tuple(lower), upper, work)


class _Reader:
    """The options read so far, as fields of MountOptions."""

    def __init__(self, unknown: Callable[[str], None] | None, privileged: bool) -> None:
        self._unknown = unknown
        self._privileged = privileged
        self._values: dict[str, object] = {"allow_other": privileged, "suid": privileged, "dev": privileged}
        self._lowers: tuple[str, ...] = ()
        self._lowers_closed = False
        self._redirect: object = None

    def take(self, option: str) -> None:
        name, equals, value = option.partition("=")
        given = value if equals else None
        if option in _FLAGS:
            field, switch = _FLAGS[option]
            self._values[field] = switch
        elif option == "volatile":
            self._values["fsync"] = "volatile"
        elif name in _FLAGS or name == "volatile":
            raise OptionError(f"option '{option}': {name} takes no value; write it alone")
        elif name in ("lowerdir", "lowerdir+", "datadir+"):
            self._take_lower(name, _required(name, given))
        elif name in ("upperdir", "workdir"):
            self._values[name] = _unescape(_required(name, given))
        elif name in _REFUSED:
            self._take_feature(option, name, given)
        elif name in _CHOICES:
            self._values[name] = _choice(name, given)
        elif name in _READERS:
            self._values[name] = _READERS[name](name, given)
        else:
            self._take_foreign(option, name)

    def _take_lower(self, name: str, value: str) -> None:
        if name == "lowerdir":
            self._lowers = split_lowerdir(value)
            self._lowers_closed = True
        elif name == "datadir+":
            _refuse_data_layers()
        elif self._lowers_closed:
            # ovl_parse_layer has the same rule: which of the two came first would otherwise decide the order.
            raise OptionError("lowerdir+= can't follow lowerdir=; write every lower directory one way")
        else:
            self._lowers += (value,)

    def _take_feature(self, option: str, name: str, value: str | None) -> None:
        if value in ("on", "require"):
            raise OptionError(f"option '{option}' is not supported: {_REFUSED[name]}; leave it out")
        if name == "redirect_dir":
            self._redirect = _choice(name, value)
        elif value != "off":
            raise OptionError(f"option '{option}': {name} can only be off")

    def _take_foreign(self, option: str, name: str) -> None:
        if name == "remount":
            raise OptionError(
                "a pyoverlay mount can't be remounted with other options: unmount it, then mount it with "
                "them; read-only and back goes without us: mount -i -o remount,ro TARGET"
            )
        if name in _CONTEXTS or name in _MOUNT_WORDS | _FUSE_WORDS or name.startswith(("x-", "X-")):
            return
        if self._unknown is None:
            raise OptionError(f"option '{option}' is unknown; 'pyoverlay mount --help' lists those there are")
        self._unknown(option)

    def finish(self, lower: tuple[str, ...] | None, upper: str | None, work: str | None) -> MountOptions:
        lowers = self._lowers if lower is None else lower
        _check_lowers(lowers)
        values = self._values | {"lowerdir": lowers}
        for name, path in (("upperdir", upper), ("workdir", work)):
            if path is not None:
                values[name] = path
            _check_path(name, values.get(name))
        if values.get("upperdir") is None:
            # Useless without an upper, and ignored: ovl_fs_params_verify.
            values["workdir"] = None
        elif values.get("workdir") is None:
            raise OptionError(
                f"upperdir '{values['upperdir']}' needs a workdir: "
                "an empty directory on the same file system, outside of upperdir"
            )
        values["userxattr"] = bool(values.get("userxattr", False)) or not self._privileged
        values["redirect_dir"] = self._redirect_dir(bool(values["userxattr"]))
        if values.get("xattr_permissions"):
            if values.get("acl"):
                raise OptionError("acl contradicts xattr_permissions, which implies noacl; leave one out")
            values["acl"] = False
        return MountOptions(**values)  # type: ignore[arg-type]  # the tables above hold each field's type

    def _redirect_dir(self, userxattr: bool) -> RedirectDir:
        if userxattr:
            # Whoever may write a directory can set user.overlay.redirect on it, so it isn't to be trusted.
            if self._redirect == "follow":
                implied = "" if "userxattr" in self._values else ", which holds for everyone but root"
                raise OptionError(f"redirect_dir=follow contradicts userxattr{implied}; leave it out")
            return "nofollow"
        return "nofollow" if self._redirect == "nofollow" else "follow"


def _required(name: str, value: str | None) -> str:
    if not value:
        raise OptionError(f"option '{name}' needs a path: {name}=PATH")
    return value


def _choice(name: str, value: str | None) -> object:
    choices = _CHOICES[name]
    if value not in choices:
        shown = name if value is None else f"{name}={value}"
        raise OptionError(f"option '{shown}': {name} is one of {', '.join(choices)}")
    return choices[value]


def _seconds(name: str, value: str | None) -> float:
    try:
        seconds = float(value or "")
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= MAXIMUM_TIMEOUT:
        shown = name if value is None else f"{name}={value}"
        raise OptionError(f"option '{shown}': {name} is a number of seconds from 0 to {MAXIMUM_TIMEOUT:g}")
    return seconds


def _id(name: str, value: str | None) -> int:
    if value is None or not _NUMBER.fullmatch(value) or int(value) >= _IDS:
        shown = name if value is None else f"{name}={value}"
        raise OptionError(f"option '{shown}': {name} is a number from 0 to {_IDS - 1}")
    return int(value)


_NUMBER: Final = re.compile("[0-9]{1,10}")


def _id_ranges(name: str, value: str | None) -> tuple[IdRange, ...]:
    """Read fuse-overlayfs's ``DISK:SHOWN:COUNT[:DISK:SHOWN:COUNT...]``; podman puts one more colon first."""
    shown = name if value is None else f"{name}={value}"
    words = (value or "").removeprefix(":").split(":")
    if len(words) % 3 or not all(_NUMBER.fullmatch(word) for word in words):
        raise OptionError(
            f"option '{shown}': {name} is DISK:SHOWN:COUNT, the first id on disk, the first id shown and how "
            "many, three numbers for each range, with colons between all"
        )
    numbers = [int(word) for word in words]
    ranges = tuple(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True))
    for on_disk, first_shown, count in ranges:
        if count == 0 or max(on_disk, first_shown) + count > _IDS:
            raise OptionError(
                f"option '{shown}': the range {on_disk}:{first_shown}:{count} holds no valid ids"
            )
    if _overlap((on_disk, count) for on_disk, _, count in ranges) or _overlap(
        (first, count) for _, first, count in ranges
    ):
        raise OptionError(f"option '{shown}': ranges overlap, so that an id would be two")
    return ranges


def _overlap(ranges: Iterable[tuple[int, int]]) -> bool:
    ordered = sorted(ranges)
    return any(first + count > following for (first, count), (following, _) in pairwise(ordered))


_READERS: Final[dict[str, Callable[[str, str | None], object]]] = {
    "timeout": _seconds,
    "uidmapping": _id_ranges,
    "gidmapping": _id_ranges,
    "squash_to_uid": _id,
    "squash_to_gid": _id,
}


def _check_path(name: str, path: object) -> None:
    if path == "":
        raise OptionError(f"{name} is empty; it needs the path of a directory")
    if isinstance(path, str) and "\0" in path:
        raise OptionError(f"{name} {path!r} holds a NUL byte, which no path can")


def _check_lowers(lowers: tuple[str, ...]) -> None:
    if not lowers:
        raise OptionError(
            "no lower directory is given; a mount needs one at least: lowerdir=PATH or --lower PATH"
        )
    if len(lowers) > MAXIMUM_LOWERS:
        raise OptionError(
            f"{len(lowers)} lower directories are given; a mount takes {MAXIMUM_LOWERS} at most"
        )
    for path in lowers:
        _check_path("a lower directory", path)


def _refuse_data_layers() -> NoReturn:
    raise OptionError("data-only lower directories ('::' in lowerdir, or datadir+=) are not supported")


def _split_at_commas(text: str) -> Iterator[str]:
    r"""Yield the options of one ``-o`` value, escapes kept (fs/overlayfs/params.c: ovl_next_opt)."""
    quoted = [f"{name}=" for name in _CONTEXTS]
    start = position = 0
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 2
            continue
        if character == '"' and text[start:position] in quoted:
            closing = text.find('"', position + 1)
            position = len(text) if closing < 0 else closing + 1
            continue
        if character == ",":
            if position > start:
                yield text[start:position]
            start = position + 1
        position += 1
    if start < len(text):
        yield text[start:]


def _unescape(text: str) -> str:
    """Drop each backslash that escapes (fs/overlayfs/params.c: ovl_unescape; one at the end just goes)."""
    return re.sub(r"\\(.?)", r"\1", text, flags=re.DOTALL)


def split_lowerdir(text: str) -> tuple[str, ...]:
    r"""Part the value of lowerdir at its colons.

    The kernel's grammar (fs/overlayfs/params.c: ovl_parse_param_split_lowerdirs), with one addition for
    callers of fuse-overlayfs: exactly two backslashes before a colon escape it too. To the kernel, such a
    colon parts a directory whose name ends in a backslash from the next; write that as ``dir\\/:next``.

    Args:
        text: the value, topmost directory first: ``\:`` and ``\\:`` are a colon, ``\\`` a backslash, and a
            backslash before anything else just goes.

    Returns:
        The paths, unescaped, topmost first.

    Raises:
        OptionError: an empty element, a colon at either end, ``::``, or more than `MAXIMUM_LOWERS` elements.
    """
    pieces = [""]
    for match in _BACKSLASHES_AND_NEXT.finditer(text):
        backslashes, character = len(match[1]), match[2]
        if character == ":" and backslashes == 2:
            pieces[-1] += ":"
            continue
        pieces[-1] += "\\" * (backslashes // 2)
        if character == ":" and backslashes % 2 == 0:
            pieces.append("")
        else:
            pieces[-1] += character
    _check_pieces(text, pieces)
    return tuple(pieces)


_BACKSLASHES_AND_NEXT: Final = re.compile(r"(\\*)([^\\]?)")


def _check_pieces(text: str, pieces: list[str]) -> None:
    if not text:
        raise OptionError("lowerdir is empty; it needs the path of a directory")
    if not pieces[0]:
        raise OptionError(
            f"lowerdir '{text}' begins with a colon; a colon that is part of a name is written \\:"
        )
    if not pieces[-1]:
        raise OptionError(
            f"lowerdir '{text}' ends with a colon; a colon that is part of a name is written \\:"
        )
    if not all(pieces):
        _refuse_data_layers()
    _check_lowers(tuple(pieces))


def join_lowerdir(lowers: Iterable[str]) -> str:
    r"""Write lower directories as one value of lowerdir, escaped so that `split_lowerdir` returns them.

    A directory that ends in one backslash and isn't the last gets a slash after it: ``\\:`` is a colon.

    Args:
        lowers: the paths, topmost first.

    Returns:
        The value, for pyoverlay and for the kernel. Commas are the option list's matter.
    """
    paths = list(lowers)
    last = len(paths) - 1
    return ":".join(
        _escape(path if index == last or not _ends_in_one_backslash(path) else path + "/")
        for index, path in enumerate(paths)
    )


def _ends_in_one_backslash(path: str) -> bool:
    return path.endswith("\\") and not path.endswith("\\\\")


def _escape(path: str) -> str:
    return path.replace("\\", "\\\\").replace(":", "\\:")


def format_options(options: MountOptions) -> str:
    """Write options as the value of one ``-o``.

    Args:
        options: what to write.

    Returns:
        Text that `parse_options` reads back to equal options, whatever ``privileged`` is; but a user's are
        always ``userxattr``, and a lower that ends in a backslash may have got a slash (`join_lowerdir`).
    """
    words = [f"lowerdir={join_lowerdir(options.lowerdir)}".replace(",", "\\,")]
    for name, path in (("upperdir", options.upperdir), ("workdir", options.workdir)):
        if path is not None:
            words.append(f"{name}=" + path.replace("\\", "\\\\").replace(",", "\\,"))
    words += _flag_words(options)
    if options.fsync != "auto":
        words.append(f"fsync={options.fsync}")
    if options.xino != "auto":
        words.append(f"xino={options.xino}")
    if options.redirect_dir == "nofollow" and not options.userxattr:
        words.append("redirect_dir=nofollow")
    if options.timeout != _DEFAULTS["timeout"]:
        words.append(f"timeout={options.timeout!r}")
    if not options.fast_path:
        words.append("fast_path=off")
    if options.passthrough != "auto":
        words.append(f"passthrough={options.passthrough}")
    words += _id_words(options)
    if options.xattr_permissions:
        words.append(f"xattr_permissions={options.xattr_permissions}")
    return ",".join(words)


def _id_words(options: MountOptions) -> Iterator[str]:
    for name, ranges in (("uidmapping", options.uidmapping), ("gidmapping", options.gidmapping)):
        if ranges:
            yield f"{name}=" + ":".join(str(number) for numbers in ranges for number in numbers)
    for name, squashed in (
        ("squash_to_uid", options.squash_to_uid),
        ("squash_to_gid", options.squash_to_gid),
    ):
        if squashed is not None:
            yield f"{name}={squashed}"


_DEFAULTS: Final = {field.name: field.default for field in fields(MountOptions)}
# Their defaults depend on who mounts, so they are always written.
_ALWAYS_WRITTEN: Final = frozenset({"suid", "dev", "allow_other"})


def _flag_words(options: MountOptions) -> Iterator[str]:
    for word, (name, switch) in _FLAGS.items():
        given = getattr(options, name)
        if given == switch and (name in _ALWAYS_WRITTEN or given != _DEFAULTS[name]):
            yield word
