"""How do engines find pyoverlay as a program, under whatever name they look for?"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.harness.launcher import REPOSITORY


def write_mount_program(directory: Path, name: str) -> Path:
    """Put pyoverlay into `directory` as the program `name`; it needs nothing of the environment."""
    program = directory / name
    program.write_text(
        f"#!{sys.executable} -P\n"
        f"import sys\nsys.path.insert(0, {str(REPOSITORY)!r})\n"
        "from pyoverlay.cli import main\nsys.exit(main())\n"
    )
    program.chmod(0o755)
    return program
