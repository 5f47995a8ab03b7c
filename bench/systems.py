"""Which file systems are compared, and how is each mounted?

A system is a small adapter: a command line, a version, and what its name means.  The command lines are those
that a person or an engine would use, with nothing switched off to make a figure look better.  Knows nothing
of workloads.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pyoverlay
from bench.errors import BenchError
from bench.results import KERNEL
from pyoverlay import __version__

SLOW_PATH: Final = "pyoverlay-slow-path"
NO_PASSTHROUGH: Final = "pyoverlay-no-passthrough"
PASSTHROUGH_ALL: Final = "pyoverlay-passthrough-all"

_CLONE: Final = Path(pyoverlay.__file__).resolve().parent.parent
"""Of which the package is part, if it isn't installed."""


class System(ABC):
    """A way to show layers as one tree."""

    name: str
    has_layers = True
    """Whether it stacks lowers and an upper; if not, it is given a merged copy."""
    counts_paths = False
    """Whether its daemon tells how many requests it answered on which path."""
    left_out_because = ""
    """Why it isn't measured by workloads that don't name it; "" if all measure it."""

    @abstractmethod
    def mount_command(
        self, lowers: Sequence[str], upper: Path | None, work: Path | None, target: Path
    ) -> list[str]:
        """Return the command that mounts.

        Args:
            lowers: Topmost first, relative to where it is run.
            upper: None for a read-only mount, as is ``work``.
            work: The work directory, on the upper's disk.
            target: The mount point.
        """

    def environment(self) -> dict[str, str]:
        """Return variables that the command needs."""
        return {}

    @abstractmethod
    def version(self) -> str:
        """Return what a person would want to know to repeat a measurement.

        Raises BenchError when the program isn't there.
        """

    def command_shown(self) -> str:
        """Return the command line as the report prints it."""
        return shlex.join(self.mount_command(["LOWER", "..."], Path("UPPER"), Path("WORK"), Path("MERGED")))


class PlainDirectory(System):
    """A plain directory with a copy of the merged tree: the floor that no overlay can go below."""

    name = "native"
    has_layers = False

    def mount_command(
        self, lowers: Sequence[str], upper: Path | None, work: Path | None, target: Path
    ) -> list[str]:
        """Return the command that a bind mount of the copy would need."""
        del lowers, work
        return ["mount", "--bind", str(upper), str(target)]

    def version(self) -> str:
        """Return the kernel's version."""
        return f"Linux {platform.release()}"

    def command_shown(self) -> str:
        """Return what stands below the mount point."""
        return "mount --bind COPY MERGED"


class KernelOverlay(System):
    """The kernel's own overlay file system, which Docker calls overlay2."""

    name = KERNEL

    def mount_command(
        self, lowers: Sequence[str], upper: Path | None, work: Path | None, target: Path
    ) -> list[str]:
        """Return mount(8)'s command line."""
        return ["mount", "-t", "overlay", "overlay", "-o", _layer_options(lowers, upper, work), str(target)]

    def version(self) -> str:
        """Return the kernel's version."""
        return f"Linux {platform.release()}"


class OverlayProgram(System):
    """A program with the command line that engines call: ``PROGRAM -o lowerdir=...,upperdir=... TARGET``."""

    def __init__(self, name: str, program: Sequence[str]) -> None:
        """Call ``program``, a command with its first arguments, ``name``."""
        self.name = name
        self._program = list(program)

    def mount_command(
        self, lowers: Sequence[str], upper: Path | None, work: Path | None, target: Path
    ) -> list[str]:
        """Return the program's command line."""
        return [*self._program, "-o", _layer_options(lowers, upper, work), str(target)]

    def version(self) -> str:
        """Return the first line that names a version."""
        return _version_line([self._program[0], "--version"])


class Pyoverlay(OverlayProgram):
    """This project: the package that the benchmark itself has imported, with default options or others."""

    counts_paths = True

    def __init__(self, name: str, options: str = "", *, left_out_because: str = "") -> None:
        """Mount with ``options`` besides the layers; see `System.left_out_because`."""
        beside_python = Path(sys.executable).parent / "pyoverlay"
        program = [str(beside_python)] if beside_python.exists() else [sys.executable, "-m", "pyoverlay"]
        self._options = ["-o", options] if options else []
        super().__init__(name, [*program, *self._options])
        self.left_out_because = left_out_because

    def environment(self) -> dict[str, str]:
        """Return what lets a clone's own package be found first, wherever the program comes from."""
        return {"PYTHONPATH": str(_CLONE)} if (_CLONE / "pyproject.toml").exists() else {}

    def version(self) -> str:
        """Return the version, and the commit when it runs from a clone.

        Raises BenchError when another pyoverlay than this one would be mounted.
        """
        ours = Path(pyoverlay.__file__).resolve()
        mounted = _imported_by_mount_program(self.environment())
        if mounted != ours:
            raise BenchError(f"{self.name}: {mounted} would be measured, not {ours}; unset PYTHONPATH")
        if not (_CLONE / "pyproject.toml").exists():
            return __version__
        # What lies beside the package, results among it, changes no figure.
        of_package = ["--", str(ours.parent)]
        commit = _said_by_git("describe", "--always", "--exclude=*")
        changed = "-dirty" if commit and _said_by_git("status", "--porcelain", *of_package) else ""
        return f"{__version__} ({commit}{changed})" if commit else __version__

    def command_shown(self) -> str:
        """Return the command line without the place of this installation."""
        layers = _layer_options(["LOWER", "..."], Path("UPPER"), Path("WORK"))
        return shlex.join(["pyoverlay", *self._options, "-o", layers, "MERGED"])


class UnionfsFuse(System):
    """unionfs-fuse, a FUSE union with copy-on-write and marks of its own."""

    name = "unionfs-fuse"

    def mount_command(
        self, lowers: Sequence[str], upper: Path | None, work: Path | None, target: Path
    ) -> list[str]:
        """Return unionfs-fuse's command line: copy-on-write, and what the others do without being asked."""
        del work
        writable = [] if upper is None else [f"{upper}=RW"]
        branches = ":".join([*writable, *(f"{lower}=RO" for lower in lowers)])
        return ["unionfs", "-o", "cow,allow_other,use_ino,suid,dev", branches, str(target)]

    def version(self) -> str:
        """Return the line that names unionfs-fuse's version."""
        return _version_line(["unionfs", "--version"])


def _layer_options(lowers: Sequence[str], upper: Path | None, work: Path | None) -> str:
    below = f"lowerdir={':'.join(lowers)}"
    return below if upper is None else f"{below},upperdir={upper},workdir={work}"


def _said_by_git(*arguments: str) -> str:
    command = ["git", "-C", str(_CLONE), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _imported_by_mount_program(environment: dict[str, str]) -> Path:
    """Return the package that a mount program beside this Python imports, run from elsewhere as it is."""
    ran = subprocess.run(
        [sys.executable, "-P", "-c", "import pyoverlay; print(pyoverlay.__file__)"],
        cwd="/",
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode != 0:
        raise BenchError(f"pyoverlay can't be run: {ran.stderr.strip().splitlines()[-1]}")
    return Path(ran.stdout.strip()).resolve()


def _version_line(command: Sequence[str]) -> str:
    if shutil.which(command[0]) is None:
        raise BenchError(f"{command[0]} isn't installed; install it, or leave its system out with --systems")
    ran = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    lines = [line.strip() for line in (ran.stdout + ran.stderr).splitlines() if "ersion" in line]
    program = Path(command[0]).name
    own = [line for line in lines if line.startswith(program)]
    return (own or lines or ["unknown version"])[0]


def known_systems() -> dict[str, System]:
    """Return the systems that need no ``--system``, in the order of the table."""
    systems: list[System] = [
        PlainDirectory(),
        KernelOverlay(),
        Pyoverlay("pyoverlay"),
        Pyoverlay(
            SLOW_PATH,
            "fast_path=off",
            left_out_because="the slow path is measured with some workloads of each kind",
        ),
        Pyoverlay(
            NO_PASSTHROUGH,
            "passthrough=off",
            left_out_because="as pyoverlay: passthrough plays no part in it, or next to none",
        ),
        Pyoverlay(
            PASSTHROUGH_ALL,
            "passthrough=all",
            left_out_because="as pyoverlay: no data of lowers is read in a writable mount, or next to none",
        ),
        OverlayProgram("fuse-overlayfs", ["fuse-overlayfs"]),
        UnionfsFuse(),
    ]
    return {system.name: system for system in systems}


def choose(names: str | None, programs: Sequence[str]) -> list[System]:
    """Return the systems to compare.

    Args:
        names: Comma-separated names, None for all known ones and all in ``programs``. What is named is
            measured by all workloads, even if it tells little.
        programs: ``NAME=COMMAND`` each: a program of fuse-overlayfs's command line.

    Raises:
        BenchError: An unknown name, or a program that isn't one.
    """
    systems = known_systems()
    for text in programs:
        name, equals, command = text.partition("=")
        words = shlex.split(command)
        if not (name and equals and words):
            raise BenchError(f"--system {text}: expected NAME=/path/to/program")
        if shutil.which(words[0]) is None:
            raise BenchError(f"--system {text}: {words[0]} is no program that can be run")
        systems[name] = OverlayProgram(name, words)
    chosen = list(systems) if names is None else [name for name in names.split(",") if name]
    unknown = [name for name in chosen if name not in systems]
    if unknown or not chosen:
        raise BenchError(f"--systems: no {', '.join(unknown) or 'name'}; known are {', '.join(systems)}")
    if names is not None:
        for name in chosen:
            systems[name].left_out_because = ""
    return [systems[name] for name in chosen]
