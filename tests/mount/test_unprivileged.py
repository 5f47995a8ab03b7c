"""Mounting without privilege: by another user through fusermount3, and as root of a user namespace.

Each runs a script of operations in a process that has no rights of its own, in a mount namespace of the test
in which /dev/fuse is open to everybody and the interpreter can be reached; nothing outside of it is changed.
What the script sees and what lies in the upper is compared with the kernel's overlay, mounted in a user
namespace for the same user.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import Kind, Stack, make_stack, reachable
from tests.mount.command import environment
from tests.mount.daemons import is_mounted

NOBODY = 65534
_PACKAGES = environment()["PYTHONPATH"]
LIMIT_SECONDS = 120

# Runs as the other user: argv is how to mount, how to unmount, the target and the upper directory.
SCRIPT = r"""
import errno, json, os, shlex, stat, subprocess, sys
mount, unmount, target, upper = sys.argv[1:]
subprocess.run(shlex.split(mount), check=True, stdin=subprocess.DEVNULL)
answers = {}

def answer(name, call):
    try:
        answers[name] = call()
    except OSError as error:
        answers[name] = errno.errorcode[error.errno]

def write(path, text, flags=os.O_WRONLY):
    descriptor = os.open(path, flags, 0o644)
    os.write(descriptor, text.encode())
    os.close(descriptor)

def tree(top, marks):
    found = {}
    for directory, subdirectories, files in os.walk(top):
        for name in sorted(subdirectories + files):
            path = os.path.join(directory, name)
            status = os.lstat(path)
            entry = [stat.filemode(status.st_mode), status.st_uid, status.st_gid]
            if stat.S_ISREG(status.st_mode):
                entry.append(open(path, encoding="utf-8").read())
            if stat.S_ISCHR(status.st_mode):
                entry = ["whiteout", status.st_rdev]
            if stat.S_ISLNK(status.st_mode):
                entry.append(os.readlink(path))
            if marks and stat.S_ISDIR(status.st_mode) and "user.overlay.opaque" in os.listxattr(path):
                entry.append("opaque")
            found[os.path.relpath(path, top)] = entry
    return found

os.chdir(target)
try:
    answers["before"] = tree(".", False)
    answer("create", lambda: write("new", "new", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    answer("change", lambda: write("file", "FROM"))
    answer("unlink", lambda: os.unlink("doomed"))
    answer("unlink again", lambda: os.unlink("doomed"))
    answer("mkdir", lambda: os.mkdir("directory"))
    answer("remove inner", lambda: os.unlink("directory/inner"))
    answer("rmdir", lambda: os.rmdir("directory"))
    answer("mkdir over whiteout", lambda: os.mkdir("directory"))
    answer("rename lower directory", lambda: os.rename("kept", "moved"))
    answer("rename file", lambda: os.rename("file", "kept/file"))
    answer("symlink", lambda: os.symlink("kept/file", "link"))
    answer("through symlink", lambda: open("link", encoding="utf-8").read())
    answer("link", lambda: os.link("new", "second"))
    answer("links", lambda: os.stat("new").st_nlink)
    answer("chmod", lambda: os.chmod("kept", 0o700))
    answer("chmod of root's", lambda: os.chmod("root's", 0o777))
    answer("change root's", lambda: write("root's", "x"))
    answer("fifo", lambda: os.mkfifo("fifo"))
    answer("device", lambda: os.mknod("device", stat.S_IFCHR | 0o600, os.makedev(1, 3)))
    answer("xattr", lambda: os.setxattr("new", "user.note", b"value"))
    answer("trusted xattr", lambda: os.setxattr("new", "trusted.note", b"value"))
    answers["after"] = tree(".", False)
finally:
    os.chdir("/")
    subprocess.run(shlex.split(unmount), check=True, stdin=subprocess.DEVNULL)
answers["upper"] = tree(upper, True)
answers["target"] = os.listdir(target)
print(json.dumps(answers))
"""


def _layers(base: Path) -> Stack:
    """Layers that belong to the other user, but for one file of root's."""
    made = make_stack(base)
    for name, content in (("file", "from below"), ("doomed", "doomed"), ("root's", "root's")):
        (made.lower / name).write_text(content)
    for name in ("directory", "kept"):
        (made.lower / name).mkdir()
        (made.lower / name / "inner").write_text(name)
    for directory, subdirectories, files in os.walk(base):
        for name in (".", *subdirectories, *files):
            if name != "root's":
                os.chown(Path(directory, name), NOBODY, NOBODY)
    return made


def _room(base: Path) -> str:
    """Shell commands that make the mount namespace: /dev/fuse for all, the interpreter within reach."""
    room = base / "room"
    room.mkdir()
    return "\n".join(["set -e", *reachable.shell_commands(room), 'exec "$@"'])


def _perform(stack: Stack, kind: Kind, *, user_namespace: bool) -> dict[str, object]:
    """Runs the script as nobody and returns its answers."""
    layers = f"lowerdir={stack.lower},upperdir={stack.upper},workdir={stack.work}"
    mount = {
        Kind.KERNEL: f"mount -t overlay overlay -o userxattr,{layers} {stack.merged}",
        Kind.PYOVERLAY: f"{sys.executable} -m pyoverlay mount -o {layers} {stack.merged}",
    }[kind]
    unmount = {
        Kind.KERNEL: f"umount {stack.merged}",
        Kind.PYOVERLAY: f"{sys.executable} -m pyoverlay unmount {stack.merged}",
    }[kind]
    nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--"]
    namespace = ["unshare", "--user", "--map-root-user", "--mount", "--"] if user_namespace else []
    script = [sys.executable, "-c", SCRIPT, mount, unmount, str(stack.merged), str(stack.upper)]
    room = ["unshare", "--mount", "--", "sh", "-c", _room(stack.base), "sh"]
    result = subprocess.run(
        [*room, *nobody, *namespace, *script],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": _PACKAGES, "PYTHONDONTWRITEBYTECODE": "1"},
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert result.returncode == 0, os.fsdecode(result.stderr)
    assert not is_mounted(stack.merged)
    return dict(json.loads(result.stdout))


def _compared(answers: dict[str, object], *, owner: int) -> dict[str, object]:
    """The answers with ids as seen outside of a user namespace, where nobody is the namespace's root."""
    # A FUSE inode can't keep an owner that has no number in the daemon's namespace: chmod answers EOVERFLOW
    # (fs/attr.c: notify_change) before anybody asks us. It is refused all the same.
    assert answers["chmod of root's"] in ("EPERM", "EOVERFLOW")

    def outside(value: object) -> object:
        if isinstance(value, list) and len(value) >= 3 and isinstance(value[1], int):
            return [value[0], *(NOBODY if number == owner else "other" for number in value[1:3]), *value[3:]]
        return value

    return {
        name: {path: outside(entry) for path, entry in answer.items()} if isinstance(answer, dict) else answer
        for name, answer in answers.items()
        if name != "chmod of root's"
    }


@pytest.fixture
def of_the_kernel(base: Path) -> dict[str, object]:
    """The answers of the kernel's overlay, mounted in a user namespace, over layers of its own."""
    directory = base / "kernel"
    directory.mkdir()
    return _compared(_perform(_layers(directory), Kind.KERNEL, user_namespace=True), owner=0)


def test_root_of_a_user_namespace(base: Path, of_the_kernel: dict[str, object]) -> None:
    """Root of a user namespace mounts, and everything is answered and written as by the kernel's overlay."""
    answers = _perform(_layers(base), Kind.PYOVERLAY, user_namespace=True)
    assert _compared(answers, owner=0) == of_the_kernel


def test_through_fusermount3(base: Path, of_the_kernel: dict[str, object]) -> None:
    """A user without a namespace mounts through fusermount3: the same answers, the same upper."""
    answers = _perform(_layers(base), Kind.PYOVERLAY, user_namespace=False)
    assert _compared(answers, owner=NOBODY) == of_the_kernel
