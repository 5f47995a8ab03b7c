"""How is one command of a family, as ``pyoverlay image COMMAND``, found and run?

Only the module of the one that was asked for is imported.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import cast

from pyoverlay.cli import arguments
from pyoverlay.options import OptionError

Commands = Mapping[str, tuple[str, str, str]]
"""Name of each command -> (its module in the family's package, its function, its summary)."""


def run(family: str, package: str, summary: str, commands: Commands, words: list[str]) -> int:
    """Run the command that ``words`` begin with, or print the family's help.

    Args:
        family: what goes before the command, as ``image``.
        package: where the commands' modules are.
        summary: of the family, for its help.
        commands: all there are.
        words: what came after the family's name.

    Returns:
        The exit status.

    Raises OptionError when there is no such command, and what the command raises.
    """
    if words and words[0] in commands:
        module, name, _ = commands[words[0]]
        found = getattr(importlib.import_module(f"{package}.{module}"), name)
        return cast("Callable[[list[str]], int]", found)(words[1:])
    lines = "\n".join(f"  {name:<10}{told}" for name, (_, _, told) in commands.items())
    parser = arguments.ArgumentParser(
        family, summary, f"commands:\n{lines}\n\n'pyoverlay {family} COMMAND --help' tells more."
    )
    parser.usage = f"pyoverlay {family} COMMAND ..."
    parser.add_argument("command", nargs="?", metavar="COMMAND", help="one of those below")
    asked = parser.parse_args(words[:1])
    if asked.command is not None:
        raise OptionError(f"there is no command '{family} {asked.command}'; see 'pyoverlay {family} --help'")
    parser.print_help()
    return 0
