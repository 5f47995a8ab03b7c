"""How are words on the command line read, the same way in every command?"""

from __future__ import annotations

import argparse
from typing import NoReturn

from pyoverlay.options import OptionError


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser, whose errors are ours: one line, exit status 1."""

    def __init__(self, command: str, summary: str, epilog: str | None = None) -> None:
        """Read the words of ``pyoverlay COMMAND``; ``summary`` and ``epilog`` are shown by ``--help``."""
        super().__init__(
            prog=f"pyoverlay {command}".rstrip(),
            description=summary,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Raise OptionError where argparse would exit with 2."""
        raise OptionError(f"{message}; see '{self.prog} --help'")


def add_layers(parser: argparse.ArgumentParser) -> None:
    """Add ``--lower``, ``--upper`` and ``--work``, whose paths are taken literally, without escapes."""
    parser.add_argument(
        "--lower",
        action="append",
        metavar="DIR",
        help="a lower directory, never written; repeat it for more, the topmost first",
    )
    parser.add_argument("--upper", metavar="DIR", help="the directory that takes the changes")
    parser.add_argument(
        "--work", metavar="DIR", help="an empty directory on the upper's file system, outside of the upper"
    )
