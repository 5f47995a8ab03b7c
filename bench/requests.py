"""How many requests did a FUSE daemon get?

The kernel counts: its trace event ``fuse:fuse_request_send`` names connection and opcode of each request,
for our daemon and for those that can't be asked.  Where there is no tracefs nothing is counted, and the table
says so.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from pathlib import Path
from typing import Final

from bench import kernel

_TRACING: Final = Path("/sys/kernel/tracing")
_EVENT: Final = "events/fuse/fuse_request_send"
_KIBIBYTES_A_CPU: Final = 32 * 1024
"""Holds some 800,000 requests."""

TOO_MANY: Final = "ALL"
"""The opcode under which requests are counted when there were too many to keep each."""


class RequestCounter:
    """Counts the requests of FUSE connections; used by one trial at a time."""

    def __init__(self) -> None:
        """Set up a trace of our own, if the kernel lets us; `close` removes it."""
        self._instance: Path | None = None
        with contextlib.suppress(OSError):
            self._instance = _make_instance()

    def begin(self, connections: list[int]) -> None:
        """Start counting from zero."""
        if self._instance is None or not connections:
            return
        which = " || ".join(f"connection == {number}" for number in connections)
        (self._instance / _EVENT / "filter").write_text(which)
        (self._instance / "trace").write_text("")
        (self._instance / _EVENT / "enable").write_text("1")

    def end(self, connections: list[int]) -> Counter[str] | None:
        """Stop, and return the counts by opcode (``LOOKUP``), None when nothing counts."""
        if self._instance is None or not connections:
            return None
        (self._instance / _EVENT / "enable").write_text("0")
        kept, lost = self._entries()
        if lost:
            return Counter({TOO_MANY: kept + lost})
        return count_by_opcode((self._instance / "trace").read_text(errors="replace"))

    def _entries(self) -> tuple[int, int]:
        assert self._instance is not None
        text = "".join(stats.read_text() for stats in self._instance.glob("per_cpu/cpu*/stats"))
        kept = sum(map(int, re.findall(r"^entries: (\d+)", text, re.MULTILINE)))
        lost = sum(map(int, re.findall(r"^(?:overrun|dropped events): (\d+)", text, re.MULTILINE)))
        return kept, lost

    def close(self) -> None:
        """Give the trace buffers back."""
        if self._instance is not None:
            with contextlib.suppress(OSError):
                self._instance.rmdir()
            self._instance = None


def count_by_opcode(trace: str) -> Counter[str]:
    """Count the opcodes in the text of a trace, without their ``FUSE_``."""
    return Counter(re.findall(r" fuse_request_send: .* opcode \d+ \((?:FUSE_)?(\w+)\)", trace))


def _make_instance() -> Path:
    if not (_TRACING / "instances").is_dir():
        kernel.mount_file_system("tracefs", _TRACING)
    instance = _TRACING / "instances" / f"bench-{os.getpid()}"
    instance.mkdir()
    (instance / "buffer_size_kb").write_text(str(_KIBIBYTES_A_CPU))
    if not (instance / _EVENT).exists():
        instance.rmdir()
        raise FileNotFoundError(_EVENT)
    return instance
