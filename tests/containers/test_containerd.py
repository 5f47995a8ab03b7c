"""Do containerd and runc run containers whose root is pyoverlay's?  With Debian's containerd 1.6."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.containers.containerd_client import Client, mounted
from tests.containers.containerd_daemon import Containerd
from tests.containers.containerd_image import File, base_layer, write_image
from tests.harness import snapshot
from tests.mount.command import mounts_below, wait_for

IMAGE = "test/small:1"
LAYERS = (
    base_layer()
    | {
        "d": File(),
        "d/f": File(b"old f\n", mode=0o644),
        "d/g": File(b"old g\n", mode=0o644),
        "gone": File(b"gone\n", mode=0o644),
        "opt": File(),
        "opt/suid": File(b"", mode=0o4711, owner=(5, 6)),
    },
    # What containerd gets from a registry: whiteouts as files.
    {
        "d": File(mode=0o700),
        "d/.wh..wh..opq": File(b"", mode=0o644),
        "d/g": File(b"new g\n", mode=0o644),
        ".wh.gone": File(b"", mode=0o644),
    },
    {"d": File(mode=0o700), "d/h": File(b"h\n", mode=0o600, owner=(7, 8))},
)


@pytest.fixture(scope="module")
def containerd() -> Iterator[Containerd]:
    """A containerd with the image `IMAGE`."""
    base = Path(tempfile.mkdtemp(prefix="ctd-"))
    # The root of a container's user namespace passes through.
    base.chmod(0o711)
    try:
        write_image(base / "image.tar", IMAGE, LAYERS)
        with Containerd(base) as running:
            running("images", "import", base / "image.tar")
            yield running
    finally:
        shutil.rmtree(base)


def test_a_containers_root_is_pyoverlays(containerd: Containerd) -> None:
    table = containerd.run_in(IMAGE, "mount").splitlines()
    assert [line.split()[4] for line in table if " on / " in line] == ["fuse.pyoverlay"]
    wait_for(lambda: not containerd.mount_daemons())
    assert mounts_below(containerd.base) == []


def test_layers_are_unpacked_as_they_are_meant(containerd: Containerd) -> None:
    script = "find /d /opt | while read p; do stat -c '%A %u %g %n' $p; done; cat /d/g; ls /gone 2>&1 || true"
    assert sorted(containerd.run_in(IMAGE, script).splitlines()) == sorted(
        [
            "drwx------ 0 0 /d",
            "-rw-r--r-- 0 0 /d/g",
            "-rw------- 7 8 /d/h",
            "drwxr-xr-x 0 0 /opt",
            "-rws--x--x 5 6 /opt/suid",
            "new g",
            "ls: /gone: No such file or directory",
        ]
    )
    with containerd.shown(IMAGE) as root:
        assert {b"bin", b"d", b"opt"} < snapshot(root).keys()
    # Nothing was mounted for that: a mount leaves something in the work directory.
    works = (containerd.snapshotter.root / "snapshots").glob("[123]/work")
    assert [list(work.iterdir()) for work in works] == [[], [], []]
    chain = containerd.snapshots()
    committed = {name: parent for name, (parent, kind) in chain.items() if kind == "Committed"}
    assert len(committed) == 3
    assert sorted(map(bool, committed.values())) == [False, True, True]


def test_containers_change_files_of_their_own(containerd: Containerd) -> None:
    with containerd.container(IMAGE) as one, containerd.container(IMAGE) as other:
        containerd.execute(one, "rm -r /d && mkdir /d && echo mine > /d/x && mv /opt/suid /opt/moved")
        assert containerd.execute(one, "cd /d && echo * /opt/*; cat x") == "x /opt/moved\nmine\n"
        assert containerd.execute(other, "cd /d && echo *; cat g") == "g h\nnew g\n"
        size, inodes = _usage(containerd, one)
        assert inodes >= 4
        assert size > 0


def _usage(containerd: Containerd, name: str) -> tuple[int, int]:
    """Only whether it is told; the figures are the snapshotter's own tests' matter."""
    (line,) = containerd("snapshots", "usage", "-b", name).splitlines()[1:]
    _name, size, inodes = line.split()
    return int(size), int(inodes)


def test_what_changed_in_a_running_container(containerd: Containerd) -> None:
    with containerd.container(IMAGE) as name:
        containerd.execute(name, "echo changed > /d/g; rm /d/h; mkdir /new && echo n > /new/n")
        stream = io.BytesIO(containerd.run("snapshots", "diff", name).stdout)
        with tarfile.open(fileobj=stream, mode="r:gz") as tar:
            names = {entry.name.rstrip("/") for entry in tar}
            content = tar.extractfile("d/g")
            assert content is not None
            assert content.read() == b"changed\n"
        # runc makes its mount points in the root.
        assert names - {"dev", "proc", "run", "sys"} == {"d", "d/g", "d/.wh.h", "new", "new/n"}
        # It ran on meanwhile, and still writes.
        assert containerd.execute(name, "echo more >> /d/g; cat /d/g") == "changed\nmore\n"


def test_a_user_namespace_with_shifted_ids(containerd: Containerd) -> None:
    maps = ["--uidmap=0:100000:65536", "--gidmap=0:200000:65536", "--remap-labels"]
    script = "cat /proc/self/uid_map; stat -c '%u %g' /opt/suid /d/h; touch /made; stat -c '%u %g' /made"
    with containerd.container(IMAGE, "sleep 1000", *maps) as name:
        assert containerd.execute(name, script).split() == [
            *("0", "100000", "65536"),
            *("5", "6"),
            *("7", "8"),
            *("0", "0"),
        ]
        (made,) = (containerd.snapshotter.root / "snapshots").glob("*/fs/made")
        # In the layer, ids are those that an unshifted container would have.
        assert (made.stat().st_uid, made.stat().st_gid) == (0, 0)


def test_a_task_is_started_again_at_once(containerd: Containerd) -> None:
    with containerd.container(IMAGE) as name:
        for number in range(3):
            containerd.execute(name, f"echo {number} >> /count")
            containerd("tasks", "rm", "--force", name)
            containerd("tasks", "start", "--detach", name)
        assert containerd.execute(name, "cat /count") == "0\n1\n2\n"


def test_a_committed_container_is_a_parent(containerd: Containerd) -> None:
    with containerd.container(IMAGE, "rm -rf /d && mkdir /d && echo new > /d/g && echo done > /done") as name:
        wait_for(lambda: "STOPPED" in containerd("tasks", "ls"))
        containerd("snapshots", "commit", "committed", name)
    containerd("snapshots", "prepare", "child", "committed")
    assert containerd.snapshots()["child"] == ("committed", "Active")
    with contextlib.closing(Client(containerd.snapshotter.address)) as client:
        (child,) = client.names("name~=/child$/")
        with mounted(client.mounts(child), containerd.base / "child") as root:
            assert (root / "done").read_text() == "done\n"
            assert os.listdir(root / "d") == ["g"]
            assert (root / "d/g").read_text() == "new\n"
    containerd("snapshots", "rm", "child")
    containerd("snapshots", "rm", "committed")


def test_containers_outlive_the_snapshotter(containerd: Containerd) -> None:
    with containerd.container(IMAGE) as name:
        containerd.snapshotter.kill()
        assert containerd.execute(name, "echo alive > /x && cat /x") == "alive\n"
        containerd.snapshotter.start()
        assert containerd.execute(name, "cat /x") == "alive\n"
        # It is found again, by itself.
        wait_for(lambda: containerd.run("snapshots", "usage", name).returncode == 0)
    wait_for(lambda: not containerd.mount_daemons())


def test_many_at_once(containerd: Containerd, long: bool) -> None:
    """Over shared lowers, started and stopped again and again for two minutes in the long form."""
    at_once, end = (20, time.monotonic() + 120) if long else (6, time.monotonic())

    def run(number: int) -> int:
        rounds = 0
        while rounds == 0 or time.monotonic() < end:
            # It looks itself: of what many print at once, ctr loses an end now and then.
            changes = f"echo {number} >> /d/g && rm /d/h && mkdir /d/{number}"
            shown = f"new g {number} {number} g"
            containerd.run_in(IMAGE, f'{changes} && test "$(echo $(cat /d/g) $(ls /d))" = "{shown}"')
            rounds += 1
        return rounds

    descriptors = _descriptors(containerd)
    with ThreadPoolExecutor(at_once) as pool:
        rounds = sum(pool.map(run, range(at_once)))
    print(f"{rounds} containers")
    wait_for(lambda: not containerd.mount_daemons())
    assert mounts_below(containerd.base) == []
    containerd.collect_garbage()
    assert containerd.kept() == sorted(containerd.snapshots())
    assert len(containerd.snapshots()) == containerd.directories() == len(LAYERS)
    wait_for(lambda: _descriptors(containerd) <= descriptors)


def _descriptors(containerd: Containerd) -> int:
    """How many descriptors the snapshotter has open."""
    return len(os.listdir(f"/proc/{containerd.snapshotter.pid}/fd"))


def test_removing_everything_leaves_nothing(base: Path) -> None:
    write_image(base / "image.tar", IMAGE, LAYERS)
    with Containerd(base) as containerd:
        containerd("images", "import", base / "image.tar")
        with containerd.container(IMAGE):
            assert len(containerd.kept()) == containerd.directories() == 4
        containerd("images", "rm", "--sync", IMAGE)
        assert containerd.snapshots() == {}
        assert containerd.kept() == []
        assert containerd.directories() == 0
