"""Is what runs in a container what its image and its caller say, and under whose ids?"""

from __future__ import annotations

from typing import Any

import pytest

from pyoverlay.containers.engine import instructions, names
from pyoverlay.containers.engine.record import ContainerError, Settings
from pyoverlay.containers.engine.settings import Asked, environment, settle
from pyoverlay.images.documents import RuntimeConfig
from pyoverlay.options import OptionError
from pyoverlay.sandbox.accounts import Account, find_account
from pyoverlay.sandbox.command import SandboxError

IMAGE = RuntimeConfig(
    user="redis",
    env=["PATH=/bin", "A=image"],
    entrypoint=["/entry"],
    cmd=["server", "--port=1"],
    working_dir="/data",
)


# Entrypoint, command and the rest


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (Asked(), ["/entry", "server", "--port=1"]),
        (Asked(command=["cli"]), ["/entry", "cli"]),
        (Asked(entrypoint="/bin/sh"), ["/bin/sh"]),
        (Asked(command=["-c", "x"], entrypoint="/bin/sh"), ["/bin/sh", "-c", "x"]),
        (Asked(command=["ls"], entrypoint=""), ["ls"]),
    ],
)
def test_entrypoint_and_command(asked: Asked, words: list[str]) -> None:
    assert settle(IMAGE, asked).words() == words


@pytest.mark.parametrize("config", [None, RuntimeConfig(), RuntimeConfig(entrypoint=[], cmd=[])])
def test_an_image_without_a_command_needs_one(config: RuntimeConfig | None) -> None:
    with pytest.raises(ContainerError, match="no command of its own"):
        settle(config, Asked())
    assert settle(config, Asked(command=["ls"])) == Settings(cmd=["ls"])


def test_an_entrypoint_that_is_taken_away_takes_the_command_along() -> None:
    with pytest.raises(ContainerError, match="no command of its own"):
        settle(IMAGE, Asked(entrypoint=""))


def test_what_is_not_asked_for_is_the_images() -> None:
    found = settle(IMAGE, Asked())
    assert (found.user, found.env, found.working_dir) == ("redis", ["PATH=/bin", "A=image"], "/data")
    found = settle(IMAGE, Asked(user="0", environment=["A=asked", "B=x=y"], directory="/a/../srv/"))
    assert (found.user, found.env, found.working_dir) == ("0", ["PATH=/bin", "A=asked", "B=x=y"], "/srv")


def test_a_relative_directory_is_the_images_mistake_but_not_the_callers() -> None:
    assert settle(RuntimeConfig(cmd=["x"], working_dir="app"), Asked()).working_dir == "/app"
    with pytest.raises(ContainerError, match="absolute path"):
        settle(IMAGE, Asked(directory="app"))


@pytest.mark.parametrize(
    "asked",
    [
        Asked(command=["a\0b"]),
        Asked(environment=["A=\udcff"]),
        Asked(entrypoint="\udcff"),
        Asked(directory="/\0"),
        Asked(user="\udc80"),
    ],
)
def test_what_can_not_be_kept_or_handed_on(asked: Asked) -> None:
    with pytest.raises(ContainerError, match="must be UTF-8, without a NUL"):
        settle(IMAGE, asked)


def test_an_images_variable_without_a_name_is_left_out() -> None:
    assert environment(Settings(env=["=x", "A=b"]), "me") == {"HOSTNAME": "me", "A": "b"}


def test_the_host_name_is_a_variable_unless_there_is_one() -> None:
    assert environment(Settings(env=["A=b=c", "D"]), "me") == {"HOSTNAME": "me", "A": "b=c"}
    assert environment(Settings(env=["HOSTNAME=other"]), "me") == {"HOSTNAME": "other"}


# Users and groups

PASSWD = [
    "# a comment\n",
    "root:x:0:0:root:/root:/bin/sh\n",
    "broken:x\n",
    "redis:x:999:1000::/data:/bin/sh\n",
    "1234:x:7:8::/:/bin/sh\n",
    "redis:x:5:5::/second:/bin/sh\n",
    "bad:x:no:5::/:\n",
    "beyond:x:4294967297:5::/:\n",
    f"endless:x:{'9' * 5000}:5::/:\n",
]
GROUP = [
    "root:x:0:\n",
    "adm:x:4:redis,other\n",
    "redis:x:1000:redis\n",
    "tty:x:5:other\n",
    "wheel:x:10:root\n",
    "short:x:1\n",
    "beyond:x:4294967297:\n",
]


@pytest.mark.parametrize(
    ("text", "account"),
    [
        ("", Account(0, 0, (0, 10))),
        ("root", Account(0, 0, (0, 10))),
        ("redis", Account(999, 1000, (1000, 4))),
        ("999", Account(999, 1000, (1000, 4))),
        ("redis:", Account(999, 1000, (1000, 4))),
        ("redis:tty", Account(999, 5, (5,))),
        ("redis:77", Account(999, 77, (77,))),
        ("4242", Account(4242, 0, (0,))),
        ("4242:adm", Account(4242, 4, (4,))),
        ("1234", Account(1234, 0, (0,))),
        (":adm", Account(0, 4, (4,))),
    ],
)
def test_whom_a_text_means(text: str, account: Account) -> None:
    assert find_account(text, PASSWD, GROUP) == account


def test_root_is_there_without_any_file() -> None:
    assert find_account("", [], []) == Account(0, 0, (0,))
    assert find_account("5:6", [], []) == Account(5, 6, (6,))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nobody", "no user 'nobody'"),
        ("bad", "no user 'bad'"),
        ("redis:nogroup", "no group 'nogroup'"),
        ("2147483648", "go up to"),
        ("0:99999999999", "go up to"),
        ("-1", "no user '-1'"),
        ("9" * 5000, "go up to"),
        ("beyond", "no user 'beyond'"),
        ("endless", "no user 'endless'"),
        ("0:beyond", "no group 'beyond'"),
        ("²", "no user"),
    ],
)
def test_who_is_not_there(text: str, said: str) -> None:
    with pytest.raises(SandboxError, match=said):
        find_account(text, PASSWD, GROUP)


# Names


@pytest.mark.parametrize("name", ["a", "A1_.-x", "0", "x" * 200])
def test_names(name: str) -> None:
    assert names.checked(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", ".a", "-a", "a/b", "a b", "ä", "a\n", "x" * 201, "../x"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(ContainerError, match="is no name for a container"):
        names.checked(name)


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("redis", "redis-1"),
        ("localhost:5000/some/redis:7", "redis-1"),
        ("sha256:abcdef", "abcdef-1"),
        ("x" * 255, f"{'x' * 190}-1"),
        (".:", "container-1"),
    ],
)
def test_a_name_after_the_image(image: str, name: str) -> None:
    assert names.checked(names.after_image(image, [])) == name


def test_a_name_that_is_free() -> None:
    assert names.after_image("redis", ["redis-1", "redis-2", "redis-4"]) == "redis-3"


# Instructions


def changed(*texts: str) -> dict[str, Any]:
    image = {"Env": ["A=image"], "Labels": {"a": "1"}, "ExposedPorts": {"1/tcp": {}}, "Cmd": ["old"]}
    config: dict[str, Any] = {}
    for text in texts:
        instructions.apply(text, config, image)
    return config


@pytest.mark.parametrize(
    ("texts", "config"),
    [
        (['CMD ["a", "b c"]'], {"Cmd": ["a", "b c"]}),
        (["cmd a b"], {"Cmd": ["/bin/sh", "-c", "a b"]}),
        (["ENTRYPOINT []"], {"Entrypoint": [], "Cmd": None}),
        (['ENTRYPOINT ["e"]', 'CMD ["c"]'], {"Entrypoint": ["e"], "Cmd": ["c"]}),
        (["ENV A=1 B='x y'", "ENV C some text"], {"Env": ["A=1", "B=x y", "C=some text"]}),
        (["LABEL b=2", "LABEL a=3"], {"Labels": {"a": "3", "b": "2"}}),
        (["EXPOSE 2/tcp 3"], {"ExposedPorts": {"1/tcp": {}, "2/tcp": {}, "3": {}}}),
        (['VOLUME ["/a b"]', "VOLUME /c"], {"Volumes": {"/a b": {}, "/c": {}}}),
        (
            ["USER redis:redis", "WORKDIR /x", "STOPSIGNAL 9"],
            {"User": "redis:redis", "WorkingDir": "/x", "StopSignal": "9"},
        ),
    ],
)
def test_instructions(texts: list[str], config: dict[str, Any]) -> None:
    assert changed(*texts) == config


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("RUN ls", "'RUN' isn't among CMD"),
        ("", "isn't among"),
        ("CMD", "needs something after it"),
        ('CMD ["a"', "must be a JSON array"),
        ("CMD [1]", "must hold strings"),
        ("ENV A", "write NAME=VALUE"),
        ("ENV =x", "write NAME=VALUE"),
        ("LABEL a='x", "No closing quotation"),
        ("WORKDIR x", "absolute path"),
    ],
)
def test_wrong_instructions(text: str, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        changed(text)
