"""How do mount(8), fstab and container engines ask for a mount?

As with fuse-overlayfs: ``pyoverlay [-f] [-d] [-o OPTIONS]... [SOURCE] TARGET``, flags and words in any
order, ``-oOPTIONS`` in one word too.  The last word is the target.  What we don't know is warned about and
ignored, as callers pass what other file systems understand.
"""

from __future__ import annotations

import sys
from typing import Final

from pyoverlay import __version__
from pyoverlay.cli import COMMANDS, MOUNT_PROGRAM_NAMES, arguments, program_name
from pyoverlay.cli.mount import mount
from pyoverlay.options import OptionError, parse_options
from pyoverlay.privileges import default_options

_SUMMARY: Final = (
    "Stack directories and show them as one tree, with changes kept apart: an overlay file system."
)


def main(words: list[str]) -> int:
    """Mount as asked, or print the version or the help.

    Returns 0 when the mount is live.  Raises OverlayError when it can't be.
    """
    if not words:
        _parser().print_help(sys.stderr)
        return 1
    asked, rest = _parser().parse_known_args(words)
    if asked.version:
        print(f"pyoverlay {__version__}")
        return 0
    operands = _operands(rest)
    if not operands:
        raise OptionError("no mount point is given; see 'pyoverlay --help'")
    if not asked.options:
        raise OptionError(
            f"'{operands[0]}' is not a command ({', '.join(COMMANDS)}), "
            "and a mount needs -o lowerdir=...; see 'pyoverlay --help'"
        )
    privileged, defaults = default_options()
    options = parse_options([*defaults, *asked.options], unknown=_ignore, privileged=privileged)
    program = program_name()
    as_another = program in MOUNT_PROGRAM_NAMES
    if program.startswith("mount.") and asked.foreground:
        return 0  # mount(8)'s helpers are told with -f to do everything but mount.
    mount(
        options,
        operands[-1],
        foreground=asked.foreground,
        debug=asked.debug,
        name=program if as_another else "pyoverlay",
        # `mount -a` compares the source with that in fstab, lest it mount a second time.
        source=operands[-2] if len(operands) > 1 and not as_another else None,
    )
    return 0


def _parser() -> arguments.ArgumentParser:
    commands = "\n".join(f"  {name:<13}{summary}" for name, (_module, summary) in COMMANDS.items())
    parser = arguments.ArgumentParser(
        "",
        _SUMMARY,
        "TARGET is the directory to mount on; a source before it is only shown in the mount table.  Unknown\n"
        f"flags and options are ignored, with a warning.\n\ncommands:\n{commands}\n\n"
        "'pyoverlay COMMAND --help' tells more; 'pyoverlay mount --help' lists the options for -o.",
    )
    parser.usage = (
        "pyoverlay COMMAND ...\n"
        "       pyoverlay [-f] [-d] [-o OPTIONS]... [SOURCE] TARGET    (for mount(8) and container engines)"
    )
    parser.add_argument(
        "-o", dest="options", action="append", default=[], metavar="OPTIONS", help="mount options"
    )
    parser.add_argument(
        "-f", dest="foreground", action="store_true", help="serve until unmounted or signalled"
    )
    parser.add_argument("-d", "--debug", action="store_true", help="log every request")
    parser.add_argument("-V", "--version", action="store_true", help="print the version")
    # mount(8) passes these with a value, which must not be taken for the target.
    for flag in ("-t", "-N"):
        parser.add_argument(flag, help="ignored, for mount(8)")
    return parser


def _operands(rest: list[str]) -> list[str]:
    """Return the words that are no flags; warn about the flags.

    They aren't left to argparse, which loses words that come after a flag that it doesn't know.
    """
    operands: list[str] = []
    for index, word in enumerate(rest):
        if word == "--":
            return operands + rest[index + 1 :]
        if word.startswith("-") and word != "-":
            _ignore(word)
        else:
            operands.append(word)
    return operands


def _ignore(option: str) -> None:
    print(f"pyoverlay: unknown argument ignored: {option}", file=sys.stderr)
