"""The commands of ``pyoverlay image``; one module a family."""
