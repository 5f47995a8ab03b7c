"""``pyoverlay image tag``, ``save``, ``check``, ``remove`` and ``prune``: what keeps images sound?"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from pyoverlay.cli.images import arguments
from pyoverlay.cli.images.arguments import parser, size_text
from pyoverlay.options import OptionError

if TYPE_CHECKING:
    from pyoverlay.images.catalogue import Removed

_SAVE: Final = """
docker, podman, skopeo and others load both forms. FILE is replaced once the archive is whole; - is standard
output. The layers' tars are the bytes that were loaded, so diffIDs and image IDs stay what they are.
"""


def tag(words: list[str]) -> int:
    """Give an image one more name."""
    found = parser("tag", "Give an image one more name; another image that had it loses it.")
    found.add_argument("image", metavar="IMAGE", help="a name, or the beginning of an ID")
    found.add_argument("name", metavar="NAME", help="the new name: [REGISTRY/]NAME[:TAG]")
    asked = found.parse_args(words)
    from pyoverlay.images import catalogue, references  # noqa: PLC0415  # --help must not wait for it

    store = arguments.store(asked)
    catalogue.tag(store, catalogue.find_image(store, asked.image), references.normalize(asked.name))
    return 0


def save(words: list[str]) -> int:
    """Write images to an archive."""
    found = parser("save", "Write images to one archive that others load.", _SAVE)
    found.usage = "pyoverlay image save [option]... IMAGE [IMAGE]... FILE"
    found.add_argument("images", nargs="+", metavar="IMAGE", help="names, or beginnings of IDs")
    found.add_argument("file", metavar="FILE", help="the archive")
    found.add_argument(
        "--format",
        choices=("oci-archive", "docker-archive"),
        default="oci-archive",
        help="an OCI layout, or what docker save writes (default: oci-archive)",
    )
    found.add_argument(
        "--compress",
        choices=arguments.COMPRESSIONS,
        default="none",
        help="of the layers in an oci-archive (default: none)",
    )
    asked = found.parse_args(words)
    if asked.format == "docker-archive" and asked.compress != "none":
        raise OptionError("--compress: docker's archives have plain layers; compress the whole file instead")
    if asked.file == "-" and sys.stdout.isatty():
        raise OptionError("an archive isn't written to a terminal; name a file")
    from pyoverlay.images import catalogue, references, saving  # noqa: PLC0415  # --help must not wait for it

    store = arguments.store(asked)
    wanted = []
    for image in asked.images:
        image_id = catalogue.find_image(store, image)
        record = store.images()[image_id]
        wanted.append(saving.Wanted(image_id, references.meant(record.names, image) or record.names))
    saving.save(store, wanted, asked.file, asked.format, asked.compress)
    return 0


def check(words: list[str]) -> int:
    """Compare layers with what they were; the exit status is 1 when one differs."""
    found = parser(
        "check",
        "Compare every layer with what it was when it came in: files, attributes, digest.",
        "The exit status is 1 when a layer isn't sound. Then remove its images, and load them again.",
    )
    found.add_argument("images", nargs="*", metavar="IMAGE", help="which images (default: all layers)")
    asked = found.parse_args(words)
    from pyoverlay.images import checking, image_checking  # noqa: PLC0415  # --help must not wait for it

    store = arguments.store(asked)
    problems = 0
    with store.reading():
        chosen = image_checking.layers_to_check(store, asked.images)
        for image_id in image_checking.images_to_check(store, asked.images):
            for text in image_checking.check_image(store, image_id):
                problems += 1
                print(f"image {image_id}: {text}")
        for layer in chosen:
            for text in checking.check_layer(store, layer):
                problems += 1
                print(f"layer {layer}: {text}")
    print(f"{len(chosen)} layers checked, {problems or 'no'} {'problem' if problems == 1 else 'problems'}")
    return 1 if problems else 0


def remove(words: list[str]) -> int:
    """Remove images."""
    found = parser(
        "remove",
        "Remove images, and the layers that no other image and no container has.",
        "A name of an image with several names takes away only that name; an ID takes the image.",
    )
    found.add_argument("images", nargs="+", metavar="IMAGE", help="a name, or the beginning of an ID")
    asked = found.parse_args(words)
    from pyoverlay.images import catalogue  # noqa: PLC0415  # --help must not wait for it

    _tell(catalogue.remove(arguments.store(asked), asked.images))
    return 0


def prune(words: list[str]) -> int:
    """Remove what nobody can name."""
    found = parser(
        "prune",
        "Remove images without a name, layers without an image, and what killed processes left.",
    )
    found.add_argument("-a", "--all", action="store_true", help="remove the images that have names, too")
    asked = found.parse_args(words)
    from pyoverlay.images import catalogue  # noqa: PLC0415  # --help must not wait for it

    _tell(catalogue.prune(arguments.store(asked), every=asked.all))
    return 0


def _tell(removed: Removed) -> None:
    from pyoverlay.images import references  # noqa: PLC0415  # --help must not wait for it

    for name in removed.names:
        print(f"Untagged: {references.familiar(name)}")
    for image_id in removed.images:
        print(f"Deleted image: {image_id}")
    for layer in removed.layers:
        print(f"Deleted layer: {layer}")
    if removed.leftovers:
        print(f"Removed what {removed.leftovers} unfinished loads left")
    if removed.layers:
        print(f"Freed: {size_text(removed.size)}")
