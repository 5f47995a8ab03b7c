"""Does a daemon that ends take away its own socket, and nobody else's?"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyoverlay.fuse import control
from pyoverlay.fuse.control import ControlSocket


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the sockets are."""
    monkeypatch.setattr(control, "_directories", lambda: [str(tmp_path / "sockets")])
    return tmp_path / "sockets"


def test_a_socket_goes_with_its_daemon(directory: Path) -> None:
    ControlSocket("0:57").close()
    assert os.listdir(directory) == []


def test_the_socket_of_a_newer_mount_with_the_same_number_stays(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers of mounts are used again at once, and so are those of inodes."""
    old = ControlSocket("0:57")
    number = os.stat(old.path).st_ino
    new = ControlSocket("0:57")
    stat = os.stat

    def with_the_old_number(path: str) -> os.stat_result:
        fields = list(stat(path))
        fields[1] = number
        found = stat(path)
        return os.stat_result(fields, {"st_ctime_ns": found.st_ctime_ns})

    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", with_the_old_number)
        old.close()
    assert os.listdir(directory) == ["0:57"]
    new.close()
    assert os.listdir(directory) == []
