"""Fixtures of all tests: the kind of overlay, a stack of layers, a mount that is always removed."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Entry, Kind, Mount, MountFactory, Stack, make_stack, snapshot


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --long, and the length and seed of the drawn differential test."""
    parser.addoption(
        "--long",
        action="store_true",
        help="the long forms: more entries, more time, more steps",
    )
    parser.addoption("--steps", type=int, metavar="N", help="how many steps tests/differential draws")
    parser.addoption("--seed", type=int, metavar="S", default=1, help="which steps they are")


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers of these tests, and take signals as a terminal's programs do.

    A run that was put into the background by a script begins with SIGINT and SIGQUIT ignored, and so would
    all that it starts.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    config.addinivalue_line(
        "markers",
        "lowers(count): how many lower layers the stack fixture has (default 1)",
    )


@pytest.fixture
def long(request: pytest.FixtureRequest) -> bool:
    """Whether the long form of a test is asked for."""
    return bool(request.config.getoption("--long"))


@pytest.fixture(params=list(Kind), ids=[kind.value for kind in Kind])
def kind(request: pytest.FixtureRequest) -> Kind:
    """Whose overlay: every test that asks for it runs on the kernel's and on ours."""
    assert isinstance(request.param, Kind)
    return request.param


@pytest.fixture
def base() -> Iterator[Path]:
    """A fresh directory that other users may pass through; removed afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="overlay-"))
    directory.chmod(0o755)
    old_umask = os.umask(0o022)
    yield directory
    os.umask(old_umask)
    shutil.rmtree(directory)


@pytest.fixture
def stack(request: pytest.FixtureRequest, base: Path) -> Stack:
    """Layer directories below `base`, with as many lowers as the mark `lowers` says."""
    mark = request.node.get_closest_marker("lowers")
    return make_stack(base, lowers=mark.args[0] if mark else 1)


@pytest.fixture
def mount_overlay(kind: Kind, stack: Stack) -> Iterator[MountFactory]:
    """A factory of live mounts, called as `(*options, stack=, kind=, read_only=, cwd=)`; all are removed.

    Nothing that a test does through a mount may change a lower: the fixture compares them, unless the factory
    is called with `check_lowers=False` (layers too big to be read twice).
    """
    mounts: list[Mount] = []
    before: dict[Path, dict[bytes, Entry]] = {}
    fixture_kind, fixture_stack = kind, stack

    def mount(
        *options: str,
        stack: Stack = fixture_stack,
        kind: Kind = fixture_kind,
        read_only: bool = False,
        cwd: Path | None = None,
        check_lowers: bool = True,
    ) -> Mount:
        if check_lowers:
            new = [lower for lower in stack.lowers if lower not in before]
            before.update({lower: snapshot(lower, exact=True) for lower in new})
        overlay = Mount(kind, stack, *options, read_only=read_only, cwd=cwd)
        mounts.append(overlay)
        overlay.mount()
        return overlay

    yield mount
    for overlay in reversed(mounts):
        overlay.remove()
    for lower, expected in before.items():
        assert snapshot(lower, exact=True) == expected, f"the lower {lower} was changed"
