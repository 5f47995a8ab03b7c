"""What does ``--change 'CMD ["redis-server"]'`` do to an image's configuration?

The instructions of a Dockerfile that docker commit takes, but ONBUILD and HEALTHCHECK, which OCI images don't
know (image-spec config.md). Pure.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from typing import Any, Final

from pyoverlay.containers.engine.settings import replaced
from pyoverlay.options import OptionError

_SHELL: Final = ("/bin/sh", "-c")

Config = dict[str, Any]
_Instruction = Callable[[str, Config, Config, str], None]
"""Takes what stands after its name, the members to change, all of them as they were, and the whole text."""


def apply(text: str, config: Config, image: Mapping[str, Any]) -> None:
    """Change a configuration as an instruction says.

    Args:
        text: the instruction.
        config: the members of ``config`` that are set anew.
        image: what the image beneath has; taken where `config` has nothing.

    Raises:
        OptionError: there is no such instruction, or it says nothing.
    """
    word, _, argument = text.strip().partition(" ")
    name, argument = word.upper(), argument.strip()
    if name not in _INSTRUCTIONS:
        raise OptionError(f"--change {text}: {word!r} isn't among {', '.join(_INSTRUCTIONS)}")
    if not argument:
        raise OptionError(f"--change {text}: {name} needs something after it")

    _INSTRUCTIONS[name](argument, config, {**image, **config}, text)


def _set_text(member: str) -> _Instruction:
    def change(argument: str, config: Config, _before: Config, _text: str) -> None:
        config[member] = argument

    return change


def _add_to_set(member: str) -> _Instruction:
    def change(argument: str, config: Config, before: Config, text: str) -> None:
        words = _array(argument, text) or argument.split()
        config[member] = {**(before.get(member) or {}), **{word: {} for word in words}}

    return change


def _set_variables(argument: str, config: Config, before: Config, text: str) -> None:
    pairs = [f"{name}={value}" for name, value in _pairs(argument, text).items()]
    config["Env"] = replaced(before.get("Env") or [], pairs)


def _set_labels(argument: str, config: Config, before: Config, text: str) -> None:
    config["Labels"] = {**(before.get("Labels") or {}), **_pairs(argument, text)}


def _set_directory(argument: str, config: Config, _before: Config, text: str) -> None:
    if not argument.startswith("/"):
        raise OptionError(f"--change {text}: write an absolute path")
    config["WorkingDir"] = argument


def _set_command(argument: str, config: Config, _before: Config, text: str) -> None:
    config["Cmd"] = _command(argument, text)


def _set_entrypoint(argument: str, config: Config, _before: Config, text: str) -> None:
    config["Entrypoint"] = _command(argument, text)
    # As in a build: the arguments of another program aren't this one's.
    config["Cmd"] = None


_INSTRUCTIONS: Final[dict[str, _Instruction]] = {
    "CMD": _set_command,
    "ENTRYPOINT": _set_entrypoint,
    "ENV": _set_variables,
    "EXPOSE": _add_to_set("ExposedPorts"),
    "LABEL": _set_labels,
    "STOPSIGNAL": _set_text("StopSignal"),
    "USER": _set_text("User"),
    "VOLUME": _add_to_set("Volumes"),
    "WORKDIR": _set_directory,
}


def _command(argument: str, text: str) -> list[str]:
    array = _array(argument, text)
    return [*_SHELL, argument] if array is None else array


def _array(argument: str, text: str) -> list[str] | None:
    """Read a JSON array of strings; None when it is none."""
    if not argument.startswith("["):
        return None
    try:
        found = json.loads(argument)
    except ValueError as error:
        raise OptionError(f"--change {text}: what begins with [ must be a JSON array: {error}") from error
    if not all(isinstance(word, str) for word in found):
        raise OptionError(f"--change {text}: the array must hold strings")
    return list(found)


def _pairs(argument: str, text: str) -> dict[str, str]:
    """Read ``NAME=VALUE ...`` with a shell's quotes, or the older ``NAME VALUE``."""
    first, _, rest = argument.partition(" ")
    if "=" not in first and rest:
        return {first: rest.strip()}
    try:
        words = shlex.split(argument)
    except ValueError as error:
        raise OptionError(f"--change {text}: {error}") from error
    pairs = dict(word.split("=", 1) for word in words if "=" in word)
    if len(pairs) < len(words) or "" in pairs:
        raise OptionError(f"--change {text}: write NAME=VALUE")
    return pairs
