"""Differential tests: the same operations on the kernel's overlayfs and on pyoverlay, everything visible compared."""
