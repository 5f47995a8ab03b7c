"""Eight threads at once in one tree: no hang, no unexpected errno, and a tree that a model can foretell.

Each thread owns some names and nobody else changes them, so that a model (a dictionary) knows what every call
on them has to answer, whatever the order in which the threads run. Beside that all threads fight over common
names, where only the set of possible errors is known. The model is checked call by call and as a whole at the
end, through the mount and again from the layers on disk after a remount.
"""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.harness import Kind, Mount, MountFactory, Stack, make_stack

THREADS = 8
SECONDS = 20
LONG_SECONDS = 60
HANG_SECONDS = 120
"""How long a thread may take to notice the end of the test before it counts as hanging."""

FIGHT_ERRORS = frozenset((errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY))
"""What a call on a common name may answer when somebody else was faster."""

LOWER_FILES = 12


@dataclass
class Owned:
    """What a thread knows about its own names: content of files, target of symlinks, and its directories."""

    files: dict[str, bytes] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    directories: set[str] = field(default_factory=set)


@pytest.fixture
def stack(base: Path) -> Stack:
    """Two lowers with files for every thread, and a common directory to fight over."""
    made = make_stack(base, lowers=2)
    for thread in range(THREADS):
        for number in range(LOWER_FILES):
            layer = made.lowers[number % 2]
            directory = layer / f"tree/sub{thread % 3}"
            directory.mkdir(parents=True, exist_ok=True)
            (directory / f"own-{thread}-{number}").write_bytes(lower_content(thread, number))
    for number in range(6):
        layer = made.lowers[number % 2]
        (layer / "tree/common").mkdir(parents=True, exist_ok=True)
        (layer / f"tree/common/file{number}").write_bytes(b"common\n" * 1000)
    (made.lowers[1] / "tree/common/directory").mkdir()
    (made.lowers[1] / "tree/common/directory/inner").touch()
    return made


def lower_content(thread: int, number: int) -> bytes:
    """What a thread's file in a lower holds; some are big enough for several requests."""
    return f"lower {thread} {number}\n".encode() * (1 + 4000 * (number % 3))


class Worker(threading.Thread):
    """One thread: random operations, from a seed of its own, until the time is up or something is wrong."""

    def __init__(self, root: Path, number: int, until: float) -> None:
        super().__init__(daemon=True, name=f"worker {number}")
        self.number = number
        self.failure: BaseException | None = None
        self.done: Counter[str] = Counter()
        self.owned = Owned()
        self._root = root
        self._until = until
        self._random = random.Random(number)
        self._serial = 0
        for index in range(LOWER_FILES):
            name = f"tree/sub{number % 3}/own-{number}-{index}"
            self.owned.files[name] = lower_content(number, index)

    def run(self) -> None:
        operations = [
            self._create,
            self._append,
            self._overwrite,
            self._truncate,
            self._unlink,
            self._rename,
            self._rename_over,
            self._mkdir,
            self._rmdir,
            self._symlink,
            self._link_and_unlink,
            self._read,
            self._chmod,
            self._list,
            self._fight,
            self._fight,
        ]
        try:
            while time.monotonic() < self._until:
                operation = self._random.choice(operations)
                operation()
                self.done[operation.__name__] += 1
        except BaseException as failure:  # noqa: BLE001 - it is told by the test's own thread
            self.failure = failure

    # --- own names: everything is known --------------------------------------------------------------------

    def _path(self, name: str) -> Path:
        return self._root / name

    def _fresh(self) -> str:
        self._serial += 1
        places = [f"tree/sub{index}" for index in range(3)] + sorted(self.owned.directories)
        return f"{self._random.choice(places)}/own-{self.number}-new{self._serial}"

    def _some_file(self) -> str:
        if not self.owned.files:
            self._create()
        return self._random.choice(sorted(self.owned.files))

    def _content(self) -> bytes:
        return self._random.randbytes(self._random.choice((0, 10, 3000, 150_000)))

    def _create(self) -> None:
        name, content = self._fresh(), self._content()
        with open(self._path(name), "xb", buffering=0) as file:
            assert file.write(content) == len(content)
        self.owned.files[name] = content

    def _append(self) -> None:
        name, content = self._some_file(), self._content()
        with open(self._path(name), "ab", buffering=0) as file:
            assert file.write(content) == len(content)
            self.owned.files[name] += content
            assert os.fstat(file.fileno()).st_size == len(self.owned.files[name])

    def _overwrite(self) -> None:
        name, content = self._some_file(), self._content()
        with open(self._path(name), "wb", buffering=0) as file:
            assert file.write(content) == len(content)
        self.owned.files[name] = content

    def _truncate(self) -> None:
        name = self._some_file()
        size = self._random.choice((0, 5, 2000, 50_000))
        os.truncate(self._path(name), size)
        self.owned.files[name] = self.owned.files[name][:size].ljust(size, b"\0")

    def _unlink(self) -> None:
        name = self._some_file()
        self._path(name).unlink()
        del self.owned.files[name]
        assert not os.path.lexists(self._path(name))

    def _rename(self) -> None:
        name, target = self._some_file(), self._fresh()
        os.rename(self._path(name), self._path(target))
        self.owned.files[target] = self.owned.files.pop(name)

    def _rename_over(self) -> None:
        name, target = self._some_file(), self._some_file()
        if name != target:
            os.rename(self._path(name), self._path(target))
            self.owned.files[target] = self.owned.files.pop(name)

    def _mkdir(self) -> None:
        name = self._fresh()
        self._path(name).mkdir()
        self.owned.directories.add(name)

    def _rmdir(self) -> None:
        empty = [name for name in sorted(self.owned.directories) if not self._inside(name)]
        if empty:
            name = self._random.choice(empty)
            self._path(name).rmdir()
            self.owned.directories.remove(name)

    def _inside(self, directory: str) -> bool:
        names = [*self.owned.files, *self.owned.links, *self.owned.directories]
        return any(name.startswith(f"{directory}/") for name in names)

    def _symlink(self) -> None:
        name, target = self._fresh(), f"target-{self._serial}"
        self._path(name).symlink_to(target)
        self.owned.links[name] = target

    def _link_and_unlink(self) -> None:
        name, second = self._some_file(), self._fresh()
        os.link(self._path(name), self._path(second))
        assert self._path(second).stat().st_size == len(self.owned.files[name])
        self._path(name).unlink()
        self.owned.files[second] = self.owned.files.pop(name)

    def _read(self) -> None:
        name = self._some_file()
        found = self._path(name).read_bytes()
        assert found == self.owned.files[name], f"{name}: {len(found)} bytes differ from the model's"

    def _chmod(self) -> None:
        name = self._some_file()
        mode = self._random.choice((0o600, 0o644, 0o755))
        self._path(name).chmod(mode)
        assert self._path(name).stat().st_mode & 0o7777 == mode

    def _list(self) -> None:
        """A listing has every name of mine exactly once, whatever the others do meanwhile."""
        place = f"tree/sub{self._random.randrange(3)}"
        names = [name for name in os.listdir(self._path(place)) if name.startswith(f"own-{self.number}-")]
        mine = {*self.owned.files, *self.owned.links, *self.owned.directories}
        expected = sorted(os.path.basename(name) for name in mine if os.path.dirname(name) == place)
        assert sorted(names) == expected, f"{place}: {set(names) ^ set(expected)}"

    # --- common names: only the errors are known -----------------------------------------------------------

    def _fight(self) -> None:
        one, two = (f"tree/common/{self._random.choice(_COMMON)}" for _ in range(2))
        calls = (
            lambda: self._path(one).unlink(),
            lambda: os.close(os.open(self._path(one), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)),
            lambda: self._write_common(one),
            lambda: os.rename(self._path(one), self._path(two)),
            lambda: os.link(self._path(one), self._path(two)),
            lambda: self._path(one).read_bytes(),
            lambda: self._path(one).chmod(0o640),
            lambda: os.truncate(self._path(one), 100),
            lambda: os.listdir(self._path("tree/common")),
            lambda: self._path("tree/common/directory").mkdir(),
            lambda: self._path("tree/common/directory").rmdir(),
            lambda: self._path("tree/common/directory/inner").unlink(),
            lambda: self._path("tree/common/directory/inner").touch(),
        )
        try:
            self._random.choice(calls)()
        except OSError as error:
            if error.errno not in FIGHT_ERRORS:
                raise

    def _write_common(self, name: str) -> None:
        with open(self._path(name), "r+b", buffering=0) as file:
            file.write(b"written")


_COMMON = ("file0", "file1", "file2", "file3", "file4", "file5", "other")


@pytest.mark.timeout(LONG_SECONDS + 2 * HANG_SECONDS)
def test_eight_threads(
    kind: Kind,
    mount_overlay: MountFactory,
    long: bool,
    record_testsuite_property: Callable[[str, object], None],
) -> None:
    """Mixed operations of eight threads; the kernel's overlay runs for a moment, to prove the model."""
    seconds = LONG_SECONDS if long else SECONDS
    mount = mount_overlay()
    until = time.monotonic() + (2 if kind is Kind.KERNEL else seconds)
    workers = [Worker(mount.path, number, until) for number in range(THREADS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(max(0, until - time.monotonic()) + HANG_SECONDS)
    hanging = [worker.name for worker in workers if worker.is_alive()]
    assert not hanging, f"{hanging} hang"
    failures = [worker.failure for worker in workers if worker.failure]
    if failures:
        raise ExceptionGroup("failures of the workers", [_as_exception(failure) for failure in failures])
    record_testsuite_property(
        f"stress on {kind.value}: operations", sum(worker.done.total() for worker in workers)
    )
    for worker in workers:
        missing = {name for name in _KINDS_OF_WORK if not worker.done[name]}
        assert not missing, f"{worker.name} never did {missing}"
    common = sorted(os.listdir(mount.path / "tree/common"))
    _compare_with_model(mount, workers)
    mount.remount()
    _compare_with_model(mount, workers)
    assert sorted(os.listdir(mount.path / "tree/common")) == common


_KINDS_OF_WORK = ("_create", "_append", "_unlink", "_rename", "_mkdir", "_link_and_unlink", "_read", "_fight")


def _as_exception(failure: BaseException) -> Exception:
    return failure if isinstance(failure, Exception) else RuntimeError(repr(failure))


def _compare_with_model(mount: Mount, workers: list[Worker]) -> None:
    expected: dict[str, object] = {"tree": "directory", "tree/common": "directory"}
    expected |= {f"tree/sub{number}": "directory" for number in range(3)}
    for worker in workers:
        expected |= worker.owned.files
        expected |= {name: ("link", target) for name, target in worker.owned.links.items()}
        expected |= dict.fromkeys(worker.owned.directories, "directory")
    actual = {name: entry for name, entry in _tree(mount.path).items() if "tree/common/" not in name}
    assert actual.keys() == expected.keys()
    different = [name for name, entry in expected.items() if actual[name] != entry]
    assert not different, f"contents differ from the model's: {different}"


def _tree(root: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for directory, subdirectories, files in os.walk(root):
        for name in subdirectories + files:
            path = Path(directory, name)
            inner = str(path.relative_to(root))
            if path.is_symlink():
                found[inner] = ("link", os.readlink(path))
            else:
                found[inner] = "directory" if path.is_dir() else path.read_bytes()
    return found
