"""How does a test ask a snapshotter what containerd asks it, and how is its process started and killed?"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar, cast

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from pyoverlay.containers.snapshotter.protocol import mount_pb2
from pyoverlay.containers.snapshotter.protocol import snapshots_pb2 as api
from tests.containers.mount_program import write_mount_program
from tests.mount.command import LIMIT_SECONDS, wait_for

Response = TypeVar("Response", bound=Message)


class Process:
    """A snapshotter's process, which may be killed and started again."""

    def __init__(self, base: Path, root: Path | None = None) -> None:
        """Keep root (unless another one is given), socket and log below `base`."""
        self.root = root or base / "snapshotter"
        self.address = base / "snapshotter.sock"
        self.log = base / "snapshotter.log"
        self.program = write_mount_program(base, "pyoverlay")
        self._running: subprocess.Popen[bytes] | None = None

    def start(self, **variables: str) -> None:
        """Start it, and wait until it listens."""
        with self.log.open("ab") as log:
            self._running = subprocess.Popen(
                [self.program, "snapshotter", "--root", self.root, "--address", self.address],
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        running = self._running
        wait_for(lambda: running.poll() is not None or self._listens())
        assert running.poll() is None, self.log.read_text()

    def _listens(self) -> bool:
        with grpc.insecure_channel(f"unix:{self.address}") as channel:
            try:
                grpc.channel_ready_future(channel).result(timeout=0.2)
            except grpc.FutureTimeoutError:
                return False
        return True

    def kill(self) -> None:
        """End it with SIGKILL."""
        assert self._running is not None
        self._running.kill()
        self._running.wait()

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it with a signal, and return its exit status."""
        assert self._running is not None
        self._running.send_signal(number)
        return self._running.wait(timeout=LIMIT_SECONDS)

    @property
    def pid(self) -> int:
        """Of the process that was started last."""
        assert self._running is not None
        return self._running.pid

    def remove(self) -> None:
        """See to it that it has ended."""
        if self._running is not None:
            self.kill()


class Client:
    """Asks a snapshotter; what it refuses raises grpc.RpcError."""

    def __init__(self, address: Path) -> None:
        """Ask the one that listens at `address`."""
        self._channel = grpc.insecure_channel(f"unix:{address}")

    def close(self) -> None:
        """Let go of the connection."""
        self._channel.close()

    def _ask(
        self, method: str, request: Message, response: type[Response], seconds: float = LIMIT_SECONDS
    ) -> Response:
        call = self._channel.unary_unary(
            f"/containerd.services.snapshots.v1.Snapshots/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response.FromString,
        )
        return cast("Response", call(request, timeout=seconds))

    def prepare(
        self,
        key: str,
        parent: str = "",
        labels: Mapping[str, str] | None = None,
        *,
        seconds: float = LIMIT_SECONDS,
    ) -> mount_pb2.Mount:
        """Prepare an active snapshot, or give up after some `seconds`; return the one mount."""
        request = api.PrepareSnapshotRequest(key=key, parent=parent, labels=labels)
        (mount,) = self._ask("Prepare", request, api.PrepareSnapshotResponse, seconds).mounts
        return mount

    def view(self, key: str, parent: str = "") -> mount_pb2.Mount:
        """Make a view; return the one mount."""
        (mount,) = self._ask(
            "View", api.ViewSnapshotRequest(key=key, parent=parent), api.ViewSnapshotResponse
        ).mounts
        return mount

    def mounts(self, key: str) -> mount_pb2.Mount:
        """Return the one mount of an active snapshot or a view."""
        (mount,) = self._ask("Mounts", api.MountsRequest(key=key), api.MountsResponse).mounts
        return mount

    def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None) -> None:
        """Commit an active snapshot."""
        self._ask("Commit", api.CommitSnapshotRequest(name=name, key=key, labels=labels), Empty)

    def remove(self, key: str) -> None:
        """Remove a snapshot."""
        self._ask("Remove", api.RemoveSnapshotRequest(key=key), Empty)

    def stat(self, key: str) -> api.Info:
        """Return what is told about a snapshot."""
        return self._ask("Stat", api.StatSnapshotRequest(key=key), api.StatSnapshotResponse).info

    def update(self, info: api.Info, *fields: str) -> api.Info:
        """Change labels."""
        request = api.UpdateSnapshotRequest(info=info, update_mask=FieldMask(paths=fields))
        return self._ask("Update", request, api.UpdateSnapshotResponse).info

    def usage(self, key: str) -> tuple[int, int]:
        """Return bytes and inodes."""
        answer = self._ask("Usage", api.UsageRequest(key=key), api.UsageResponse)
        return answer.size, answer.inodes

    def clean_up(self) -> None:
        """Free what removed snapshots took."""
        self._ask("Cleanup", api.CleanupRequest(), Empty)

    def batches(self, *filters: str) -> list[list[api.Info]]:
        """List snapshots as they come, in batches."""
        call = self._channel.unary_stream(
            "/containerd.services.snapshots.v1.Snapshots/List",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=api.ListSnapshotsResponse.FromString,
        )
        return [
            list(batch.info)
            for batch in call(api.ListSnapshotsRequest(filters=filters), timeout=LIMIT_SECONDS)
        ]

    def names(self, *filters: str) -> list[str]:
        """List the snapshots' names."""
        return [info.name for batch in self.batches(*filters) for info in batch]


@contextlib.contextmanager
def mounted(mount: mount_pb2.Mount, target: Path) -> Iterator[Path]:
    """Mount at `target`, made for it, as containerd does (mount/mount_linux.go), and unmount afterwards."""
    target.mkdir()
    if mount.type == "bind":
        words = ["mount", "--bind", "-o", ",".join({*mount.options} - {"rbind"}), mount.source, str(target)]
    else:
        helper, _, program = mount.type.partition(".")
        options = [word for option in mount.options for word in ("-o", option)]
        words = [f"mount.{helper}", mount.source, str(target), *options, "-t", program]
    subprocess.run(words, check=True, timeout=LIMIT_SECONDS, capture_output=True)
    try:
        yield target
    finally:
        subprocess.run(["umount", target], check=True, timeout=LIMIT_SECONDS)
