"""``pyoverlay mount``: how is a mount asked for by a person?"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Final

from pyoverlay.cli import arguments
from pyoverlay.options import MountOptions, parse_options
from pyoverlay.privileges import default_options

_EPILOG: Final = r"""
Without an upper directory the mount is read-only.

options for -o, separated by commas:
  lowerdir=A:B:C          lower directories, the topmost first; \: is a colon in a name
  lowerdir+=DIR           one more, below those before; a colon is a colon
  upperdir=DIR            takes the changes
  workdir=DIR             empty, on the upper's file system
  ro rw suid nosuid dev nodev exec noexec atime noatime
                          as in mount(8)
  allow_other             other users may use the mount (root's default)
  default_permissions     the kernel checks permissions (always the default)
  userxattr               marks are user.overlay.* extended attributes instead of trusted.overlay.*
                          (always so for whoever isn't root)
  volatile, fsync=volatile
                          sync nothing; after a crash the upper is refused
  fsync=auto|strict       sync copied-up files before they appear; strict: directories as well
  acl noacl               whether there are POSIX access control lists
  xino=off|auto|on        accepted; layers on several file systems always have different inode numbers
  redirect_dir=off|nofollow|follow
                          whether redirects that others wrote are followed
  timeout=SECONDS         how long the kernel may keep answers (default: for good)
  fast_path=on|off        answer simple requests at once
  passthrough=auto|all|off
                          let the kernel read and write open files of the upper by itself, and read programs
                          and libraries (all: all files) of the lowers
  uidmapping=DISK:SHOWN:COUNT[:DISK:SHOWN:COUNT...]
                          show the users DISK, DISK+1, ... as SHOWN, SHOWN+1, ..., and store them shifted
                          back; others show as the overflow id
  gidmapping=DISK:SHOWN:COUNT[:...]
                          the same for groups
  squash_to_root squash_to_uid=ID squash_to_gid=ID
                          show root, or this user or group, as the owner of everything
  xattr_permissions=0|1|2
                          keep owners, modes and types in an attribute, where the daemon may not chown:
                          2 in user.containers.override_stat, 1 in security.fuseoverlayfs.override_stat
  index=off metacopy=off context=LABEL threaded=N static_nlink writeback=N fast_ino=N kernel_cache
                          accepted, and change nothing
"""


def main(words: list[str]) -> int:
    """Mount, and return 0 when the mount is live (in the foreground: when it has ended).

    Raises OverlayError when it can't be; nothing is mounted or created then.
    """
    parser = arguments.ArgumentParser(
        "mount", "Stack directories and show them as one tree at TARGET.", _EPILOG
    )
    parser.add_argument("target", metavar="TARGET", help="the directory to mount on")
    parser.add_argument(
        "-o", dest="options", action="append", default=[], metavar="OPTIONS", help="see below"
    )
    arguments.add_layers(parser)
    parser.add_argument("-f", "--foreground", action="store_true", help="serve until unmounted or signalled")
    parser.add_argument("-d", "--debug", action="store_true", help="log every request")
    parser.add_argument("--log", metavar="FILE", help="where the daemon logs to (default: syslog)")
    asked = parser.parse_args(words)
    mount(asked_options(asked), asked.target, foreground=asked.foreground, debug=asked.debug, log=asked.log)
    return 0


def asked_options(asked: argparse.Namespace) -> MountOptions:
    """Return the mount options that ``-o``, ``--lower``, ``--upper`` and ``--work`` ask for.

    Raises OptionError; an unknown option is one.
    """
    privileged, defaults = default_options()
    return parse_options(
        [*defaults, *asked.options],
        unknown=None,
        privileged=privileged,
        lower=asked.lower,
        upper=asked.upper,
        work=asked.work,
    )


def mount(
    options: MountOptions,
    target: str,
    *,
    foreground: bool,
    debug: bool,
    log: str | None = None,
    name: str = "pyoverlay",
    source: str | None = None,
) -> None:
    """Hand a mount to the session (see `pyoverlay.fuse.session.mount`), and end the process with status 0.

    To take the interpreter apart would be a sixth of the time that a mount takes, and in the foreground
    most of the work at the end: engines kill what is still there soon after its mount has gone.
    """
    # Needs trio and libfuse, for which a wrong option or --help must not wait.
    from pyoverlay.fuse import session  # noqa: PLC0415

    session.mount(options, target, foreground=foreground, debug=debug, log=log, name=name, source=source)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
