"""Does a command under ``pyoverlay run`` leave the host's mounts to the host, and keep what it needs?"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Kind, Mount, Stack, libc, make_stack
from tests.mount.command import running, wait_for
from tests.mount.image import layers, make_image_stack


@pytest.fixture(params=["shared", "private"])
def place(base: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of its own, whose mounts and unmounts other namespaces are told of, or aren't."""
    directory = base / "place"
    directory.mkdir()
    libc.mount("tmpfs", directory, "tmpfs")
    subprocess.run(["mount", f"--make-{request.param}", directory], check=True)
    yield directory
    libc.umount(directory, libc.MNT_DETACH)


def test_a_foreign_mount_can_be_ended_meanwhile(base: Path, place: Path) -> None:
    image = make_image_stack(base)
    with Mount(Kind.PYOVERLAY, make_stack(place / "foreign")) as foreign:
        with running(*layers(image), script="echo ready; read line; cat /from-the-top") as process:
            foreign.unmount()  # and waits for its daemon
            assert process.communicate(b"line\n", timeout=60)[0] == b"top\n"
        assert process.returncode == 0


def test_layers_and_binds_stay_though_they_are_on_mounts_of_the_host(base: Path, place: Path) -> None:
    image = make_image_stack(place)
    bound = place / "a b\\c"
    bound.mkdir()
    libc.mount("tmpfs", bound, "tmpfs")
    (bound / "file").write_text("bound\n")
    (place / "hop").symlink_to(image.base)
    (base / "link").symlink_to(place / "hop")
    through_links = Stack(base, [base / "link" / lower.name for lower in image.lowers], *_rest(image))
    with running(
        *layers(through_links),
        f"--bind={bound}:/bound",
        script="echo ready; read line; cat /from-the-top /bound/file; echo new > /new; cat > /bound/new",
    ) as process:
        assert process.communicate(b"line\nwritten\n", timeout=60)[0] == b"top\nbound\n"
    assert process.returncode == 0
    assert (image.upper / "new").read_text() == "new\n"
    assert (bound / "new").read_text() == "written\n"
    libc.umount(bound)


def _rest(stack: Stack) -> tuple[Path, Path, Path]:
    return stack.upper, stack.work, stack.merged


def test_what_the_host_mounts_later_isnt_in_what_was_bound(base: Path, place: Path) -> None:
    image = make_image_stack(base)
    later = place / "later"
    later.mkdir()
    script = "echo ready; read line; cat /bound/later/file || echo none"
    with running(*layers(image), f"--bind={place}:/bound:ro", script=script) as process:
        libc.mount("tmpfs", later, "tmpfs")
        (later / "file").write_text("later\n")
        assert process.communicate(b"line\n", timeout=60)[0] == b"none\n"
    libc.umount(later)


def test_only_the_sandbox_is_left_mounted_beside_its_daemon(base: Path, place: Path) -> None:
    image = make_image_stack(base)
    with running(*layers(image), script="echo ready; read line") as process:

        def mount_points() -> list[str]:
            table = Path(f"/proc/{process.pid}/mountinfo").read_text(encoding="utf-8")
            return [line.split()[4] for line in table.splitlines()]

        wait_for(lambda: str(place) not in mount_points())
        assert {"/", "/proc", "/dev"} <= set(mount_points())
        process.communicate(b"line\n", timeout=60)
    assert os.path.ismount(place)
