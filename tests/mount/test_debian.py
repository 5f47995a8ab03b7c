"""Does a real Debian system live on stacked layers? Installed, changed and run through `pyoverlay run`.

debootstrap's minimal system is layer 1, python3 installed over it by dpkg is layer 2, one package replaced
and one removed is layer 3; then Python runs over the three, and the kernel's overlay of the same layers shows
the same tree.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness import Entry, Kind, Mount, Stack, debian, make_stack, snapshot
from tests.mount.command import PYOVERLAY, environment

REPLACED = "media-types"
REPLACEMENT_VERSION = "99.1-overlay"
REMOVED = "tzdata"

COMMAND_LIMIT_SECONDS = 400

_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
    "HOME": "/root",
}

PROGRAM = """
import ctypes, hashlib, json, multiprocessing, os, socket, sqlite3, subprocess, tempfile, zipfile, zlib
database = sqlite3.connect("/root/notes.db")
database.execute("create table notes (text)")
database.executemany("insert into notes values (?)", [(str(number),) for number in range(1000)])
database.commit()
total = database.execute("select sum(text) from notes").fetchone()[0]
child = subprocess.run(["/bin/cat", "/etc/debian_version"], capture_output=True, text=True, check=True)
print(json.dumps({
    "total": total,
    "debian": child.stdout.strip().split(".")[0],
    "zones": os.path.exists("/usr/share/zoneinfo"),
    "replaced": open("/usr/share/overlay-test/added").read(),
    "root": sorted(os.listdir("/root")),
}, sort_keys=True))
"""


@dataclass(frozen=True)
class Layers:
    """The three layers of the system, and layer 1 as it was before any mount."""

    base: Path
    bottom: Path
    python: Path
    changed: Path
    packages: Path
    before: dict[bytes, Entry]

    @property
    def topmost_first(self) -> list[Path]:
        return [self.changed, self.python, self.bottom]


@pytest.fixture(scope="module")
def system() -> Path:
    """Debian's minimal system, used in place as the bottom layer."""
    return debian.minimal_system()


# --- the layers --------------------------------------------------------------------------------------------


def _pyoverlay_run(lowers: list[Path], options: list[str], *command: str) -> str:
    """`pyoverlay run` over the lowers (topmost first); returns the command's standard output."""
    arguments = [word for lower in lowers for word in ("--lower", str(lower))] + options
    arguments += [word for name, value in _ENVIRONMENT.items() for word in ("--env", f"{name}={value}")]
    whole = [*PYOVERLAY, "run", *arguments, "--", *command]
    result = subprocess.run(
        whole,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=environment(),
        timeout=COMMAND_LIMIT_SECONDS,
        check=False,
    )
    said = os.fsdecode(result.stdout)
    assert result.returncode == 0, (
        f"{shlex.join(whole)} ended with {result.returncode}:\n{said}\n{os.fsdecode(result.stderr)}"
    )
    return said


@pytest.fixture(scope="module")
def layers(system: Path) -> Iterator[Layers]:
    """The three layers, made by dpkg through pyoverlay."""
    base = Path(tempfile.mkdtemp(prefix="overlay-debian-"))
    base.chmod(0o755)
    try:
        bottom, packages = system, debian.packages(system, "python3")[0].parent
        # relatime: the first readlink of a symlink moves its atime, the following ones don't
        snapshot(bottom)
        before = snapshot(bottom, exact=True)
        python = _install_python(base, bottom, packages)
        changed = _change_packages(base, [python, bottom], packages)
        yield Layers(base, bottom, python, changed, packages, before)
    finally:
        shutil.rmtree(base)


def _upper(base: Path, name: str) -> tuple[Path, list[str]]:
    upper, work = base / name, base / f"{name}-work"
    upper.mkdir()
    work.mkdir()
    return upper, ["--upper", str(upper), "--work", str(work)]


def _install_python(base: Path, bottom: Path, packages: Path) -> Path:
    upper, options = _upper(base, "layer2")
    for stage in _stages(sorted(packages.glob("*.deb"))):
        names = [f"/mnt/{deb.name}" for deb in stage]
        _pyoverlay_run([bottom], [*options, "--bind", f"{packages}:/mnt:ro"], "dpkg", "-i", *names)
    return upper


def _stages(debs: list[Path]) -> list[list[Path]]:
    """The packages in groups for one dpkg call each: what a Pre-Depends names is in an earlier group."""
    names = {_field(deb, "Package"): deb for deb in debs}
    needs = {
        deb: {names[word] for word in _words(_field(deb, "Pre-Depends")) if word in names} for deb in debs
    }
    stages: list[list[Path]] = []
    done: set[Path] = set()
    while len(done) < len(debs):
        stage = [deb for deb in debs if deb not in done and needs[deb] <= done]
        assert stage, "the packages' Pre-Depends form a circle"
        stages.append(stage)
        done.update(stage)
    return stages


def _field(deb: Path, name: str) -> str:
    return debian.run("dpkg-deb", "--field", str(deb), name).strip()


def _words(text: str) -> list[str]:
    return [alternative.split()[0] for alternative in text.split(",") if alternative.strip()]


def _change_packages(base: Path, lowers: list[Path], packages: Path) -> Path:
    upper, options = _upper(base, "layer3")
    replacement = _rebuild(next(packages.glob(f"{REPLACED}_*.deb")), base)
    bind = ["--bind", f"{replacement.parent}:/mnt:ro"]
    _pyoverlay_run(lowers, [*options, *bind], "dpkg", "-i", f"/mnt/{replacement.name}")
    _pyoverlay_run(lowers, options, "dpkg", "--purge", REMOVED)
    return upper


def _rebuild(deb: Path, base: Path) -> Path:
    """The package again with a higher version, one file less and one file more."""
    unpacked = base / "unpacked"
    debian.run("dpkg-deb", "--raw-extract", str(deb), str(unpacked))
    control = unpacked / "DEBIAN/control"
    version = re.compile("^Version:.*$", re.MULTILINE)
    control.write_text(version.sub(f"Version: {REPLACEMENT_VERSION}", control.read_text()))
    (unpacked / "DEBIAN/md5sums").unlink(missing_ok=True)
    (unpacked / f"usr/share/doc/{REPLACED}/changelog.gz").unlink()
    (unpacked / "usr/share/overlay-test").mkdir()
    (unpacked / "usr/share/overlay-test/added").write_text("by the new version")
    place = base / "replacement"
    place.mkdir()
    built = place / f"{REPLACED}.deb"
    debian.run("dpkg-deb", "--root-owner-group", "--build", str(unpacked), str(built))
    return built


# --- the tests ---------------------------------------------------------------------------------------------


def test_packages_were_installed_replaced_and_removed(layers: Layers) -> None:
    """dpkg, asked over the three layers, knows what was done, and finds its files as it left them."""
    form = "${Package} ${Status} ${Version}\\n"
    said = _pyoverlay_run(layers.topmost_first, [], "dpkg-query", "--show", f"--showformat={form}")
    status = {line.split()[0]: line.split()[1:] for line in said.splitlines()}
    assert status["python3"][:3] == ["install", "ok", "installed"]
    assert status[REPLACED][2:] == ["installed", REPLACEMENT_VERSION]
    assert REMOVED not in status
    audit = _pyoverlay_run(layers.topmost_first, [], "dpkg", "--audit")
    assert audit == ""
    installed = [package for package, words in status.items() if words[2] == "installed"]
    assert _pyoverlay_run(layers.topmost_first, [], "dpkg", "--verify", *installed) == ""


def test_layers_hold_only_what_changed(layers: Layers) -> None:
    """Layer 2 holds no file of layer 1 that dpkg left alone; layer 3 hides what it removed by whiteouts."""
    assert (layers.python / "usr/bin/python3.11").is_file()
    assert not (layers.python / "usr/bin/dpkg").exists()
    assert not (layers.changed / "usr/bin/python3.11").exists()
    zones = os.lstat(layers.changed / "usr/share/zoneinfo")
    assert (zones.st_mode & 0o170000, zones.st_rdev) == (0o020000, 0)
    changelog = os.lstat(layers.changed / f"usr/share/doc/{REPLACED}/changelog.gz")
    assert (changelog.st_mode & 0o170000, changelog.st_rdev) == (0o020000, 0)


def test_python_runs(layers: Layers) -> None:
    """A program loads libraries, writes a database, starts a child; its changes are thrown away."""
    said = _pyoverlay_run(layers.topmost_first, [], "python3", "-c", PROGRAM)
    assert said == (
        '{"debian": "12", "replaced": "by the new version", '
        '"root": [".bashrc", ".profile", "notes.db"], "total": 499500, "zones": false}\n'
    )
    assert not (layers.changed / "root").exists()


def test_merged_tree_equals_the_kernels(layers: Layers) -> None:
    """The kernel's overlay of the same three layers shows the same tree in every attribute and every byte."""
    pictures = {}
    for kind in Kind:
        own = make_stack(layers.base / f"merged-{kind.value}", lowers=0)
        stack = Stack(own.base, layers.topmost_first, own.upper, own.work, own.merged)
        with Mount(kind, stack, read_only=True) as mount:
            pictures[kind] = snapshot(mount.path)
    kernel, pyoverlay = pictures[Kind.KERNEL], pictures[Kind.PYOVERLAY]
    assert len(kernel) > 5000
    assert sorted(pyoverlay.keys() ^ kernel.keys()) == []
    different = {path: (kernel[path], pyoverlay[path]) for path in kernel if kernel[path] != pyoverlay[path]}
    assert not different, "\n".join(f"{path!r}: {pair}" for path, pair in list(different.items())[:20])


def test_bottom_layer_is_untouched(layers: Layers) -> None:
    """After all of it, layer 1 is byte for byte, inode by inode and time by time what it was."""
    after = snapshot(layers.bottom, exact=True)
    assert after.keys() == layers.before.keys()
    different = [path for path, entry in layers.before.items() if after[path] != entry]
    assert different == []
