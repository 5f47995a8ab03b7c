"""Does the fast path answer what needs no waiting, and leave the rest untouched?"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pyoverlay.fuse import messages, reading
from pyoverlay.fuse.fast_path import FastPath
from pyoverlay.fuse.passthrough import FOPEN_KEEP_CACHE
from pyoverlay.fuse.wire import Buffer, Opcode
from pyoverlay.overlay.node import ROOT_NODEID, Node
from pyoverlay.overlay.shown import Attributes
from tests.harness import Stack
from tests.harness.errors import fails_with
from tests.unit.vfs import Vfs, open_descriptors

HEADER = struct.Struct("=IIQQIIIHH")
ANSWER = struct.Struct("=IiQ")
UNIQUE = 77


class WayToKernel:
    """What the fast path asks for besides its answers is kept; no file is passed through."""

    def __init__(self) -> None:
        self.nodeids: list[int] = []
        self.listings: list[int] = []
        self.answered: list[Buffer] = []
        """What is to be answered after listings were invalidated."""
        self.stored: list[tuple[int, bytes]] = []
        self.later: list[tuple[int, int, int]] = []
        self.writes: list[tuple[int, Callable[[], int]]] = []

    def invalidate_attributes(self, nodeid: int) -> None:
        self.nodeids.append(nodeid)

    def answer_after_invalidation(self, nodeids: Sequence[int], unique: int, pieces: list[Buffer]) -> None:
        assert unique == UNIQUE
        self.listings.extend(nodeids)
        self.answered = pieces

    def opened(self, handle: int) -> tuple[int, int]:
        assert handle
        return FOPEN_KEEP_CACHE, 0

    def store_data(self, nodeid: int, data: Buffer) -> None:
        self.stored.append((nodeid, bytes(data)))

    def splice(self, unique: int, descriptor: int, size: int, offset: int) -> bool:
        assert os.fstat(descriptor)
        assert unique > 0 and size > 0 and offset >= 0
        return False

    def read_later(self, unique: int, descriptor: int, size: int, offset: int) -> None:
        assert os.fstat(descriptor)
        self.later.append((unique, size, offset))

    def write_later(self, unique: int, write: Callable[[], int]) -> None:
        self.writes.append((unique, write))


class Kernel:
    """Asks the fast path as the kernel does."""

    def __init__(self, vfs: Vfs) -> None:
        self.way = WayToKernel()
        self.fast_path = FastPath(vfs.fs, self.way)
        self.vfs = vfs

    def send(self, opcode: int, nodeid: int, body: bytes = b"", user: int = 0) -> list[bytes] | None:
        message = HEADER.pack(HEADER.size + len(body), opcode, UNIQUE, nodeid, user, user, 1, 0, 0) + body
        answer = self.fast_path.answer(opcode, UNIQUE, nodeid, memoryview(bytearray(message)))
        if answer is None:
            return None
        answer = answer or self.way.answered
        self.way.answered = []
        return [bytes(piece) for piece in answer]

    def ask(self, opcode: int, nodeid: int, body: bytes = b"", user: int = 0) -> bytes:
        """Return the body of an answer; raise OSError for one with an errno."""
        answer = self.send(opcode, nodeid, body, user)
        assert answer, "the fast path left it to pyfuse3"
        whole = b"".join(answer)
        length, number, unique = ANSWER.unpack_from(whole)
        assert (length, unique) == (len(whole), UNIQUE)
        if number:
            raise OSError(-number, os.strerror(-number))
        return whole[ANSWER.size :]

    def lookup(self, name: bytes, parent: int = ROOT_NODEID) -> int:
        return nodeid_of(self.ask(Opcode.LOOKUP, parent, name + b"\0"))

    def open(self, nodeid: int, flags: int = os.O_RDONLY) -> int:
        return number(self.ask(Opcode.OPEN, nodeid, struct.pack("=II", flags, 0)))

    def names(self, nodeid: int = ROOT_NODEID, room: int = 4096) -> list[bytes]:
        """List a directory in as many pieces as it takes."""
        names: list[bytes] = []
        offset = 0
        while piece := self.ask(Opcode.READDIRPLUS, nodeid, read_body(0, offset, room)):
            position = 0
            while position < len(piece):
                _, offset, length, _ = struct.unpack_from("=QQII", piece, position + 128)
                names.append(piece[position + 152 : position + 152 + length])
                position += 152 + length + 7 & ~7
        return names


def number(body: bytes) -> int:
    return int(struct.unpack_from("=Q", body)[0])


def nodeid_of(entry: bytes) -> int:
    return number(entry)


def mode_of(entry: bytes) -> int:
    return int(struct.unpack_from("=I", entry, 40 + 60)[0])


def owner_of(entry: bytes) -> tuple[int, int]:
    return struct.unpack_from("=II", entry, 40 + 68)


def read_body(handle: int, offset: int, size: int) -> bytes:
    return struct.pack("=QQIIQII", handle, offset, size, 0, 0, 0, 0)


@pytest.fixture
def lower(stack: Stack) -> Path:
    return stack.lowers[0]


@pytest.fixture
def kernel(overlay: Vfs) -> Kernel:
    return Kernel(overlay)


# --- what is answered --------------------------------------------------------------------------------------


def test_lookup_tells_nodeid_and_attributes(lower: Path, kernel: Kernel) -> None:
    (lower / "file").write_text("four")
    (lower / "file").chmod(0o640)
    os.chown(lower / "file", 12, 34)

    entry = kernel.ask(Opcode.LOOKUP, ROOT_NODEID, b"file\0")

    assert nodeid_of(entry) > ROOT_NODEID
    assert mode_of(entry) == stat.S_IFREG | 0o640
    assert owner_of(entry) == (12, 34)
    inode, size = struct.unpack_from("=QQ", entry, 40)
    assert (inode, size) == ((lower / "file").stat().st_ino, 4)


def test_absence_is_an_answer_that_may_be_kept(kernel: Kernel) -> None:
    entry = kernel.ask(Opcode.LOOKUP, ROOT_NODEID, b"absent\0")

    nodeid, _, valid = struct.unpack_from("=QQQ", entry)
    assert nodeid == 0
    assert valid > 0


def test_errors_are_the_operations_own(lower: Path, kernel: Kernel) -> None:
    (lower / "file").write_text("")

    with fails_with(errno.ENOTDIR):
        kernel.ask(Opcode.LOOKUP, kernel.lookup(b"file"), b"below\0")
    with fails_with(errno.ESTALE):
        kernel.ask(Opcode.GETATTR, 4711, bytes(16))


def test_an_unforeseen_failure_is_an_input_output_error(
    kernel: Kernel, overlay: Vfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(nodeid: int) -> None:
        raise RuntimeError(nodeid)

    monkeypatch.setattr(overlay.fs, "node", fail)
    with fails_with(errno.EIO):
        kernel.ask(Opcode.GETATTR, ROOT_NODEID, bytes(16))


@pytest.mark.parametrize("room", [200, 400, 4096, 32768])
def test_a_listing_names_everything_once_however_little_room_there_is(
    lower: Path, kernel: Kernel, room: int
) -> None:
    for index in range(50):
        (lower / f"file {'long ' * (index % 5)}{index}").write_text("")

    names = kernel.names(room=room)

    assert sorted(names) == sorted([b".", b"..", *os.listdir(os.fsencode(lower))])


def test_listed_entries_are_remembered_only_when_told(lower: Path, kernel: Kernel, overlay: Vfs) -> None:
    for index in range(50):
        (lower / str(index)).write_text("")

    piece = kernel.ask(Opcode.READDIRPLUS, ROOT_NODEID, read_body(0, 0, 1000))

    told = sum(1 for position in range(0, len(piece), 160) if number(piece[position:]))
    assert 0 < told < 50
    assert len(overlay.fs.nodes) == 1 + told


def test_a_new_file_has_the_callers_owner_and_umask(kernel: Kernel, overlay: Vfs) -> None:
    body = struct.pack("=IIII", os.O_RDWR, stat.S_IFREG | 0o666, 0o027, 0) + b"new\0"

    answer = kernel.ask(Opcode.CREATE, ROOT_NODEID, body, user=1234)

    assert mode_of(answer) == stat.S_IFREG | 0o640
    assert owner_of(answer) == (1234, 1234)
    handle, flags, _ = struct.unpack_from("=QIi", answer, 128)
    assert flags == FOPEN_KEEP_CACHE
    written = kernel.ask(
        Opcode.WRITE, nodeid_of(answer), struct.pack("=QQIIQII", handle, 2, 4, 0, 0, 0, 0) + b"data"
    )
    assert struct.unpack("=II", written) == (4, 0)
    assert kernel.ask(Opcode.READ, nodeid_of(answer), read_body(handle, 0, 4096)) == b"\0\0data"
    kernel.ask(Opcode.RELEASE, nodeid_of(answer), struct.pack("=QIIQ", handle, 0, 0, 0))
    with fails_with(errno.EBADF):
        kernel.ask(Opcode.READ, nodeid_of(answer), read_body(handle, 0, 4096))


@pytest.mark.parametrize(
    ("opcode", "body", "kind"),
    [
        (Opcode.MKDIR, struct.pack("=II", 0o777, 0o22) + b"new\0", stat.S_IFDIR | 0o755),
        (Opcode.SYMLINK, b"new\0target\0", stat.S_IFLNK | 0o777),
        (
            Opcode.MKNOD,
            struct.pack("=IIII", stat.S_IFIFO | 0o666, 0, 0o22, 0) + b"new\0",
            stat.S_IFIFO | 0o644,
        ),
    ],
)
def test_objects_of_each_kind_are_made_and_removed(
    kernel: Kernel, stack: Stack, opcode: Opcode, body: bytes, kind: int
) -> None:
    entry = kernel.ask(opcode, ROOT_NODEID, body)

    assert mode_of(entry) == (stack.upper / "new").lstat().st_mode == kind
    if opcode is Opcode.SYMLINK:
        assert kernel.ask(Opcode.READLINK, nodeid_of(entry)) == b"target"
    remove = Opcode.RMDIR if opcode is Opcode.MKDIR else Opcode.UNLINK
    assert kernel.ask(remove, ROOT_NODEID, b"new\0") == b""
    assert kernel.lookup(b"new") == 0


def test_names_are_given_and_moved(kernel: Kernel, stack: Stack) -> None:
    (stack.upper / "one").write_text("content")
    (stack.upper / "directory").mkdir()
    one, directory = kernel.lookup(b"one"), kernel.lookup(b"directory")

    linked = kernel.ask(Opcode.LINK, directory, struct.pack("=Q", one) + b"two\0")
    kernel.ask(Opcode.RENAME, ROOT_NODEID, struct.pack("=Q", directory) + b"one\0three\0")
    with pytest.raises(FileExistsError):
        kernel.ask(
            Opcode.RENAME2, directory, struct.pack("=QII", directory, 1, 0) + b"two\0three\0"
        )  # RENAME_NOREPLACE

    assert nodeid_of(linked) == one
    assert sorted(os.listdir(stack.upper / "directory")) == ["three", "two"]


def test_attributes_are_changed_as_asked(kernel: Kernel, stack: Stack) -> None:
    file = stack.upper / "file"
    file.write_text("content")
    valid = messages.FATTR_MODE | messages.FATTR_SIZE | messages.FATTR_ATIME | messages.FATTR_MTIME
    before_the_epoch = (1 << 64) - 5
    body = struct.pack(
        "=IIQQQQQQIIIIIIII", valid, 0, 0, 3, 0, 11, before_the_epoch, 0, 12, 13, 0, 0o600, 0, 0, 0, 0
    )

    kernel.ask(Opcode.SETATTR, kernel.lookup(b"file"), body)

    status = file.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_size) == (0o600, 3)
    assert status.st_atime_ns == 11_000_000_012
    assert status.st_mtime_ns == -5_000_000_000 + 13


def test_the_present_time_is_the_clock_that_stamps_files(kernel: Kernel, stack: Stack) -> None:
    (stack.upper / "touched").write_text("")
    os.utime(stack.upper / "touched", (0, 0))
    nodeid = kernel.lookup(b"touched")
    (stack.upper / "before").write_text("")
    kernel.ask(Opcode.SETATTR, nodeid, struct.pack("=I84x", 1 << 8 | 1 << 5))
    (stack.upper / "after").write_text("")

    times = [(stack.upper / name).stat().st_mtime_ns for name in ("before", "touched", "after")]

    assert times == sorted(times)
    assert (stack.upper / "touched").stat().st_atime_ns == 0


def test_extended_attributes_come_with_their_size(kernel: Kernel, stack: Stack) -> None:
    (stack.upper / "file").write_text("")
    os.setxattr(stack.upper / "file", "user.colour", b"green")
    nodeid = kernel.lookup(b"file")

    def get(room: int) -> bytes:
        return kernel.ask(Opcode.GETXATTR, nodeid, struct.pack("=II", room, 0) + b"user.colour\0")

    assert struct.unpack("=II", get(0)) == (5, 0)
    assert get(5) == b"green"
    with fails_with(errno.ERANGE):
        get(4)
    assert kernel.ask(Opcode.LISTXATTR, nodeid, struct.pack("=II", 100, 0)) == b"user.colour\0"


def test_extended_attributes_are_set_and_removed(kernel: Kernel, stack: Stack) -> None:
    file = stack.upper / "file"
    file.write_text("")
    nodeid = kernel.lookup(b"file")

    def set_it(value: bytes, flags: int = 0) -> bytes:
        return kernel.ask(
            Opcode.SETXATTR, nodeid, struct.pack("=II", len(value), flags) + b"user.colour\0" + value
        )

    with fails_with(errno.ENODATA):
        set_it(b"red", os.XATTR_REPLACE)
    set_it(b"gr\0een", os.XATTR_CREATE)
    assert os.getxattr(file, "user.colour") == b"gr\0een"
    with fails_with(errno.EEXIST):
        set_it(b"red", os.XATTR_CREATE)
    set_it(b"")
    assert os.getxattr(file, "user.colour") == b""
    kernel.ask(Opcode.REMOVEXATTR, nodeid, b"user.colour\0")
    assert os.listxattr(file) == []


def test_no_ioctl_is_known(kernel: Kernel) -> None:
    with fails_with(errno.ENOTTY):
        kernel.ask(Opcode.IOCTL, ROOT_NODEID, bytes(32))


def test_forgotten_nodes_are_gone(lower: Path, kernel: Kernel, overlay: Vfs) -> None:
    for name in ("one", "two", "three"):
        (lower / name).write_text("")
    one, two, three = (kernel.lookup(name) for name in (b"one", b"two", b"three"))
    kernel.lookup(b"two")

    assert kernel.send(Opcode.FORGET, one, struct.pack("=Q", 1)) == []
    batch = struct.pack("=IIQQQQ", 2, 0, two, 1, three, 1)
    assert kernel.send(Opcode.BATCH_FORGET, 0, batch) == []

    assert [overlay.fs.nodes.get(nodeid) is None for nodeid in (one, two, three)] == [True, False, True]


def test_the_file_system_is_the_uppers(kernel: Kernel, stack: Stack) -> None:
    answer = struct.unpack("=QQQQQIII28x", kernel.ask(Opcode.STATFS, ROOT_NODEID))

    status = os.statvfs(stack.upper)
    assert (answer[0], answer[5], answer[6], answer[7]) == (
        status.f_blocks,
        status.f_bsize,
        status.f_namemax,
        status.f_frsize,
    )


# --- what is left ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opcode", "body"),
    [
        (Opcode.OPEN, struct.pack("=II", os.O_RDWR, 0)),
        (Opcode.SETATTR, struct.pack("=II16xQ56x", messages.FATTR_MODE, 0, 0)),
        (Opcode.SETATTR, struct.pack("=I4x8xQ64x", messages.FATTR_SIZE, 1)),
    ],
)
def test_what_copies_up_is_left_and_nothing_has_changed(
    lower: Path, kernel: Kernel, stack: Stack, opcode: Opcode, body: bytes
) -> None:
    (lower / "file").write_text("content")
    nodeid = kernel.lookup(b"file")

    assert kernel.send(opcode, nodeid, body) is None

    assert os.listdir(stack.upper) == []
    assert kernel.way.nodeids == []


def test_a_copied_up_directory_is_asked_for_again(lower: Path, kernel: Kernel) -> None:
    (lower / "directory").mkdir()
    directory = kernel.lookup(b"directory")

    kernel.ask(Opcode.MKDIR, directory, struct.pack("=II", 0o755, 0) + b"new\0")

    assert directory in kernel.way.nodeids


def test_a_big_directory_is_left(lower: Path, kernel: Kernel) -> None:
    for index in range(3000):
        (lower / f"a file with quite a long name {index}").touch()
    before = open_descriptors()

    assert kernel.send(Opcode.READDIRPLUS, ROOT_NODEID, read_body(0, 0, 4096)) is None
    assert open_descriptors() == before


def test_data_that_a_slow_disk_has_is_read_later(
    lower: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether pages leave the cache when asked to is not certain: so what is there is told here."""
    monkeypatch.setattr(reading, "SECONDS_OF_PATIENCE", 0)
    file = lower / "file"
    file.write_bytes(b"x" * 100_000)
    handle = kernel.open(kernel.lookup(b"file"))
    read = os.preadv

    def read_what_is_there(descriptor: int, buffers: list[memoryview], offset: int, flags: int) -> int:
        assert flags == os.RWF_NOWAIT
        if offset < 65536:
            raise BlockingIOError(errno.EAGAIN, "not in the page cache")
        return read(descriptor, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", read_what_is_there)
    assert kernel.send(Opcode.READ, 0, read_body(handle, 0, 65536)) == []
    assert kernel.way.later == [(UNIQUE, 65536, 0)]
    assert file.read_bytes() == b"x" * 100_000
    assert kernel.ask(Opcode.READ, 0, read_body(handle, 65536, 65536)) == b"x" * 34464


def test_a_small_file_of_a_lower_is_given_at_its_first_open(lower: Path, kernel: Kernel) -> None:
    (lower / "file").write_bytes(b"x" * 5000)
    nodeid = kernel.lookup(b"file")
    handle = kernel.open(nodeid)
    kernel.open(nodeid)
    assert kernel.way.stored == [(nodeid, b"x" * 5000)]

    kernel.send(Opcode.RELEASE, nodeid, struct.pack("=QIIQ", handle, 0, 0, 0))
    kernel.send(Opcode.FORGET, nodeid, struct.pack("=Q", 1))
    again = kernel.lookup(b"file")
    kernel.open(again)
    assert kernel.way.stored[1:] == [(again, b"x" * 5000)]


@pytest.mark.parametrize(("size", "flags"), [(0, 0), (65537, 0), (100, os.O_DIRECT)])
def test_no_data_is_given_that_nobody_may_want(lower: Path, kernel: Kernel, size: int, flags: int) -> None:
    (lower / "file").write_bytes(b"x" * size)
    kernel.open(kernel.lookup(b"file"), flags)
    assert kernel.way.stored == []


def test_data_that_may_change_is_not_given(kernel: Kernel, stack: Stack) -> None:
    (stack.upper / "upper").write_bytes(b"x")
    kernel.open(kernel.lookup(b"upper"))
    assert kernel.way.stored == []


def _copy_body(source: int, target: int, length: int) -> bytes:
    return struct.pack("=QqQQqQQ", source, 0, 0, target, 0, length, 0)


@pytest.mark.parametrize(
    ("opcode", "size"), [(Opcode.COPY_FILE_RANGE, "=I4x"), (Opcode.COPY_FILE_RANGE_64, "=Q")]
)
def test_a_small_file_is_copied_at_once(
    lower: Path, stack: Stack, kernel: Kernel, opcode: Opcode, size: str
) -> None:
    """And whoever copies so is given no data of the next file: it isn't read."""
    (lower / "small").write_bytes(b"x" * 5000)
    (lower / "next").write_bytes(b"x" * 5000)
    (stack.upper / "copy").touch()
    source = kernel.open(kernel.lookup(b"small"))
    target = kernel.open(kernel.lookup(b"copy"), os.O_WRONLY)
    assert len(kernel.way.stored) == 1

    answer = kernel.ask(opcode, 0, _copy_body(source, target, 5000))
    assert struct.unpack(size, answer) == (5000,)
    assert (stack.upper / "copy").read_bytes() == b"x" * 5000
    attributes = kernel.ask(Opcode.GETATTR, kernel.lookup(b"copy"), bytes(16))
    assert Attributes(attributes[16:]).size == 5000

    kernel.open(kernel.lookup(b"next"))
    assert len(kernel.way.stored) == 1


@pytest.mark.parametrize("reason", ["much data", "data on the disk", "a synchronous target"])
def test_a_copy_that_must_be_waited_for_is_left_to_others(
    lower: Path, stack: Stack, kernel: Kernel, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    size = 1 << 20 if reason == "much data" else 5000
    (lower / "file").write_bytes(b"x" * size)
    (stack.upper / "copy").touch()
    source = kernel.open(kernel.lookup(b"file"))
    flags = os.O_SYNC if reason == "a synchronous target" else 0
    target = kernel.open(kernel.lookup(b"copy"), os.O_WRONLY | flags)
    if reason == "data on the disk":
        monkeypatch.setattr(reading, "SECONDS_OF_PATIENCE", 0)

        def nothing_is_there(*_: object) -> int:
            raise BlockingIOError(errno.EAGAIN, "not in the page cache")

        monkeypatch.setattr(os, "preadv", nothing_is_there)
    assert kernel.send(Opcode.COPY_FILE_RANGE, 0, _copy_body(source, target, size)) is None
    assert (stack.upper / "copy").read_bytes() == b""


def test_a_file_that_cannot_be_read_can_be_opened(
    lower: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who reads it is told; an open that fails would be closed by nobody."""
    (lower / "file").write_bytes(b"x")
    nodeid = kernel.lookup(b"file")

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "unreadable")

    monkeypatch.setattr(os, "preadv", fail)
    handle = kernel.open(nodeid)
    assert kernel.way.stored == []
    with fails_with(errno.EIO):
        kernel.ask(Opcode.READ, nodeid, read_body(handle, 0, 4096))


def test_who_may_see_trusted_attributes_is_asked_elsewhere(kernel: Kernel, stack: Stack) -> None:
    (stack.upper / "file").write_text("")
    os.setxattr(stack.upper / "file", "trusted.secret", b"")

    assert kernel.send(Opcode.LISTXATTR, kernel.lookup(b"file"), struct.pack("=II", 100, 0)) is None


@pytest.mark.parametrize("opcode", [Opcode.FSYNC, Opcode.FSYNCDIR, Opcode.INIT, 4096])
def test_what_is_rare_is_left(kernel: Kernel, opcode: int) -> None:
    assert kernel.send(opcode, ROOT_NODEID, bytes(64)) is None


def test_flush_is_asked_once_and_never_again(open_overlay: Callable[..., Vfs]) -> None:
    with fails_with(errno.ENOSYS):
        Kernel(open_overlay()).ask(Opcode.FLUSH, ROOT_NODEID, bytes(24))


def test_a_write_that_waits_for_the_disk_is_left_to_others(stack: Stack, kernel: Kernel) -> None:
    (stack.upper / "file").write_bytes(b"")
    nodeid = kernel.lookup(b"file")
    body = struct.pack("=QQIIQII", kernel.open(nodeid, os.O_WRONLY | os.O_DSYNC), 0, 4, 0, 0, 0, 0) + b"data"
    assert kernel.send(Opcode.WRITE, nodeid, body) == []
    ((unique, write),) = kernel.way.writes
    assert (unique, write()) == (UNIQUE, 4)
    assert (stack.upper / "file").read_bytes() == b"data"
    body = struct.pack("=QQIIQII", kernel.open(nodeid, os.O_WRONLY), 0, 4, 0, 0, 0, 0) + b"data"
    assert kernel.ask(Opcode.WRITE, nodeid, body) == struct.pack("=II", 4, 0)


def test_a_listing_that_fails_midway_tells_what_it_has(
    stack: Stack, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel forgets only what it was told of."""
    for name in ("a", "b", "c"):
        (stack.lower / name).write_bytes(b"")
    attributes = kernel.vfs.fs.attributes
    asked: list[int] = []

    def fail_the_second_time(node: Node) -> Attributes:
        asked.append(node.nodeid)
        if len(asked) == 2:
            raise OSError(errno.EIO, "unreadable")
        return attributes(node)

    monkeypatch.setattr(kernel.vfs.fs, "attributes", fail_the_second_time)
    first = kernel.ask(Opcode.READDIRPLUS, ROOT_NODEID, read_body(0, 2, 4096))
    assert struct.unpack_from("=QQII", first, 128)[2:] == (1, stat.S_IFREG >> 12)
    assert len(first) == 160
    rest = kernel.ask(Opcode.READDIRPLUS, ROOT_NODEID, read_body(0, 3, 4096))
    assert len(rest) == 2 * 160
