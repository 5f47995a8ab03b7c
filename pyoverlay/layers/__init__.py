"""The layers: what lies on disk, and the only code that touches it.

A layer is a directory held by a descriptor. This room reads and writes layers and their marks; it knows
nothing of how layers are merged (`pyoverlay.overlay`) or served (`pyoverlay.fuse`).
"""
