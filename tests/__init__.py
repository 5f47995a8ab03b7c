"""The tests of pyoverlay: `unit` (no mount), `mount` (a real mount), `differential` (the kernel's overlayfs beside ours)."""
