"""Does docker run unchanged over pyoverlay: build, run, diff, commit, save, load, inspect?

With Debian's dockerd, its driver fuse-overlayfs, and pyoverlay under that name.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tests.containers import docker_elsewhere
from tests.containers.busybox_image import MADE_ANEW
from tests.containers.docker_daemon import Docker
from tests.harness import Entry
from tests.mount.command import REPOSITORY, wait_for

IMAGE = "small"


@pytest.fixture(scope="module", autouse=True)
def image(docker: Docker, busybox_context: Path) -> None:
    """Give dockerd the image `IMAGE`, which is that of `busybox_image`."""
    docker.build(busybox_context, IMAGE)


@pytest.fixture
def archive(base: Path) -> Path:
    """Where a test saves an image to."""
    return base / "saved.tar"


def in_container(docker: Docker, container: str, script: str) -> str:
    return docker("exec", container, "sh", "-ec", script)


def trees_elsewhere(archive: Path, base: Path) -> list[dict[bytes, Entry]]:
    """What podman over the kernel's overlay and umoci make of an image."""
    for name in ("podman", "umoci"):
        (base / name).mkdir()
    with docker_elsewhere.mounted_by_podman(archive, base / "podman") as merged:
        mounted = docker_elsewhere.tree(merged)
    return [mounted, docker_elsewhere.tree(docker_elsewhere.unpacked_by_umoci(archive, base / "umoci"))]


def test_a_containers_root_is_pyoverlays(docker: Docker) -> None:
    assert json.loads(docker("info", "--format", "{{json .Driver}}")) == "fuse-overlayfs"
    with docker.container(IMAGE) as container:
        (root,) = (line for line in _mount_table(docker, container) if line[1] == "/")
        assert root[:3] == ["fuse-overlayfs", "/", "fuse.fuse-overlayfs"]
        assert len(docker.mounts()) == len(docker.mount_daemons()) == 1
    wait_for(lambda: not docker.mount_daemons())
    assert docker.mounts() == []


def _mount_table(docker: Docker, container: str) -> list[list[str]]:
    return [line.split() for line in in_container(docker, container, "cat /proc/mounts").splitlines()]


def test_inspect_tells_what_is_mounted(docker: Docker) -> None:
    with docker.container(IMAGE) as container:
        in_container(docker, container, "echo new > /d/new")
        driver = docker.inspect(container)["GraphDriver"]
        assert driver["Name"] == "fuse-overlayfs"
        data = driver["Data"]
        assert sorted(data) == ["LowerDir", "MergedDir", "UpperDir", "WorkDir"]
        ours = docker.run_beside(
            "env",
            f"PYTHONPATH={REPOSITORY}",
            sys.executable,
            "-P",
            "-m",
            "pyoverlay",
            "inspect",
            data["MergedDir"],
        )
        # docker names the layers by links with short names.
        resolved = {name: _resolved(paths) for name, paths in json.loads(ours)["Data"].items()}
        assert resolved == {name: _resolved(paths) for name, paths in data.items()}
        assert Path(data["UpperDir"], "d/new").read_text() == "new\n"
        assert docker.outside(data["MergedDir"]).joinpath("d/new").read_text() == "new\n"


def _resolved(paths: str) -> list[str]:
    return [os.path.realpath(path) for path in paths.split(":")]


def test_diff_tells_what_was_done(docker: Docker) -> None:
    script = (
        "mkdir -p /a/b; ln -s x /a/b/link; rm /d/f; echo more >> /d/g; chmod 700 /e/h;"
        "cat /bin/busybox > /dev/null; rm /bin/awk; mkdir /bin/awk"
    )
    with docker.container(IMAGE) as container:
        assert docker("diff", container) == ""
        in_container(docker, container, script)
        assert sorted(docker("diff", container).splitlines()) == [
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


def test_diff_of_a_directory_made_anew(docker: Docker) -> None:
    with docker.container(IMAGE) as container:
        in_container(docker, container, MADE_ANEW)
        assert sorted(docker("diff", container).splitlines()) == ["C /d", "C /d/g", "D /d/f"]


def test_a_directory_made_anew_and_committed(docker: Docker, archive: Path, base: Path) -> None:
    with docker.container(IMAGE) as container:
        in_container(docker, container, MADE_ANEW)
        docker("commit", container, "anew-committed")
    docker("save", "--output", archive, "anew-committed")
    _only_g_is_left(archive, base)


def test_a_directory_made_anew_in_a_build(docker: Docker, archive: Path, base: Path) -> None:
    context = base / "context"
    context.mkdir()
    (context / "Dockerfile").write_text(f"FROM {IMAGE}\nRUN {MADE_ANEW}\n")
    docker.build(context, "anew-built")
    assert docker("run", "--rm", "--network=none", "anew-built", "ls", "/d") == "g\n"
    docker("save", "--output", archive, "anew-built")
    _only_g_is_left(archive, base)


def _only_g_is_left(archive: Path, base: Path) -> None:
    for tree in trees_elsewhere(archive, base):
        assert [path for path in sorted(tree) if path.startswith(b"d/")] == [b"d/g"]


def test_a_committed_image_is_the_same_tree_elsewhere(docker: Docker, archive: Path, base: Path) -> None:
    script = (
        "rm -r /d; mkdir -p /a/b; echo text > /a/b/file; ln /a/b/file /a/hard; ln -s file /a/b/link;"
        "mkfifo /a/fifo; chown 7:8 /a/b /a/b/file; chmod 2755 /a/b; mv /bin/awk /a/awk; chmod 755 /e/h;"
        "touch -d '2001-02-03 04:05:06' /a/b/file /e; rm /bin/vi; mkdir /bin/vi; touch /bin/vi/file"
    )
    with docker.container(IMAGE) as container:
        in_container(docker, container, script)
        docker("commit", container, "committed")
        seen, made_by_docker = docker.tree(container), docker.own_names(container)
    assert b"a/b/file" in seen
    assert b"d" not in seen
    docker("save", "--output", archive, "committed")
    for tree in trees_elsewhere(archive, base):
        assert {path: entry for path, entry in tree.items() if path not in made_by_docker} == seen


def test_save_and_load(docker: Docker, archive: Path) -> None:
    with docker.container(IMAGE) as container:
        in_container(docker, container, "rm /d/f; echo loaded > /d/g")
        docker("commit", container, "to-load")
    identity, layers = (docker.inspect("to-load")[name] for name in ("Id", "RootFS"))
    docker("save", "--output", archive, "to-load")
    docker("rmi", "to-load")
    docker("load", "--input", archive)
    assert (docker.inspect("to-load")["Id"], docker.inspect("to-load")["RootFS"]) == (identity, layers)
    assert docker("run", "--rm", "--network=none", "to-load", "sh", "-c", "ls /d; cat /d/g") == "g\nloaded\n"


def test_a_stopped_container_keeps_its_changes(docker: Docker, base: Path) -> None:
    with docker.container(IMAGE) as container:
        in_container(docker, container, "echo kept > /d/kept; rm /d/f")
        docker("kill", container)
        wait_for(lambda: not docker.mounts())
        # The stopped container is mounted to copy from it and into it.
        docker("cp", f"{container}:/d/kept", base / "kept")
        assert (base / "kept").read_text() == "kept\n"
        docker("cp", base / "kept", f"{container}:/d/copied")
        docker("start", container)
        assert in_container(docker, container, "ls /d; cat /d/copied") == "copied\ng\nkept\nkept\n"


def test_a_container_survives_the_end_of_its_dockerd(docker: Docker) -> None:
    with docker.container(IMAGE) as container:
        in_container(docker, container, "echo kept > /d/kept; rm /d/f")
        docker.kill_and_start_again()
        assert docker.mounts() == []
        docker("start", container)
        assert in_container(docker, container, "ls /d") == "g\nkept\n"
        assert len(docker.mounts()) == len(docker.mount_daemons()) == 1


def test_what_run_is_asked_for(docker: Docker) -> None:
    def run(*words: str, status: int = 0) -> str:
        return docker("run", "--rm", "--network=none", *words, status=status)

    run(IMAGE, "sh", "-c", "exit 7", status=7)
    run("--read-only", IMAGE, "touch", "/d/new", status=1)
    run("--user=1000:1000", IMAGE, "touch", "/d/new", status=1)
    # /e/h runs as its owner, but nobody may read it.
    run("--user=1000:1000", IMAGE, "cat", "/e/h", status=1)
    assert run("--volume=/d", IMAGE, "sh", "-c", "rm /d/f; ls /d") == "g\n"
    assert run(IMAGE, "ls", "/d") == "f\ng\n"


def test_nothing_is_left_of_removed_containers(docker: Docker) -> None:
    words = ("run", "--detach", "--network=none", IMAGE, "sleep", "1000")
    containers = [docker(*words).strip() for _ in range(4)]
    assert len(docker.mounts()) == len(docker.mount_daemons()) == len(containers)
    uppers = [docker.inspect(each)["GraphDriver"]["Data"]["UpperDir"] for each in containers]
    docker("rm", "--force", *containers)
    wait_for(lambda: not docker.mount_daemons())
    assert docker.mounts() == []
    assert not any(os.path.exists(upper) for upper in uppers)
