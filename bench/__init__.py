"""The same work on kernel overlayfs, pyoverlay and its FUSE peers, side by side."""
