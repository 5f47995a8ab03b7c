"""Are the benchmark's layers what their names say, and the same each time they are made?"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.layers import (
    LONG_AGO,
    LayerRecipe,
    LayerStore,
    big_directory,
    big_file,
    deep_directories,
    equal_files,
    many_files,
    sparse_file,
)

RECIPES = [
    many_files(200, directories=4, layers=5),
    many_files(20, directories=2, layers=50),
    big_directory(30, layers=3),
    deep_directories(3, depth=30, layers=5),
    equal_files(5, 4096),
    big_file(2, files_beside=10),
    sparse_file(2),
]

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="merging several layers needs a kernel overlay mount"
)

Content = dict[str, tuple[int, int, bytes]]


@pytest.fixture
def build(tmp_path: Path) -> Callable[[LayerRecipe], Path]:
    def build(recipe: LayerRecipe) -> Path:
        directory = tmp_path / f"{len(os.listdir(tmp_path))}"
        directory.mkdir()
        recipe.build(directory)
        return directory

    return build


def listed_files(directory: Path) -> list[str]:
    return (directory / "files.txt").read_text().splitlines()


def content(tree: Path) -> Content:
    return {
        str(path.relative_to(tree)): (
            path.lstat().st_mode,
            path.lstat().st_mtime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in (tree, *tree.rglob("*"))
    }


def merged_files(directory: Path) -> dict[str, Path]:
    """The topmost file of each path, as no recipe has whiteouts."""
    found: dict[str, Path] = {}
    for lower in sorted(
        (path for path in directory.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name)
    ):
        for path in lower.rglob("*"):
            if path.is_file():
                found.setdefault(str(path.relative_to(lower)), path)
    return found


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_layers_are_the_same_each_time(recipe: LayerRecipe, build: Callable[[LayerRecipe], Path]) -> None:
    first, second = build(recipe), build(recipe)
    assert sorted(os.listdir(first)) == sorted(os.listdir(second))
    for name in os.listdir(first):
        if name.isdecimal():
            assert content(first / name) == content(second / name)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_everything_is_old_and_every_file_listed(
    recipe: LayerRecipe, build: Callable[[LayerRecipe], Path]
) -> None:
    directory = build(recipe)
    assert sorted(listed_files(directory)) == sorted(merged_files(directory))
    times = {
        path.lstat().st_mtime
        for lower in directory.iterdir()
        if lower.is_dir()
        for path in (lower, *lower.rglob("*"))
    }
    assert times == {LONG_AGO}


def test_names_of_recipes_differ_where_layers_do() -> None:
    assert len({recipe.name for recipe in RECIPES}) == len(RECIPES)


def test_each_directory_of_many_files_is_in_each_layer(build: Callable[[LayerRecipe], Path]) -> None:
    directory = build(many_files(200, directories=4, layers=5))
    assert len(listed_files(directory)) == 200
    for layer in range(5):
        assert sorted(os.listdir(directory / str(layer) / "tree")) == ["d0000", "d0001", "d0002", "d0003"]


def test_some_of_many_files_hide_others(build: Callable[[LayerRecipe], Path]) -> None:
    directory = build(many_files(200, directories=4, layers=5))
    assert (directory / "0/tree/d0000/f000000").stat().st_size >= 100
    assert (directory / "1/tree/d0000/f000000").read_bytes() == b"hidden"


def test_layers_without_files_exist(build: Callable[[LayerRecipe], Path]) -> None:
    directory = build(many_files(20, directories=2, layers=50))
    assert os.listdir(directory / "49") == []


def test_a_deep_file_has_as_many_names_as_asked_for(build: Callable[[LayerRecipe], Path]) -> None:
    directory = build(deep_directories(3, depth=30, layers=5))
    assert [len(path.split("/")) for path in listed_files(directory)] == [30] * 3
    for path in listed_files(directory):
        assert all((directory / str(layer) / path).parent.is_dir() for layer in range(5))


def test_a_big_file_is_whole_and_a_sparse_one_mostly_hole(build: Callable[[LayerRecipe], Path]) -> None:
    whole, sparse = (build(recipe) / "0/big" for recipe in (big_file(8, files_beside=0), sparse_file(8)))
    assert whole.stat().st_size == sparse.stat().st_size == 8 << 20
    assert whole.stat().st_blocks >= (8 << 20) // 512
    assert 0 < sparse.stat().st_blocks < whole.stat().st_blocks
    blocks = whole.read_bytes()
    assert len({blocks[offset : offset + 4096] for offset in range(0, len(blocks), 1 << 20)}) == 8


def test_a_store_makes_each_recipe_once(tmp_path: Path) -> None:
    made = []

    def build(directory: Path) -> None:
        made.append(directory)
        (directory / "0").mkdir()

    store = LayerStore(tmp_path / "store")
    assert store.get(LayerRecipe("nothing", build)) is store.get(LayerRecipe("nothing", build))
    assert len(made) == 1
    assert LayerStore(tmp_path / "store").get(LayerRecipe("nothing", build)).lowers == ["0"]
    assert len(made) == 1


def test_one_lower_is_the_merged_tree_itself_and_is_searched_for_files(tmp_path: Path) -> None:
    def build(directory: Path) -> None:
        (directory / "0/a").mkdir(parents=True)
        (directory / "0/a/file").write_text("x")
        (directory / "0/a/link").symlink_to("file")

    layers = LayerStore(tmp_path).get(LayerRecipe("one", build))
    assert layers.merged == layers.directory / "0"
    assert layers.files == ["a/file"]


def test_reading_layers_leaves_their_access_times(tmp_path: Path) -> None:
    file = LayerStore(tmp_path).get(equal_files(1, 10)).merged / "files/f000000"
    before = file.stat()
    assert before.st_atime > LONG_AGO
    file.read_bytes()
    assert file.stat().st_atime_ns == before.st_atime_ns


@needs_root
def test_the_merged_tree_is_what_the_kernel_shows(tmp_path: Path) -> None:
    layers = LayerStore(tmp_path).get(many_files(600, directories=6, layers=500))
    assert layers.lowers == [str(number) for number in range(500)]
    for path, topmost in merged_files(layers.directory).items():
        assert (layers.merged / path).read_bytes() == topmost.read_bytes()
    assert layers.merged.stat().st_mtime == LONG_AGO
    assert len(layers.files) == 600
    assert not (layers.directory / "view").exists()


@pytest.mark.parametrize("names", [[], ["1"], ["0", "2"]])
def test_wrong_names_of_lowers_are_refused_and_nothing_is_left(tmp_path: Path, names: list[str]) -> None:
    def build(directory: Path) -> None:
        for name in names:
            (directory / name).mkdir()

    with pytest.raises(BenchError, match="lowers must be named 0, 1, 2"):
        LayerStore(tmp_path).get(LayerRecipe("wrong", build))
    assert os.listdir(tmp_path) == []


def test_layers_that_cannot_be_written_are_explained(tmp_path: Path) -> None:
    def build(directory: Path) -> None:
        (directory / "0" / "missing" / "file").write_text("")

    with pytest.raises(BenchError, match=r"wrong: these layers can't be made in .*No such file"):
        LayerStore(tmp_path).get(LayerRecipe("wrong", build))
    assert os.listdir(tmp_path) == []
