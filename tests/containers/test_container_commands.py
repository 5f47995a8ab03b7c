"""Do our own containers run as their image says, keep what they change, and leave nothing when they end?"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyoverlay.containers.engine import inspecting
from pyoverlay.images import catalogue, checking, committing, image_checking
from pyoverlay.images.committing import Commit
from pyoverlay.images.digests import Digest
from pyoverlay.images.store import Store
from tests.containers import busybox_image
from tests.containers.own_engine import Engine
from tests.harness import snapshot
from tests.mount.command import (
    fail,
    mounts_below,
    processes_naming,
    pyoverlay,
    succeed,
    wait_for,
)

IMAGE = "localhost/small:1"
PASSWD = "root:x:0:0::/root:/bin/sh\nuser:x:5:6::/home/user:/bin/sh\n"
GROUP = "root:x:0:\nmore:x:9:user,other\nuser:x:6:\n"


@pytest.fixture(scope="module")
def small_layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with busybox and a few files to change; nothing to mount on."""
    directory = busybox_image.write_context(tmp_path_factory.mktemp("small"))
    (directory / "Dockerfile").unlink()
    for name in ("d", "e", "etc"):
        (directory / name).mkdir()
    for name in ("d/f", "d/g", "e/h"):
        (directory / name).write_text("old\n")
    os.chown(directory / "e/h", 5, 6)
    (directory / "e/h").chmod(0o4711)
    (directory / "etc/passwd").write_text(PASSWD)
    (directory / "etc/group").write_text(GROUP)
    directory.chmod(0o751)
    return directory


@pytest.fixture
def engine(base: Path, small_layer: Path) -> Iterator[Engine]:
    """A store with the image `IMAGE`; no process and no mount is left of it."""
    root = base / "store"
    committing.commit(Store(root), Commit(str(small_layer), names=[IMAGE]))
    yield Engine(root)
    wait_for(lambda: not processes_naming(root))
    assert mounts_below(base) == []


def ready(process: subprocess.Popen[bytes]) -> None:
    """Wait for the container's own first line."""
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"


def end(process: subprocess.Popen[bytes], status: int = 0) -> None:
    """Let a container that reads its standard input come to its end."""
    process.communicate(timeout=60)
    assert process.returncode == status


def tidy(engine: Engine) -> None:
    """Nothing but whole containers, and their pins, may be in the store."""
    names = engine.containers.names()
    assert sorted(path.name for path in engine.containers.root.iterdir()) == [".changing", *names]
    assert sorted(engine.containers.store.pins()) == [f"container-{name}" for name in names]


# How it runs


def test_what_the_image_says_holds(engine: Engine) -> None:
    made = engine.run("true", "--name=base")
    assert made == ""
    changes = [
        'ENTRYPOINT ["sh", "-c"]',
        'CMD ["id; pwd; echo $HOME $A $B"]',
        "USER user",
        "WORKDIR /w/x",
        "ENV A=1 B=2",
    ]
    image = engine.commit("base", "localhost/said:1", *(f"--change={text}" for text in changes))
    assert engine.config(image)["config"]["User"] == "user"
    words = ["--rm", "localhost/said:1"]
    expected = "uid=5(user) gid=6(user) groups=6(user),9(more)\n/w/x\n/home/user 1 2\n"
    assert engine("run", *words) == expected
    asked = ["--user=0:more", "--workdir=/", "--env=B=3"]
    expected = "uid=0(root) gid=9(more) groups=9(more)\n/\n/root 1 3\n"
    assert engine("run", *asked, *words) == expected
    assert engine("run", *words, "--", "echo $A").strip() == "1"
    assert engine("run", "--entrypoint=echo", *words, "--", "a", "--", "-b") == "a -- -b\n"
    line = fail(engine.result("run", "--entrypoint=", *words))
    assert "the image has no command of its own: write one after --" in line
    assert list(engine.states()) == ["base"]


def test_what_is_around_a_command(engine: Engine, base: Path) -> None:
    (base / "shared").mkdir()
    (base / "shared/file").write_text("shared")
    script = "hostname; echo $HOSTNAME; cat /host/deep/file; stat -c %a /"
    script = f"{script}; touch /host/deep/x 2>/dev/null || echo no"
    bind = f"--bind={base}/shared:/host/deep:ro"
    assert engine.run(script, "--name=me", bind) == "me\nme\nshared751\nno\n"
    assert engine("diff", "me") == ""
    (mount,) = engine.inspect("me")["Mounts"]
    assert (mount["Source"], mount["Destination"], mount["RW"]) == (f"{base}/shared", "/host/deep", False)
    assert engine("start", "me") == "me\nme\nshared751\nno\n"


def test_statuses_and_what_can_not_run(engine: Engine) -> None:
    assert engine.run("exit 7", "--name=seven", status=7) == ""
    assert engine.run("kill -TERM $$", "--name=ended", status=143) == ""
    line = fail(engine.result("run", "--name=missing", IMAGE, "--", "nothing"), 127)
    assert "nothing: command not found" in line
    line = fail(engine.result("run", "--name=nobody", "--user=nobody", IMAGE, "--", "true"))
    assert "there is no user 'nobody' in the image's /etc/passwd" in line
    expected = {"nobody": "exited 1", "missing": "exited 127", "ended": "exited 143", "seven": "exited 7"}
    assert engine.states() == expected
    assert engine.inspect("ended")["State"]["ExitCode"] == 143
    table = engine("list").splitlines()
    assert table[0].split() == ["NAME", "IMAGE", "COMMAND", "CREATED", "STATUS", "SIZE"]
    assert table[-1].split()[:5] == ["seven", IMAGE, "sh", "-c", "'exit"]
    assert "exited 7" in table[-1]


@pytest.mark.parametrize("kind", ["device", "fifo"])
def test_an_image_whose_accounts_have_no_end(engine: Engine, kind: str) -> None:
    make = "ln -sf /dev/zero /etc/passwd" if kind == "device" else "rm /etc/passwd; mkfifo /etc/passwd"
    engine.run(make, "--name=made")
    engine.commit("made", "localhost/hostile:1")
    line = fail(engine.result("run", "--rm", "--user=user", "hostile:1", "--", "true"))
    assert "there is no user 'user' in the image's /etc/passwd" in line
    assert engine("run", "--rm", "--user=7", "hostile:1", "--", "sh", "-c", "echo $HOME") == "/\n"


def test_changes_are_kept_and_seen(engine: Engine) -> None:
    script = "[ -e /new ] && echo again; echo x >> /new; echo changed > /d/f; rm /d/g; rm -r /e && mkdir /e"
    assert engine.run(script) == ""
    diff = "C /d\nC /d/f\nD /d/g\nC /e\nD /e/h\nA /new\n"
    assert engine("diff", "small-1") == diff
    assert json.loads(engine("diff", "--json", "small-1"))[2] == {"kind": "D", "path": "/d/g"}
    result = engine.result("start", "small-1")
    assert (result.returncode, result.stdout) == (0, b"again\n")
    assert engine("diff", "small-1") == diff
    (row,) = json.loads(engine("list", "--json"))
    assert row["Size"] == len("x\nx\nchanged\n")
    data = engine.inspect("small-1")["GraphDriver"]["Data"]
    assert Path(data["UpperDir"], "new").read_text() == "x\nx\n"
    assert engine("remove", "small-1") == "small-1\n"
    tidy(engine)


def test_running_ones(engine: Engine) -> None:
    script = "echo new > /made; rm /d/g; echo ready; read line; echo after > /later"
    process = engine.start("run", "--name=live", IMAGE, "--", "sh", "-c", script)
    ready(process)
    assert engine.states() == {"live": "running"}
    found = engine.inspect("live")
    assert found["State"]["Running"]
    merged = Path(f"/proc/{found['State']['Pid']}/root")
    assert (merged / "made").read_text() == "new\n"
    assert list(Path(found["GraphDriver"]["Data"]["MergedDir"]).iterdir()) == []
    assert engine("diff", "live") == "C /d\nD /d/g\nA /made\n"
    assert "container live is running" in engine.refused("start", "live")
    assert "live is running: end it first, or write --force" in engine.refused("remove", "live")
    image = engine.commit("live", "localhost/snapshot:1")
    end(process)
    assert engine.states() == {"live": "exited 0"}
    assert engine("run", "--rm", "localhost/snapshot:1", "--", "ls", "/made", "/proc/self/status")
    layer = engine.containers.store.layer_directory(Digest(engine.config(image)["rootfs"]["diff_ids"][-1]))
    assert sorted(path.name for path in layer.iterdir()) == ["d", "made"]
    process = engine.start("start", "live")
    ready(process)
    assert engine("remove", "--force", "live") == "live\n"
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    tidy(engine)


def test_mistakes_change_nothing(engine: Engine) -> None:
    engine.run("true", "--name=one")
    before = snapshot(engine.root)
    assert f"there is no image 'none' in {engine.root}; there are: {IMAGE}" in engine.refused("run", "none")
    assert "there is a container one already" in engine.refused("run", "--name=one", IMAGE, "--", "true")
    assert "'../one' is no name for a container" in engine.refused(
        "run", "--name=../one", IMAGE, "--", "true"
    )
    assert "the image has no command" in engine.refused("run", IMAGE)
    assert "unrecognized arguments: true" in engine.refused("run", IMAGE, "true")
    assert "must be UTF-8" in engine.refused("run", IMAGE, "--", os.fsdecode(b"\xff"))
    assert "--env A: write NAME=VALUE" in engine.refused("run", "--env=A", IMAGE, "--", "true")
    assert "doesn't exist" in engine.refused("run", "--bind=/nothing-here:/x", IMAGE, "--", "true")
    for command in ("start", "diff", "inspect", "remove"):
        assert f"there is no container 'two' in {engine.root}; there are: one" in engine.refused(
            command, "two"
        )
    assert "there is no container 'two'" in engine.refused("remove", "one", "two")
    assert "there is no container 'two'" in engine.refused("commit", "two", "image:1")
    assert "is no image name" in engine.refused("commit", "one", "Image:1")
    assert "'RUN' isn't among CMD" in engine.refused("commit", "--change=RUN x", "one", "image:1")
    assert "there is no command 'container two'" in fail(pyoverlay("container", "two"))
    assert snapshot(engine.root) == before


def test_an_image_is_removed_before_its_container(engine: Engine) -> None:
    engine.run("echo x > /new", "--name=left")
    store = engine.containers.store
    removed = catalogue.remove(store, [IMAGE])
    assert (len(removed.images), removed.layers) == (1, [])
    assert engine("start", "left") == ""
    image = engine.commit("left", "localhost/heir:1")
    assert image_checking.check_image(store, image) == []
    assert len(engine.config(image)["rootfs"]["diff_ids"]) == 2
    assert engine("run", "--rm", "heir:1", "--", "cat", "/new", "/d/f") == "x\nold\n"
    engine("remove", "left")
    catalogue.remove(store, ["heir:1"])
    assert store.layers() == []


# Commits


def test_a_commit_says_what_it_is(engine: Engine) -> None:
    engine.run("echo x > new", "--name=one", "--env=A=b", "--workdir=/tmp", "--user=0:more")
    image = engine.commit("one", "localhost/two:1", "--author=me", "--message=a note")
    config = engine.config(image)
    assert config["author"] == "me"
    assert config["history"][-1] == {
        "created": config["created"],
        "created_by": "sh -c echo x > new",
        "author": "me",
        "comment": "a note",
    }
    assert config["config"] == {
        "Env": ["A=b"],
        "Cmd": ["sh", "-c", "echo x > new"],
        "WorkingDir": "/tmp",
        "User": "0:more",
    }
    described = json.loads(succeed(pyoverlay("image", "inspect", "--root", engine.root, "two:1")))
    assert described[0]["Comment"] == "a note"


def test_the_same_container_gives_the_same_image(engine: Engine) -> None:
    epoch = {"SOURCE_DATE_EPOCH": "1700000000"}
    engine.run(
        "echo x >> /new; ln -f /new /hard; rm -rf /d; [ -p /p ] || mkfifo /p; chown 5:6 /new", "--name=one"
    )
    first = engine.commit("one", "localhost/one:1", **epoch)
    catalogue.remove(engine.containers.store, [first])
    assert engine.commit("one", "localhost/one:1", **epoch) == first
    engine("start", "one")
    assert engine.commit("one", "localhost/one:1", **epoch) != first


# Several at once, and killed ones


def test_names_are_given_once(engine: Engine) -> None:
    running = [engine.start("run", IMAGE, "--", "true") for _ in range(6)]
    for process in running:
        end(process)
    assert engine.containers.names() == [f"small-{number}" for number in range(1, 7)]
    tidy(engine)
    removing = [engine.start("remove", f"small-{number}") for number in range(1, 7)]
    for process in removing:
        end(process)
    assert engine.containers.names() == []
    tidy(engine)


def kill_at_a_random_moment(
    start: Callable[[], subprocess.Popen[bytes]], chance: random.Random, takes: float
) -> None:
    process = start()
    time.sleep(chance.uniform(0.05, 1.1) * takes)  # There is nothing to wait for.
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_killed_run_leaves_a_container_or_nothing(engine: Engine, long: bool) -> None:
    script = "i=0; while [ $i -lt 100 ]; do echo $i > /f$i; i=$((i+1)); done; cp /bin/busybox /big; rm -r /e"
    words = ["run", "--name=killed", IMAGE, "--", "sh", "-c", script]
    chance = random.Random(5)
    started = time.monotonic()
    end(engine.start(*words))
    takes = time.monotonic() - started
    engine("remove", "killed")
    for _ in range(50 if long else 10):
        kill_at_a_random_moment(lambda: engine.start(*words), chance, takes)
        assert mounts_below(engine.root) == []
        if engine.containers.names():
            record = engine.containers.record("killed")
            status = str(inspecting.state(engine.containers, record))
            assert status in ("exited 137", "exited 0", "created")
            result = engine.result("start", "killed")
            assert result.returncode in (0, 1)  # The script removes /e only once.
            found = [str(change) for change in inspecting.changes(engine.containers, record)]
            assert found[:2] == ["A /big", "D /e"]
            assert len(found) == 102
            with engine.containers.held("killed") as held:
                engine.containers.remove(held)
            tidy(engine)
    assert succeed(pyoverlay("image", "check", "--root", engine.root)).endswith(b"no problems\n")


def test_a_killed_commit_leaves_nothing_half_there(engine: Engine, long: bool) -> None:
    engine.run("i=0; while [ $i -lt 300 ]; do echo $i > /f$i; i=$((i+1)); done", "--name=one")
    store = engine.containers.store
    words = ["commit", "one", "localhost/committed:1"]
    chance = random.Random(6)
    started = time.monotonic()
    end(engine.start(*words))
    takes = time.monotonic() - started
    for _ in range(50 if long else 10):
        catalogue.prune(store)
        if "localhost/committed:1" in {name for record in store.images().values() for name in record.names}:
            catalogue.remove(store, ["committed:1"])
        kill_at_a_random_moment(lambda: engine.start(*words), chance, takes)
        for image_id in store.images():
            assert image_checking.check_image(store, image_id) == []
        image = engine.commit("one", "localhost/committed:1")
        assert image_checking.check_image(store, image) == []
        top = Digest(store.images()[image].layers[-1])
        assert checking.check_layer(store, top) == []
    assert engine.states() == {"one": "exited 0"}


def test_what_killed_processes_left_is_cleared_away(engine: Engine) -> None:
    engine.run("true", "--name=one")
    store = engine.containers.store
    for name in (".unfinished", ".leaving"):
        (engine.containers.root / name / "diff/deep").mkdir(parents=True)
    with store.adding():
        store.pin("container-gone", [])
        store.pin("somebody-else", [])
    assert list(engine.states()) == ["one"]
    engine("remove", "one")
    assert [path.name for path in engine.containers.root.iterdir()] == [".changing"]
    assert list(store.pins()) == ["somebody-else"]


# As who isn't root


def test_in_a_user_namespace(base: Path, small_layer: Path) -> None:
    before = ["unshare", "--user", "--map-root-user", "--mount"]

    plain = base / "plain"
    shutil.copytree(small_layer / "bin", plain / "bin", symlinks=True)
    (plain / "d").mkdir()
    for name in "fg":
        (plain / "d" / name).write_text("old\n")

    def inside(*words: str | Path) -> str:
        return succeed(pyoverlay(*words, before=before)).decode()

    root = f"--root={base}/store"
    inside("commit", root, plain, IMAGE)
    script = "id -u; echo x > /new; rm /d/f; cat /d/g"
    assert inside("container", "run", root, "--name=one", IMAGE, "--", "sh", "-c", script) == "0\nold\n"
    assert inside("container", "diff", root, "one") == "C /d\nD /d/f\nA /new\n"
    inside("container", "commit", root, "one", "localhost/two:1")
    assert inside("container", "run", root, "--rm", "two:1", "--", "cat", "/new") == "x\n"
    assert inside("container", "remove", root, "one") == "one\n"
