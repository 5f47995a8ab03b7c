"""How is an object in one layer reached, held and acted on, however deep it lies?"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyoverlay.layers import syscalls
from pyoverlay.layers.layer import DescriptorCache, Layer, LayerObject
from tests.harness import fails_with
from tests.harness.content import make_file, make_whiteout
from tests.unit.vfs import open_descriptors

SMALLEST_CAPACITY = 16
LONG_NAME = b"n" * 200
PATH_MAX = 4096

OpenLayer = Callable[..., Layer]


@pytest.fixture
def open_layer(base: Path) -> Iterator[OpenLayer]:
    opened: list[Layer] = []

    def open_it(*, writable: bool = True, capacity: int = 4096) -> Layer:
        descriptor = os.open(base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        opened.append(Layer(str(base), descriptor, DescriptorCache(capacity), writable=writable))
        return opened[-1]

    yield open_it
    for layer in opened:
        layer.cache.close()
        layer.close()


def descend(layer: Layer, *names: bytes) -> LayerObject:
    current = layer.root
    for name in names:
        current = current.child(name)
    return current


def make_deep(layer: Layer, depth: int) -> list[LayerObject]:
    """Directories below one another; together their names are longer than a path may be."""
    chain = [layer.root]
    for _level in range(depth):
        chain[-1].make_directory(LONG_NAME, 0o755)
        chain.append(chain[-1].child(LONG_NAME))
    return chain[1:]


# Reaching objects


def test_reaches_an_object_step_by_step(open_layer: OpenLayer, base: Path) -> None:
    make_file(base / "a" / "b" / "file", "content", mode=0o640)
    layer = open_layer()
    file = descend(layer, b"a", b"b", b"file")
    assert file.status().st_ino == (base / "a/b/file").stat().st_ino
    assert file.layer is layer
    descriptor = file.open(os.O_RDONLY)
    assert os.read(descriptor, 100) == b"content"
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)


def test_lists_names_and_types_without_the_dots(open_layer: OpenLayer, base: Path) -> None:
    make_file(base / "file")
    make_whiteout(base / "whiteout")
    (base / "directory").mkdir()
    listed = dict(open_layer().root.list_entries())
    assert listed == {b"file": syscalls.DT_REG, b"whiteout": syscalls.DT_CHR, b"directory": syscalls.DT_DIR}


def test_lists_more_than_one_buffer_of_names(open_layer: OpenLayer, base: Path) -> None:
    names = {b"%0200d" % number for number in range(700)}
    for name in names:
        os.close(os.open(os.fsencode(base) + b"/" + name, os.O_CREAT | os.O_WRONLY))
    listed = [name for name, _kind in open_layer().root.list_entries()]
    assert len(listed) == len(names) and set(listed) == names


def test_missing_objects(open_layer: OpenLayer) -> None:
    absent = descend(open_layer(), b"absent")
    for ask in (absent.status, absent.read_link, absent.list_attributes, absent.list_entries, absent.handle):
        with fails_with(errno.ENOENT):
            ask()
    with fails_with(errno.ENOENT):
        absent.child(b"below").status()


def test_no_symlink_is_followed(open_layer: OpenLayer, base: Path) -> None:
    outside = base / "outside"
    make_file(outside / "file", "secret")
    os.setxattr(outside, "trusted.mark", b"of the target")
    (base / "link").symlink_to("outside")
    link = descend(open_layer(), b"link")
    assert stat.S_ISLNK(link.status().st_mode)
    assert link.read_link() == b"outside"
    assert link.list_attributes() == []
    with fails_with(errno.ELOOP):
        link.open(os.O_RDONLY)
    with fails_with(errno.ENOTDIR):
        link.child(b"file").status()
    link.set_owner(7, 8)
    link.set_times(1, 2)
    link.set_attribute(b"trusted.mark", b"of the link")
    assert ((base / "link").lstat().st_uid, outside.stat().st_uid) == (7, 0)
    assert (base / "link").lstat().st_mtime_ns == 2
    assert outside.stat().st_mtime_ns != 2
    assert os.getxattr(outside, "trusted.mark") == b"of the target"
    assert os.getxattr(base / "link", "trusted.mark", follow_symlinks=False) == b"of the link"


def test_a_lower_can_not_be_written_through_any_descriptor(open_layer: OpenLayer, base: Path) -> None:
    make_file(base / "file", "content")
    layer = open_layer(writable=False)
    file = descend(layer, b"file")
    assert layer.cloned
    changes: list[Callable[[], object]] = [
        lambda: file.open(os.O_WRONLY),
        lambda: os.open(b"/proc/self/fd/%d" % reading, os.O_RDWR),
        lambda: file.set_mode(0o600),
        lambda: file.set_owner(1, 1),
        lambda: file.set_times(1, 1),
        lambda: file.set_attribute(b"user.x", b"y"),
        lambda: layer.root.make_directory(b"new", 0o755),
        lambda: layer.root.create_file(b"new", os.O_WRONLY, 0o644),
        lambda: layer.root.remove_file(b"file"),
        lambda: layer.root.rename(b"file", layer.root, b"other"),
    ]
    reading = file.open(os.O_RDONLY)
    try:
        for change in changes:
            with fails_with(errno.EROFS):
                change()
    finally:
        os.close(reading)
    assert os.listdir(base) == ["file"]


def test_reading_a_lower_leaves_its_times(open_layer: OpenLayer, base: Path) -> None:
    make_file(base / "directory" / "file", "content")
    for path in (base / "directory" / "file", base / "directory"):
        os.utime(path, ns=(1, 10**18))
    directory = descend(open_layer(writable=False), b"directory")
    descriptor = directory.child(b"file").open(os.O_RDONLY)
    os.read(descriptor, 10)
    os.close(descriptor)
    assert directory.list_entries()
    assert (base / "directory" / "file").stat().st_atime_ns == 1
    assert (base / "directory").stat().st_atime_ns == 1


def test_a_mount_within_a_lower_does_not_show(open_layer: OpenLayer, base: Path) -> None:
    make_file(base / "point" / "below", "below the mount")
    syscalls.mount(b"tmpfs", os.fsencode(base / "point"), b"tmpfs", 0, b"")
    try:
        make_file(base / "point" / "above")
        names = [name for name, _kind in descend(open_layer(writable=False), b"point").list_entries()]
        assert names == [b"below"]
    finally:
        syscalls.unmount(os.fsencode(base / "point"), syscalls.MNT_DETACH)


def test_an_object_is_found_by_its_handle(open_layer: OpenLayer, base: Path) -> None:
    make_file(base / "a" / "file")
    layer = open_layer(writable=False)
    kind, handle = descend(layer, b"a", b"file").handle()
    found = layer.open_handle(kind, handle)
    try:
        assert found.status().st_ino == (base / "a/file").stat().st_ino
    finally:
        found.close()


def test_every_operation_counts(open_layer: OpenLayer, base: Path) -> None:
    make_file(base / "a" / "file")
    layer = open_layer()
    before = layer.operations
    file = descend(layer, b"a", b"file")
    assert layer.operations == before
    file.status()
    opened_and_asked = layer.operations
    assert opened_and_asked > before
    file.status()
    assert layer.operations - opened_and_asked < opened_and_asked - before


# Descriptors


def test_the_cache_is_bounded_and_evicted_directories_are_reopened(open_layer: OpenLayer, base: Path) -> None:
    for number in range(100):
        make_file(base / f"d{number}" / "file", str(number))
    layer = open_layer(capacity=1)
    before = open_descriptors()
    directories = [descend(layer, b"d%d" % number) for number in range(100)]
    for _round in range(3):
        for number, directory in enumerate(directories):
            assert directory.child(b"file").status().st_size == len(str(number))
            assert open_descriptors() <= before + SMALLEST_CAPACITY
    assert sum(directory.fd >= 0 for directory in directories) == SMALLEST_CAPACITY
    layer.cache.close()
    assert open_descriptors() == before


def test_what_is_in_use_stays_open(open_layer: OpenLayer, base: Path) -> None:
    for number in range(40):
        (base / f"d{number}").mkdir()
    layer = open_layer(capacity=SMALLEST_CAPACITY)
    favourite = descend(layer, b"d0")
    descriptor = favourite.descriptor()
    for number in range(1, 40):
        favourite.descriptor()
        descend(layer, b"d%d" % number).descriptor()
    assert favourite.descriptor() == descriptor


def test_a_tree_deeper_than_a_path_is_long(open_layer: OpenLayer) -> None:
    layer = open_layer(capacity=SMALLEST_CAPACITY)
    before = open_descriptors()
    chain = make_deep(layer, 60)
    assert len(LONG_NAME) * len(chain) > PATH_MAX
    bottom = chain[-1]
    os.close(bottom.create_file(b"file", os.O_WRONLY, 0o644))
    for _round in range(2):
        for directory in (chain[0], bottom, chain[30]):
            assert stat.S_ISDIR(directory.status().st_mode)
            assert directory.list_entries()
    file = bottom.child(b"file")
    file.set_attribute(b"user.deep", b"down")
    assert file.attribute(b"user.deep") == b"down"
    file.set_mode(0o600)
    assert stat.S_IMODE(file.status().st_mode) == 0o600
    assert open_descriptors() <= before + SMALLEST_CAPACITY


def test_what_lies_below_a_renamed_directory_follows_it(open_layer: OpenLayer, base: Path) -> None:
    layer = open_layer(capacity=SMALLEST_CAPACITY)
    chain = make_deep(layer, 40)
    os.close(chain[-1].create_file(b"file", os.O_WRONLY, 0o644))
    top = chain[0]
    layer.root.rename(LONG_NAME, layer.root, b"renamed")
    top.name = b"renamed"
    layer.cache.close()
    assert stat.S_ISREG(chain[-1].child(b"file").status().st_mode)
    assert os.listdir(base) == ["renamed"]


def test_rename_and_link_across_deep_directories_with_a_tiny_cache(open_layer: OpenLayer) -> None:
    """Reaching the second directory may evict the first one's descriptor."""
    layer = open_layer(capacity=SMALLEST_CAPACITY)
    layer.root.make_directory(b"left", 0o755)
    layer.root.make_directory(b"right", 0o755)
    bottoms = []
    for side in (b"left", b"right"):
        current = layer.root.child(side)
        for _level in range(30):
            current.make_directory(b"d", 0o755)
            current = current.child(b"d")
        bottoms.append(current)
    left, right = bottoms
    os.close(left.create_file(b"file", os.O_WRONLY, 0o644))
    left.rename(b"file", right, b"moved")
    layer.cache.close()
    left.link(right.child(b"moved"), b"linked")
    assert left.child(b"linked").status().st_ino == right.child(b"moved").status().st_ino
    assert right.child(b"moved").status().st_nlink == 2


# Held objects


def test_a_held_file_outlives_its_name(open_layer: OpenLayer, base: Path) -> None:
    make_file(base / "file", "content")
    os.setxattr(base / "file", "user.x", b"y")
    layer = open_layer()
    file = descend(layer, b"file")
    file.hold_open()
    layer.root.remove_file(b"file")
    make_file(base / "file", "another, which nothing may touch")
    other = (base / "file").stat()
    assert file.status().st_nlink == 0
    assert file.attribute(b"user.x") == b"y"
    assert file.list_attributes() == [b"user.x"]
    file.set_attribute(b"user.z", b"1")
    file.remove_attribute(b"user.x")
    assert file.list_attributes() == [b"user.z"]
    file.set_mode(0o4600)
    file.set_owner(3, 4)
    file.set_mode(0o600)
    file.set_times(5, 6)
    status = file.status()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o600, 3, 4)
    assert (status.st_atime_ns, status.st_mtime_ns) == (5, 6)
    descriptor = file.open(os.O_RDWR)
    assert os.read(descriptor, 100) == b"content"
    os.close(descriptor)
    assert file.handle()
    assert (base / "file").stat() == other


def test_a_held_object_follows_a_rename(open_layer: OpenLayer, base: Path) -> None:
    make_file(base / "file", "content")
    layer = open_layer()
    file = descend(layer, b"file")
    file.hold_open()
    layer.root.rename(b"file", layer.root, b"renamed")
    file.set_mode(0o711)
    assert stat.S_IMODE((base / "renamed").stat().st_mode) == 0o711
    layer.root.link(file, b"second")
    assert (base / "second").stat().st_ino == (base / "renamed").stat().st_ino


def test_a_held_symlink(open_layer: OpenLayer, base: Path) -> None:
    make_file(base / "target")
    (base / "link").symlink_to("target")
    layer = open_layer()
    link = descend(layer, b"link")
    link.hold_open()
    layer.root.remove_file(b"link")
    assert link.read_link() == b"target"
    link.set_times(1, 2)
    link.set_owner(5, 6)
    status = link.status()
    assert stat.S_ISLNK(status.st_mode)
    assert (status.st_mtime_ns, status.st_uid) == (2, 5)
    assert (base / "target").stat().st_uid == 0


def test_a_held_directory_outlives_its_name(open_layer: OpenLayer, base: Path) -> None:
    (base / "directory").mkdir()
    layer = open_layer()
    directory = descend(layer, b"directory")
    directory.hold_open()
    layer.root.remove_directory(b"directory")
    directory.set_mode(0o700)
    assert stat.S_IMODE(directory.status().st_mode) == 0o700
    for use in (directory.list_entries, lambda: directory.make_directory(b"new", 0o755)):
        with fails_with(errno.ENOENT):
            use()


def test_holding_and_closing_leaks_nothing(open_layer: OpenLayer, base: Path) -> None:
    for number in range(40):
        (base / f"d{number}").mkdir()
    layer = open_layer(capacity=SMALLEST_CAPACITY)
    before = open_descriptors()
    held = descend(layer, b"d0")
    held.descriptor()
    held.hold_open()
    held.hold_open()
    for number in range(1, 40):
        descend(layer, b"d%d" % number).descriptor()
    assert os.fstat(held.fd).st_ino == (base / "d0").stat().st_ino
    layer.cache.close()
    assert os.fstat(held.fd).st_ino == (base / "d0").stat().st_ino
    held.close()
    assert held.fd == -1
    assert open_descriptors() == before


def test_a_forgotten_directory_gives_its_descriptor_back(open_layer: OpenLayer, base: Path) -> None:
    (base / "directory").mkdir()
    layer = open_layer()
    before = open_descriptors()
    directory = descend(layer, b"directory")
    directory.descriptor()
    layer.cache.forget(directory)
    assert open_descriptors() == before
    assert directory.list_entries() == []


# Changing names


def test_links_a_nameless_file_but_over_nothing(open_layer: OpenLayer, base: Path) -> None:
    make_file(base / "taken", "kept")
    root = open_layer().root
    descriptor = root.create_unnamed_file()
    try:
        os.write(descriptor, b"content")
        with fails_with(errno.EEXIST):
            root.link_descriptor(descriptor, b"taken")
        root.link_descriptor(descriptor, b"free")
    finally:
        os.close(descriptor)
    assert (base / "free").read_text() == "content"
    assert (base / "taken").read_text() == "kept"


def test_creating_never_opens_what_is_there(open_layer: OpenLayer, base: Path) -> None:
    (base / "link").symlink_to("target")
    with fails_with(errno.EEXIST):
        open_layer().root.create_file(b"link", os.O_WRONLY, 0o644)
    assert not (base / "target").exists()


# Removing trees


def test_removes_a_tree_deeper_than_a_path_is_long(open_layer: OpenLayer, base: Path) -> None:
    layer = open_layer(capacity=SMALLEST_CAPACITY)
    before = open_descriptors()
    chain = make_deep(layer, 1200)
    for directory in chain[::100]:
        os.close(directory.create_file(b"file", os.O_WRONLY, 0o644))
    layer.root.remove_tree(LONG_NAME)
    assert os.listdir(base) == []
    assert open_descriptors() <= before + SMALLEST_CAPACITY


def test_removes_everything_in_a_tree_but_what_links_lead_to(open_layer: OpenLayer, base: Path) -> None:
    outside = make_file(base / "outside" / "file", "kept")
    tree = base / "tree"
    for number in range(30):
        make_file(tree / f"d{number % 3}" / f"e{number}" / "file")
    make_whiteout(tree / "d0" / "whiteout")
    os.mkfifo(tree / "fifo")
    (tree / "link").symlink_to("../outside")
    (tree / "d1" / "broken").symlink_to("nowhere")
    (base / "other").mkdir()
    open_layer().root.remove_tree(b"tree")
    assert sorted(os.listdir(base)) == ["other", "outside"]
    assert outside.read_text() == "kept"


def test_removes_a_single_object(open_layer: OpenLayer, base: Path) -> None:
    make_file(base / "file")
    make_whiteout(base / "whiteout")
    (base / "empty").mkdir()
    layer = open_layer()
    for name in (b"file", b"whiteout", b"empty"):
        layer.root.remove_tree(name)
    assert os.listdir(base) == []
    with fails_with(errno.ENOENT):
        layer.root.remove_tree(b"file")


@pytest.mark.parametrize("refusal", [None, errno.ENOSYS, errno.EPERM])
def test_modes_are_set_also_where_the_kernel_lacks_the_call(
    refusal: int | None, base: Path, open_layer: OpenLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> None:
        raise syscalls.error(refusal or 0)

    file = make_file(base / "file", "content")
    (base / "link").symlink_to("file")
    if refusal is not None:
        monkeypatch.setattr(syscalls, "set_mode", refuse)
    root = open_layer().root
    root.child(b"file").set_mode(0o4711)
    assert stat.S_IMODE(file.stat().st_mode) == 0o4711
    with fails_with(errno.EOPNOTSUPP):
        root.child(b"link").set_mode(0o777)
    assert stat.S_IMODE(file.stat().st_mode) == 0o4711
