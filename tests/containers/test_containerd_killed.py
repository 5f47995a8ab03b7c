"""Is nothing lost, doubled or left over when the snapshotter is killed at any moment?

It is killed with SIGKILL during pulls (an image is imported and unpacked, which is all of a pull but the
network), commits of containers and removals, and started again at once, as a service manager does.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.containers.containerd_client import Client, mounted
from tests.containers.containerd_daemon import Containerd
from tests.containers.containerd_image import File, Layer, base_layer, write_image
from tests.mount.command import mounts_below, wait_for

KILLS = 6
KILLS_OF_LONG_FORM = 50
IMAGES = 3


@pytest.fixture
def containerd() -> Iterator[Containerd]:
    """A containerd without images."""
    base = Path(tempfile.mkdtemp(prefix="ctd-"))
    try:
        with Containerd(base) as running:
            yield running
    finally:
        shutil.rmtree(base)


class World:
    """What there should be, and what is done to it."""

    def __init__(self, containerd: Containerd, dice: random.Random) -> None:
        self.containerd = containerd
        self.dice = dice
        self.images = {f"test/{number}:1": _layers(number) for number in range(IMAGES)}
        self.pulled: set[str] = set()
        self.committed: dict[str, str] = {}
        """Name of a committed snapshot -> the image that it is on."""
        for number, (name, layers) in enumerate(self.images.items()):
            write_image(self._archive(number), name, layers)

    def _archive(self, number: int) -> Path:
        return self.containerd.base / f"image-{number}.tar"

    def operations(self) -> list[Callable[[], None]]:
        """What can be done now."""
        found: list[Callable[[], None]] = []
        if len(self.pulled) < IMAGES:
            found.append(self.pull)
        if self.pulled:
            found += [self.commit, self.remove]
        return found

    def pull(self) -> None:
        """Import and unpack an image."""
        name = self.dice.choice(sorted(self.images.keys() - self.pulled))
        archive = self._archive(list(self.images).index(name))
        self.containerd.insist("images", "import", archive)
        self.pulled.add(name)

    def commit(self) -> None:
        """Run a container, commit its snapshot, remove the container."""
        image = self.dice.choice(sorted(self.pulled))
        name = self.containerd.new_name()
        label = f"committed-{name}"
        script = f"echo {label} > /label; rm -r /d; mkdir /d; echo new > /d/g"

        def clear_away() -> None:
            self._remove_container(name)

        self.containerd.insist("run", image, name, "/bin/sh", "-ec", script, between=clear_away)
        self.containerd.insist("snapshots", "commit", label, name)
        self._remove_container(name)
        self.committed[label] = image

    def _remove_container(self, name: str) -> None:
        if name in self.containerd("containers", "ls", "--quiet").split():
            self.containerd.run("tasks", "rm", "--force", name)
            self.containerd.insist("containers", "rm", name)

    def remove(self) -> None:
        """Remove an image, and what was committed on it."""
        image = self.dice.choice(sorted(self.pulled))
        for label in [label for label, below in self.committed.items() if below == image]:
            self.containerd.insist("snapshots", "rm", label)
            del self.committed[label]
        if image in self.containerd("images", "ls", "--quiet").split():
            self.containerd.insist("images", "rm", "--sync", image)
        self.pulled.discard(image)

    # What there should be

    def check(self) -> None:
        """Nothing is mounted; every snapshot is there once, and has a directory."""
        containerd = self.containerd
        wait_for(lambda: mounts_below(containerd.base) == [] and not containerd.mount_daemons())
        self._collect_garbage()
        expected = dict.fromkeys(self.committed, "Committed")
        known = containerd.snapshots()
        assert expected.items() <= {name: kind for name, (_, kind) in known.items()}.items()
        wanted = len({tuple(map(id, layers[:depth])) for layers in self._layers() for depth in (1, 2, 3)})
        assert len(known) == wanted + len(self.committed)
        assert sorted(known) == containerd.kept()
        assert containerd.directories() == len(known)

    def _layers(self) -> list[list[Layer]]:
        used = self.pulled | set(self.committed.values())
        return [self.images[name] for name in used]

    def _collect_garbage(self) -> None:
        # What an answer that was lost left is known for garbage at the second look at the latest.
        self.containerd.collect_garbage()
        self.containerd.collect_garbage()

    def check_content(self) -> None:
        """All files of images and of what was committed are there."""
        for image in self.pulled:
            with self.containerd.shown(image) as root:
                _check_files(root, self.images[image])
        with contextlib.closing(Client(self.containerd.snapshotter.address)) as client:
            for label, image in self.committed.items():
                (name,) = client.names(f"name~=|{label}$|")
                with mounted(client.view(f"look at {label}", name), self.containerd.base / label) as root:
                    assert (root / "label").read_text() == f"{label}\n"
                    assert [path.name for path in (root / "d").iterdir()] == ["g"]
                    _check_files(root, self.images[image], but="d/")
                client.remove(f"look at {label}")

    def remove_everything(self) -> None:
        """Nothing is left of anything."""
        while self.pulled:
            self.remove()
        self._collect_garbage()
        assert self.containerd.snapshots() == {}
        assert self.containerd.kept() == []
        assert self.containerd.directories() == 0


def _layers(number: int) -> list[Layer]:
    dice = random.Random(number)
    files = {f"d/{index}": File(dice.randbytes(dice.randrange(20_000)), mode=0o644) for index in range(40)}
    more = {f"e{number}/{index}": File(dice.randbytes(100), mode=0o600) for index in range(20)}
    return [_BASE, {"d": File(), **files}, {f"e{number}": File(), **more}]


_BASE = base_layer()


def _check_files(root: Path, layers: list[Layer], but: str = "nothing") -> None:
    for layer in layers:
        for name, file in layer.items():
            if file.content is not None and not name.startswith(but):
                assert (root / name).read_bytes() == file.content, name


def test_killed_at_any_moment(containerd: Containerd, long: bool) -> None:
    seed = random.SystemRandom().randrange(10**6)
    print(f"the seed is {seed}")
    dice = random.Random(seed)
    world = World(containerd, dice)
    took = _take_times(world)
    world.check()
    kills = Counter[str]()
    while kills.total() < (KILLS_OF_LONG_FORM if long else KILLS):
        operation = dice.choice(world.operations())
        with _running(operation):
            # Beyond what it takes: the last steps are the interesting ones.
            time.sleep(dice.uniform(0, 1.2 * took[operation.__name__]))
            containerd.snapshotter.kill()
            containerd.snapshotter.start()
        kills[operation.__name__] += 1
        world.check()
    world.check_content()
    world.remove_everything()
    print(f"killed during: {dict(kills)}")


def _take_times(world: World) -> dict[str, float]:
    """How many seconds each operation takes when nobody is killed; for which there are images then."""
    took = {}
    for operation in (world.pull, world.pull, world.commit, world.remove):
        begin = time.monotonic()
        operation()
        took[operation.__name__] = time.monotonic() - begin
    return took


@contextlib.contextmanager
def _running(operation: Callable[[], None]) -> Iterator[None]:
    """Run it beside the block, and raise what it raises."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            operation()
        except BaseException as failure:  # noqa: BLE001 - raised below
            failures.append(failure)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if failures:
        raise failures[0]
