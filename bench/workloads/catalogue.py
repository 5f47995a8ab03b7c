"""Which workloads are there? Importing this module declares them all."""

import importlib

from bench.workloads.workload import ALL, GROUPS

for _group in GROUPS:
    importlib.import_module(f"bench.workloads.{_group}")

__all__ = ["ALL"]
