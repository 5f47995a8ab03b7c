"""In which order are the trials done, and what if one fails or hangs?

For each workload the systems take turns, round by round (A B C, A B C, ...), so that a machine that gets
slower meanwhile slows them all.  Each trial is a process of its own with a limit: what fails or hangs is
recorded, and the run goes on.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench import kernel
from bench.errors import BenchError
from bench.layers import LayerSet, LayerStore
from bench.mounting import remove_everything
from bench.requests import RequestCounter
from bench.results import FAILED, HUNG, NOT_APPLICABLE, OK, Measurement, Results
from bench.systems import System
from bench.trial import DisturbedError, Trial
from bench.workloads.workload import Scale, Workload

_DISTURBED: Final = "disturbed"
_TRIES: Final = 3


@dataclass(frozen=True)
class Planned:
    """A trial to be done."""

    workload: Workload
    system: System
    round: int


def rounds_of(workload: Workload, repeat: int | None, scale: Scale) -> int:
    """Return how many rounds a workload has: what was asked for, else 5, or 3 if it or the run is brief."""
    if repeat is not None:
        return repeat
    return 3 if workload.heavy or scale is Scale.QUICK else 5


def plan(workload: Workload, systems: list[System], rounds: int) -> Iterator[Planned]:
    """Yield a workload's trials: the systems take turns, and so do those that begin a round.

    So none always comes after the same other one, whose traces it might find.
    """
    for number in range(rounds):
        first = number % len(systems)
        for system in (*systems[first:], *systems[:first]):
            yield Planned(workload, system, number)


def reason_against(workload: Workload, system: System) -> str | None:
    """Return why a workload isn't measured on a system, None if it is."""
    if reason := workload.not_for.get(system.name):
        return reason
    if system.left_out_because and system.name not in workload.variants:
        return system.left_out_because
    return None


class Runner:
    """Does trials below a directory and records them."""

    def __init__(self, directory: Path, scale: Scale, results: Results) -> None:
        """Work in ``directory``, which must be on a disk; what is measured goes into ``results``."""
        self._directory = directory
        kernel.spread_directories(directory)
        self._scale = scale
        self._results = results
        self._layers = LayerStore(directory / "layers")
        self._counter = RequestCounter()
        self._places = 0
        kernel.fuse_connections()

    def run_workload(
        self, workload: Workload, systems: list[System], rounds: int, on_trial: Callable[[Planned], None]
    ) -> None:
        """Do what ``results`` lack of a workload's trials; ``on_trial`` is called before each one."""
        missing = [
            planned
            for planned in plan(workload, systems, rounds)
            if not self._results.done(workload.name, planned.system.name, planned.round)
        ]
        if not missing:
            return
        layers = self._layers_of(workload)
        for planned in missing:
            on_trial(planned)
            self._results.add(self._measure(planned, layers))

    def _layers_of(self, workload: Workload) -> LayerSet | str:
        """Return the layers, or why there are none."""
        try:
            return self._layers.get(workload.layers(self._scale))
        except BenchError as failure:
            return f"its layers can't be made: {failure}"

    def _measure(self, planned: Planned, layers: LayerSet | str) -> Measurement:
        load = os.getloadavg()[0]
        started = time.perf_counter()
        reason = reason_against(planned.workload, planned.system)
        answer: dict[str, Any]
        if reason is not None:
            answer = {"outcome": NOT_APPLICABLE, "message": reason}
        elif isinstance(layers, str):
            answer = {"outcome": FAILED, "message": layers}
        elif self._has_hung(planned):
            answer = {"outcome": HUNG, "message": "not tried again: it hung in an earlier round"}
        else:
            answer = self._run_undisturbed(planned, layers)
        return Measurement(
            workload=planned.workload.name,
            system=planned.system.name,
            round=planned.round,
            outcome=answer["outcome"],
            message=answer["message"],
            figures=answer.get("figures", {}),
            daemon_cpu_seconds=answer.get("daemon_cpu_seconds"),
            requests=answer.get("requests"),
            paths=answer.get("paths"),
            load=load,
            seconds=time.perf_counter() - started,
        )

    def _has_hung(self, planned: Planned) -> bool:
        """Tell whether it would only cost its limit once more."""
        earlier = self._results.of(planned.workload.name, planned.system.name)
        return any(measurement.outcome == HUNG for measurement in earlier)

    def _run_undisturbed(self, planned: Planned, layers: LayerSet) -> dict[str, Any]:
        answer: dict[str, Any] = {}
        for _ in range(_TRIES):
            try:
                answer = self._run_in_process(planned, layers)
            except (BenchError, OSError) as failure:
                # What can't be cleared away stays where it is: the next trial has a place of its own.
                return {"outcome": FAILED, "message": f"can't be run, or cleared away: {failure}"}
            if answer["outcome"] != _DISTURBED:
                return answer
        return {"outcome": FAILED, "message": f"{answer['message']}, {_TRIES} times"}

    def _run_in_process(self, planned: Planned, layers: LayerSet) -> dict[str, Any]:
        place = self._directory / f"trial-{self._places}"
        self._places += 1
        place.mkdir()
        os.sync()  # what the trial before has written isn't written during this one
        reading, writing = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(reading)
            _be_trial(planned, self._scale, layers, place, self._counter, writing)
        os.close(writing)
        text = _read_until_closed(reading, planned.workload.limit_seconds)
        os.close(reading)
        if text is None:
            remove_everything(place, process)
            return {"outcome": HUNG, "message": f"no end within {planned.workload.limit_seconds:g} s"}
        os.waitpid(process, 0)
        remove_everything(place)
        if not text:
            return {"outcome": FAILED, "message": "the trial's process died"}
        answer: dict[str, Any] = json.loads(text)
        return answer

    def close(self) -> None:
        """Remove everything that was made."""
        self._counter.close()
        shutil.rmtree(self._directory, ignore_errors=True)


def _read_until_closed(descriptor: int, limit_seconds: float) -> bytes | None:
    """Read until the other end is closed, None when it isn't within the limit."""
    until = time.monotonic() + limit_seconds
    pieces: list[bytes] = []
    while True:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            return None
        piece = os.read(descriptor, 65536)
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)


def _be_trial(
    planned: Planned, scale: Scale, layers: LayerSet, place: Path, counter: RequestCounter, writing: int
) -> None:
    """Do the trial, write what came of it, and end this process."""
    try:
        os.set_inheritable(writing, False)
        kernel.adopt_orphans()
        answer = _do_trial(planned, scale, layers, place, counter)
        with open(writing, "w", encoding="utf-8") as out:
            json.dump(answer, out)
    except BaseException:  # noqa: BLE001 a forked process never returns into its parent's code
        traceback.print_exc()
    finally:
        os._exit(0)


def _do_trial(
    planned: Planned, scale: Scale, layers: LayerSet, place: Path, counter: RequestCounter
) -> dict[str, Any]:
    trial = Trial(planned.workload, planned.system, layers, place, scale, counter)
    try:
        if planned.workload.mounts:
            trial.mount()
        planned.workload.run(trial)
        trial.close()
    except DisturbedError as failure:
        return {"outcome": _DISTURBED, "message": str(failure)}
    except Exception as failure:  # noqa: BLE001 whatever a system does to a workload is a result
        # What is mounted and what still runs is the runner's to remove.
        return {"outcome": FAILED, "message": _sentence(failure)}
    return {
        "outcome": OK,
        "message": "",
        "figures": trial.figures,
        "daemon_cpu_seconds": trial.daemon_processor_seconds,
        "requests": trial.requests,
        "paths": trial.paths,
    }


def _sentence(failure: Exception) -> str:
    if isinstance(failure, BenchError):
        return str(failure)
    return f"{type(failure).__name__}: {failure}"
