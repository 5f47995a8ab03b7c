"""Whatever a tar holds: is it refused and gone, or kept, sound, and given out byte by byte?"""

from __future__ import annotations

import io
import tarfile
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from pyoverlay.images import checking, packing, saving
from pyoverlay.images.digests import Digest
from pyoverlay.images.errors import ImageError
from pyoverlay.images.limits import Limits
from pyoverlay.images.store import Store
from tests.harness import snapshot
from tests.images.making import LayerTar, sha256
from tests.images.storing import apply

NAMES = st.sampled_from(["a", "b", "c", "d", "é", ".wh.a", ".wh.b", ".wh..wh..opq", "."])
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
KINDS = st.sampled_from(
    [
        tarfile.REGTYPE,
        tarfile.DIRTYPE,
        tarfile.DIRTYPE,
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.FIFOTYPE,
        tarfile.CHRTYPE,
    ]
)
ENTRIES = st.tuples(
    PATHS, KINDS, st.binary(max_size=700), PATHS, st.integers(0, 0o7777), st.integers(0, 70_000)
)


def tar_of(entries: list[tuple[str, bytes, bytes, str, int, int]]) -> bytes:
    layer = LayerTar()
    for path, kind, content, target, mode, owner in entries:
        layer.add(
            path,
            content if kind == tarfile.REGTYPE and ".wh." not in path else b"",
            kind=tarfile.REGTYPE if path.rpartition("/")[2].startswith(".wh.") else kind,
            mode=mode,
            owner=(owner, owner // 2),
            target=target if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else "",
            device=(1, 3) if kind == tarfile.CHRTYPE else (0, 0),
        )
    return layer.bytes()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(ENTRIES, max_size=8))
def test_any_tar(entries: list[tuple[str, bytes, bytes, str, int, int]]) -> None:
    tar = tar_of(entries)
    with tempfile.TemporaryDirectory(prefix="overlay-") as base:
        store = Store(Path(base) / "store")
        layer = Digest(sha256(tar))
        with store.adding(), store.lock_layer(layer):
            try:
                store.add_layer(layer, io.BytesIO(tar), Limits())
            except ImageError:
                event("refused")
                assert store.layers() == []
                assert list(store.root.glob("unfinished/*")) == []
                return
        assert checking.check_layer(store, layer) == []
        again = io.BytesIO()
        saving.write_layer_tar(store, layer, again)
        assert again.getvalue() == tar
        # Packed anew it may be another tar, but never another tree.
        packed = io.BytesIO()
        packing.pack(str(store.layer_directory(layer)), packed)
        apply(packed.getvalue(), Path(base) / "again")
        assert snapshot(Path(base) / "again") == snapshot(store.layer_directory(layer))
