"""Does podman run unchanged over pyoverlay: build, run, exec, diff, commit, save, image mount, volumes, ids?

With Debian's podman and crun, and pyoverlay as the storage driver's mount_program.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pyoverlay import __version__
from tests.containers import docker_elsewhere, podman_elsewhere
from tests.containers.busybox_image import MADE_ANEW
from tests.containers.podman_store import Podman
from tests.mount.command import wait_for

SHIFTED = 100000
"""What user 0 of a container is outside, in the tests with shifted ids."""


@pytest.fixture
def anew(podman: Podman, small: str, base: Path) -> str:
    """An image whose last layer made /d anew."""
    context = base / "context"
    context.mkdir()
    (context / "Dockerfile").write_text(f"FROM {small}\nRUN {MADE_ANEW}\n")
    podman.build(context, "anew")
    return "anew"


def test_info_names_the_mount_program(podman: Podman, mount_program: Path) -> None:
    store = json.loads(podman("info", "--format=json"))["store"]
    told = store["graphOptions"]["overlay.mount_program"]
    assert (told["Executable"], told["Version"]) == (str(mount_program), f"pyoverlay {__version__}")
    assert store["graphStatus"]["Native Overlay Diff"] == "false"


def test_a_containers_root_is_pyoverlays(podman: Podman, small: str) -> None:
    with podman.container(small) as container:
        (root,) = (line for line in podman.shell(container, "cat /proc/mounts").splitlines() if " / " in line)
        assert root.split()[:3] == ["pyoverlay", "/", "fuse.pyoverlay"]
        assert len(podman.mounts()) == 1
        wait_for(lambda: len(podman.mount_daemons()) == 1)
    wait_for(lambda: not podman.mount_daemons())
    assert podman.mounts() == []


def test_what_run_is_asked_for(podman: Podman, small: str) -> None:
    def run(*words: str, status: int = 0) -> str:
        return podman("run", "--rm", *words, status=status)

    run(small, "sh", "-c", "exit 7", status=7)
    run("--read-only", small, "touch", "/d/new", status=1)
    run("--user=1000:1000", small, "touch", "/d/new", status=1)
    # /e/h runs as its owner, but nobody else may read it.
    run("--user=1000:1000", small, "cat", "/e/h", status=1)
    assert run("--volume=/d", small, "sh", "-c", "rm /d/f; ls /d") == "g\n"
    assert run(small, "ls", "/d") == "f\ng\n"


def test_diff_tells_what_was_done(podman: Podman, small: str) -> None:
    script = (
        "mkdir -p /a/b; ln -s x /a/b/link; rm /d/f; echo more >> /d/g; chmod 700 /e/h;"
        "cat /bin/busybox > /dev/null; rm /bin/awk; mkdir /bin/awk"
    )
    with podman.container(small) as container:
        made_by_podman = set(podman("diff", container).splitlines())
        podman.shell(container, script)
        assert sorted(set(podman("diff", container).splitlines()) - made_by_podman) == [
            "A /a",
            "A /a/b",
            "A /a/b/link",
            "C /bin",
            "C /bin/awk",
            "C /d",
            "C /d/g",
            "C /e",
            "C /e/h",
            "D /d/f",
        ]
        assert made_by_podman <= {"C /etc", "C /run", "A /etc", "A /run"} | {
            line for line in made_by_podman if line.startswith(("A /etc/", "A /run/"))
        }


def test_a_committed_image_is_the_same_tree_elsewhere(
    podman: Podman, podman_on_kernel: Podman, small: str, base: Path
) -> None:
    script = (
        "rm -r /d; mkdir -p /a/b; echo text > /a/b/file; ln /a/b/file /a/hard; ln -s file /a/b/link;"
        "mkfifo /a/fifo; chown 7:8 /a/b /a/b/file; chmod 2755 /a/b; mv /bin/awk /a/awk; chmod 755 /e/h;"
        "touch -d '2001-02-03 04:05:06' /a/b/file /e; rm /bin/vi; mkdir /bin/vi; touch /bin/vi/file"
    )
    with podman.container(small) as container:
        podman.shell(container, script)
        podman("commit", container, "committed")
    with podman.mounted("committed") as merged:
        expected = docker_elsewhere.tree(merged)
    assert b"a/b/file" in expected and b"d" not in expected
    for tree in podman_elsewhere.trees(podman, "committed", podman_on_kernel, base):
        assert tree == expected


def test_only_the_new_file_is_in_a_directory_made_anew(
    podman: Podman, podman_on_kernel: Podman, anew: str, base: Path
) -> None:
    """In the container, and in the image, whoever loads it."""
    assert podman("run", "--rm", anew, "ls", "/d") == "g\n"
    with podman.mounted(anew) as merged:
        assert os.listdir(merged / "d") == ["g"]
    trees = podman_elsewhere.trees(podman, anew, podman_on_kernel, base)
    assert len(trees) == 2
    for tree in trees:
        assert [path for path in sorted(tree) if path.startswith(b"d/")] == [b"d/g"]
    # What hides f in the layer is a whiteout of it, or the mark of an opaque directory.
    names = podman_elsewhere.names_in_layers(base)[-1]
    assert {"d/.wh.f", "d/.wh..wh..opq"} & names
    assert "d/f" not in names


def test_a_directory_made_anew_and_committed(podman: Podman, small: str) -> None:
    with podman.container(small) as container:
        podman.shell(container, MADE_ANEW)
        assert {"C /d", "D /d/f", "C /d/g"} <= set(podman("diff", container).splitlines())
        podman("commit", container, "anew-committed")
    assert podman("run", "--rm", "anew-committed", "ls", "/d") == "g\n"


def test_layers_with_aufs_whiteouts_are_read(podman: Podman, anew: str) -> None:
    """Podman unpacks a loaded image's whiteouts as files .wh.NAME; they hide, and are not to be seen."""
    archive = podman.base / "anew.tar"
    podman("save", "--quiet", f"--output={archive}", anew)
    podman("rmi", "--force", anew)
    podman("load", "--quiet", f"--input={archive}")
    archive.unlink()
    whiteouts = list((podman.base / "graph/overlay").glob("*/diff/d/.wh.*"))
    assert whiteouts, "podman has another form of whiteout"
    assert podman("run", "--rm", anew, "ls", "-A", "/d") == "g\n"
    assert podman("run", "--rm", anew, "sh", "-c", "echo back > /d/f; ls -A /d") == "f\ng\n"


def test_save_and_load(podman: Podman, small: str, base: Path) -> None:
    with podman.container(small) as container:
        podman.shell(container, "rm /d/f; echo loaded > /d/g")
        podman("commit", container, "to-load")
    told = podman.inspect("to-load")
    podman("save", "--quiet", "--format=oci-archive", f"--output={base}/saved.tar", "to-load")
    podman("rmi", "to-load")
    podman("load", "--quiet", f"--input={base}/saved.tar")
    loaded = podman.inspect("to-load")
    assert (loaded["Id"], loaded["RootFS"]) == (told["Id"], told["RootFS"])
    assert podman("run", "--rm", "to-load", "sh", "-c", "ls /d; cat /d/g") == "g\nloaded\n"


def test_an_image_mounted(podman: Podman, small: str) -> None:
    """Read-only, and again at once on the same path after it was unmounted."""
    for _ in range(3):
        with podman.mounted(small) as merged:
            assert sorted(os.listdir(merged / "d")) == ["f", "g"]
            with pytest.raises(OSError, match="Read-only"):
                (merged / "d/new").touch()
    assert podman.mounts() == []


def test_a_stopped_container_is_mounted_again_at_once(podman: Podman, small: str, base: Path) -> None:
    with podman.container(small) as container:
        podman.shell(container, "echo kept > /d/kept; rm /d/f")
        for _ in range(3):
            podman("restart", "--time=0", container)
            assert podman.shell(container, "ls /d") == "g\nkept\n"
        podman("kill", container)
        podman("cp", f"{container}:/d/kept", base / "kept")
        assert (base / "kept").read_text() == "kept\n"
        podman("cp", base / "kept", f"{container}:/d/copied")
        podman("start", container)
        assert podman.shell(container, "ls /d; cat /d/copied") == "copied\ng\nkept\nkept\n"


def test_a_volume_that_is_an_overlay(podman: Podman, small: str, base: Path) -> None:
    """`:O` shows a directory of the host, and throws away what is written to it."""
    (base / "source").mkdir()
    (base / "source/file").write_text("from the host\n")
    script = (
        "cat /v/file; echo changed > /v/file; touch /v/new; ls /v; grep ' /v ' /proc/mounts | cut -d ' ' -f 3"
    )
    told = podman("run", "--rm", f"--volume={base}/source:/v:O", small, "sh", "-c", script)
    assert told == "from the host\nfile\nnew\nfuse.pyoverlay\n"
    assert [path.read_text() for path in (base / "source").iterdir()] == ["from the host\n"]


def test_a_root_directory_that_is_an_overlay(
    podman: Podman, small: str, busybox_context: Path, base: Path
) -> None:
    """`--rootfs DIR:O`, with a colon in the directory's name, which podman passes on escaped."""
    root = base / "with:colon"
    root.mkdir()
    for directory in ("bin", "proc", "dev", "sys", "etc", "run"):
        (root / directory).mkdir()
    (root / "bin/busybox").write_bytes((busybox_context / "bin/busybox").read_bytes())
    (root / "bin/busybox").chmod(0o755)
    words = ("/bin/busybox", "sh", "-c", "/bin/busybox touch /new; /bin/busybox ls -d /new")
    assert podman("run", "--rm", "--rootfs", f"{root}:O", *words) == "/new\n"
    assert not (root / "new").exists()


def test_shifted_ids(podman: Podman, small: str) -> None:
    """The image isn't copied for a container with ids of its own: its layers are shown shifted."""
    maps = [f"--uidmap=0:{SHIFTED}:65536", f"--gidmap=0:{SHIFTED}:65536"]
    layers = _layers(podman)
    with podman.container(small, *maps) as container:
        made = "echo new > /d/new; chown 7:8 /d/new; stat -c '%u:%g' /e/h /d/new /d /"
        assert podman.shell(container, made).split() == ["5:6", "7:8", "0:0", "0:0"]
        driver = podman.inspect(container)["GraphDriver"]["Data"]
        seen = os.lstat(podman.namespace.outside(driver["MergedDir"]) / "d/new")
        assert (seen.st_uid, seen.st_gid) == (SHIFTED + 7, SHIFTED + 8)
        stored = os.lstat(f"{driver['UpperDir']}/d/new")
        assert (stored.st_uid, stored.st_gid) == (7, 8)
        assert len(_layers(podman) - layers) == 1


def test_a_single_id(podman: Podman, small: str) -> None:
    """A map of one id is squash_to_uid and squash_to_gid in podman's words: root is who owns all."""
    maps = [f"--uidmap=0:{SHIFTED}:1", f"--gidmap=0:{SHIFTED}:1"]
    script = "echo new > /d/new; stat -c '%u:%g' /e/h /d/new /d"
    assert podman("run", "--rm", *maps, small, "sh", "-c", script).split() == ["0:0"] * 3


def test_automatic_user_namespaces(podman: Podman, small: str) -> None:
    told = podman(
        "run", "--rm", "--userns=auto:size=1024", small, "sh", "-c", "cat /proc/self/uid_map; id -u"
    )
    _inside, outside, count, user = told.split()
    assert int(outside) > 0
    assert (count, user) == ("1024", "0")


def _layers(podman: Podman) -> set[str]:
    return {path.name for path in (podman.base / "graph/overlay").iterdir()}
