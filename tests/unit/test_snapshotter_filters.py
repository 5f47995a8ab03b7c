"""Do filters match what containerd's do?"""

from __future__ import annotations

import pytest

from pyoverlay.containers.snapshotter import filters
from pyoverlay.containers.snapshotter.snapshot import Information, Kind, field

SNAPSHOTS = {
    each.name: each
    for each in (
        Information("base", "", Kind.COMMITTED, 1, 1, {"containerd.io/gc.root": "now", "size": "big"}),
        Information("top", "base", Kind.COMMITTED, 2, 2, {"size": "small", "a.b": "dotted"}),
        Information("running", "top", Kind.ACTIVE, 3, 3, {}),
        Information("look/1 x", "top", Kind.VIEW, 4, 4, {"name": "été"}),
    )
}


def matching(*texts: str) -> set[str]:
    wanted = filters.parse(texts)
    return {name for name, each in SNAPSHOTS.items() if wanted.matches(lambda path: field(each, path))}  # noqa: B023


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", set(SNAPSHOTS)),
        ("name==base", {"base"}),
        ('name=="look/1 x"', {"look/1 x"}),
        ("kind==active", {"running"}),
        ("kind!=committed", {"running", "look/1 x"}),
        ("kind==Active", set()),
        ("parent==top", {"running", "look/1 x"}),
        ('parent==""', {"base"}),
        ("parent==top,kind==view", {"look/1 x"}),
        ("parent == top , kind == view", {"look/1 x"}),
        ("labels.size", {"base", "top"}),
        ("labels.size==big", {"base"}),
        # A label that isn't there is unlike every value.
        ("labels.size!=big", {"top", "running", "look/1 x"}),
        ('labels."containerd.io/gc.root"', {"base"}),
        ('labels."containerd.io/gc.root"==now', {"base"}),
        ("labels.a.b==dotted", {"top"}),
        ('labels."a.b"==dotted', {"top"}),
        ('"name"==top', {"top"}),
        ("labels", set()),
        ("name", set(SNAPSHOTS)),
        ("nothing", set()),
        ("nothing==x", set()),
        ("nothing!=x", set(SNAPSHOTS)),
        ("name~=^b", {"base"}),
        ("name~=o", {"top", "look/1 x"}),
        ("name~=/^(top|base)$/", {"top", "base"}),
        ("name~=|^run|", {"running"}),
        (r"name~=|look/\\d|", {"look/1 x"}),
        (r'name~="\\s"', {"look/1 x"}),
        ("labels.size~=^$", {"running", "look/1 x"}),
        (r'labels.name=="\u00e9t\303\251"', {"look/1 x"}),
        (r'labels.name=="\xc3\xa9t\U000000e9"', {"look/1 x"}),
        ("labels.name==été", {"look/1 x"}),
    ],
)
def test_a_filter(text: str, expected: set[str]) -> None:
    assert matching(text) == expected


def test_no_filter_matches_everything() -> None:
    assert matching() == set(SNAPSHOTS)


def test_several_filters_match_what_any_of_them_does() -> None:
    assert matching("name==base", "kind==view,parent==top", "name==nothing") == {"base", "look/1 x"}


@pytest.mark.parametrize(
    "text",
    [
        ",",
        "name==",
        "==base",
        "name=base",
        "name===base",
        "name=!base",
        "name<base",
        "name==a b",
        "name==base,",
        "name.",
        ".name",
        "labels..x",
        'name=="base',
        "name~=/base",
        r'name=="\q"',
        r'name=="\xff"',
        "name==/base/",
        "name~=(",
        "näme==x",
    ],
)
def test_what_is_no_filter(text: str) -> None:
    with pytest.raises(filters.FilterError, match=r">\|<"):
        filters.parse([text])
