"""On which machine were the figures taken?

Only what a reader needs to judge them or to take them again; neither host names nor paths.
"""

from __future__ import annotations

import ctypes
import datetime as dt
import os
import platform
import re
from pathlib import Path

_DEVICES = {
    "vd": "a virtual disk",
    "xvd": "a virtual disk",
    "nvme": "NVMe",
    "loop": "a loop device",
    "dm-": "a mapped device",
}
_OCTAL = re.compile(r"\\([0-7]{3})")


def describe(directory: Path) -> dict[str, str]:
    """Return what the page records, by the words it is recorded under.

    Args:
        directory: On the file system where the layers are.
    """
    return {
        "date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "CPUs": _cpus(),
        "memory": _memory(),
        "file system": _file_system(directory),
        "distribution": _distribution(),
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "libfuse": _libfuse(),
    }


def _cpus() -> str:
    facts = _text(Path("/proc/cpuinfo"))
    model = re.search(r"^model name\s*:\s*(.+)$", facts, re.MULTILINE)
    virtual = re.search(r"^flags\s*:.*\bhypervisor\b", facts, re.MULTILINE)
    name = model[1].strip() if model else platform.machine()
    return f"{len(os.sched_getaffinity(0))} x {name}" + (", virtual" if virtual else "")


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "unknown")
    except OSError:
        return "unknown"


def _memory() -> str:
    total = re.search(r"^MemTotal:\s*(\d+) kB", _text(Path("/proc/meminfo")), re.MULTILINE)
    return f"{int(total[1]) / 1024**2:.1f} GiB" if total else "unknown"


def _file_system(directory: Path) -> str:
    """Return type and options of the mount that holds ``directory``, and which kind of device is below it."""
    path = str(directory.resolve())
    found: dict[str, str] = {}
    for line in _text(Path("/proc/self/mountinfo")).splitlines():
        mount = _mount_fields(line)
        # Of mounts over each other the last one shows.
        if _lies_below(path, mount["point"]) and len(mount["point"]) >= len(found.get("point", "")):
            found = mount
    if not found:
        return "unknown"
    device = _device_kind(found["source"], found["device"])
    return f"{found['type']} ({found['options']})" + (f" on {device}" if device else "")


def _mount_fields(line: str) -> dict[str, str]:
    """Return the fields of a line of mountinfo that matter, as proc_pid_mountinfo(5) lays them out."""
    words = line.split(" ")
    beyond = words[words.index("-") + 1 :]
    return {
        "device": words[2],
        "point": _OCTAL.sub(lambda match: chr(int(match[1], 8)), words[4]),
        "options": words[5],
        "type": beyond[0],
        "source": beyond[1],
    }


def _lies_below(path: str, point: str) -> bool:
    return point == "/" or path == point or path.startswith(point + "/")


def _device_kind(source: str, number: str) -> str:
    """Say what a block device is, "" for a file system without one."""
    if not source.startswith("/dev/"):
        return ""
    if number.startswith("0:"):
        # A file system that may span several devices has a number of its own, which names none of them.
        try:
            inner = os.stat(source).st_rdev
        except OSError:
            return ""
        number = f"{os.major(inner)}:{os.minor(inner)}"
    disk = Path("/sys/dev/block", number).resolve()
    if not (disk / "queue").is_dir():
        disk = disk.parent  # of a partition
    for prefix, kind in _DEVICES.items():
        if disk.name.startswith(prefix):
            return kind
    rotates = _text(disk / "queue/rotational").strip()
    return {"0": "a solid-state disk", "1": "a rotating disk"}.get(rotates, "a disk")


def _libfuse() -> str:
    for soname in ("libfuse3.so.4", "libfuse3.so.3"):
        try:
            version = ctypes.CDLL(soname).fuse_pkgversion
        except (OSError, AttributeError):
            continue
        version.restype = ctypes.c_char_p
        return bytes(version()).decode()
    return "unknown"


def _text(path: Path) -> str:
    """Return a file of /proc or /sys, "" where the kernel has none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
