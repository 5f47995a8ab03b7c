"""Which mount points does a sandbox detach?"""

from __future__ import annotations

from pathlib import Path

from pyoverlay.sandbox.foreign_mounts import foreign


def test_what_nothing_needed_lies_on() -> None:
    points = [b"/", b"/proc", b"/srv", b"/home", b"/home/me/mnt", b"/homes"]
    assert foreign(points, ["/", "/proc/self", "/home/me/layers"]) == [b"/homes", b"/home/me/mnt", b"/srv"]


def test_a_mount_point_is_needed_itself() -> None:
    assert foreign([b"/", b"/srv/data"], ["/srv/data"]) == []


def test_what_goes_with_another_isnt_walked_to() -> None:
    assert foreign([b"/", b"/srv", b"/srv/a", b"/srv/a/b"], ["/"]) == [b"/srv"]


def test_mounts_that_cover_each_other_go_one_by_one() -> None:
    assert foreign([b"/", b"/srv", b"/srv", b"/srv/a"], ["/"]) == [b"/srv", b"/srv"]


def test_thousands_of_mounts_cost_no_square_of_them() -> None:
    points = [b"/"] + [b"/var/lib/kubelet/pods/%d/volumes" % number for number in range(100_000)]
    assert foreign(points, ["/"]) == points[:0:-1]


def test_needed_is_what_a_link_leads_to(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (tmp_path / "link").symlink_to(data)
    assert foreign([bytes(data)], [str(tmp_path / "link/below")]) == []
    assert foreign([bytes(tmp_path / "link")], [str(tmp_path / "link/below")]) == [bytes(tmp_path / "link")]
