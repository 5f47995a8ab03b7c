"""Is a Debian dealt over layers whole, each file once and with its directories?"""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.dealt_rootfs import deal

LISTS = {
    "alpha": ["/.", "/usr", "/usr/bin", "/usr/bin/alpha", "/usr/share", "/usr/share/doc", "/usr/share/doc/a"],
    # Listed by its old name, below a symlink of the merged /usr.
    "beta:amd64": ["/.", "/bin", "/bin/beta", "/gone/since", "/usr/share/doc/b"],
    "gamma": ["/usr/bin/alpha", "/usr/bin/gamma", "/usr/share/empty"],
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "var/lib/dpkg/info").mkdir(parents=True)
    (tmp_path / "usr/share/doc").mkdir(parents=True)
    (tmp_path / "usr/share/empty").mkdir()
    (tmp_path / "usr/bin").mkdir()
    (tmp_path / "bin").symlink_to("usr/bin")
    for path in ("usr/bin/alpha", "usr/bin/beta", "usr/bin/gamma", "usr/share/doc/a", "usr/share/doc/b"):
        (tmp_path / path).write_text(path)
    for package, paths in LISTS.items():
        (tmp_path / f"var/lib/dpkg/info/{package}.list").write_text("".join(f"{path}\n" for path in paths))
    return tmp_path


def test_packages_are_dealt_like_cards(tree: Path) -> None:
    assert deal(tree, 4) == [
        ["usr", "usr/bin", "usr/bin/alpha", "usr/share", "usr/share/doc", "usr/share/doc/a"],
        ["bin", "usr", "usr/bin", "usr/bin/beta", "usr/share", "usr/share/doc", "usr/share/doc/b"],
        ["usr", "usr/bin", "usr/bin/gamma", "usr/share", "usr/share/empty"],
        [
            "var",
            "var/lib",
            "var/lib/dpkg",
            "var/lib/dpkg/info",
            *(f"var/lib/dpkg/info/{package}.list" for package in LISTS),
        ],
    ]


@pytest.mark.parametrize("layers", [1, 2, 3, 128])
def test_all_is_dealt_and_no_file_twice(tree: Path, layers: int) -> None:
    dealt = deal(tree, layers)

    assert len(dealt) == layers
    everything = sorted(str(path.relative_to(tree)) for path in tree.rglob("*"))
    assert sorted(set().union(*dealt)) == everything
    for path in everything:
        if not (tree / path).is_dir() or (tree / path).is_symlink():
            assert sum(path in layer for layer in dealt) == 1
    for layer in dealt:
        for path in layer:
            assert path.rpartition("/")[0] in {*layer, ""}
