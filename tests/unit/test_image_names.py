"""Are images, layers and chains of layers called as docker and the OCI specification call them?"""

from __future__ import annotations

import pytest

from pyoverlay.images import pulling, references
from pyoverlay.images.digests import Digest, chain_ids, parse_digest, short
from pyoverlay.images.errors import ImageError


@pytest.mark.parametrize(
    ("text", "full", "familiar"),
    [
        ("redis", "docker.io/library/redis:latest", "redis:latest"),
        ("redis:7", "docker.io/library/redis:7", "redis:7"),
        ("library/redis", "docker.io/library/redis:latest", "redis:latest"),
        ("docker.io/redis", "docker.io/library/redis:latest", "redis:latest"),
        ("user/app:v1.2_3-x", "docker.io/user/app:v1.2_3-x", "user/app:v1.2_3-x"),
        ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
        ("quay.io/a/b/c:1", "quay.io/a/b/c:1", "quay.io/a/b/c:1"),
        ("localhost:5000/app:1", "localhost:5000/app:1", "localhost:5000/app:1"),
        ("[::1]:5000/app", "[::1]:5000/app:latest", "[::1]:5000/app:latest"),
    ],
)
def test_a_name_and_what_it_stands_for(text: str, full: str, familiar: str) -> None:
    assert references.normalize(text) == full
    assert references.normalize(full) == full
    assert references.familiar(full) == familiar
    assert references.normalize(familiar) == full


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Redis",
        "a b",
        "a:",
        "a:b:c",
        "a/../b",
        "-a",
        "a@sha256:" + "0" * 64,
        "a:" + "t" * 129,
        "n" * 300,
        "a\nb",
    ],
)
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(ImageError, match="no image name"):
        references.normalize(text)


def test_the_end_of_a_name_means_the_image() -> None:
    names = ["localhost/app:1", "quay.io/team/app:1", "docker.io/library/app:2"]
    assert references.meant(names, "app:1") == names[:2]
    assert references.meant(names, "team/app:1") == names[1:2]
    assert references.meant(names, "app:2") == names[2:]
    assert references.meant(names, "pp:1") == []
    assert references.meant(names, "Not a name") == []


def test_a_layout_that_knows_only_a_tag_is_called_after_its_file() -> None:
    assert references.from_file("My Image.tar.gz", "v1") == "docker.io/library/my-image:v1"
    assert references.from_file("???", "v1") == "docker.io/library/image:v1"


@pytest.mark.parametrize(
    ("reference", "source", "names"),
    [
        ("alpine", "docker://docker.io/library/alpine:latest", ["docker.io/library/alpine:latest"]),
        ("docker://quay.io/a/b:1", "docker://quay.io/a/b:1", ["quay.io/a/b:1"]),
        ("docker://a@sha256:00", "docker://a@sha256:00", []),
        ("oci:/dir/lay:tag", "oci:/dir/lay:tag", ["docker.io/library/lay:tag"]),
        ("oci:/dir", "oci:/dir", []),
        ("docker-archive:/f.tar:a/b:1", "docker-archive:/f.tar:a/b:1", ["docker.io/a/b:1"]),
        ("containers-storage:localhost/a", "containers-storage:localhost/a", ["localhost/a:latest"]),
        (
            "containers-storage:[overlay@/g+/r]localhost/a:2",
            "containers-storage:[overlay@/g+/r]localhost/a:2",
            ["localhost/a:2"],
        ),
        ("localhost:5000/a", "docker://localhost:5000/a:latest", ["localhost:5000/a:latest"]),
    ],
)
def test_what_is_pulled_and_how_it_is_called(reference: str, source: str, names: list[str]) -> None:
    assert pulling.full_reference(reference) == source
    assert pulling.names_of(source) == names


def test_chain_ids_are_those_of_the_specification() -> None:
    # sha256 of "FIRST SECOND", as in image-spec, config.md.
    one, two = (Digest("sha256:" + digit * 64) for digit in "12")
    assert chain_ids([]) == []
    assert chain_ids([one, two]) == [
        one,
        "sha256:9932074217c35353d2e03a3f5a86549f7c67bfeb0ba53e23d69f4d4c8f7958f5",
    ]
    assert short(one) == "1" * 12


@pytest.mark.parametrize(
    "text", ["", "sha256:", "sha256:" + "A" * 64, "sha256:" + "0" * 63, "sha512:" + "0" * 128]
)
def test_what_is_no_digest(text: str) -> None:
    with pytest.raises(ImageError, match="no sha256 digest"):
        parse_digest(text)
