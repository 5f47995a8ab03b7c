"""What do others make of an image of podman's: podman on the kernel's overlay, umoci, and its own archive?"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

from tests.containers.docker_elsewhere import tree
from tests.containers.podman_store import Podman
from tests.harness import Entry


def trees(podman: Podman, image: str, on_kernel: Podman, base: Path) -> list[dict[bytes, Entry]]:
    """The tree of an image as podman on the kernel's overlay and as umoci have it.

    base: an empty directory, which then holds the image as an OCI layout, too; see names_in_layers.
    """
    archive = base / "image.tar"
    podman("save", "--quiet", "--format=oci-archive", f"--output={archive}", image)
    loaded = on_kernel("load", "--quiet", f"--input={archive}").split()[-1]
    with on_kernel.mounted(loaded) as merged:
        assert on_kernel.mount_types() == {"overlay"}
        found = [tree(merged)]
    on_kernel("rmi", "--force", loaded)
    on_kernel.run(
        "skopeo", "--insecure-policy", "copy", "--quiet", f"oci-archive:{archive}", f"oci:{base}/layout:image"
    )
    on_kernel.run("umoci", "unpack", "--image", f"{base}/layout:image", f"{base}/bundle")
    return [*found, tree(base / "bundle/rootfs")]


def names_in_layers(base: Path) -> list[set[str]]:
    """The names in each layer's archive, the lowest layer's first, of the layout that `trees` left."""
    return [{member.name.strip("/") for member in members} for members in layers_in(base / "layout")]


def layers_in(layout: Path) -> list[list[tarfile.TarInfo]]:
    """The entries of each layer's archive in an OCI layout of one image, the lowest layer's first."""
    index = json.loads((layout / "index.json").read_text())
    manifest = json.loads(_blob(layout, index["manifests"][0]["digest"]).read_text())
    found = []
    for layer in manifest["layers"]:
        with tarfile.open(_blob(layout, layer["digest"])) as archive:
            found.append(archive.getmembers())
    return found


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")
