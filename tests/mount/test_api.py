"""Does the Python API mount, list changes, and unmount whatever happened?"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyoverlay import Change, ChangeKind, Overlay, OverlayError, changes, inspect, unmount
from pyoverlay.fuse import control
from tests.harness import Stack, snapshot
from tests.mount.command import REPOSITORY, environment, mounts_below, wait_for


@pytest.fixture
def stack(stack: Stack) -> Stack:
    """One lower with a file."""
    (stack.lower / "file").write_text("lower")
    return stack


@pytest.fixture
def overlay(stack: Stack) -> Overlay:
    """A writable overlay on the stack's mount point."""
    return Overlay(stack.lowers, stack.upper, stack.work, target=stack.merged)


def is_served(stack: Stack) -> bool:
    return any(mount["options"]["upperdir"] == str(stack.upper) for mount in control.mounts())


def test_a_with_block_mounts_and_unmounts(stack: Stack, overlay: Overlay) -> None:
    with overlay as merged:
        assert merged == stack.merged
        assert (merged / "file").read_text() == "lower"
        (merged / "new").write_text("new")
        assert mounts_below(stack.merged)
        assert is_served(stack)
        assert overlay.changes() == [Change(ChangeKind.ADDED, "/new")]
    assert mounts_below(stack.merged) == []
    assert not is_served(stack)
    assert (stack.upper / "new").read_text() == "new"
    assert overlay.changes() == [Change(ChangeKind.ADDED, "/new")]


def test_it_can_be_mounted_again(overlay: Overlay) -> None:
    for number in range(3):
        with overlay as merged:
            assert len(list(merged.iterdir())) == 1 + number
            (merged / f"new{number}").touch()


def test_without_a_target_there_is_a_temporary_one(stack: Stack) -> None:
    with Overlay(lower=stack.lower, upper=stack.upper, work=stack.work) as merged:
        assert (merged / "file").read_text() == "lower"
    assert not merged.exists()


def test_without_an_upper_it_is_read_only(stack: Stack) -> None:
    overlay = Overlay([stack.lower])
    with overlay as merged, pytest.raises(OSError, match="Read-only"):
        (merged / "new").touch()
    with pytest.raises(OverlayError, match="read-only"):
        overlay.changes()


def test_an_exception_unmounts(stack: Stack, overlay: Overlay) -> None:
    class OwnError(Exception):
        pass

    with pytest.raises(OwnError), overlay:
        raise OwnError
    assert mounts_below(stack.merged) == []
    assert not is_served(stack)


def test_a_file_that_is_still_open_doesnt_keep_the_mount(stack: Stack, overlay: Overlay) -> None:
    with overlay as merged:
        file = (merged / "file").open()
    assert mounts_below(stack.merged) == []
    with file:
        assert file.read() == "lower"
    wait_for(lambda: not is_served(stack))


def test_unmount_refuses_while_in_use_unless_lazy(stack: Stack, overlay: Overlay) -> None:
    merged = overlay.mount()
    with (merged / "file").open():
        with pytest.raises(OverlayError, match="in use"):
            overlay.unmount()
        assert mounts_below(stack.merged)
        overlay.unmount(lazy=True)
        assert mounts_below(stack.merged) == []
    wait_for(lambda: not is_served(stack))
    overlay.unmount()


def test_mounting_twice_is_refused(overlay: Overlay) -> None:
    with overlay, pytest.raises(OverlayError, match="mounted already"):
        overlay.mount()


@pytest.mark.parametrize("name", ["a b", "a\\b:c,d", "new\nline", os.fsdecode(b"\xff\xfe"), "-o", "ünï"])
def test_paths_are_literal(base: Path, name: str) -> None:
    parts = ("lower", "lowest", "upper", "work", "target")
    lower, lowest, upper, work, target = (base / part / name for part in parts)
    for directory in (lower, lowest, upper, work, target):
        directory.mkdir(parents=True)
    (lower / "file").write_text("lower")
    with Overlay([lower, os.fsencode(lowest)], upper, work, target=target) as merged:
        assert (merged / "file").read_text() == "lower"
        (merged / "new").touch()
        assert inspect(merged)["Data"] == {
            "LowerDir": ":".join(
                str(path).replace("\\", "\\\\").replace(":", "\\:") for path in (lower, lowest)
            ),
            "UpperDir": str(upper),
            "WorkDir": str(work),
            "MergedDir": str(target),
        }
    assert (upper / "new").exists()


def test_relative_paths_are_the_callers(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(stack.base)
    overlay = Overlay(["l1"], "u", "w", target="m")
    with overlay as merged:
        monkeypatch.chdir(tmp_path)
        assert merged == stack.merged
        (merged / "new").touch()
        assert overlay.changes() == [Change(ChangeKind.ADDED, "/new")]


def test_a_module_where_the_caller_stands_isnt_loaded(
    stack: Stack, overlay: Overlay, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("pyoverlay", "trio", "argparse"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('loaded')")
    monkeypatch.chdir(tmp_path)
    with overlay as merged:
        assert (merged / "file").exists()


def test_options(stack: Stack) -> None:
    for options in ("noatime,nodev", ["noatime", "nodev", ""]):
        with Overlay([stack.lower], target=stack.merged, options=options):
            (line,) = mounts_below(stack.merged)
            assert {"noatime", "nodev"} <= set(line.split()[5].split(","))


def test_what_cant_be_mounted_leaves_nothing(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = snapshot(stack.base)
    for overlay in (
        Overlay([stack.base / "missing"]),
        Overlay([stack.lower], stack.upper),
        Overlay([stack.lower], stack.upper, stack.upper / "w"),
        Overlay([stack.lower], options="no_such_option"),
        Overlay([]),
    ):
        with pytest.raises(OverlayError) as raised:
            overlay.mount()
        assert "\n" not in str(raised.value)
        assert not str(raised.value).startswith("pyoverlay")
    assert snapshot(stack.base) == before
    assert list(tmp_path.iterdir()) == []


def test_changes_of_a_target_of_an_upper_and_with_lowers(stack: Stack, overlay: Overlay) -> None:
    with overlay as merged:
        (merged / "file").unlink()
        (merged / "file").write_text("created anew")
        expected = [Change(ChangeKind.CHANGED, "/file")]
        assert changes(merged) == expected
        # The live mount's lowers are found by its upper, whatever that is called.
        assert changes(stack.upper) == expected
        assert changes(stack.upper / ".." / "u") == expected
    assert changes(stack.upper, [stack.lower]) == expected
    # A file in place of a deleted one has no mark of origin.
    assert changes(stack.upper) == [Change(ChangeKind.ADDED, "/file")]


def test_changes_of_a_read_only_mount(stack: Stack) -> None:
    with Overlay([stack.lower]) as merged, pytest.raises(OverlayError, match="no upper"):
        changes(merged)


def test_inspect(stack: Stack, overlay: Overlay) -> None:
    with overlay as merged:
        (merged / "file").read_text()
        found = inspect(merged)
        assert found["Name"] == "pyoverlay"
        assert isinstance(found["Options"], dict)
        assert found["Options"]["fsync"] == "auto"
        assert isinstance(found["Requests"], dict)
        assert found["Requests"]["OPEN"] == 1
        assert isinstance(found["Pid"], int)
        assert Path(f"/proc/{found['Pid']}").exists()
        assert isinstance(found["LayerSyscalls"], int)
        assert found["LayerSyscalls"] > 0
    with pytest.raises(OverlayError, match=str(stack.merged)):
        inspect(stack.merged)
    with Overlay([stack.lower]) as merged:
        assert inspect(merged)["Data"] == {"LowerDir": str(stack.lower), "MergedDir": str(merged)}


def test_unmount_of_what_isnt_mounted(stack: Stack) -> None:
    with pytest.raises(OverlayError, match=str(stack.merged)):
        unmount(stack.merged)


def test_a_program_that_ends_without_unmounting_leaves_a_mount_that_unmount_ends(stack: Stack) -> None:
    code = (
        "import sys; from pyoverlay import Overlay\n"
        "print(Overlay([sys.argv[1]], target=sys.argv[2]).mount(), flush=True)"
    )
    words = [sys.executable, "-c", code, str(stack.lower), str(stack.merged)]
    # Its output ends with it, although the daemon lives on.
    result = subprocess.run(
        words, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout == f"{stack.merged}\n"
    assert (stack.merged / "file").read_text() == "lower"
    unmount(stack.merged)
    assert mounts_below(stack.merged) == []
