"""Do many containers at once, over the same lowers, start and stop again and again with nothing left?"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor

from tests.containers.podman_store import Podman
from tests.mount.command import processes_naming, wait_for

CONTAINERS = 20
SECONDS, LONG_SECONDS = 15, 120
# Each sees the image as it was built, whatever the others do to theirs, and changes what all share.
SCRIPT = (
    "test $(cat /d/f /d/g | tr -d '\\n') = oldold && rm /d/f && echo $1 > /d/g && mv /bin/awk /bin/moved && "
    "rm -r /e && mkdir /e && echo $1 > /e/new && test $(cat /d/g /e/new | tr -d '\\n') = $1$1 && echo done $1"
)


def test_twenty_containers_at_once(podman: Podman, small: str, long: bool) -> None:
    with podman.container(small) as watched:
        wait_for(lambda: len(podman.mount_daemons()) == 1)
        (daemon,) = podman.mount_daemons()
        # What a daemon keeps open for directories that were looked at is there from now on.
        podman.shell(watched, "ls -R / > /dev/null")
        descriptors, mounts = _open_descriptors(daemon), sorted(podman.namespace.mounts())
        end = time.monotonic() + (LONG_SECONDS if long else SECONDS)

        def start_and_stop(number: int) -> int:
            return _start_and_stop(podman, small, number, end)

        with ThreadPoolExecutor(CONTAINERS) as pool:
            counts = list(pool.map(start_and_stop, range(CONTAINERS)))
        assert all(count > 0 for count in counts)
        wait_for(lambda: podman.mount_daemons() == [daemon])
        assert sorted(podman.namespace.mounts()) == mounts
        assert len(podman("ps", "--all", "--quiet").split()) == 1
        podman.shell(watched, "ls -R / > /dev/null")
        wait_for(lambda: _open_descriptors(daemon) <= descriptors)
    wait_for(lambda: not processes_naming(f"{podman.base}/"))
    assert podman.mounts() == []


def _open_descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def _start_and_stop(podman: Podman, image: str, number: int, end: float) -> int:
    count = 0
    while not count or time.monotonic() < end:
        name = f"{number}-{count}"
        said = podman("run", "--rm", image, "sh", "-c", SCRIPT, "sh", name)
        assert said == f"done {name}\n"
        count += 1
    return count
