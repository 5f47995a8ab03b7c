"""What is refused at mounting, and how: one clear line, exit status 1, nothing mounted, nothing created.

Where the kernel's overlay refuses the same, it is asked as well.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import Kind, Mount, MountRefusedError, Stack, make_stack, snapshot
from tests.harness.libc import umount
from tests.mount.command import environment, mounts_below, processes_naming

LIMIT_SECONDS = 60


@pytest.fixture
def stack(base: Path) -> Stack:
    """Two lowers, an upper, a work directory and a target, with something in each layer."""
    made = make_stack(base, lowers=2)
    for number, lower in enumerate(made.lowers):
        (lower / f"file{number}").write_text("content")
        (lower / "directory/inner").mkdir(parents=True)
    return made


def _options(stack: Stack, *more: str) -> list[str]:
    mount = Mount(Kind.PYOVERLAY, stack, *more)
    return mount.option_list()


def _mount_command(options: list[str], target: Path) -> list[str]:
    return [sys.executable, "-m", "pyoverlay", "mount", "-o", ",".join(options), str(target)]


def _run(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )


def _assert_refused(base: Path, command: list[str], *words: str) -> str:
    """Runs the command and asserts a refusal that tells the `words` and leaves everything as it was."""
    before = snapshot(base, exact=True)
    mounted, running = mounts_below(base), processes_naming(base)
    result = _run(command)
    said = os.fsdecode(result.stderr)
    assert result.returncode == 1, f"exit status {result.returncode}, said {said!r}"
    assert result.stdout == b""
    assert said.endswith("\n"), said
    assert said.count("\n") == 1, f"not one line: {said!r}"
    assert "Traceback" not in said
    for word in words:
        assert word.lower() in said.lower(), f"{word!r} isn't in {said!r}"
    assert mounts_below(base) == mounted
    assert processes_naming(base) == running
    assert snapshot(base, exact=True) == before, "something was created or changed"
    return said


def _assert_mount_refused(stack: Stack, options: list[str], *words: str, target: Path | None = None) -> str:
    return _assert_refused(stack.base, _mount_command(options, target or stack.merged), *words)


# --- layers that don't fit together ------------------------------------------------------------------------


@pytest.fixture
def elsewhere(base: Path) -> Iterator[Path]:
    """A directory on another file system."""
    place = base / "elsewhere"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(place)], check=True)
    yield place
    umount(place)


@pytest.fixture
def same_by_bind(base: Path) -> Iterator[Path]:
    """A directory of the same file system, reached through a mount of its own."""
    place, behind = base / "bound", base / "behind"
    place.mkdir()
    behind.mkdir()
    subprocess.run(["mount", "--bind", str(behind), str(place)], check=True)
    yield place
    umount(place)


@pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.value)
def test_work_on_another_file_system(stack: Stack, elsewhere: Path, kind: Kind) -> None:
    _refuse(kind, stack, [f"workdir={elsewhere}"], "upperdir", "workdir")


@pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.value)
def test_work_through_another_mount(stack: Stack, same_by_bind: Path, kind: Kind) -> None:
    _refuse(kind, stack, [f"workdir={same_by_bind}"], "upperdir", "workdir")


def _refuse(kind: Kind, stack: Stack, options: list[str], *words: str) -> None:
    if kind is Kind.KERNEL:
        with pytest.raises(MountRefusedError):
            Mount(kind, stack, *options).mount()
        assert mounts_below(stack.merged) == []
        return
    _assert_mount_refused(stack, _options(stack, *options), *words)


Arrangement = Callable[[Stack], list[str]]


def _upper_inside_work(stack: Stack) -> list[str]:
    (stack.work / "inside").mkdir()
    return [f"upperdir={stack.work}/inside"]


def _work_inside_upper(stack: Stack) -> list[str]:
    (stack.upper / "inside").mkdir()
    return [f"workdir={stack.upper}/inside"]


ARRANGEMENTS: dict[str, tuple[Arrangement, tuple[str, ...]]] = {
    "work inside upper": (_work_inside_upper, ("workdir", "inside")),
    "upper inside work": (_upper_inside_work, ("upperdir", "inside")),
    "upper is work": (lambda stack: [f"workdir={stack.upper}"], ("workdir", "upperdir")),
    "a lower twice": (lambda stack: [f"lowerdir={stack.lower}:{stack.lower}"], ("l1",)),
    "a lower inside a lower": (
        lambda stack: [f"lowerdir={stack.lower}:{stack.lower}/directory"],
        ("l1/directory",),
    ),
    "a lower around a lower": (
        lambda stack: [f"lowerdir={stack.lower}/directory:{stack.lower}"],
        ("l1/directory",),
    ),
    "upper is a lower": (lambda stack: [f"upperdir={stack.lower}"], ("l1",)),
    "work is a lower": (lambda stack: [f"workdir={stack.lower}"], ("l1",)),
    "a lower inside upper": (lambda stack: [f"lowerdir={_make(stack.upper / 'inside')}"], ("inside",)),
    "a lower inside work": (lambda stack: [f"lowerdir={_make(stack.work / 'inside')}"], ("inside",)),
    "a lower that is missing": (lambda stack: [f"lowerdir={stack.lower}:{stack.base}/none"], ("none",)),
    "a lower that is a file": (lambda stack: [f"lowerdir={stack.lower}/file0"], ("file0", "directory")),
    "a lower below a file": (lambda stack: [f"lowerdir={stack.lower}/file0/x"], ("file0/x",)),
    "an upper that is missing": (lambda stack: [f"upperdir={stack.base}/none"], ("none",)),
    "an upper that is a file": (lambda stack: [f"upperdir={stack.lower}/file0"], ("file0", "directory")),
    "a work directory that is missing": (lambda stack: [f"workdir={stack.base}/none"], ("none",)),
    "a work directory that is a file": (lambda stack: [f"workdir={stack.lower}/file0"], ("file0",)),
}


def _make(directory: Path) -> Path:
    directory.mkdir()
    return directory


@pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.value)
@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_layers_that_do_not_fit(stack: Stack, name: str, kind: Kind) -> None:
    arrange, words = ARRANGEMENTS[name]
    _refuse(kind, stack, arrange(stack), *words)


@pytest.mark.parametrize("missing", ["none", "l1/file0"], ids=["missing", "a file"])
@pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.value)
def test_target(stack: Stack, kind: Kind, missing: str) -> None:
    target = stack.base / missing
    if kind is Kind.KERNEL:
        stack.merged = target
        with pytest.raises(MountRefusedError):
            Mount(kind, stack).mount()
    else:
        _assert_mount_refused(stack, _options(stack), missing, target=target)


# --- what somebody else holds or left behind ---------------------------------------------------------------


@pytest.mark.parametrize("held", ["upperdir", "workdir", "both"])
def test_held_by_another_daemon(stack: Stack, base: Path, held: str) -> None:
    other = make_stack(base / "other", lowers=1)
    if held in ("upperdir", "both"):
        other.upper = stack.upper
    if held in ("workdir", "both"):
        other.work = stack.work
    with Mount(Kind.PYOVERLAY, stack) as mount:
        said = _assert_mount_refused(stack, _options(other), "in use", target=other.merged)
        assert str(stack.upper) in said or str(stack.work) in said
        (mount.path / "still").write_text("works")
    with Mount(Kind.PYOVERLAY, other) as mount:
        assert (mount.path / "still").exists() == (held != "workdir")


@pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.value)
def test_incompatible_work_directory(stack: Stack, kind: Kind) -> None:
    mark = stack.work / "work/incompat/volatile"
    mark.mkdir(parents=True)
    (mark / "dirty").touch()
    _refuse(kind, stack, [], "volatile", "work/incompat")


def test_incompatible_in_a_way_unheard_of(stack: Stack) -> None:
    (stack.work / "work/incompat/time-travel").mkdir(parents=True)
    _assert_mount_refused(stack, _options(stack), "time-travel")


@pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.value)
def test_volatile_upper_is_refused_until_the_mark_is_removed(stack: Stack, kind: Kind) -> None:
    """Such a mount leaves a mark, as it may have lost writes; removing it is the user's decision."""
    with Mount(kind, stack, "volatile") as mount:
        (mount.path / "file").write_text("perhaps on disk")
        assert (stack.work / "work/incompat/volatile/dirty").exists()
    if kind is Kind.KERNEL:
        with pytest.raises(MountRefusedError):
            Mount(kind, stack).mount()
    else:
        _assert_mount_refused(stack, _options(stack), "volatile")
    subprocess.run(["rm", "-r", str(stack.work / "work/incompat")], check=True)
    with Mount(kind, stack) as mount:
        assert (mount.path / "file").read_text() == "perhaps on disk"


# --- options -----------------------------------------------------------------------------------------------

REFUSED_OPTIONS = {
    "index=on": ("index",),
    "nfs_export=on": ("nfs_export",),
    "redirect_dir=on": ("redirect_dir",),
    "metacopy=on": ("metacopy",),
    "verity=on": ("verity",),
    "no_such_option": ("no_such_option",),
    "xino=perhaps": ("xino", "perhaps"),
    "fsync=sometimes": ("fsync", "sometimes"),
    "timeout=soon": ("timeout", "soon"),
    "redirect_dir=sideways": ("redirect_dir", "sideways"),
    "lowerdir=": ("lowerdir",),
    "lowerdir=/a::/b": ("lowerdir",),
    "lowerdir=:/a": ("lowerdir",),
    "lowerdir=/a:": ("lowerdir",),
}


@pytest.mark.parametrize("option", REFUSED_OPTIONS)
def test_options(stack: Stack, option: str) -> None:
    _assert_mount_refused(stack, _options(stack, option), *REFUSED_OPTIONS[option])


def test_userxattr_with_redirects(stack: Stack) -> None:
    options = _options(stack, "userxattr", "redirect_dir=follow")
    _assert_mount_refused(stack, options, "userxattr", "redirect_dir")


def test_too_many_lowers(stack: Stack) -> None:
    many = ":".join([str(stack.lower)] * 501)
    _assert_mount_refused(stack, _options(stack, f"lowerdir={many}"), "500")


def test_upper_without_work(stack: Stack) -> None:
    options = [f"lowerdir={stack.lower}", f"upperdir={stack.upper}"]
    _assert_mount_refused(stack, options, "workdir")


def test_no_lower(stack: Stack) -> None:
    options = [f"upperdir={stack.upper}", f"workdir={stack.work}"]
    _assert_mount_refused(stack, options, "lower")


def test_no_target(stack: Stack) -> None:
    command = _mount_command(_options(stack), stack.merged)[:-1]
    _assert_refused(stack.base, command, "target")


# --- the machine -------------------------------------------------------------------------------------------


def test_no_fuse_device(stack: Stack, base: Path) -> None:
    """In a mount namespace whose /dev has no fuse."""
    bare = "mount -t tmpfs tmpfs /dev && mknod -m 666 /dev/null c 1 3 && mknod -m 444 /dev/urandom c 1 9"
    command = ["unshare", "--mount", "sh", "-c", f'{bare} && exec "$@"', "sh"]
    _assert_refused(base, command + _mount_command(_options(stack), stack.merged), "/dev/fuse")
