"""Which workloads are there? Importing this module declares them all."""

import importlib

from bench.workloads.workload import ALL

_IN_THE_ORDER_OF_THE_TABLE = (
    "metadata",
    "many_layers",
    "reading",
    "writing",
    "sharing",
    "changes",
    "real",
    "life",
)

for _module in _IN_THE_ORDER_OF_THE_TABLE:
    importlib.import_module(f"bench.workloads.{_module}")

__all__ = ["ALL"]
