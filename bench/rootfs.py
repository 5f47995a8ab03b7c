"""Where does the benchmark's real Debian come from?

An image of five layers: debootstrap's minimal system, Python, a C compiler, Redis, and packages that wait to
be installed.  Each layer is what apt changed over the layers below, as in a container build; it is downloaded
once, with the settings of this machine's own apt, and kept as one tar file a layer in a cache directory.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bench.errors import BenchError
from bench.layers import LayerRecipe
from bench.programs import SHARED, Chroot, run
from bench.workloads.workload import Scale

SUITE: Final = "bookworm"

PACKAGES: Final = "var/cache/apt/archives"
"""Where the packages to be installed are, relative to the root."""

PACKAGES_TO_INSTALL: Final = (
    "bc cpio dc diffstat dos2unix ed file less libmagic-mgc libmagic1 "
    "libsigsegv2 lsof m4 ncal patch pv time tree unzip zip"
).split()
"""Twenty small packages that need no others."""

_INSTALLED: Final = (("python3",), ("gcc", "make", "libc6-dev"), ("redis-server",))
"""The packages of each layer above the minimal system, the lowest first; besides what they depend on."""

_VERSION: Final = 1
"""Part of the cache's name: a change of what is cached gets a cache of its own."""

_LEFT_BY_APT: Final = (
    "var/cache/apt/*.bin",
    "var/cache/apt/archives/*.deb",
    "var/cache/ldconfig/*",
    "var/lib/apt/lists/*_*",
    "var/log/apt/*",
)
"""What no image would keep."""

_SETTINGS: Final = {
    # As Debian's container images are: no service starts, and a build that fails is thrown away, so nothing
    # needs to be on the disk after each package.
    "usr/sbin/policy-rc.d": "#!/bin/sh\nexit 101\n",
    "etc/dpkg/dpkg.cfg.d/unsafe-io": "force-unsafe-io\n",
}

XATTRS: Final = ("--xattrs", "--xattrs-include=security.*")
"""As container images have them: capabilities, and nothing that one overlay wrote for itself."""

_said_before: list[str] = []
"""Why it couldn't be made in this run; other workloads needn't wait for the same failure."""


def rootfs(scale: Scale) -> LayerRecipe:
    """Return five layers with a small Debian, the same ones at each scale.

    Making them raises BenchError when a package can't be had.
    """
    del scale
    return LayerRecipe(f"debian-{SUITE}", _build)


def _build(directory: Path) -> None:
    extract_layers(directory)


def extract_layers(directory: Path) -> list[str]:
    """Write the five layers into a directory, and return their names there, topmost first.

    Raises BenchError when a package can't be had.
    """
    names = []
    for number, archive in enumerate(_cached_layers(directory / "making")):
        layer = directory / str(number)
        layer.mkdir()
        names.append(layer.name)
        run("tar", "--extract", f"--file={archive}", f"--directory={layer}", "--numeric-owner", *XATTRS)
    return names


def _cached_layers(workplace: Path) -> list[Path]:
    """Return the layers' tar files, the topmost first; what is missing is made in ``workplace``."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyoverlay-bench"
    architecture = run("dpkg", "--print-architecture").strip()
    cache = home / f"debian-{SUITE}-{architecture}-{_VERSION}"
    if not cache.exists():
        if _said_before:
            raise BenchError(_said_before[0])
        try:
            _fill(cache, workplace)
        except BenchError as failure:
            _said_before.append(
                f"Debian {SUITE}: {failure}; see that apt-get update works and try again, "
                "or leave these workloads out with --workloads"
            )
            raise BenchError(_said_before[0]) from failure
    return sorted(cache.glob("layer-*.tar"))


def _fill(cache: Path, workplace: Path) -> None:
    """Make the tar files and give them their place when all are there."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix="making-", dir=cache.parent))
    try:
        workplace.mkdir()
        layers = _make_layers(workplace)
        for number, layer in enumerate(layers):
            archive = unfinished / f"layer-{number}.tar"
            run(
                "tar",
                "--create",
                f"--file={archive}",
                f"--directory={layer}",
                "--numeric-owner",
                *XATTRS,
                ".",
            )
        unfinished.rename(cache)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.rmtree(workplace, ignore_errors=True)


# The layers


def _make_layers(workplace: Path) -> list[Path]:
    """Return the layers' directories, the topmost first."""
    mirror = _mirror()
    layers = [workplace / "bottom"]
    run(_debootstrap(), "--variant=minbase", SUITE, layers[0], mirror, environment=_proxies())
    for path, content in _SETTINGS.items():
        (layers[0] / path).write_text(content)
        (layers[0] / path).chmod(0o755 if path.startswith("usr/sbin") else 0o644)
    _clean(layers[0])
    apt = _Downloader(workplace / "apt", mirror)
    for number, packages in enumerate(_INSTALLED):
        with _layer(workplace, layers, f"installed-{number}") as merged:
            archives = apt.download(packages, merged)
            files = [f"{SHARED}/{package.name}" for package in archives]
            Chroot(merged, apt.archives).run("apt-get", "install", "--yes", "--no-install-recommends", *files)
            _clean(merged)
    with _layer(workplace, layers, "packages") as merged:
        archives = apt.download(PACKAGES_TO_INSTALL, merged)
        if len(archives) != len(PACKAGES_TO_INSTALL):
            raise BenchError(f"installing {len(PACKAGES_TO_INSTALL)} packages takes {len(archives)} by now")
        for package in archives:
            shutil.copy(package, merged / PACKAGES)
    return layers


@contextlib.contextmanager
def _layer(workplace: Path, layers: list[Path], name: str) -> Iterator[Path]:
    """Show the layers so far; what is changed becomes one more, the new topmost of ``layers``."""
    upper, work, merged = workplace / name, workplace / f"{name}-work", workplace / f"{name}-merged"
    for directory in (upper, work, merged):
        directory.mkdir()
    # Names relative to the workplace can be long ones in no option, and hold no colon.
    below = ":".join(layer.name for layer in layers)
    options = (
        f"lowerdir={below},upperdir={upper.name},workdir={work.name},redirect_dir=off,metacopy=off,index=off"
    )
    run("mount", "-t", "overlay", "overlay", "-o", options, merged, directory=workplace)
    try:
        yield merged
    finally:
        run("umount", merged)
    layers.insert(0, upper)


def _clean(root: Path) -> None:
    for pattern in _LEFT_BY_APT:
        for path in root.glob(pattern):
            if path.is_file():
                path.unlink()


# Downloading


def _debootstrap() -> str:
    program = shutil.which("debootstrap", path="/usr/sbin:/usr/bin")
    if program is None:
        raise BenchError("debootstrap isn't installed; install the package of this name")
    return program


class _Downloader:
    """This machine's apt, with the mirror of one suite and a state of its own."""

    def __init__(self, directory: Path, mirror: str) -> None:
        self.archives = directory / "archives"
        self._lists = directory / "lists"
        for place in (self.archives, self._lists):
            (place / "partial").mkdir(parents=True)
        self._sources = directory / "sources.list"
        self._sources.write_text(f"deb {mirror} {SUITE} main\n")
        run("apt-get", *self._options(None), "update", environment=_proxies())

    def download(self, packages: tuple[str, ...] | list[str], root: Path) -> list[Path]:
        """Return these packages and what else a root file system lacks for them."""
        for package in self.archives.glob("*.deb"):
            package.unlink()
        options = self._options(root / "var/lib/dpkg/status")
        how = ["--yes", "--no-install-recommends", "--download-only"]
        run("apt-get", *options, *how, "install", *packages, environment=_proxies())
        return sorted(self.archives.glob("*.deb"))

    def _options(self, status: Path | None) -> list[str]:
        settings = {
            "Acquire::Languages": "none",
            "APT::Sandbox::User": "root",
            "Debug::NoLocking": "1",
            "Dir::Cache::archives": self.archives,
            "Dir::Cache::pkgcache": "",
            "Dir::Cache::srcpkgcache": "",
            "Dir::Etc::sourcelist": self._sources,
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::State::lists": self._lists,
            "Dir::State::status": status or "/dev/null",
        }
        return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def _proxies() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}


def _mirror() -> str:
    """Return the address from which this machine's own apt takes the suite."""
    configuration = Path("/etc/apt")
    for path in sorted(configuration.glob("sources.list.d/*.sources")):
        for stanza in path.read_text().split("\n\n"):
            fields = dict(
                line.split(":", 1) for line in stanza.splitlines() if line[:1].isalpha() and ":" in line
            )
            if SUITE in fields.get("Suites", "").split() and "main" in fields.get("Components", "").split():
                return fields["URIs"].split()[0]
    for path in [configuration / "sources.list", *sorted(configuration.glob("sources.list.d/*.list"))]:
        for line in path.read_text().splitlines() if path.exists() else ():
            words = [word for word in line.split() if not word.startswith("[") and not word.endswith("]")]
            if words[:1] == ["deb"] and words[2:3] == [SUITE] and "main" in words:
                return words[1]
    raise BenchError(
        f'/etc/apt names no mirror with {SUITE}: add a line "deb MIRROR {SUITE} main" to a sources.list'
    )
