"""Do the README and docs/images.md keep in step with what ``--help`` says?"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pyoverlay import cli
from pyoverlay.cli import container, image

REPOSITORY = Path(__file__).resolve().parents[2]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
IMAGES = (REPOSITORY / "docs/images.md").read_text(encoding="utf-8")
_OPTION = r"[a-z_]+\+?"


def help_of(command: str, capture: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        cli.main([*command.split(), "--help"])
    return capture.readouterr().out


def section(title: str) -> str:
    return README.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def row(command: str) -> str:
    (line,) = [line for line in section("Commands").splitlines() if re.match(rf"\| `{command}\b", line)]
    return line


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_flag_of_a_command_is_there_and_no_other(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", help_of(command, capsys).split("options:", 1)[1]))
    flags = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", row(command)))
    assert flags <= shown
    # Flags are listed at a line's start; what is named within a text need not be a flag of this command.
    listed = re.findall(r"^  (-.*?)(?:  |$)", help_of(command, capsys), flags=re.MULTILINE)
    wanted = {flag for line in listed for flag in re.findall(r"(?<![\w-])--?[a-z][a-z-]*", line)}
    assert wanted - {"-h", "--help"} == flags


@pytest.mark.parametrize(
    "command",
    [*(f"image {name}" for name in image.COMMANDS), *(f"container {name}" for name in container.COMMANDS)],
)
def test_every_flag_of_a_command_about_images_is_there_and_no_other(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = [line for line in IMAGES.splitlines() if re.match(rf"\| `{command}\b", line)]
    if "as for `load`" in line:
        (line,) = [line for line in IMAGES.splitlines() if line.startswith("| `image load")]
    flags = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", line))
    shown = help_of(command, capsys).split("options:", 1)[1]
    listed = re.findall(r"^  (-.*?)(?:  |$)", shown, flags=re.MULTILINE)
    wanted = {flag for line in listed for flag in re.findall(r"(?<![\w-])--?[a-z][a-z-]*", line)}
    assert wanted - {"-h", "--help", "--root"} == flags
    assert "--root" in wanted


def test_every_mount_option_is_there_and_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    listed = help_of("mount", capsys).split("options for -o", 1)[1]
    names = " ".join(re.findall(r"^  (\S.*?)(?:   |$)", listed, flags=re.MULTILINE))
    shown = {word.partition("=")[0].strip(",") for word in names.split()}
    cells = [line.split("|")[1] for line in section("Mount options").splitlines() if line.startswith("| `")]
    written = {match for cell in cells for match in re.findall(rf"`({_OPTION})[=`]", cell)}
    values = {"auto", "on", "off", "all", "nofollow", "follow"}
    assert written - values == shown
