"""How are the parts of a registry's image streamed, one by one, so that what is here already isn't fetched?

By ``skopeo experimental-image-proxy``: requests and replies are JSON messages over a socket, contents come
through pipes whose reading ends are passed along (skopeo-experimental-image-proxy(1)). A pipe's writing end
is closed only by the request FinishPipe, even if the content breaks off, and no other request is served until
that is answered. So it is sent as soon as the pipe is there, its answer read after the content, and each
layer has a proxy of its own.

This file knows that protocol, not the store.
"""

from __future__ import annotations

import functools
import json
import os
import socket
import subprocess
from typing import IO, Any, Final, cast

from pyoverlay.images import documents
from pyoverlay.images.archives import FoundImage, FoundLayer, diff_ids_of
from pyoverlay.images.digests import digest_of, parse_digest
from pyoverlay.images.documents import Descriptor, Manifest
from pyoverlay.images.errors import ImageError
from pyoverlay.images.limits import MAX_DOCUMENT
from pyoverlay.images.verified_blob import VerifiedBlob

_MAX_MESSAGE: Final = 32 * 1024
"""Bytes in one message of the protocol."""
_END_LIMIT: Final = 10
"""Seconds that skopeo may need to end."""
_CONFIG_LIMIT: Final = 600
"""Seconds that fetching a configuration may take."""


class UnsuitableError(ImageError):
    """This skopeo has no such command."""


def find_image(program: str, source: str, names: list[str]) -> FoundImage:
    """Find a registry's image for this machine; its layers are fetched when they are opened.

    Args:
        program: skopeo's.
        source: the image, with its transport.
        names: full names that it is to have.

    Raises:
        UnsuitableError: this skopeo doesn't speak the protocol.
        ImageError: there is no such image, or it can't be had.
    """
    stream = _Content(_Proxy(program), source, "GetManifest")
    try:
        data = _read_document(stream)
    finally:
        stream.close()
    manifest = documents.decode(data, Manifest, "the manifest")
    config = _config(program, source)
    descriptors = manifest.layers or []
    layers = [
        FoundLayer(diff_id, layer.size, functools.partial(_open_layer, program, source, layer))
        for diff_id, layer in zip(diff_ids_of(config, len(descriptors)), descriptors, strict=True)
    ]
    return FoundImage(digest_of(config), config, names, layers)


def _open_layer(program: str, source: str, layer: Descriptor) -> VerifiedBlob:
    digest = parse_digest(layer.digest)
    stream = _Content(_Proxy(program), source, "GetBlob", digest, layer.size)
    return VerifiedBlob(cast("IO[bytes]", stream), layer.size, digest)


def _config(program: str, source: str) -> bytes:
    """Return the configuration as it is: the proxy would convert docker's, and so change the image's ID."""
    words = [program, "inspect", "--raw", "--config", source]
    result = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, timeout=_CONFIG_LIMIT, check=False
    )
    if result.returncode:
        said = result.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise ImageError(f"skopeo failed: {''.join(said)}")
    return result.stdout


def _read_document(stream: _Content) -> bytes:
    data = b""
    while piece := stream.read(1 << 16):
        data += piece
        if len(data) > MAX_DOCUMENT:
            raise ImageError(f"the manifest has more than {MAX_DOCUMENT} bytes")
    return data


class _Proxy:
    """A running proxy."""

    def __init__(self, program: str) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [program, "experimental-image-proxy"],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # Ctrl-C is ours to answer.
                start_new_session=True,
            )
        try:
            self.ask("Initialize")
        except ImageError as error:
            self.end()
            raise UnsuitableError(str(error)) from error

    def ask(self, method: str, *arguments: object) -> tuple[Any, int, int]:
        """Make a request, and return its answer; see `answer`."""
        self.send(method, *arguments)
        return self.answer()

    def send(self, method: str, *arguments: object) -> None:
        """Make a request."""
        try:
            self._socket.send(json.dumps({"method": method, "args": list(arguments)}).encode())
        except OSError as error:
            raise ImageError(f"skopeo doesn't answer: {error.strerror}") from error

    def answer(self) -> tuple[Any, int, int]:
        """Return a request's value, and the descriptor and number of a pipe, or -1 and 0.

        Raises:
            ImageError: the request failed; says why.
        """
        try:
            data, descriptors, _, _ = socket.recv_fds(self._socket, _MAX_MESSAGE, 1)
        except OSError as error:
            raise ImageError(f"skopeo doesn't answer: {error.strerror}") from error
        if not data:
            raise ImageError("skopeo ended")
        reply = json.loads(data)
        if not reply["success"]:
            raise ImageError(f"skopeo failed: {reply['error']}")
        return reply.get("value"), descriptors[0] if descriptors else -1, reply.get("pipeid", 0)

    def end(self) -> None:
        """End it: it ends by itself when nobody is at the other end."""
        self._socket.close()
        try:
            self._process.wait(timeout=_END_LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class _Content:
    """A content that is being fetched, by a proxy that does nothing else."""

    def __init__(self, proxy: _Proxy, source: str, method: str, *arguments: object) -> None:
        """Ask for a content of the image `source`, and take over the proxy."""
        self._proxy = proxy
        self._descriptor = -1
        self._finished = False
        try:
            image, _, _ = proxy.ask("OpenImage", source)
            _, self._descriptor, number = proxy.ask(method, image, *arguments)
            proxy.send("FinishPipe", number)
        except BaseException:
            self.close()
            raise

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes; raises ImageError at an end that comes too early, and says why."""
        piece = os.read(self._descriptor, size)
        if not piece and not self._finished:
            self._finished = True
            self._proxy.answer()
        return piece

    def close(self) -> None:
        """Take note that it was read, or give it up."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._proxy.end()
