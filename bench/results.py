"""What does a run of the benchmark leave behind, and how is it written to and read from a file?

One JSON file a run: what was measured, on which machine, of which systems and workloads. It holds single
measurements and no statistics: ratios and medians are computed when a report is made.
"""

from __future__ import annotations

import json
import math
import os
import types
import typing
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Self

from bench.errors import BenchError

FORMAT = 1
"""Raised when a reader of the old format would misread the new one; unknown fields alone are no reason."""

OK = "ok"
FAILED = "failed"
HUNG = "hung"
NOT_APPLICABLE = "not applicable"
OUTCOMES = (OK, FAILED, HUNG, NOT_APPLICABLE)

KERNEL = "kernel"
"""The system that every ratio refers to."""


@dataclass
class Measurement:
    """One trial: a workload on a system in a round.

    Attributes:
        workload: The workload's name.
        system: The system's name.
        round: Counted from 0.
        outcome: One of `OUTCOMES`.
        message: Why it is not ok, for a person.
        figures: What was measured, each in the unit that the workload's facts name; empty unless ok.
        daemon_cpu_seconds: What the daemon used meanwhile; None for a system without one.
        requests: FUSE requests by opcode, "LOOKUP" for one; None if they were not counted.
        paths: How many of the requests went which way through pyoverlay; None for other systems.
        load: The load average of a minute when the trial began.
        seconds: How long the trial took with its preparation.
    """

    workload: str
    system: str
    round: int
    outcome: str = OK
    message: str = ""
    figures: dict[str, float] = field(default_factory=dict)
    daemon_cpu_seconds: float | None = None
    requests: dict[str, int] | None = None
    paths: dict[str, int] | None = None
    load: float = 0.0
    seconds: float = 0.0


@dataclass
class WorkloadFacts:
    """What a page says of a workload; the figures' units are as printed ("ms", "op/s")."""

    name: str
    group: str
    title: str
    stands_for: str
    caches: str
    figures: dict[str, str]
    heavy: bool = False


@dataclass
class SystemFacts:
    """What a page says of a system: its version and the command that mounts it, as a person types it."""

    name: str
    version: str
    command: str


@dataclass
class Results:
    """All of a run, in the order of its tables.

    Attributes:
        format: `FORMAT` of the writer.
        scale: "full" or "quick".
        rounds: How many rounds each workload was to have.
        machine: What `bench.machine.describe` says.
        workloads: By name.
        systems: By name.
        measurements: In the order in which they were taken.
    """

    format: int = FORMAT
    scale: str = "full"
    rounds: dict[str, int] = field(default_factory=dict)
    machine: dict[str, str] = field(default_factory=dict)
    workloads: dict[str, WorkloadFacts] = field(default_factory=dict)
    systems: dict[str, SystemFacts] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)

    def add(self, measurement: Measurement) -> None:
        """Take in a trial, in place of an earlier one; a figure that is no number makes it a failure."""
        broken = [name for name, value in measurement.figures.items() if not math.isfinite(value)]
        if broken:
            measurement.outcome = FAILED
            measurement.message = f"{', '.join(broken)}: measured no number"
            measurement.figures = {}
        key = (measurement.workload, measurement.system, measurement.round)
        kept = [m for m in self.measurements if (m.workload, m.system, m.round) != key]
        self.measurements = [*kept, measurement]

    def of(self, workload: str, system: str) -> list[Measurement]:
        """Return the trials of a workload on a system, by round."""
        found = [m for m in self.measurements if m.workload == workload and m.system == system]
        return sorted(found, key=lambda measurement: measurement.round)

    def done(self, workload: str, system: str, round: int) -> bool:  # noqa: A002 - the measurement's own word
        """Tell whether a trial was made, however it ended."""
        return any(measurement.round == round for measurement in self.of(workload, system))

    def save(self, path: Path) -> None:
        """Write the file whole or not at all, so that an interrupted run keeps what it had.

        Raises:
            BenchError: It cannot be written.
        """
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False, allow_nan=False)
        beside = path.with_name(path.name + ".new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(text + "\n", encoding="utf-8")
            os.replace(beside, path)
        except OSError as error:
            raise BenchError(f"{path}: the results cannot be written: {error.strerror}") from error

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file that `save` wrote.

        Raises:
            BenchError: It cannot be read, is no result, or is of a newer format.
        """
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise BenchError(f"{path}: the results cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            # UnicodeDecodeError and JSONDecodeError are ValueErrors.
            raise BenchError(
                f"{path}: no results of `bench run`, or cut short: it is not JSON ({error})"
            ) from error
        written = document.get("format") if isinstance(document, dict) else None
        if type(written) is not int or written < 1:
            raise BenchError(f"{path}: no results of `bench run`: it names no format of results")
        if written > FORMAT:
            raise BenchError(
                f"{path}: results of format {written}, and this version reads up to {FORMAT}: "
                "use the version of the benchmark that wrote it, or a newer one"
            )
        try:
            results: Self = _read(cls, document, "results")
        except _MisfitError as misfit:
            raise BenchError(f"{path}: no results of `bench run`, or damaged: {misfit}") from misfit
        return results


class _MisfitError(Exception):
    """A value in the file is not what belongs there."""


def _read(kind: Any, value: object, where: str) -> Any:  # noqa: ANN401 - any annotation of the classes above
    """Return ``value`` of a JSON document as an object of the annotation ``kind``."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return None if value is None else _read(arguments[0], value, where)
    if origin is list and isinstance(value, list):
        return [_read(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {key: _read(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if is_dataclass(kind) and isinstance(value, dict):
        return _read_fields(kind, value, where)
    if kind is float and type(value) is int:
        return float(value)
    # bool is an int to isinstance, not in this file.
    if isinstance(kind, type) and type(value) is kind:
        return value
    raise _MisfitError(f"{where} is {str(value)[:40]!r}")


def _read_fields(kind: Any, value: dict[str, object], where: str) -> object:  # noqa: ANN401 - a dataclass
    annotations = typing.get_type_hints(kind)
    missing = [field.name for field in fields(kind) if field.name not in value]
    if missing:
        raise _MisfitError(f"{where} has no {missing[0]}")
    return kind(
        **{
            field.name: _read(annotations[field.name], value[field.name], f"{where}.{field.name}")
            for field in fields(kind)
        }
    )
