"""How does a container run: what does its image say, and what who starts it? Pure.

docker's rules (daemon/commit.go: merge; opts/env.go: ReplaceOrAppendEnvVars): a command replaces the image's
Cmd, another entrypoint the image's Cmd as well, variables replace those of the same name.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass

from pyoverlay.containers.engine.record import ContainerError, Settings
from pyoverlay.images.documents import RuntimeConfig


@dataclass(frozen=True, slots=True)
class Asked:
    """What is said about a run; what isn't is the image's.

    Attributes:
        command: the words in place of the image's Cmd; empty for those.
        entrypoint: a program in place of the image's Entrypoint; an empty one for none.
        environment: variables as ``NAME=VALUE``.
        directory: where to start, absolute.
        user: ``USER[:GROUP]``.
    """

    command: Sequence[str] = ()
    entrypoint: str | None = None
    environment: Sequence[str] = ()
    directory: str | None = None
    user: str | None = None


def settle(config: RuntimeConfig | None, asked: Asked) -> Settings:
    """Return how the container runs.

    Raises:
        ContainerError: there is nothing to run; the directory isn't absolute.
    """
    config = config or RuntimeConfig()
    if asked.entrypoint is None:
        entrypoint = config.entrypoint or []
        command = list(asked.command) or config.cmd or []
    else:
        entrypoint = [asked.entrypoint] if asked.entrypoint else []
        command = list(asked.command)
    if not entrypoint + command:
        raise ContainerError("the image has no command of its own: write one after --")
    if asked.directory is not None and not asked.directory.startswith("/"):
        raise ContainerError(f"--workdir {asked.directory}: write an absolute path")
    directory = asked.directory if asked.directory is not None else config.working_dir or ""
    settings = Settings(
        entrypoint=entrypoint,
        cmd=command,
        env=replaced(config.env or [], asked.environment),
        working_dir=posixpath.normpath(posixpath.join("/", directory)) if directory else "",
        user=asked.user if asked.user is not None else config.user or "",
    )
    for text in (*settings.words(), *settings.env, settings.working_dir, settings.user):
        check_text(text)
    return settings


def check_text(text: str) -> None:
    """Refuse what can't be kept, or handed to a program.

    Raises:
        ContainerError: it isn't UTF-8, or has a NUL.
    """
    try:
        if b"\0" not in text.encode():
            return
    except UnicodeEncodeError:
        pass
    raise ContainerError(f"{text!r} can't be asked of a container: it must be UTF-8, without a NUL")


def replaced(variables: Sequence[str], others: Sequence[str]) -> list[str]:
    """Return variables with others in place of those of the same name; further ones come last."""
    values = {text.partition("=")[0]: text for text in variables}
    values.update((text.partition("=")[0], text) for text in others)
    return list(values.values())


def environment(settings: Settings, host_name: str) -> dict[str, str]:
    """Return the variables that a container's command finds; its own ``HOSTNAME`` goes before the host's."""
    pairs = (text.partition("=") for text in settings.env)
    return {"HOSTNAME": host_name, **{name: value for name, equals, value in pairs if name and equals}}
