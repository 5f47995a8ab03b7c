"""Differential tests: the same operations on the kernel's overlayfs and on pyoverlay, all compared."""
