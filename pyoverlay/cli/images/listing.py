"""``pyoverlay image list``, ``inspect`` and ``history``: how is what is known of images printed?"""

from __future__ import annotations

import datetime as dt
import json
import re
from typing import TYPE_CHECKING, Any, Final

from pyoverlay.cli.images import arguments
from pyoverlay.cli.images.arguments import parser, size_text

if TYPE_CHECKING:
    from pyoverlay.images.digests import Digest
    from pyoverlay.images.store import ImageRecord, Store

_NONE: Final = "<none>"


def list_images(words: list[str]) -> int:
    """Print a table of the images, the newest first."""
    found = parser("list", "List the images in the store.")
    found.add_argument("--json", action="store_true", help="print JSON")
    found.add_argument("-q", "--quiet", action="store_true", help="print the IDs alone")
    asked = found.parse_args(words)
    store = arguments.store(asked)
    images = sorted(store.images().items(), key=lambda item: (-item[1].added, item[1].names, item[0]))
    if asked.quiet:
        for image_id, _ in images:
            print(image_id)
        return 0
    rows = [row for image_id, record in images for row in _rows(store, image_id, record)]
    if asked.json:
        print(json.dumps(rows, indent=2))
        return 0
    print_table(
        ("REPOSITORY", "TAG", "IMAGE ID", "CREATED", "LAYERS", "SIZE"),
        [
            (
                row["Repository"],
                row["Tag"],
                row["ID"].partition(":")[2][:12],
                _date(row["Created"]),
                str(row["Layers"]),
                size_text(row["Size"]),
            )
            for row in rows
        ],
    )
    return 0


def _rows(store: Store, image_id: Digest, record: ImageRecord) -> list[dict[str, Any]]:
    from pyoverlay.images import inspecting, references  # noqa: PLC0415  # --help must not wait for it

    layers = inspecting.layers_of(store, image_id)
    rest = {
        "ID": image_id,
        "Created": store.config(image_id).created or "",
        "Layers": len(layers),
        "Size": inspecting.image_size(store, layers),
    }
    names = [references.split_tag(references.familiar(name)) for name in record.names] or [(_NONE, _NONE)]
    return [{"Repository": repository, "Tag": tag, **rest} for repository, tag in names]


def inspect(words: list[str]) -> int:
    """Print docker's JSON about images."""
    found = parser(
        "inspect",
        "Show images as JSON, in the shape of docker image inspect.",
        "GraphDriver.Data has the directories that mount(8) takes: UpperDir is the topmost layer, LowerDir "
        "those beneath it.\nLayers lists each with its size and directory.",
    )
    found.add_argument("images", nargs="+", metavar="IMAGE", help="a name, or the beginning of an ID")
    asked = found.parse_args(words)
    from pyoverlay.images import catalogue, inspecting  # noqa: PLC0415  # --help must not wait for it

    store = arguments.store(asked)
    described = [inspecting.inspect(store, catalogue.find_image(store, image)) for image in asked.images]
    print(json.dumps(described, indent=4))
    return 0


def lowers(words: list[str]) -> int:
    """Print the lower directories of an image."""
    found = parser(
        "lowers",
        "Print an image's directories for the mount option lowerdir=, the topmost first.",
        "As in: mount -t overlay overlay TARGET -o lowerdir=$(pyoverlay image lowers IMAGE),upperdir=...",
    )
    found.add_argument("image", metavar="IMAGE", help="a name, or the beginning of an ID")
    asked = found.parse_args(words)
    from pyoverlay.images import catalogue, inspecting, stacking  # noqa: PLC0415  # --help must not wait
    from pyoverlay.options import join_lowerdir  # noqa: PLC0415

    store = arguments.store(asked)
    layers = inspecting.layers_of(store, catalogue.find_image(store, asked.image))
    print(join_lowerdir(str(path) for path in stacking.lower_directories(store, layers)))
    return 0


def history(words: list[str]) -> int:
    """Print how an image came to be."""
    found = parser("history", "Show how an image's layers came to be, the topmost first.")
    found.add_argument("image", metavar="IMAGE", help="a name, or the beginning of an ID")
    found.add_argument("--json", action="store_true", help="print JSON")
    asked = found.parse_args(words)
    from pyoverlay.images import catalogue, inspecting  # noqa: PLC0415  # --help must not wait for it

    store = arguments.store(asked)
    steps = inspecting.history(store, catalogue.find_image(store, asked.image))
    if asked.json:
        rows = [
            {
                "Layer": step.layer,
                "Created": step.created,
                "CreatedBy": step.created_by,
                "Size": step.size,
                "Comment": step.comment,
            }
            for step in steps
        ]
        print(json.dumps(rows, indent=2))
        return 0
    print_table(
        ("LAYER", "CREATED", "CREATED BY", "SIZE"),
        [
            (
                step.layer.partition(":")[2][:12] if step.layer else "-",
                _date(step.created),
                re.sub(r"\s+", " ", step.created_by or step.comment),
                size_text(step.size),
            )
            for step in steps
        ],
    )
    return 0


def _date(text: str) -> str:
    """Return the day of an RFC 3339 time, as it stands there; a dash for none."""
    try:
        return dt.date.fromisoformat(text[:10]).isoformat()
    except ValueError:
        return "-"


def print_table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print rows below the names of their columns."""
    from rich.table import Table  # noqa: PLC0415  # --help must not wait for it
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(
            column,
            no_wrap=True,
            overflow="ellipsis",
            justify="right" if column in ("SIZE", "LAYERS") else "left",
        )
    for row in rows:
        table.add_row(*(Text(arguments.printable(cell)) for cell in row))
    arguments.console().print(table)
