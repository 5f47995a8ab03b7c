"""Do whiteouts hide what lies beneath, and nothing else, wherever in the tar they stand?"""

from __future__ import annotations

import itertools

import pytest

from pyoverlay.images.whiteouts import plan

OPQ = b".wh..wh..opq"


@pytest.mark.parametrize(
    ("names", "directories", "files", "opaque", "devices"),
    [
        ([b".wh.a"], [], [], [], [b"a"]),
        ([b"d/.wh.a"], [b"d"], [], [], [b"d/a"]),
        # What the layer has itself isn't hidden.
        ([b".wh.a"], [], [b"a"], [], []),
        ([b".wh.a"], [b"a"], [], [b"a"], []),
        ([b"d/" + OPQ], [b"d"], [], [b"d"], []),
        ([OPQ], [], [], [b""], []),
        # Nothing is left to hide in what is gone, or opaque.
        ([b".wh.a", b"a/.wh.b", b"a/b/.wh.c", b"a/" + OPQ], [], [], [], [b"a"]),
        ([b"d/" + OPQ, b"d/.wh.x"], [b"d"], [], [b"d"], []),
        ([b".wh.d", b"d/.wh.x", b"d/e/.wh.y"], [b"d", b"d/e"], [], [b"d"], [b"d/e/y"]),
        # A name that only begins alike.
        ([b".wh.a", b"ab/.wh.c"], [b"ab"], [], [], [b"a", b"ab/c"]),
        ([b".wh.a", b".wh.a"], [], [], [], [b"a"]),
        ([b".wh..wh"], [], [], [], [b".wh"]),
    ],
)
def test_the_marks_of_a_layer(
    names: list[bytes],
    directories: list[bytes],
    files: list[bytes],
    opaque: list[bytes],
    devices: list[bytes],
) -> None:
    there = {b"", *directories, *files}
    for order in itertools.permutations(names):
        found = plan(order, {b"", *directories}, there.__contains__)
        assert sorted(found.opaque) == opaque
        assert sorted(found.devices) == devices
