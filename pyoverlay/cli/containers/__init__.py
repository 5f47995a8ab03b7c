"""The commands of ``pyoverlay container``; one module a family of them."""
