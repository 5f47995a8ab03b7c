"""Does the snapshotter keep to the API that containerd asks it through, and to its own life?

With a process of its own and a real client, but without containerd.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import stat
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import grpc
import pytest

from pyoverlay.containers.snapshotter.protocol import snapshots_pb2 as api
from tests.containers.containerd_client import Client, Process, mounted
from tests.harness import snapshot
from tests.mount.command import LIMIT_SECONDS, mounts_below, processes_naming, pyoverlay, wait_for


@pytest.fixture
def process(base: Path) -> Iterator[Process]:
    """A snapshotter that runs."""
    started = Process(base)
    try:
        started.start()
        yield started
    finally:
        started.remove()


@pytest.fixture
def client(process: Process) -> Iterator[Client]:
    """Who asks it."""
    asking = Client(process.address)
    yield asking
    asking.close()


@contextlib.contextmanager
def refused(code: grpc.StatusCode, text: str) -> Iterator[None]:
    with pytest.raises(grpc.RpcError) as caught:
        yield
    answer = cast("grpc.Call", caught.value)
    assert answer.code() is code
    assert text in (answer.details() or "")


# The API


def test_layers_are_filled_committed_and_shown(client: Client, base: Path) -> None:
    with mounted(client.prepare("a"), base / "a") as root:
        (root / "d").mkdir()
        (root / "d/old").write_text("old")
        (root / "gone").write_text("gone")
    client.commit("one", "a")
    with mounted(client.prepare("b", "one"), base / "b") as root:
        (root / "d/old").unlink()
        (root / "d").rmdir()
        (root / "d").mkdir()
        (root / "d/new").write_text("new")
        (root / "gone").unlink()
    client.commit("two", "b")
    with mounted(client.prepare("c", "two"), base / "c") as root:
        (root / "mine").write_text("mine")
        client.prepare("other", "two")
        with mounted(client.mounts("other"), base / "other") as other:
            assert sorted(os.listdir(other)) == ["d"]
    with mounted(client.view("v", "two"), base / "v") as root:
        assert sorted(os.listdir(root)) == ["d"]
        assert (root / "d/new").read_text() == "new"
        assert os.listdir(root / "d") == ["new"]
        with pytest.raises(OSError, match="Read-only"):
            (root / "x").touch()
    with mounted(client.view("first", "one"), base / "first") as root:
        assert sorted(os.listdir(root)) == ["d", "gone"]
        with pytest.raises(OSError, match="Read-only"):
            (root / "x").touch()


def test_what_is_told_about_snapshots(client: Client) -> None:
    before = time.time()
    client.prepare("a", labels={"x": "1"})
    active = client.stat("a")
    assert (active.name, active.parent, active.kind, dict(active.labels)) == ("a", "", api.ACTIVE, {"x": "1"})
    assert before - 1 < active.created_at.ToNanoseconds() / 1e9 < time.time() + 1
    assert active.created_at == active.updated_at
    client.commit("one", "a", {"y": "2"})
    committed = client.stat("one")
    assert (committed.kind, dict(committed.labels)) == (api.COMMITTED, {"y": "2"})
    client.view("v", "one")
    assert (client.stat("v").kind, client.stat("v").parent) == (api.VIEW, "one")
    committed.labels["z"] = "3"
    committed.labels["y"] = "ignored"
    assert dict(client.update(committed, "labels.z").labels) == {"y": "2", "z": "3"}
    assert dict(client.update(api.Info(name="one")).labels) == {}
    assert client.usage("v") == (0, 0)
    size, inodes = client.usage("one")
    assert size >= 0 and inodes == 1


def test_listing_comes_in_batches(client: Client) -> None:
    client.prepare("base")
    client.commit("base layer", "base")
    for number in range(230):
        client.view(f"view {number:03}", "base layer")
    batches = client.batches()
    assert [len(batch) for batch in batches] == [100, 100, 31]
    assert [info.name for batch in batches for info in batch] == client.names()
    assert client.names("kind==committed") == ["base layer"]
    assert client.names('name~=/00[12]$/,parent=="base layer"', "kind==active") == ["view 001", "view 002"]
    assert client.batches("kind==nothing") == []


def test_refusals_have_the_codes_that_containerd_knows(client: Client) -> None:
    client.prepare("a")
    client.commit("one", "a")
    client.prepare("b", "one")
    for ask in (client.stat, client.mounts, client.remove, client.usage):
        with refused(grpc.StatusCode.NOT_FOUND, "'nobody' doesn't exist"):
            ask("nobody")
    with refused(grpc.StatusCode.NOT_FOUND, "'nobody'"):
        client.commit("two", "nobody")
    with refused(grpc.StatusCode.NOT_FOUND, "'nobody'"):
        client.view("v", "nobody")
    with refused(grpc.StatusCode.NOT_FOUND, "'nobody'"):
        client.update(api.Info(name="nobody"))
    with refused(grpc.StatusCode.ALREADY_EXISTS, "'b' exists"):
        client.prepare("b", "one")
    with refused(grpc.StatusCode.ALREADY_EXISTS, "'one' exists"):
        client.commit("one", "b")
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "parent of 'b'"):
        client.remove("one")
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "committed"):
        client.mounts("one")
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "isn't committed"):
        client.prepare("c", "b")
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "key is empty"):
        client.prepare("")
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "kind"):
        client.update(api.Info(name="one"), "kind")
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "operator"):
        client.names("name=one")
    assert client.names() == ["b", "one"]


def test_what_nobody_foresaw_is_told_and_logged(client: Client, process: Process) -> None:
    client.prepare("a")
    subprocess.run(["rm", "-r", process.root / "snapshots/1"], check=True)
    with refused(grpc.StatusCode.UNKNOWN, f"{process.root}/snapshots/1/fs"):
        client.commit("one", "a")
    assert "snapshots/1/fs" in process.log.read_text()


def test_many_ask_at_once(process: Process) -> None:
    def ask(number: int) -> str:
        client = Client(process.address)
        try:
            client.prepare(f"mine {number}")
            client.commit(f"my layer {number}", f"mine {number}")
            client.prepare("ours")
            return "won"
        except grpc.RpcError as error:
            return str(cast("grpc.Call", error).details())
        finally:
            client.close()

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(32)))
    assert answers.count("won") == 1
    assert answers.count("pyoverlay: snapshot 'ours' exists already") == 31
    client = Client(process.address)
    assert client.names() == sorted([f"my layer {number}" for number in range(32)] + ["ours"])
    client.clean_up()
    assert len(os.listdir(process.root / "snapshots")) == 33
    client.close()


def test_who_gave_up_may_ask_again(client: Client, process: Process) -> None:
    """A request that its own caller cancelled is forgotten by containerd, which gives the key out again."""
    with contextlib.closing(sqlite3.connect(process.root / "metadata.db", isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        with refused(grpc.StatusCode.DEADLINE_EXCEEDED, ""):
            client.prepare("a", seconds=0.5)
        database.execute("ROLLBACK")
    wait_for(lambda: client.names() == ["a"])

    def is_prepared() -> bool:
        with contextlib.suppress(grpc.RpcError):
            return client.prepare("a").type == "bind"
        return False

    wait_for(is_prepared)
    with refused(grpc.StatusCode.ALREADY_EXISTS, "'a' exists"):
        client.prepare("a")


def test_further_mounts_of_what_is_written_to_are_read_only(client: Client, base: Path) -> None:
    client.prepare("a")
    client.commit("one", "a")
    mount = client.prepare("b", "one")
    assert client.mounts("b") == mount
    with mounted(mount, base / "b") as root:
        (root / "x").write_text("x")
        second = client.mounts("b")
        assert [*second.options] == [*mount.options, "ro"]
        with mounted(second, base / "second") as again:
            assert snapshot(again) == snapshot(root)
            with pytest.raises(OSError, match="Read-only"):
                (again / "x").unlink()
    # Also while the daemon of the mount that has just gone is about to end.
    assert client.mounts("b") == mount
    with mounted(mount, base / "third") as root:
        (root / "x").unlink()
    wait_for(lambda: not processes_naming(f"{base}/pyoverlay overlay"))
    assert mounts_below(base) == []


def test_cleaning_up_stops_before_what_is_mounted(client: Client, process: Process, base: Path) -> None:
    client.prepare("a")
    client.prepare("b")
    (base / "precious").mkdir()
    (base / "precious/file").write_text("precious")
    place = process.root / "snapshots/1/fs/d"
    place.mkdir()
    subprocess.run(["mount", "--bind", base / "precious", place], check=True)
    try:
        client.remove("a")
        client.remove("b")
        client.clean_up()
        assert (base / "precious/file").read_text() == "precious"
        assert os.listdir(process.root / "snapshots") == ["1"]
        assert "snapshots/1 can't be removed yet" in process.log.read_text()
    finally:
        subprocess.run(["umount", place], check=True)
    client.clean_up()
    assert os.listdir(process.root / "snapshots") == []


def _prepare_many(client: Client) -> None:
    for number in range(1000):
        client.prepare(f"{number}", labels={"label": "x" * 4000})


def test_a_full_disk(base: Path) -> None:
    process = Process(base)
    process.root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", process.root], check=True)
    try:
        process.start()
        with contextlib.closing(Client(process.address)) as client:
            client.prepare("first")
            with (process.root / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
                while True:
                    filler.write(bytes(4096))
            with refused(grpc.StatusCode.UNKNOWN, "full"):
                _prepare_many(client)
            kept = client.names()
            (process.root / "filler").unlink()
            client.prepare("at last")
            assert client.names() == sorted([*kept, "at last"])
            client.clean_up()
            assert len(os.listdir(process.root / "snapshots")) == len(kept) + 1
        assert process.end() == 0
    finally:
        process.remove()
        subprocess.run(["umount", process.root], check=True)


# Its life


def test_a_killed_one_is_replaced_with_its_socket(client: Client, process: Process) -> None:
    client.prepare("a")
    client.commit("one", "a")
    client.prepare("b", "one")
    client.remove("b")
    (process.root / "snapshots/99/fs").mkdir(parents=True)
    process.kill()
    assert process.address.is_socket()
    process.start()
    assert os.listdir(process.root / "snapshots") == ["1"]
    again = Client(process.address)
    assert again.names() == ["one"]
    again.prepare("b", "one")
    again.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it(process: Process, number: signal.Signals) -> None:
    assert process.end(number) == 0
    assert not process.address.exists()
    assert "Traceback" not in process.log.read_text()


def test_only_root_asks_it(process: Process) -> None:
    status = process.address.stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o600)
    assert stat.S_IMODE(process.root.stat().st_mode) == 0o700


def test_the_service_manager_is_told_when_it_is_ready(base: Path) -> None:
    process = Process(base)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"{base}/notify")
        manager.settimeout(LIMIT_SECONDS)
        try:
            process.start(NOTIFY_SOCKET=f"{base}/notify")
            assert manager.recv(100) == b"READY=1"
            assert process.end() == 0
            assert manager.recv(100) == b"STOPPING=1"
        finally:
            process.remove()


def refuse(root: Path, address: Path, *more: str) -> str:
    words = ["snapshotter", "--root", str(root), "--address", str(address), "--program", "pyoverlay", *more]
    result = pyoverlay(*words)
    assert (result.returncode, result.stdout) == (1, b"")
    lines = result.stderr.decode().splitlines()
    assert lines[-1].startswith("pyoverlay: ")
    assert "Traceback" not in result.stderr.decode()
    return lines[-1]


def test_what_another_one_has_is_refused(process: Process, base: Path) -> None:
    assert f"another snapshotter uses the root {process.root}" in refuse(process.root, base / "other.sock")
    assert f"another process listens on {process.address}" in refuse(base / "other", process.address)
    assert process.address.is_socket()
    client = Client(process.address)
    client.prepare("a")
    client.close()


def test_an_address_that_is_no_socket_is_refused(base: Path) -> None:
    (base / "file").write_text("precious")
    assert "no socket" in refuse(base / "root", base / "file")
    assert (base / "file").read_text() == "precious"
    assert "can't be used" in refuse(base / "root", base / "file/sock")
    assert "can't be" in refuse(base / "root", base / ("x" * 200))
    assert "can't be used" in refuse(base / "file", base / "sock")
