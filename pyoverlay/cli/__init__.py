"""Which command was asked for?

A command is a module of this package with a function ``main(arguments) -> exit status``; only the one that
was asked for is imported.  Whatever is no command is a mount in the words of mount(8) and of container
engines.  This file knows the commands' names and how their errors are shown, not what they do.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Final, cast

from pyoverlay.options import OverlayError

COMMANDS: Final = {
    "mount": ("pyoverlay.cli.mount", "stack directories and show them as one tree"),
    "unmount": ("pyoverlay.cli.unmount", "end a mount, and wait until its daemon has gone"),
    "run": ("pyoverlay.cli.run", "run a command with the merged view as its root directory"),
    "changes": ("pyoverlay.cli.changes", "list what was added, changed and deleted, as docker diff does"),
    "inspect": ("pyoverlay.cli.inspect", "show a mount's layers, options and counters as JSON"),
    "snapshotter": ("pyoverlay.cli.snapshotter", "keep containerd's images and containers as layers"),
    "image": ("pyoverlay.cli.image", "load, list, look at, check, save and remove images of layers"),
    "container": ("pyoverlay.cli.container", "run images, and make images of what was changed"),
    "apply": ("pyoverlay.cli.apply", "unpack a layer's tar into a directory"),
    "diff": ("pyoverlay.cli.diff", "write an upper directory as a layer's tar"),
    "commit": ("pyoverlay.cli.commit", "make an image of an upper directory, on top of another image"),
    "demo": ("pyoverlay.cli.demo", "show how image layers work, on real mounts"),
}
"""Name of each command -> (its module, its summary)."""

HELPER: Final = "pyoverlay.cli.helper"
"""The module that reads the words of mount(8) and of container engines."""

MOUNT_PROGRAM_NAMES: Final = ("fuse-overlayfs",)
"""Names under which we are called as a mount program only, so that no word is a command's."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the words after the program's name; the process's own when None.

    Returns:
        The exit status: 0, or 1 after one line on stderr; ``run`` passes on its command's.
    """
    if None in (sys.stdin, sys.stdout, sys.stderr):
        _stand_in_for_closed_streams()
    words = list(sys.argv[1:] if arguments is None else arguments)
    module = COMMANDS[words[0]][0] if is_command(program_name(), words) else HELPER
    try:
        command = cast("Callable[[list[str]], int]", importlib.import_module(module).main)
        return command(words if module == HELPER else words[1:])
    except OverlayError as error:
        return _failed(str(error))
    except BrokenPipeError:
        # Who read our output has seen enough; Python must not flush into the closed pipe at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _failed(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except KeyboardInterrupt:
        return 130


def _stand_in_for_closed_streams() -> None:
    """Let /dev/null be what was closed (``>&-``): else the next file, a mount's device, takes its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # It gets the lowest free number, which is that of the stream: those before it are open by now.
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115 - for good
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


def program_name() -> str:
    """Return the name we were started by: ``pyoverlay``, ``mount.pyoverlay`` or ``fuse-overlayfs``, say."""
    name = os.path.basename(sys.argv[0])
    return "pyoverlay" if name == "__main__.py" else name


def is_command(program: str, words: Sequence[str]) -> bool:
    """Tell whether ``words`` begin with a command, and aren't a mount in the words of mount(8).

    mount(8) passes ``SOURCE TARGET -o OPTIONS``, and a source may have any name.  So a command's name that
    is followed by another word and then by ``-o`` is a source; only ``mount`` means the command there as
    well, as ``pyoverlay mount TARGET -o OPTIONS`` asks for the same mount in both readings.
    """
    if program.startswith("mount.") or program in MOUNT_PROGRAM_NAMES:
        return False
    if not words or words[0] not in COMMANDS:
        return False
    is_source = len(words) > 2 and not words[1].startswith("-") and words[2].startswith("-o")
    return words[0] == "mount" or not is_source


def _failed(text: str) -> int:
    print(f"pyoverlay: {text}", file=sys.stderr)
    return 1
