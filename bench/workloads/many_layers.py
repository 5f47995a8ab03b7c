"""What do layers cost? The same tree over few of them and over many, looked at for the first time."""

from __future__ import annotations

from typing import Final

from bench.dealt_rootfs import dealt_rootfs
from bench.layers import LayerRecipe, many_files
from bench.trial import Trial
from bench.workloads.metadata import measure_find_cold, measure_stat_cold
from bench.workloads.workload import Caches, Scale, Unit, workload

_GROUP: Final = "metadata"
_DOCKERS_LIMIT: Final = 128
_KERNELS_LIMIT: Final = 500
_LAYER_COUNTS: Final = (1, 10, 50, _DOCKERS_LIMIT, _KERNELS_LIMIT)
_NOT_FOR: Final = {"unionfs-fuse": "minutes for a run; find-128-layers tells what many layers cost it"}


def _said(layers: int) -> str:
    return "1 layer" if layers == 1 else f"{layers} layers"


def _declare_over(layers: int) -> None:
    """Declare the stat and the walk at a number of layers."""

    def tree(scale: Scale) -> LayerRecipe:
        return many_files(scale.of(5_000), directories=scale.of(50), layers=layers)

    def stat_over_layers(trial: Trial) -> None:
        measure_stat_cold(trial)

    def find_over_layers(trial: Trial) -> None:
        measure_find_cold(trial)

    stat_over_layers.__doc__ = f"Stat 5,000 files in 50 directories over {_said(layers)}, the first time."
    find_over_layers.__doc__ = (
        f"Walk 5,000 files in 50 directories over {_said(layers)} with find -printf, the first time."
    )
    for function, unit in (
        (stat_over_layers, {"time": Unit.MICROSECONDS}),
        (find_over_layers, {"time": Unit.MILLISECONDS}),
    ):
        workload(
            name=f"{function.__name__.partition('_')[0]}-{layers}-layers",
            group=_GROUP,
            figures=unit,
            layers=tree,
            caches=Caches.COLD,
            heavy=True,
            quick=function is find_over_layers and layers == _DOCKERS_LIMIT,
            stands_for=f"the price of layers: the same tree as {_said(layers)}",
        )(function)


for _layers in _LAYER_COUNTS:
    _declare_over(_layers)


# A real tree


def _declare_debian_over(layers: int) -> None:
    """Declare the walk through a Debian whose packages are dealt over a number of layers."""

    def find_debian(trial: Trial) -> None:
        measure_find_cold(trial)

    find_debian.__doc__ = (
        f"Walk a Debian, its packages dealt over {_said(layers)}, with find -printf, the first time."
    )
    workload(
        name=f"find-debian-{layers}-layers",
        group=_GROUP,
        figures={"time": Unit.MILLISECONDS},
        layers=dealt_rootfs(layers),
        caches=Caches.COLD,
        heavy=True,
        not_for=_NOT_FOR,
        stands_for=f"an image built in many small steps: directories of /usr that merge from {_said(layers)}",
    )(find_debian)


for _layers in (1, _DOCKERS_LIMIT):
    _declare_debian_over(_layers)
