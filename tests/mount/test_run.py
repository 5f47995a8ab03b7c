"""Does ``pyoverlay run`` give a command the merged view as its root, with what engines put around it?"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyoverlay.layers.changes import find_changes
from tests.harness import Stack, snapshot
from tests.mount.command import fail, mounts_below, pyoverlay, succeed
from tests.mount.image import BUSYBOX, LONG_AGO, layers, lowers, make_image_stack


@pytest.fixture
def image(base: Path) -> Stack:
    """Two lowers, the lower of them an image."""
    return make_image_stack(base)


@pytest.fixture
def temporary(base: Path) -> Path:
    """The directory where commands put what is temporary."""
    directory = base / "temporary"
    directory.mkdir()
    return directory


def output(stack: Stack, script: str, *options: str) -> str:
    return succeed(pyoverlay("run", *lowers(stack), *options, "--", "sh", "-c", script)).decode()


# Root directory and upper


def test_the_merged_view_is_the_root(image: Stack) -> None:
    names = output(image, "ls /; cat /from-the-top /../../from-the-top").split()
    assert names == ["bin", "dev", "etc", "from-the-top", "proc", "sys", "top", "top"]


def test_changes_go_to_the_upper(image: Stack) -> None:
    before = [snapshot(lower) for lower in image.lowers]
    script = "echo new > /new; echo changed >> /from-the-top; rm -r /etc; ls /"
    succeed(pyoverlay("run", *layers(image), "--", "sh", "-c", script))
    assert [snapshot(lower) for lower in image.lowers] == before
    found = [str(change) for change in find_changes(str(image.upper), [str(lower) for lower in image.lowers])]
    assert found == ["D /etc", "C /from-the-top", "A /new"]
    again = succeed(pyoverlay("run", *layers(image), "--", "cat", "/new", "/from-the-top"))
    assert again == b"new\ntop\nchanged\n"


def test_without_an_upper_changes_are_thrown_away(image: Stack, temporary: Path) -> None:
    variables = {"TMPDIR": str(temporary)}
    script = "echo new > /new && mkdir -p /a/b/c && rm -r /etc && ls /"
    names = succeed(pyoverlay("run", *lowers(image), "--", "sh", "-c", script, variables=variables)).split()
    assert b"new" in names
    assert b"etc" not in names
    assert list(temporary.iterdir()) == []
    assert "etc" in output(image, "ls /")


def test_a_tree_deeper_than_any_path_is_thrown_away(image: Stack, temporary: Path) -> None:
    name = "d" * 200
    script = f"i=0; while [ $i -lt 25 ]; do mkdir {name} && cd -P {name} || exit 1; i=$((i + 1)); done"
    shell = pyoverlay("run", *lowers(image), "--", "sh", "-c", script, variables={"TMPDIR": str(temporary)})
    assert shell.returncode == 0, shell.stderr
    assert list(temporary.iterdir()) == []


def test_the_root_has_the_top_lowers_attributes(image: Stack) -> None:
    image.lowers[0].chmod(0o711)
    os.chown(image.lowers[0], 7, 8)
    assert output(image, "stat -c '%a %u %g %Y' /") == f"711 7 8 {LONG_AGO // 10**9}\n"


def test_the_hosts_own_root_can_be_a_lower() -> None:
    marker = Path("/pyoverlay-test-marker")
    names = succeed(pyoverlay("run", "--lower=/", "--", "sh", "-c", f"touch {marker}; ls /")).decode().split()
    assert marker.name in names
    assert not marker.exists()


def test_read_only(image: Stack) -> None:
    for name in ("proc", "dev", "sys"):
        (image.lowers[0] / name).mkdir()
    result = pyoverlay("run", *lowers(image), "-o", "ro", "--", "sh", "-c", "cat /from-the-top; touch /x")
    assert result.stdout == b"top\n"
    assert b"Read-only file system" in result.stderr


# What is mounted over it


def test_own_namespaces(image: Stack) -> None:
    names = ("mnt", "pid", "uts", "ipc", "net", "user")
    links = output(image, f"for name in {' '.join(names)}; do readlink /proc/self/ns/$name; done").split()
    own = [link == os.readlink(f"/proc/self/ns/{name}") for name, link in zip(names, links, strict=True)]
    assert own == [False, False, False, False, True, True]


def test_proc_shows_the_commands_processes_only(image: Stack) -> None:
    pids = output(image, "echo $$; cd /proc; echo [0-9]*").split()
    assert pids[0] == "2"
    assert pids[1:] == ["1", "2"]


def test_sys_is_read_only(image: Stack) -> None:
    assert "kernel" in output(image, "ls /sys")
    result = pyoverlay("run", *lowers(image), "--", "sh", "-c", "echo 1 > /sys/kernel/profiling")
    assert b"Read-only file system" in result.stderr


def test_dev_has_the_harmless_devices(image: Stack) -> None:
    wanted = {"null", "zero", "full", "random", "urandom", "tty", "pts", "shm"}
    links = {"ptmx", "fd", "stdin", "stdout", "stderr"}
    assert set(output(image, "ls /dev").split()) == wanted | links
    script = (
        "for name in null zero full random urandom tty ptmx; do [ -c /dev/$name ] || exit 1; done;"
        "echo x > /dev/null; stat -c '%a %F' /dev/shm; echo by-link > /dev/stdout; echo y > /dev/shm/file;"
        "echo x 2>/dev/null > /dev/full || echo full; stat -f -c %t /dev/pts; ls /dev/fd/0"
    )
    assert output(image, script) == "1777 directory\nby-link\nfull\n1cd1\n/dev/fd/0\n"


def test_tmp_is_the_merged_views(image: Stack) -> None:
    (image.lowers[1] / "tmp").mkdir()
    (image.lowers[1] / "tmp/file").write_text("of the image")
    assert output(image, "ls /tmp") == "file\n"


def test_mount_points_that_the_image_lacks_leave_no_trace(image: Stack) -> None:
    os.utime(image.upper, ns=(LONG_AGO, LONG_AGO))
    bind = f"--bind={BUSYBOX}:/opt/tools/busybox"
    succeed(pyoverlay("run", *layers(image), bind, "--", "/opt/tools/busybox", "true"))
    assert list(image.upper.iterdir()) == []
    assert image.upper.stat().st_mtime_ns == LONG_AGO


def test_a_mount_point_that_was_put_to_use_stays(image: Stack) -> None:
    words = [*layers(image), f"--bind={BUSYBOX}:/opt/tools/busybox"]
    succeed(pyoverlay("run", *words, "--", "touch", "/opt/tools/mine"))
    assert [str(path.relative_to(image.upper)) for path in sorted(image.upper.rglob("*"))] == [
        "opt",
        "opt/tools",
        "opt/tools/mine",
    ]


def test_mount_points_that_a_read_only_image_lacks_are_named(image: Stack) -> None:
    line = fail(pyoverlay("run", *lowers(image), "-o", "ro", "--", "true"))
    assert "/proc" in line
    assert "read-only" in line


# Binds


def test_a_bound_directory_is_the_hosts(image: Stack, base: Path) -> None:
    source = base / "source"
    source.mkdir()
    (source / "file").write_text("host\n")
    script = "cat /data/x/file; echo from inside > /data/x/new"
    assert output(image, script, f"--bind={source}:/data/x") == "host\n"
    assert (source / "new").read_text() == "from inside\n"


def test_a_bound_file_and_a_bound_device(image: Stack, base: Path) -> None:
    source = base / "source"
    source.write_text("host\n")
    words = [f"--bind={source}:/etc/passwd", f"--bind={source}:/dev/file", "--bind=/dev/zero:/dev/other"]
    assert output(image, "cat /etc/passwd /dev/file; stat -c %F /dev/other", *words) == (
        "host\nhost\ncharacter special file\n"
    )


def test_a_read_only_bind_refuses_writes_also_below_its_mounts(image: Stack, base: Path) -> None:
    source = base / "source"
    source.mkdir()
    script = "touch /data/x && exit 1; touch /data/shm/x && exit 2; cat /data/file"
    (source / "file").write_text("host\n")
    (source / "shm").mkdir()
    words = [f"--bind={source}:/data:ro", "--bind=/dev/shm:/data/shm:ro"]
    result = pyoverlay("run", *lowers(image), *words, "--", "sh", "-c", script)
    assert (result.returncode, result.stdout) == (0, b"host\n")
    assert result.stderr.count(b"Read-only file system") == 2
    (source / "writable").touch()


def test_a_symlink_of_the_image_doesnt_lead_a_bind_out(image: Stack, base: Path) -> None:
    outside = base / "outside"
    outside.mkdir()
    (image.lowers[0] / "link").symlink_to(outside)
    source = base / "source"
    source.write_text("host\n")
    # In the merged view the link leads nowhere, so there is no place for the mount point.
    fail(pyoverlay("run", *layers(image), f"--bind={source}:/link/file", "--", "true"))
    assert list(outside.iterdir()) == []
    (image.lowers[0] / "inner").symlink_to("/etc")
    assert output(image, "cat /etc/file", f"--bind={source}:/inner/file") == "host\n"


# The command's surroundings


def test_the_environment_is_bare(image: Stack) -> None:
    variables = {"TERM": "vt100", "SECRET": "host"}
    result = pyoverlay("run", *lowers(image), "--", "env", variables=variables)
    assert sorted(succeed(result).decode().splitlines()) == [
        "HOME=/home/root",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "TERM=vt100",
    ]


def test_variables_are_added_and_replaced(image: Stack) -> None:
    words = ["--env", "A=b c", "--env", "HOME=/x", "--env", "EMPTY="]
    lines = succeed(pyoverlay("run", *lowers(image), *words, "--", "env")).decode().splitlines()
    assert {"A=b c", "HOME=/x", "EMPTY="} <= set(lines)


def test_path_is_where_the_command_is_searched(image: Stack) -> None:
    (image.lowers[0] / "tools").mkdir()
    (image.lowers[0] / "tools/mine").symlink_to("/bin/busybox")
    fail(pyoverlay("run", *lowers(image), "--", "mine"), 127)
    (image.lowers[0] / "tools/mine").unlink()
    (image.lowers[0] / "tools/mine").write_text("#!/bin/sh\necho mine\n")
    (image.lowers[0] / "tools/mine").chmod(0o755)
    words = ["--env", "PATH=/tools:/bin", "--", "mine"]
    assert succeed(pyoverlay("run", *lowers(image), *words)) == b"mine\n"


def test_the_user(image: Stack) -> None:
    script = "id -u; id -g; cat /proc/self/status; echo $HOME; touch /etc/x"
    result = pyoverlay("run", *lowers(image), "--user=5:6", "--", "sh", "-c", script)
    lines = result.stdout.decode().splitlines()
    assert lines[:2] == ["5", "6"]
    assert "Groups:\t " in lines
    assert "CapEff:\t0000000000000000" in lines
    assert lines[-1] == "/home/user"
    assert b"Permission denied" in result.stderr


def test_the_directory(image: Stack) -> None:
    assert output(image, "pwd") == "/\n"
    assert output(image, "pwd", "--workdir=/etc") == "/etc\n"
    assert "/no/such" in fail(pyoverlay("run", *lowers(image), "--workdir=/no/such", "--", "pwd"))


def test_input_and_output_pass_through(image: Stack) -> None:
    text = bytes(range(256)) * 4096
    assert succeed(pyoverlay("run", *lowers(image), "--", "cat", text=text)) == text
    result = pyoverlay("run", *lowers(image), "--", "sh", "-c", "echo out; echo err >&2")
    assert (result.stdout, result.stderr) == (b"out\n", b"err\n")


def test_no_descriptor_of_the_host_is_inherited(image: Stack) -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    try:
        # ls has one more, for the directory that it lists.
        assert output(image, "ls /proc/self/fd").split() == ["0", "1", "2", "3"]
    finally:
        os.close(reading)
        os.close(writing)


def test_the_umask_is_the_usual_one(image: Stack) -> None:
    old = os.umask(0o077)
    try:
        assert output(image, "touch /x; mkdir /y; stat -c %a /x /y") == "644\n755\n"
    finally:
        os.umask(old)


# Exit statuses


@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -9 $$", 137), ("kill -15 $$", 143)],
)
def test_the_exit_status_is_the_commands(image: Stack, script: str, status: int) -> None:
    result = pyoverlay("run", *lowers(image), "--", "sh", "-c", script)
    assert (result.returncode, result.stderr) == (status, b"")


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("no-such-command", 127),
        ("/no/such/file", 127),
        ("/bin/sh/file", 127),
        ("/etc/script", 127),
        ("/etc", 126),
        ("/etc/passwd", 126),
        ("/etc/garbage", 126),
    ],
)
def test_a_command_that_cant_be_started(image: Stack, temporary: Path, command: str, status: int) -> None:
    for name, text in (("script", "#!/no/such/interpreter\n"), ("garbage", "\0")):
        file = image.lowers[0] / "etc" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)
    variables = {"TMPDIR": str(temporary)}
    assert command in fail(pyoverlay("run", *lowers(image), "--", command, variables=variables), status)
    assert list(temporary.iterdir()) == []


def test_layers_that_cant_be_mounted(image: Stack, temporary: Path) -> None:
    variables = {"TMPDIR": str(temporary)}
    before = snapshot(image.base)
    missing = image.base / "missing"
    line = fail(pyoverlay("run", f"--lower={missing}", "--", "true", variables=variables))
    assert str(missing) in line
    words = [*lowers(image), f"--upper={image.upper}", f"--work={image.upper}", "--", "true"]
    assert str(image.upper) in fail(pyoverlay("run", *words, variables=variables))
    assert list(temporary.iterdir()) == []
    assert snapshot(image.base) == before


def test_whoever_may_not_mount_is_told(image: Stack, temporary: Path) -> None:
    words = [*lowers(image), "--", "true"]
    without_the_right = ["setpriv", "--bounding-set=-sys_admin"]
    result = pyoverlay("run", *words, variables={"TMPDIR": str(temporary)}, before=without_the_right)
    assert "CAP_SYS_ADMIN" in fail(result)
    assert list(temporary.iterdir()) == []


def test_root_of_a_user_namespace(image: Stack, temporary: Path) -> None:
    variables = {"TMPDIR": str(temporary)}
    script = "id -u; cat /from-the-top; touch /new && ls /new /dev/ptmx; echo 1 > /sys/kernel/profiling"
    in_namespace = ["unshare", "--map-root-user", "--mount"]
    words = [*lowers(image), "--", "sh", "-c", script]
    result = pyoverlay("run", *words, variables=variables, before=in_namespace)
    assert result.stdout == b"0\ntop\n/dev/ptmx\n/new\n"
    assert result.stderr.count(b"\n") == 1
    assert b"Read-only file system" in result.stderr
    words = [*lowers(image), "--user=5:6", "--", "true"]
    line = fail(pyoverlay("run", *words, variables=variables, before=in_namespace))
    assert "5:6" in line
    assert list(temporary.iterdir()) == []


def test_nothing_is_mounted_where_others_see_it(image: Stack, temporary: Path) -> None:
    variables = {"TMPDIR": str(temporary)}
    succeed(pyoverlay("run", *layers(image), "--", "true", variables=variables))
    assert mounts_below(temporary) == []
