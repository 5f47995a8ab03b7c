"""The tests of pyoverlay: `unit` without a mount, `mount` with one, `differential` beside the kernel's."""
