"""``pyoverlay image load`` and ``pull``: how do images come in?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pyoverlay.cli.images import arguments
from pyoverlay.cli.images.arguments import parser

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from pyoverlay.images.loading import Loaded

_LOAD: Final = """
FILE is a tar archive as "docker save", "podman save" or "skopeo copy" write it, compressed or not, or a
directory with an OCI layout; - is standard input. Every digest is verified. A layer that is in the store
already isn't unpacked again.
"""

_PULL: Final = """
REF is whatever skopeo reads (skopeo(1), "IMAGE NAMES"): docker://alpine, containers-storage:localhost/name,
docker-daemon:name:tag, oci:DIR:TAG, docker-archive:FILE; without a transport it is a registry's image, as in
"docker pull", and only the layers that aren't in the store yet are fetched.
"""


def load(words: list[str]) -> int:
    """Load a file or directory."""
    found = parser("load", "Add the images in a file or directory to the store.", _LOAD)
    found.add_argument("source", metavar="FILE|DIR", help="an archive or an OCI layout; - for standard input")
    _add_common(found)
    asked = found.parse_args(words)
    from pyoverlay.images import loading  # noqa: PLC0415  # --help must not wait for it

    return _bring_in(loading.load, asked.source, asked)


def pull(words: list[str]) -> int:
    """Fetch with skopeo, then load."""
    found = parser("pull", "Fetch an image with skopeo, and add it to the store.", _PULL)
    found.add_argument("reference", metavar="REF", help="which image")
    _add_common(found)
    asked = found.parse_args(words)
    from pyoverlay.images import pulling  # noqa: PLC0415  # --help must not wait for it

    return _bring_in(pulling.pull, asked.reference, asked)


def _bring_in(bring_in: Callable[..., list[Loaded]], what: str, asked: argparse.Namespace) -> int:
    from pyoverlay.cli.images.progress import Bars  # noqa: PLC0415  # as above

    with Bars(quiet=asked.quiet) as bars:
        loaded = bring_in(arguments.store(asked), what, bars, arguments.limits(asked), _names(asked))
    _tell(loaded)
    return 0


def _add_common(found: argparse.ArgumentParser) -> None:
    found.add_argument(
        "--name",
        action="append",
        default=[],
        metavar="NAME",
        help="what to call the image, instead of what it calls itself; repeat it for more names",
    )
    found.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    arguments.with_limits(found)


def _names(asked: argparse.Namespace) -> list[str]:
    from pyoverlay.images import references  # noqa: PLC0415  # --help must not wait for it

    return [references.normalize(name) for name in asked.name]


def _tell(loaded: list[Loaded]) -> None:
    from pyoverlay.images import references  # noqa: PLC0415  # --help must not wait for it

    for image in loaded:
        if not image.names:
            print(f"Loaded image ID: {image.image_id}")
        for name in image.names:
            print(f"Loaded image: {references.familiar(name)}")
