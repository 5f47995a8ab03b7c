"""What is the smallest registry that skopeo pulls from?  An OCI layout, served read-only."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class _Server(ThreadingHTTPServer):
    """Serves `layout`, and keeps which blobs were asked for; those in `cut` break off."""

    layout: Path
    asked: list[str]
    cut: list[str]


class _Handler(BaseHTTPRequestHandler):
    """The reading half of the distribution specification, for any name and tag."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.path == "/v2/":
            self._answer(200, b"{}", "application/json")
            return
        *_, kind, reference = self.path.split("/")
        if kind == "manifests":
            index = json.loads((self.server.layout / "index.json").read_text())
            (manifest,) = index["manifests"]
            self._blob(manifest["digest"], manifest["mediaType"])
        else:
            self.server.asked.append(reference)
            self._blob(reference, "application/octet-stream")

    def _blob(self, digest: str, media_type: str) -> None:
        path = self.server.layout / "blobs" / digest.replace(":", "/")
        if path.exists():
            self._answer(200, path.read_bytes(), media_type, digest)
        else:
            self._answer(404, b"{}", "application/json")

    def _answer(self, status: int, body: bytes, media_type: str, digest: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        if digest:
            self.send_header("Docker-Content-Digest", digest)
        self.end_headers()
        if self.command == "GET":
            if digest in self.server.cut:
                body = body[: len(body) // 2]
                self.close_connection = True
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - http.server's name
        pass


@contextmanager
def serving(layout: Path, cut: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Serve a layout; yield the registry's address, and the blobs that were asked for.

    cut: digests of blobs that break off in the middle.
    """
    server = _Server(("127.0.0.1", 0), _Handler)
    server.layout, server.asked, server.cut = layout, [], cut
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", server.asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
