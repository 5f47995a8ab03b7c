"""What goes over the wire between containerd and a snapshotter?  gRPC: containerd.services.snapshots.v1.

``*_pb2.py`` and ``*_pb2.pyi`` are generated from the ``.proto`` files beside them; docs/containerd.md says
how.
"""
