"""What is the image of six layers that every engine builds, runs and commits?

Redis on Debian, from Debian's packages, without a network in the build: the minimal system, a helper, Redis,
its configuration, an entry point, and a directory for its data.
"""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, Protocol

from tests.harness import debian
from tests.mount.command import wait_for


class Engine(Protocol):
    """podman or docker, as far as it is needed here."""

    def __call__(self, *words: str | Path) -> str:
        """Run the engine's client and return what it printed."""

    def container(self, image: str, *options: str, command: str = ...) -> AbstractContextManager[str]:
        """A running container, removed afterwards."""


LAYERS: Final = 6
SOCKET: Final = "/data/redis.sock"
KEY: Final = "greeting"
VALUE: Final = "hello"

_CONTAINERFILE: Final = """\
FROM scratch
ADD system.tar /
RUN dpkg --install /packages/gosu_*.deb
RUN rm /packages/gosu_*.deb && dpkg --install /packages/*.deb
COPY redis.conf /etc/redis/redis.conf
COPY entry-point /usr/local/bin/entry-point
RUN rm -rf /packages && mkdir /data && chown redis:redis /data && chmod 2770 /data
ENTRYPOINT ["/usr/local/bin/entry-point"]
"""

_CONFIGURATION: Final = f"""\
port 0
unixsocket {SOCKET}
dir /data
save ""
"""

_ENTRY_POINT: Final = """\
#!/bin/sh
exec gosu redis redis-server /etc/redis/redis.conf "$@"
"""

# What a small image of Debian leaves out, too.
_LEFT_OUT: Final = (
    "usr/share/doc",
    "usr/share/zoneinfo",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/lib/x86_64-linux-gnu/perl-base/unicore",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/info",
    "var/cache",
    "var/lib/apt",
)


def write_context(directory: Path) -> Path:
    """Fill a directory, which is made, with what a build takes, the file `Dockerfile` among it.

    Debian's mirror is asked for what isn't in the cache. Returns the directory.
    """
    system = debian.minimal_system()
    packages = directory / "packages"
    packages.mkdir(parents=True)
    for package in debian.packages(system, "gosu", "redis-server"):
        shutil.copy(package, packages)
    left_out = [f"--exclude=./{path}/*" for path in _LEFT_OUT]
    tar = ["tar", f"--file={directory}/system.tar", "--numeric-owner", "--xattrs", "--xattrs-include=*"]
    debian.run(*tar, "--create", *left_out, f"--directory={system}", ".")
    debian.run(*tar, "--append", f"--directory={directory}", "packages")
    shutil.rmtree(packages)
    (directory / "Dockerfile").write_text(_CONTAINERFILE)
    (directory / "redis.conf").write_text(_CONFIGURATION)
    (directory / "entry-point").write_text(_ENTRY_POINT)
    (directory / "entry-point").chmod(0o755)
    return directory


def commit_with_dump(engine: Engine, image: str, committed: str) -> None:
    """Start a container, set `KEY` in its Redis, let that write its dump, and commit the container."""
    with engine.container(image, command="") as container:
        wait_for(lambda: _listens(engine, container))
        assert client(engine, container, "SET", KEY, VALUE) == "OK"
        assert client(engine, container, "GET", KEY) == VALUE
        assert client(engine, container, "SAVE") == "OK"
        engine("stop", "--time=10", container)
        engine("commit", container, committed)


def client(engine: Engine, container: str, *words: str) -> str:
    """What redis-cli answers in a running container."""
    return engine("exec", container, "redis-cli", "-s", SOCKET, *words).strip()


def _listens(engine: Engine, container: str) -> bool:
    return engine("exec", container, "sh", "-c", f"test -S {SOCKET} && echo yes || true").strip() == "yes"


def value_in(engine: Engine, image: str) -> str:
    """What `KEY` is in the Redis of a new container."""
    with engine.container(image, command="") as container:
        wait_for(lambda: _listens(engine, container))
        return client(engine, container, "GET", KEY)
