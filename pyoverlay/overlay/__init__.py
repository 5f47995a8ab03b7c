"""The overlay: kernel overlayfs's semantics over a stack of layers, one module a question.

Plain sequential Python that can be tested without a mount: it knows neither FUSE nor trio, and it reaches
the disk only through `pyoverlay.layers`.
"""
