"""The work that is measured: one module a group, one function a workload."""
