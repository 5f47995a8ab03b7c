"""Images: how do layers come in, lie in a store, are looked at, and go out again?

A layer changeset tar becomes a directory that the kernel's overlay can stack, and the reverse; images are
read from and written to OCI layouts and docker's archives. Knows neither FUSE nor trio, and mounts nothing.
"""
