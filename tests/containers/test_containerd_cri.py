"""Does a Kubernetes node run pods whose containers' roots are pyoverlay's?

With containerd's CRI plugin as the README tells people to configure it, asked as the kubelet asks it.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers.containerd_cri import Kubelet
from tests.containers.containerd_daemon import Containerd
from tests.containers.containerd_image import File, base_layer, write_image
from tests.mount.command import REPOSITORY, mounts_below, wait_for

IMAGE = "test.local/small:1"
PAUSE = "test.local/pause:1"
DOCUMENTS = ("README.md", "docs/containerd.md")


def configuration_in(document: str) -> str:
    """The configuration of the CRI plugin that a document tells people to use."""
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    (section,) = re.findall(
        r'^(\[plugins\."io\.containerd\.grpc\.v1\.cri"\.containerd\]\n(?: .*\n)+)', text, re.MULTILINE
    )
    return str(section)


def test_the_documents_agree() -> None:
    assert len({configuration_in(document) for document in DOCUMENTS}) == 1


@pytest.fixture
def containerd() -> Iterator[Containerd]:
    """A containerd with the CRI plugin, and an image for it."""
    base = Path(tempfile.mkdtemp(prefix="ctd-"))
    try:
        layers = [base_layer(), {"d": File(), "d/f": File(b"f\n", mode=0o644)}]
        write_image(base / "image.tar", IMAGE, layers)
        write_image(base / "pause.tar", PAUSE, layers, command=["/bin/sleep", "10000"])
        # Where CAP_SYS_RESOURCE is missing, as in many a container, a pod can't be spared by the OOM killer.
        configuration = (
            '[plugins."io.containerd.grpc.v1.cri"]\n'
            f'  sandbox_image = "{PAUSE}"\n'
            "  restrict_oom_score_adj = true\n"
        )
        root = base / "root/io.containerd.snapshotter.v1.pyoverlay"
        with Containerd(base, configuration + configuration_in(DOCUMENTS[0]), root) as running:
            for name in ("image", "pause"):
                running("--namespace=k8s.io", "images", "import", base / f"{name}.tar")
            yield running
    finally:
        shutil.rmtree(base)


def test_a_pod(containerd: Containerd) -> None:
    with contextlib.closing(Kubelet(containerd.address, containerd.base)) as kubelet:
        wait_for(lambda: kubelet.has_image(IMAGE) and kubelet.has_image(PAUSE))
        name = containerd.new_name()
        pod = kubelet.run_pod(name)
        try:
            container = kubelet.run_container(pod, name, IMAGE, ["/bin/sleep", "10000"])
            table = kubelet.execute(container, "mount").splitlines()
            assert [line.split()[4] for line in table if " on / " in line] == ["fuse.pyoverlay"]
            assert kubelet.execute(container, "echo more >> /d/f; cat /d/f") == "f\nmore\n"
            assert kubelet.disk_of_images() == containerd.snapshotter.root
            assert containerd.snapshotter.root.is_dir()
            # containerd looks every 10 seconds.
            wait_for(lambda: kubelet.usage(container)[1] > 2)
        finally:
            kubelet.remove_pod(pod)
        wait_for(lambda: not containerd.mount_daemons())
        assert [line for line in mounts_below(containerd.base) if "pyoverlay" in line] == []
        for image in (IMAGE, PAUSE):
            kubelet.remove_image(image)
        wait_for(lambda: containerd.directories() == 0)
        assert containerd.kept() == []
