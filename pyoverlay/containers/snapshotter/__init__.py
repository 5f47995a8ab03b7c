"""How does containerd keep images and containers as pyoverlay's layers?

A *snapshotter* keeps directory trees, each a change on top of its parent.  containerd *prepares* one on a
parent, mounts it as it is told to, fills it (unpacks a layer, runs a container), and *commits* it, or removes
it.  This package is such a snapshotter for containerd's proxy plugin: a process of its own, asked over a Unix
socket.  It mounts nothing itself: containerd does, through mount.fuse3(8), so that a mount's life never
depends on this process's.
"""
