"""Where do containers lie, and how do they come and go whole or not at all?

In the store, beside the layers::

    containers/NAME/diff        the upper: what the container changed
    containers/NAME/work        its work directory
    containers/NAME/merged      where the view is mounted while it runs, in a mount namespace of its own
    containers/NAME/init        mount points that the image lacks (see `mount_points`); not always there
    containers/NAME/config      its image's configuration, which may be removed
    containers/NAME/container.json
    containers/NAME/lock        see `occupation`
    containers/.changing        held by who makes or removes one
    pinned/container-NAME       the layers beneath it

A container appears by one rename, after its layers were pinned, and disappears by one. What a killed process
leaves has a name that no container has, or is a pin without a container: whoever makes or removes the next
one clears it away.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from pyoverlay.containers.engine import mount_points, names, occupation
from pyoverlay.containers.engine.record import BindRecord, ContainerError, ContainerRecord
from pyoverlay.containers.engine.settings import Asked, check_text, settle
from pyoverlay.images import catalogue, documents, inspecting, locks
from pyoverlay.images.digests import parse_digest
from pyoverlay.images.implied import Attributes
from pyoverlay.images.removing import remove_tree
from pyoverlay.images.stacking import lower_directories
from pyoverlay.images.store import Store, write_atomically

_UNFINISHED: Final = ".unfinished"
_LEAVING: Final = ".leaving"
_CHANGING: Final = ".changing"
_PIN: Final = "container-"


@dataclass(frozen=True, slots=True)
class Held:
    """A container that nobody else runs, starts or removes meanwhile."""

    record: ContainerRecord
    lock: int


class Containers:
    """The containers of a store."""

    def __init__(self, store: Store) -> None:
        """Name them; nothing is made yet."""
        self.store: Final = store
        self.root: Final = store.root / "containers"

    # Looking

    def names(self) -> list[str]:
        """Return their names, sorted."""
        if not self.root.is_dir():
            return []
        return sorted(path.name for path in self.root.iterdir() if not path.name.startswith("."))

    def directory(self, name: str) -> Path:
        """Return where a container lies."""
        return self.root / name

    def record(self, name: str) -> ContainerRecord:
        """Return what is kept of a container.

        Raises:
            ContainerError: there is no such.
        """
        path = self.directory(names.checked(name)) / "container.json"
        try:
            return documents.decode(path.read_bytes(), ContainerRecord, str(path))
        except FileNotFoundError:
            known = ", ".join(self.names()) or "none"
            raise ContainerError(
                f"there is no container {name!r} in {self.store.root}; there are: {known}"
            ) from None

    def records(self) -> list[ContainerRecord]:
        """Return all of them, the newest first."""
        found = []
        for name in self.names():
            with contextlib.suppress(ContainerError):  # Removed just now.
                found.append(self.record(name))
        return sorted(found, key=lambda record: (-record.created, record.name))

    def runner(self, name: str) -> int | None:
        """Return the process that runs a container, see `occupation.runner`."""
        return occupation.runner(self.directory(name) / "lock")

    def upper(self, name: str) -> Path:
        """Return the directory with what a container changed."""
        return self.directory(name) / "diff"

    def lowers(self, record: ContainerRecord) -> list[Path]:
        """Return the directories beneath that, topmost first.

        Raises:
            ImageError: a layer is missing.
        """
        init = self.directory(record.name) / "init"
        layers = lower_directories(self.store, [parse_digest(layer) for layer in record.layers])
        return [init, *layers] if init.is_dir() else layers

    # Changing

    def write(self, record: ContainerRecord) -> None:
        """Keep what has changed of a container that is held."""
        document = msgspec.json.format(documents.encode(record), indent=2)
        write_atomically(self.directory(record.name) / "container.json", document)

    @contextlib.contextmanager
    def made(
        self, image: str, asked: Asked, *, name: str | None = None, binds: Sequence[BindRecord] = ()
    ) -> Iterator[Held]:
        """Make a container, and hold it.

        Args:
            image: a name of its image, or the beginning of its ID.
            asked: how it is to run.
            name: what it is called; None finds a name.
            binds: what it sees of the host.

        Raises:
            ContainerError: the name is no name, or taken; there is nothing to run.
            ImageError: there is no such image; a layer is missing.
        """
        if name is not None:
            names.checked(name)
        for bind in binds:
            check_text(bind.source)
            check_text(bind.target)
        image_id = catalogue.find_image(self.store, image)
        with contextlib.ExitStack() as resources:
            with self.store.adding(), self._changing():
                layers = inspecting.layers_of(self.store, image_id)
                if not layers:
                    raise ContainerError(f"image {image} has no layers: there is nothing in it to run")
                config = self.store.config_bytes(image_id)
                record = ContainerRecord(
                    name=self._free_name(name, image),
                    image=image,
                    image_id=image_id,
                    layers=list(layers),
                    created=time.time_ns(),
                    settings=settle(self.store.config(image_id).config, asked),
                    binds=list(binds),
                )
                unfinished = self._fill(record, config)
                lock = resources.enter_context(occupation.hold(unfinished / "lock"))
                self.store.pin(_PIN + record.name, layers)
                unfinished.rename(self.directory(record.name))
            yield Held(record, lock)

    @contextlib.contextmanager
    def held(self, name: str, *, shared: bool = False, kill: bool = False) -> Iterator[Held]:
        """Hold a container that doesn't run, see `occupation.hold`."""
        self.record(name)
        with occupation.hold(self.directory(name) / "lock", shared=shared, kill=kill) as lock:
            yield Held(self.record(name), lock)

    def remove(self, held: Held) -> None:
        """Remove a container that is held exclusively, with all that it changed."""
        with self._changing():
            self.directory(held.record.name).rename(self.root / _LEAVING)
            self._clear()

    # Inside

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Keep others from making and removing containers, once what a killed process left is gone."""
        self.store.prepare()
        self.root.mkdir(mode=0o700, exist_ok=True)
        with locks.locked(self.root / _CHANGING):
            self._clear()
            yield

    def _clear(self) -> None:
        for name in (_UNFINISHED, _LEAVING):
            remove_tree(self.root / name)
        known = {_PIN + name for name in self.names()}
        for pin in self.store.pins():
            if pin.startswith(_PIN) and pin not in known:
                self.store.unpin(pin)

    def _free_name(self, name: str | None, image: str) -> str:
        taken = self.names()
        if name is None:
            return names.after_image(image, taken)
        if name in taken:
            raise ContainerError(
                f"there is a container {name} already: remove it, start it again, or choose another name"
            )
        return name

    def _fill(self, record: ContainerRecord, config: bytes) -> Path:
        """Make a container's directory under the name of an unfinished one."""
        directory = self.root / _UNFINISHED
        directory.mkdir(mode=0o711)
        for name in ("diff", "work", "merged"):
            (directory / name).mkdir(mode=0o700)
        lowers = self.lowers(record)
        top = os.open(lowers[0], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # The root of the view has the attributes of the upper, which should be the image's.
            attributes = Attributes.of(top)
        finally:
            os.close(top)
        attributes.apply(os.fsencode(directory / "diff"))
        mount_points.make(directory / "init", lowers, attributes)
        (directory / "config").write_bytes(config)
        document = msgspec.json.format(documents.encode(record), indent=2)
        (directory / "container.json").write_bytes(document)
        (directory / "lock").touch(mode=0o600)
        return directory
