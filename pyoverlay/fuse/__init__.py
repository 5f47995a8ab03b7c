"""The transports: how the kernel's FUSE requests reach the overlay, and how a mount lives and ends.

Event loop, locks, threads and signals live here and nowhere below; what a request means is
`pyoverlay.overlay`'s to say.
"""
