"""Where do tests get a Debian system and Debian's packages from?

debootstrap makes the minimal system once, and apt downloads packages that it lacks, from the mirror that is
in this machine's own apt sources.  Both are kept in a cache directory between runs.  Knows nothing of what
the tests do with them.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.harness.snapshot import snapshot

SUITE = "bookworm"
CACHE_VERSION = 1
"""Part of the cache's name: a change of what is cached gets a cache of its own."""

LIMIT_SECONDS = 400


def minimal_system() -> Path:
    """The root directory of Debian's minimal system; it must not be changed.

    It is used in place as a layer, so its digest is checked first: one that a broken run has written to is
    made anew.  Raises AssertionError when it can't be made.
    """
    directory = _cache()
    complete = directory / "complete"
    if not complete.exists() or complete.read_text() != _digest(directory / "rootfs"):
        directory.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix="making-", dir=directory.parent))
        try:
            _bootstrap(fresh)
            shutil.rmtree(directory, ignore_errors=True)
            fresh.rename(directory)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return directory / "rootfs"


def packages(system: Path, *names: str) -> list[Path]:
    """The files of these packages and of what they need beyond `system`, which minimal_system() returned.

    Raises AssertionError when they can't be downloaded.
    """
    directory = system.parent / f"packages-{'+'.join(names)}"
    if not directory.exists():
        fresh = Path(tempfile.mkdtemp(prefix="downloading-", dir=system.parent))
        try:
            _download(fresh, system, names)
            (fresh / "archives").rename(directory)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return sorted(directory.glob("*.deb"))


def run(*command: str) -> str:
    """Run a program and return what it printed; a failure shows everything that it said."""
    result = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    said = os.fsdecode(result.stdout)
    assert result.returncode == 0, f"{shlex.join(command)} ended with {result.returncode}:\n{said[-8000:]}"
    return said


def _cache() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyoverlay-tests"
    architecture = run("dpkg", "--print-architecture").strip()
    return home / f"debian-{SUITE}-{architecture}-{CACHE_VERSION}"


def _bootstrap(directory: Path) -> None:
    assert shutil.which("debootstrap", path="/usr/sbin:/usr/bin"), "install the package debootstrap"
    run("/usr/sbin/debootstrap", "--variant=minbase", SUITE, str(directory / "rootfs"), _mirror())
    (directory / "complete").write_text(_digest(directory / "rootfs"))


def _digest(tree: Path) -> str:
    """One number for a whole tree: every attribute and every byte."""
    return hashlib.sha256(repr(sorted(snapshot(tree).items())).encode()).hexdigest()


def _mirror() -> str:
    """The address from which this machine's own apt takes the suite."""
    for path in sorted(Path("/etc/apt").glob("sources.list.d/*.sources")):
        for stanza in path.read_text().split("\n\n"):
            fields = dict(line.split(":", 1) for line in stanza.splitlines() if _is_field(line))
            if SUITE in fields.get("Suites", "").split() and "main" in fields.get("Components", "").split():
                return fields["URIs"].split()[0]
    for path in [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt").glob("sources.list.d/*.list"))]:
        for line in path.read_text().splitlines() if path.exists() else ():
            words = [word for word in line.split() if not word.startswith("[") and not word.endswith("]")]
            if words[:1] == ["deb"] and words[2:3] == [SUITE] and "main" in words:
                return words[1]
    raise AssertionError(f"no source in /etc/apt gives the suite {SUITE}: this test needs Debian's mirror")


def _is_field(line: str) -> bool:
    return ":" in line and not line.startswith(("#", " ", "\t"))


def _download(directory: Path, system: Path, names: tuple[str, ...]) -> None:
    """Fetches packages and what they need beyond the system, as that system's own apt would."""
    lists, archives = directory / "lists", directory / "archives"
    for place in (lists, archives):
        (place / "partial").mkdir(parents=True)
    sources = directory / "sources.list"
    sources.write_text(f"deb {_mirror()} {SUITE} main\n")
    settings = {
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": lists,
        "Dir::State::status": system / "var/lib/dpkg/status",
        "Dir::Cache::archives": archives,
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "root",
        "Debug::NoLocking": "1",
    }
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    run("apt-get", *options, "update")
    run("apt-get", *options, "-y", "--no-install-recommends", "--download-only", "install", *names)
    shutil.rmtree(archives / "partial")
