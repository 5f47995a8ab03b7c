"""In a user namespace, with `userxattr`: are redirects, metacopy and volatile what they are to the kernel?

There the kernel neither writes nor follows redirects and metacopy, for their writer could be anybody: such an
object is refused.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import Kind, Mount, MountRefusedError, Stack, make_stack
from tests.harness.content import make_directory, make_file, names
from tests.harness.processes import in_user_namespace

every_kind = pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.value)


def _answer(call: Callable[[], object]) -> str:
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


@every_kind
@pytest.mark.parametrize(
    "options", [("redirect_dir=on",), ("metacopy=on",), ("metacopy=on", "redirect_dir=on")], ids=",".join
)
def test_what_could_be_forged_is_not_to_be_had(stack: Stack, kind: Kind, options: tuple[str, ...]) -> None:
    def mount() -> None:
        with pytest.raises(MountRefusedError):
            Mount(kind, stack, "userxattr", *options).mount()

    in_user_namespace(mount)
    assert names(stack.upper) == names(stack.work) == []


@every_kind
@pytest.mark.parametrize("size", [0, 4])
@pytest.mark.parametrize("layer", ["upper", "lower"])
@pytest.mark.lowers(2)
def test_forged_marks_are_refused(stack: Stack, kind: Kind, layer: str, size: int) -> None:
    """Neither a directory's redirect nor a file's metacopy is followed, and the rest is there."""
    bottom = stack.lowers[1]
    make_file(bottom / "target" / "inner", "inner")
    make_file(bottom / "data", "data")
    make_file(bottom / "plain", "plain")
    top = stack.upper if layer == "upper" else stack.lower
    os.setxattr(make_directory(top / "redirected"), "user.overlay.redirect", b"/target")
    make_file(top / "data")
    os.truncate(top / "data", size)
    os.setxattr(top / "data", "user.overlay.metacopy", b"")

    def look() -> tuple[str, ...]:
        with Mount(kind, stack, "userxattr") as mount:
            root = mount.path
            return (
                _answer((root / "redirected").stat),
                _answer((root / "data").stat),
                _answer((root / "data").read_bytes),
                (root / "plain").read_text(),
            )

    assert in_user_namespace(look) == ("EPERM", "EPERM", "EPERM", "plain")


@pytest.mark.parametrize("writer", list(Kind), ids=lambda kind: f"written by {kind.value}")
@every_kind
def test_volatile_mark_of_the_other(stack: Stack, writer: Kind, kind: Kind) -> None:
    """An upper that may not be on disk is refused until its mark is removed."""
    make_file(stack.lower / "file", "from the lower")

    def write() -> None:
        with Mount(writer, stack, "userxattr", "volatile") as mount:
            (mount.path / "file").write_text("perhaps on disk")

    def read() -> str:
        with Mount(kind, stack, "userxattr") as mount:
            return (mount.path / "file").read_text()

    in_user_namespace(write)
    assert names(stack.work / "work" / "incompat" / "volatile") == ["dirty"]
    with pytest.raises((MountRefusedError, AssertionError)):
        in_user_namespace(read)
    shutil.rmtree(stack.work / "work" / "incompat")
    assert in_user_namespace(read) == "perhaps on disk"


@pytest.mark.parametrize("writer", list(Kind), ids=lambda kind: f"written by {kind.value}")
@every_kind
def test_upper_of_the_other(base: Path, writer: Kind, kind: Kind) -> None:
    """Copies, whiteouts and opaque directories of one are read by the other."""
    stack = make_stack(base / "stack")
    for name in ("kept", "removed", "opaque/old", "changed"):
        make_file(stack.lower / name, name)

    def write() -> None:
        with Mount(writer, stack, "userxattr") as mount:
            (mount.path / "removed").unlink()
            shutil.rmtree(mount.path / "opaque")
            make_file(mount.path / "opaque" / "new", "new")
            (mount.path / "changed").write_text("changed here")

    def read() -> dict[str, str]:
        with Mount(kind, stack, "userxattr") as mount:
            files = [path for path in sorted(mount.path.rglob("*")) if path.is_file()]
            return {str(path.relative_to(mount.path)): path.read_text() for path in files}

    in_user_namespace(write)
    assert in_user_namespace(read) == {"changed": "changed here", "kept": "kept", "opaque/new": "new"}
