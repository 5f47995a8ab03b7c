"""Which layers are refused, with nothing created; how are they locked, prepared and left clean?"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyoverlay.layers.stack import LayerError, Stack
from pyoverlay.layers.work_directory import WorkDirectory
from pyoverlay.options import MountOptions
from tests.harness import Stack as LayerDirectories
from tests.harness import snapshot
from tests.harness.content import is_whiteout, make_directory, make_file, make_whiteout
from tests.unit.vfs import mount_options, open_descriptors

OpenStack = Callable[[MountOptions], Stack]


@pytest.fixture
def open_stack() -> Iterator[OpenStack]:
    opened: list[Stack] = []

    def open_it(options: MountOptions) -> Stack:
        opened.append(Stack(options))
        return opened[-1]

    yield open_it
    for stack in opened:
        stack.close()


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A directory on another file system than `base`."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="overlay-") as directory:
        yield Path(directory)


# What is refused


def _missing_lower(layers: LayerDirectories) -> dict[str, Any]:
    return {"lowerdir": (str(layers.lower), str(layers.base / "absent"))}


def _lower_is_a_file(layers: LayerDirectories) -> dict[str, Any]:
    return {"lowerdir": (str(make_file(layers.base / "file")),)}


def _missing_upper(layers: LayerDirectories) -> dict[str, Any]:
    return {"upperdir": str(layers.base / "absent")}


def _upper_is_a_file(layers: LayerDirectories) -> dict[str, Any]:
    return {"upperdir": str(make_file(layers.base / "file"))}


def _missing_work(layers: LayerDirectories) -> dict[str, Any]:
    return {"workdir": str(layers.base / "absent")}


def _no_work(layers: LayerDirectories) -> dict[str, Any]:
    return {"workdir": None}


def _upper_is_work(layers: LayerDirectories) -> dict[str, Any]:
    return {"workdir": str(layers.upper)}


def _work_inside_upper(layers: LayerDirectories) -> dict[str, Any]:
    return {"workdir": _made(layers.upper / "a" / "w")}


def _upper_inside_work(layers: LayerDirectories) -> dict[str, Any]:
    return {"upperdir": _made(layers.work / "a" / "u")}


def _same_lower_twice(layers: LayerDirectories) -> dict[str, Any]:
    return {"lowerdir": (str(layers.lower), str(layers.base / "." / "l1"))}


def _same_lower_twice_by_link(layers: LayerDirectories) -> dict[str, Any]:
    link = layers.base / "link"
    link.symlink_to("l1")
    return {"lowerdir": (str(layers.lower), str(link))}


def _upper_is_lower(layers: LayerDirectories) -> dict[str, Any]:
    return {"upperdir": str(layers.lower)}


def _work_is_lower(layers: LayerDirectories) -> dict[str, Any]:
    return {"workdir": str(layers.lower)}


def _lower_inside_lower(layers: LayerDirectories) -> dict[str, Any]:
    return {"lowerdir": (str(layers.lower), _made(layers.lower / "inside"))}


def _lower_inside_upper(layers: LayerDirectories) -> dict[str, Any]:
    return {"lowerdir": (_made(layers.upper / "a" / "inside"),)}


def _lower_inside_work(layers: LayerDirectories) -> dict[str, Any]:
    return {"lowerdir": (_made(layers.work / "inside"),)}


def _left_by_an_unclean_volatile_mount(layers: LayerDirectories) -> dict[str, Any]:
    _made(layers.work / "work" / "incompat" / "volatile")
    return {}


def _made(path: Path) -> str:
    path.mkdir(parents=True)
    return str(path)


REFUSED = [
    (_missing_lower, "absent.*no such directory.*create"),
    (_lower_is_a_file, "file.*not a directory"),
    (_missing_upper, "upperdir=.*absent.*no such directory"),
    (_upper_is_a_file, "upperdir=.*file.*not a directory"),
    (_missing_work, "workdir=.*absent.*no such directory"),
    (_no_work, "upperdir=.*workdir="),
    (_upper_is_work, "workdir=.*upperdir=.*separate"),
    (_work_inside_upper, "workdir=.*upperdir=.*separate"),
    (_upper_inside_work, "workdir=.*upperdir=.*separate"),
    (_same_lower_twice, "lowerdir=.*same directory"),
    (_same_lower_twice_by_link, "lowerdir=.*same directory"),
    (_upper_is_lower, "same directory"),
    (_work_is_lower, "same directory"),
    (_lower_inside_lower, "lowerdir=.*inside"),
    (_lower_inside_upper, "lowerdir=.*inside"),
    (_lower_inside_work, "lowerdir=.*inside"),
    (_left_by_an_unclean_volatile_mount, "incompat/volatile"),
]


@pytest.mark.parametrize(
    ("arrange", "words"), REFUSED, ids=[arrange.__name__.strip("_") for arrange, _words in REFUSED]
)
def test_refusals_change_nothing_and_leak_nothing(
    stack: LayerDirectories, arrange: Callable[[LayerDirectories], dict[str, Any]], words: str
) -> None:
    options = mount_options(stack, **arrange(stack))
    before, descriptors = snapshot(stack.base, exact=True), open_descriptors()
    with pytest.raises(LayerError, match=words):
        Stack(options)
    assert snapshot(stack.base, exact=True) == before
    assert open_descriptors() == descriptors


def test_upper_and_work_on_different_file_systems(stack: LayerDirectories, elsewhere: Path) -> None:
    descriptors = open_descriptors()
    with pytest.raises(LayerError, match=r"different mounts.*same file system"):
        Stack(mount_options(stack, workdir=str(elsewhere)))
    assert os.listdir(elsewhere) == []
    assert open_descriptors() == descriptors


def test_a_refused_stack_holds_no_lock(stack: LayerDirectories, open_stack: OpenStack) -> None:
    with pytest.raises(LayerError):
        Stack(mount_options(stack, lowerdir=(str(stack.lower), str(stack.lower))))
    open_stack(mount_options(stack))


def test_a_name_that_is_no_utf8(stack: LayerDirectories, open_stack: OpenStack) -> None:
    lower = os.fsencode(stack.base) + b"/\xff:,"
    os.mkdir(lower)
    assert open_stack(mount_options(stack, lowerdir=(os.fsdecode(lower),))).lowers[0].root.status()
    os.rmdir(lower)


# What isn't


def test_a_lower_may_contain_the_other_layers(stack: LayerDirectories, open_stack: OpenStack) -> None:
    opened = open_stack(mount_options(stack, lowerdir=(str(stack.base),)))
    status = stack.upper.stat()
    assert (status.st_dev, status.st_ino) in opened.traps
    assert len(opened.traps) == 2


def test_a_lower_may_be_a_symlink(stack: LayerDirectories, open_stack: OpenStack) -> None:
    (stack.base / "link").symlink_to("l1")
    opened = open_stack(mount_options(stack, lowerdir=(str(stack.base / "link"),)))
    assert opened.lowers[0].inode == stack.lower.stat().st_ino


@pytest.mark.lowers(3)
def test_lowers_are_topmost_first(stack: LayerDirectories, open_stack: OpenStack) -> None:
    opened = open_stack(mount_options(stack))
    assert [layer.path for layer in opened.lowers] == [str(lower) for lower in stack.lowers]
    assert opened.upper is not None and opened.upper.path == str(stack.upper)
    assert not any(layer.writable for layer in opened.lowers) and opened.upper.writable


def test_an_upper_that_is_mounted_read_only_is_the_topmost_lower(
    stack: LayerDirectories, open_stack: OpenStack
) -> None:
    before = snapshot(stack.base, exact=True)
    opened = open_stack(mount_options(stack, read_only=True, workdir=None))
    assert [layer.path for layer in opened.lowers] == [str(stack.upper), str(stack.lower)]
    assert opened.upper is None and not opened.traps
    opened.prepare_work_directory()
    opened.clean_work_directory()
    assert opened.work is None
    assert snapshot(stack.base, exact=True) == before


def test_the_dialect_of_marks(stack: LayerDirectories, open_stack: OpenStack) -> None:
    first = open_stack(mount_options(stack))
    assert first.dialect.prefix == b"trusted.overlay."
    first.close()
    assert open_stack(mount_options(stack, userxattr=True)).dialect.prefix == b"user.overlay."


# Locks


@pytest.mark.parametrize("shared", ["upper", "work"])
def test_upper_and_work_are_used_by_one_mount(
    stack: LayerDirectories, open_stack: OpenStack, shared: str
) -> None:
    first = open_stack(mount_options(stack))
    other = {"upper": ("workdir", stack.base / "w2"), "work": ("upperdir", stack.base / "u2")}
    option, path = other[shared]
    path.mkdir()
    options = mount_options(stack, **{option: str(path)})
    with pytest.raises(LayerError, match=f"{shared}dir=.*in use.*unmount"):
        Stack(options)
    first.close()
    open_stack(options)


def test_layers_that_are_only_read_can_be_shared(stack: LayerDirectories, open_stack: OpenStack) -> None:
    open_stack(mount_options(stack))
    open_stack(mount_options(stack, read_only=True))
    open_stack(mount_options(stack, upperdir=None, workdir=None))
    second = stack.base / "second"
    for name in ("u", "w"):
        (second / name).mkdir(parents=True)
    open_stack(mount_options(stack, upperdir=str(second / "u"), workdir=str(second / "w")))


def test_a_lock_is_not_inherited(stack: LayerDirectories, open_stack: OpenStack) -> None:
    opened = open_stack(mount_options(stack))
    assert len(opened._locks) == 2
    assert not any(os.get_inheritable(descriptor) for descriptor in opened._locks)


# The work directory


def test_opening_creates_nothing_and_preparing_only_the_work_directory(
    stack: LayerDirectories, open_stack: OpenStack
) -> None:
    before = snapshot(stack.base, exact=True)
    opened = open_stack(mount_options(stack))
    assert snapshot(stack.base, exact=True) == before
    opened.prepare_work_directory()
    assert [path.name for path in stack.work.iterdir()] == ["work"]
    assert stat.S_IMODE((stack.work / "work").stat().st_mode) == 0
    assert os.listdir(stack.upper) == os.listdir(stack.lower) == []


def test_leftovers_go_at_the_beginning_and_at_the_end(stack: LayerDirectories, open_stack: OpenStack) -> None:
    work = stack.work / "work"
    make_file(work / "#3" / "deep" / "file")
    make_whiteout(work / "#4")
    make_file(work / "#5")
    (work / "incompat").mkdir()
    opened = open_stack(mount_options(stack))
    opened.prepare_work_directory()
    assert os.listdir(work) == ["incompat"]
    make_file(work / "#0")
    opened.clean_work_directory()
    assert os.listdir(work) == ["incompat"]


def _discard(stack: LayerDirectories, work: WorkDirectory, whiteouts: int) -> Path:
    name = work.new_name()
    directory = make_directory(stack.work / "work" / os.fsdecode(name))
    for number in range(whiteouts):
        make_whiteout(directory / str(number))
    work.discard(name)
    return directory


def test_what_is_discarded_goes_piece_by_piece(stack: LayerDirectories, open_stack: OpenStack) -> None:
    opened = open_stack(mount_options(stack))
    opened.prepare_work_directory()
    assert opened.work is not None
    full, empty, _last = (_discard(stack, opened.work, whiteouts) for whiteouts in (100, 0, 3))
    before = open_descriptors()
    steps = [len(os.listdir(full))]
    while opened.work.remove_discarded() and full.exists():
        steps.append(len(os.listdir(full)))
    assert len(steps) > 4
    assert max(more - less for more, less in itertools.pairwise(steps)) <= 20
    assert empty.exists()
    while opened.work.remove_discarded():
        pass
    assert os.listdir(stack.work / "work") == []
    assert open_descriptors() == before


def test_a_discarded_directory_that_has_gone_stops_nothing(
    stack: LayerDirectories, open_stack: OpenStack
) -> None:
    opened = open_stack(mount_options(stack))
    opened.prepare_work_directory()
    assert opened.work is not None
    _discard(stack, opened.work, 0).rmdir()
    _discard(stack, opened.work, 2)
    while opened.work.remove_discarded():
        pass
    assert os.listdir(stack.work / "work") == []


def test_no_more_is_put_off_than_some(
    stack: LayerDirectories, open_stack: OpenStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyoverlay.layers.work_directory._MOST_DISCARDED", 3)
    opened = open_stack(mount_options(stack))
    opened.prepare_work_directory()
    assert opened.work is not None
    for _ in range(10):
        _discard(stack, opened.work, 40)
        assert len(os.listdir(stack.work / "work")) <= 3
    opened.clean_work_directory()
    assert os.listdir(stack.work / "work") == []
    assert not opened.work.remove_discarded()


def test_volatile_leaves_a_mark_that_refuses_the_next_mount(
    stack: LayerDirectories, open_stack: OpenStack
) -> None:
    opened = open_stack(mount_options(stack, fsync="volatile"))
    opened.prepare_work_directory()
    assert (stack.work / "work/incompat/volatile/dirty").is_file()
    opened.clean_work_directory()
    opened.close()
    with pytest.raises(LayerError, match=r"feature 'volatile'.*work/incompat/volatile"):
        Stack(mount_options(stack))
    with pytest.raises(LayerError, match="feature 'volatile'"):
        Stack(mount_options(stack, fsync="volatile"))


def test_a_work_directory_that_can_not_be_prepared(stack: LayerDirectories, open_stack: OpenStack) -> None:
    make_file(stack.work / "work", "in the way")
    with pytest.raises(LayerError, match=f"{stack.work}/work"):
        open_stack(mount_options(stack)).prepare_work_directory()
    assert (stack.work / "work").read_text() == "in the way"


def test_temporary_names(stack: LayerDirectories, open_stack: OpenStack) -> None:
    opened = open_stack(mount_options(stack))
    opened.prepare_work_directory()
    work = opened.work
    assert work is not None
    with work.temporary() as first, work.temporary() as second:
        assert first != second
        work.root.make_directory(first, 0o700)
    assert os.listdir(stack.work / "work") == [os.fsdecode(first)]


@pytest.mark.parametrize("failure", [OSError(28, "No space left"), KeyboardInterrupt()])
def test_what_an_error_interrupts_is_removed(
    stack: LayerDirectories, open_stack: OpenStack, failure: BaseException
) -> None:
    opened = open_stack(mount_options(stack))
    opened.prepare_work_directory()
    work = opened.work
    assert work is not None
    with pytest.raises(type(failure)), work.temporary() as name:  # noqa: PT012 - the block is what is tested
        work.root.make_directory(name, 0o700)
        make_file(stack.work / "work" / os.fsdecode(name) / "file")
        raise failure
    assert os.listdir(stack.work / "work") == []


def test_closing_gives_every_descriptor_back(stack: LayerDirectories) -> None:
    before = open_descriptors()
    opened = Stack(mount_options(stack))
    opened.prepare_work_directory()
    make_file(stack.lower / "a" / "b" / "file")
    opened.lowers[0].root.child(b"a").child(b"b").child(b"file").status()
    assert opened.operations() > 0
    opened.close()
    assert open_descriptors() == before


# Whiteouts


def test_whiteouts_share_an_inode(stack: LayerDirectories, open_stack: OpenStack) -> None:
    """As the kernel's do; the one in the work directory goes in the end."""
    opened = open_stack(mount_options(stack))
    opened.prepare_work_directory()
    assert opened.upper is not None
    assert opened.work is not None
    for name in (b"a", b"b"):
        opened.work.make_whiteout(opened.upper.root, name)
    assert is_whiteout(stack.upper / "a")
    assert (stack.upper / "a").stat().st_ino == (stack.upper / "b").stat().st_ino
    assert (stack.upper / "a").stat().st_nlink == 3
    opened.clean_work_directory()
    assert os.listdir(stack.work / "work") == []
    opened.work.make_whiteout(opened.upper.root, b"c")
    assert is_whiteout(stack.upper / "c")


def test_a_whiteout_replaces_nothing(stack: LayerDirectories, open_stack: OpenStack) -> None:
    make_file(stack.upper / "file", "kept")
    opened = open_stack(mount_options(stack))
    opened.prepare_work_directory()
    assert opened.upper is not None
    assert opened.work is not None
    with pytest.raises(FileExistsError):
        opened.work.make_whiteout(opened.upper.root, b"file")
    assert (stack.upper / "file").read_text() == "kept"


@pytest.mark.parametrize(
    ("number", "links"),
    [(errno.EMLINK, 3), (errno.ENOENT, 3), (errno.EPERM, 1), (errno.EOPNOTSUPP, 1)],
)
def test_a_whiteout_that_takes_no_more_names(
    stack: LayerDirectories, open_stack: OpenStack, monkeypatch: pytest.MonkeyPatch, number: int, links: int
) -> None:
    """Full, or gone: another is shared from then on. No links at all: each whiteout is by itself."""
    opened = open_stack(mount_options(stack))
    opened.prepare_work_directory()
    assert opened.upper is not None
    assert opened.work is not None
    work, root = opened.work, opened.upper.root
    work.make_whiteout(root, b"before")
    with monkeypatch.context() as patched:

        def refuse(*_arguments: object, **_others: object) -> None:
            raise OSError(number, os.strerror(number))

        patched.setattr(os, "link", refuse)
        work.make_whiteout(root, b"alone")
    for name in (b"c", b"d"):
        work.make_whiteout(root, name)
    assert all(is_whiteout(stack.upper / name) for name in ("before", "alone", "c", "d"))
    assert (stack.upper / "alone").stat().st_nlink == 1
    assert (stack.upper / "before").stat().st_nlink == 1
    assert (stack.upper / "c").stat().st_nlink == links


def test_a_look_at_the_lock_refuses_no_mount(
    stack: LayerDirectories, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever looks whether an upper is in use locks it for a moment."""
    looking = os.open(stack.upper, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    monkeypatch.setattr(time, "sleep", lambda _seconds: fcntl.flock(looking, fcntl.LOCK_UN))
    opened = Stack(mount_options(stack))
    opened.close()
    os.close(looking)
