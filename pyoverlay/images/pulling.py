"""How is an image fetched from a registry, or from another program's store?  By skopeo.

A registry's layers are streamed, without those that are here; what skopeo reads elsewhere is copied as a
whole.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Final

from pyoverlay.images import archives, image_proxy, loading, references
from pyoverlay.images.digests import parse_digest
from pyoverlay.images.errors import ImageError
from pyoverlay.images.image_proxy import UnsuitableError
from pyoverlay.images.limits import Limits
from pyoverlay.images.loading import Loaded, Watcher
from pyoverlay.images.store import Store

_REGISTRY: Final = "docker:"
_TRANSPORTS: Final = (
    "containers-storage",
    "dir",
    "docker",
    "docker-archive",
    "docker-daemon",
    "oci",
    "oci-archive",
    "ostree",
    "sif",
    "tarball",
)


def pull(
    store: Store, reference: str, watcher: Watcher, limits: Limits, names: Sequence[str] = ()
) -> list[Loaded]:
    """Add an image to the store that skopeo reads.

    Args:
        store: where to.
        reference: in skopeo's words, ``TRANSPORT:REST``; without a transport, a registry's image.
        watcher: is told how it gets on.
        limits: what is refused.
        names: full names to give it; none: the one that the reference has.

    Raises:
        ImageError: skopeo isn't there, or fails; see `loading.load` for the rest.
    """
    program = shutil.which("skopeo")
    if program is None:
        raise ImageError("pulling needs the program skopeo; install the package of this name")
    source = full_reference(reference)
    given = list(names) or names_of(source)
    with store.adding():
        if source.startswith(_REGISTRY):
            with contextlib.suppress(UnsuitableError):
                image = image_proxy.find_image(program, source, given)
                return loading.add_images(store, [image], watcher, limits, given)
        return _copied(store, program, source, watcher, limits, given)


def _copied(
    store: Store, program: str, source: str, watcher: Watcher, limits: Limits, names: Sequence[str]
) -> list[Loaded]:
    """Have skopeo copy the whole image, and load the copy."""
    with tempfile.TemporaryDirectory(dir=store.root / "unfinished", prefix="pull-") as scratch:
        copied = subprocess.run(
            # As "dir:", the manifest and the configuration stay as they are, and so does the image's ID.
            [program, "copy", "--quiet", source, f"dir:{scratch}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if copied.returncode:
            raise ImageError(f"{source}: skopeo failed: {_reason(copied.stderr)}")
        with archives.open_images(scratch, store.root / "unfinished", limits) as images:
            return loading.add_images(store, images, watcher, limits, names)


def full_reference(reference: str) -> str:
    """Return a reference with its transport."""
    transport = reference.partition(":")[0]
    if transport in _TRANSPORTS and ":" in reference:
        return reference
    name, at, digest = reference.partition("@")
    full = references.normalize(name)
    if at:
        # As for docker, the tag says nothing beside a digest; skopeo refuses both.
        return f"docker://{references.split_tag(full)[0]}@{parse_digest(digest)}"
    return f"docker://{full}"


def names_of(source: str) -> list[str]:
    """Return the full name that an image has where it comes from; none where a path or digest is all."""
    transport, _, rest = source.partition(":")
    if transport in ("docker", "docker-daemon", "containers-storage"):
        text = re.sub(r"^\[[^]]*\]", "", rest.removeprefix("//"))
        if "@" in text or text.startswith("sha256:"):
            return []
        return [references.normalize(text)]
    path, colon, name = rest.partition(":")
    if not colon or not name:
        return []
    if "/" in name or ":" in name:
        return [references.normalize(name)]
    if transport == "docker-archive":
        return [references.normalize(name)]
    return [references.from_file(path.rstrip("/").rpartition("/")[2], name)]


def _reason(text: str) -> str:
    """Return what skopeo's log says went wrong, on one line."""
    found = re.findall(r'level=fatal msg="((?:[^"\\]|\\.)*)"', text) or text.strip().splitlines()[-1:]
    return (found[0] if found else "it said nothing").replace('\\"', '"')
