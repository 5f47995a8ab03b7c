"""Who is the ordinary user that runs containers?

One that exists in a mount namespace only: there are other files at /etc/passwd, /etc/group, /etc/subuid and
/etc/subgid, with one line more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

NAME: Final = "container-user"
UID: Final = 54321
SUBORDINATE: Final = 700000
"""The first of the ids that the user may have in user namespaces."""
SUBORDINATE_COUNT: Final = 65536

_AUTOMATIC: Final = f"containers:{SUBORDINATE + SUBORDINATE_COUNT}:{16 * SUBORDINATE_COUNT}"
"""Where podman, as root, takes the ids for --userns=auto from."""

BEFORE: Final = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "--"]
"""The words before a command that make it the user's."""


def shell_commands(directory: Path) -> list[str]:
    """Lines for `sh -e` that make the user in a mount namespace; the files lie in `directory`."""
    subordinate = f"{NAME}:{SUBORDINATE}:{SUBORDINATE_COUNT}\n{_AUTOMATIC}\n"
    more = {
        "passwd": f"{NAME}:x:{UID}:{UID}::{directory}:/bin/sh\n"
        f"containers:x:{UID + 1}:{UID + 1}::/:/bin/false\n",
        "group": f"{NAME}:x:{UID}:\n",
        "subuid": subordinate,
        "subgid": subordinate,
    }
    lines = []
    for name, content in more.items():
        real = Path("/etc", name)
        old = real.read_text() if real.exists() else ""
        (directory / name).write_text(old + content)
        lines.append(f"mount --bind {directory}/{name} {real}")
    return lines


def variables(base: Path) -> dict[str, str]:
    """The user's environment: a home and a place for the time of the session below `base`, which are made."""
    found = {"HOME": base / "home", "XDG_RUNTIME_DIR": base / "session"}
    for directory in found.values():
        directory.mkdir(mode=0o700)
    return {name: str(directory) for name, directory in found.items()} | {"USER": NAME}
