"""An overlay whose lower is an overlay: the kernel's and pyoverlay's, each over each.

The kernel's over the kernel's is the oracle: the other three pairs must answer the same script in the same
way, show the same tree, and leave the inner mount's upper alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.differential import layers
from tests.differential.actors import perform
from tests.differential.generator import mixed_changes
from tests.differential.operation import Operation, Outcome
from tests.differential.pair import differences
from tests.differential.upper import on_disk
from tests.harness import Entry, Kind, Mount, Stack, make_stack, snapshot
from tests.harness.content import OPAQUE, attribute
from tests.harness.libc import MNT_DETACH, umount
from tests.mount.daemons import is_mounted

CHANGES = 120
SEED = 9


@pytest.fixture(params=list(Kind), ids=lambda kind: f"over {kind.value}")
def inner(request: pytest.FixtureRequest, base: Path) -> Iterator[Mount]:
    """A live overlay with something in its upper, to be another's lower."""
    with _inner_mount(request.param, base / "inner") as mount:
        yield mount


def _inner_mount(kind: Kind, base: Path) -> Mount:
    stack = make_stack(base, lowers=layers.LAYERS)
    layers.build(stack.lowers)
    with Mount(Kind.KERNEL, stack) as mount:
        (mount.path / "dir/one").write_text("changed in the inner upper\n")
        (mount.path / "merged/middle").unlink()
        (mount.path / "inner-only").mkdir()
        (mount.path / "inner-only/file").write_text("inner\n")
    return Mount(kind, stack)


@pytest.fixture(params=list(Kind), ids=lambda kind: kind.value)
def outer(request: pytest.FixtureRequest, base: Path, inner: Mount) -> Iterator[Mount]:
    """A live overlay over the inner one, with an upper of its own."""
    with Mount(request.param, _outer_stack(base / "outer", inner)) as mount:
        yield mount


def _outer_stack(base: Path, inner: Mount) -> Stack:
    stack = make_stack(base, lowers=0)
    stack.lowers = [inner.path]
    return stack


def test_same_view(inner: Mount, outer: Mount) -> None:
    """Without a change the outer mount shows what the inner one shows, in every attribute."""
    found = differences(_below_root(inner), _below_root(outer), ("inner", "outer"))
    assert not found, "\n".join(found)


def _below_root(mount: Mount) -> dict[bytes, Entry]:
    # The root's own attributes are those of each mount's upper.
    return {path: entry for path, entry in snapshot(mount.path).items() if path != b"."}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Operation, Outcome]]:
    """The script with the answers of a kernel overlay over a kernel overlay."""
    base = tmp_path_factory.mktemp("nested-")
    with (
        _inner_mount(Kind.KERNEL, base / "inner") as inner,
        Mount(Kind.KERNEL, _outer_stack(base / "outer", inner)) as outer,
    ):
        root = os.fsencode(outer.path)
        return [(operation, perform(root, operation)) for operation in mixed_changes(SEED, CHANGES)]


def test_script(inner: Mount, outer: Mount, told: list[tuple[Operation, Outcome]]) -> None:
    """A script of changes gets the kernel's answers; a remount agrees; the inner layers stay as they were."""
    before = on_disk(inner.stack.upper)
    seen = _below_root(inner)
    for operation, expected in told:
        actual = perform(os.fsencode(outer.path), operation)
        assert _without_numbers(operation, actual) == _without_numbers(operation, expected), (
            f"{operation}: expected {expected}, got {actual}"
        )
    tree = snapshot(outer.path)
    outer.remount()
    found = differences(tree, snapshot(outer.path), ("before the remount", "after it"))
    assert not found, "\n".join(found)
    assert on_disk(inner.stack.upper) == before
    assert _below_root(inner) == seen


def _without_numbers(operation: Operation, outcome: Outcome) -> Outcome:
    # The layers lie on two file systems here, where the kernel's st_ino changes with a copy-up: a link to a
    # file of the lower shows another number than its source (overlayfs.rst, "Inode properties"). We show one
    # number.
    if operation.name == "link" and isinstance(outcome.value, tuple):
        return Outcome(outcome.error, outcome.value[1:])
    return outcome


def test_marks_set_through_a_mount_are_marks_for_the_next(base: Path) -> None:
    """An opaque mark that is set through an overlay is stored escaped, and counts for one above it."""
    for inner_kind in Kind:
        for outer_kind in Kind:
            place = base / f"{inner_kind.value}-{outer_kind.value}"
            _check_opaque(place, inner_kind, outer_kind)


def _check_opaque(base: Path, inner_kind: Kind, outer_kind: Kind) -> None:
    stack = make_stack(base / "inner")
    (stack.lower / "directory").mkdir()
    (stack.lower / "directory/shown").touch()
    with Mount(inner_kind, stack) as inner:
        os.setxattr(inner.path / "directory", OPAQUE, b"y")
        assert sorted(os.listdir(inner.path / "directory")) == ["shown"]
        assert attribute(stack.upper / "directory", "trusted.overlay.overlay.opaque") == b"y"
        outer = _outer_stack(base / "outer", inner)
        below = base / "below"
        (below / "directory").mkdir(parents=True)
        (below / "directory/hidden").touch()
        outer.lowers.append(below)
        with Mount(outer_kind, outer) as mount:
            assert os.listdir(mount.path / "directory") == ["shown"]
            assert attribute(mount.path / "directory", OPAQUE) is None


def test_outer_lives_on_when_the_inner_is_detached(inner: Mount, outer: Mount) -> None:
    """A lazy unmount of the inner mount takes its name away, and not what the outer one stands on."""
    umount(inner.path, MNT_DETACH)
    assert not is_mounted(inner.path)
    assert (outer.path / "plain").read_bytes() == b"plain as the day\n"
    (outer.path / "dir/sub/deep").write_text("changed\n")
    (outer.path / "big").unlink()
    assert (outer.path / "dir/sub/deep").read_text() == "changed\n"
