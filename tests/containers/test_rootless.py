"""Does an ordinary user with subordinate ids build and run containers over pyoverlay?"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.containers import another_user
from tests.containers.busybox_image import MADE_ANEW
from tests.containers.podman_store import Podman
from tests.mount.command import wait_for


@pytest.fixture(scope="module")
def anew(rootless: Podman, busybox_context: Path) -> str:
    """The small image with a layer more, which made /d anew; built by the user."""
    rootless.build(busybox_context, "small")
    context = rootless.base / "anew"
    context.mkdir()
    (context / "Dockerfile").write_text(f"FROM small\nRUN {MADE_ANEW}\n")
    rootless.build(context, "anew")
    return "anew"


def test_only_the_new_file_is_in_a_directory_made_anew(rootless: Podman, anew: str) -> None:
    assert rootless("info", "--format={{.Host.Security.Rootless}}").strip() == "true"
    assert rootless("run", "--rm", anew, "ls", "/d") == "g\n"
    assert rootless("run", "--rm", "small", "ls", "/d") == "f\ng\n"


def test_root_in_the_container_is_the_user_outside(rootless: Podman, anew: str) -> None:
    with rootless.container(anew) as container:
        made = "echo new > /d/new; chown 7:8 /d/new; stat -c '%u:%g' /e/h /d/new /d"
        assert rootless.shell(container, made).split() == ["5:6", "7:8", "0:0"]
        (root,) = (
            line for line in rootless.shell(container, "cat /proc/mounts").splitlines() if " / " in line
        )
        assert root.split()[:3] == ["pyoverlay", "/", "fuse.pyoverlay"]
        upper = Path(rootless.inspect(container)["GraphDriver"]["Data"]["UpperDir"])
        assert _owner(upper / "d") == (another_user.UID, another_user.UID)
        assert _owner(upper / "d/new") == (another_user.SUBORDINATE + 6, another_user.SUBORDINATE + 7)
        assert {"A /d/new", "C /d"} <= set(rootless("diff", container).splitlines())


def test_the_user_is_itself_in_the_container(rootless: Podman, anew: str) -> None:
    """With --userns=keep-id, and no copy of the image is made for it."""
    layers = _layers(rootless)
    with rootless.container(anew, "--userns=keep-id", "--user=0") as container:
        assert len(_layers(rootless) - layers) == 1
        script = "stat -c '%u:%g' / /d /e/h; rm /d/g; echo mine > /d/mine; ls /d"
        assert rootless.shell(container, script).split() == ["0:0", "0:0", "5:6", "mine"]
        as_user = rootless("exec", f"--user={another_user.UID}", container, "id", "-u")
        assert as_user.strip() == str(another_user.UID)


def test_what_was_written_is_the_kernels_overlay(rootless: Podman, anew: str) -> None:
    """A container's upper mounts with the kernel's `userxattr` in the user's namespace: the same tree."""
    with rootless.container(anew) as container:
        rootless.shell(container, f"{MADE_ANEW}; rm /bin/ar; rm -r /bin/vi; mkdir /bin/vi")
        rootless.shell(container, "touch /bin/vi/file; chmod 600 /e/h; mv /bin/awk /a")
        shown = rootless.shell(container, _LISTING)
        data = rootless.inspect(container)["GraphDriver"]["Data"]
        rootless("kill", container)
        wait_for(lambda: not rootless.mount_daemons())
        layers = f"lowerdir=lower,upperdir={data['UpperDir']},workdir={data['WorkDir']}"
        # The image's own layers have podman's whiteouts, which the kernel doesn't know: the lower here is
        # what pyoverlay shows of them.
        script = (
            f"cd {rootless.base}; mkdir lower merged;"
            f"{rootless.program} -o lowerdir={data['LowerDir']} lower;"
            f"mount -t overlay -o userxattr,{layers} overlay merged;"
            f"cd merged; {_LISTING}; cd ..; umount merged; umount lower; rmdir merged lower"
        )
        there = rootless("unshare", "sh", "-ec", script)
    assert there.splitlines() == shown.splitlines()


_LISTING = (
    "for path in a d d/* e e/* bin bin/vi bin/vi/* bin/sh; do"
    ' stat -c "%n %f %u %g %s %Y" "$path"; done; cat d/g; for path in bin/*; do echo $path; done'
)


def _owner(path: Path) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_uid, status.st_gid


def _layers(podman: Podman) -> set[str]:
    return {path.name for path in (podman.base / "graph/overlay").iterdir()}
