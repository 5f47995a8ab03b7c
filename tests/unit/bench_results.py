"""Made-up results of the benchmark, with answers that are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.results import KERNEL, OK, Measurement, Results, SystemFacts, WorkloadFacts

Round = float | str | None
"""A figure; or an outcome, with its message after a colon; or None for a round that was not run."""


_NOISE = (0.95, 1.1, 1.0, 0.9, 1.02)


def made_up(
    rounds: Mapping[str, Sequence[Round]],
    *,
    unit: str = "ms",
    workload: str = "stat-cold",
    group: str = "metadata",
) -> Results:
    """Return results of one workload with one figure, "time", given the rounds of each system."""
    results = Results()
    add_workload(results, workload, group, {"time": unit})
    for system, figures in rounds.items():
        add_rounds(results, workload, system, figures)
    return results


def add_workload(
    results: Results, name: str, group: str, figures: dict[str, str], *, rounds: int = 5
) -> None:
    """Declare a workload."""
    results.workloads[name] = WorkloadFacts(
        name=name,
        group=group,
        title=f"{name} of 20,000 files in 200 directories",
        stands_for="a program that starts",
        caches="cold",
        figures=figures,
        heavy=rounds < 5,
    )
    results.rounds[name] = rounds


def add_rounds(results: Results, workload: str, system: str, figures: Sequence[Round]) -> None:
    """Add the rounds of a workload on a system."""
    command = f"mount.{system} -o lowerdir=lower,upperdir=upper,workdir=work merged"
    results.systems.setdefault(system, SystemFacts(system, "1.2.3", command))
    for number, found in enumerate(figures):
        if found is None:
            continue
        outcome, _, message = found.partition(":") if isinstance(found, str) else (OK, "", "")
        names = results.workloads[workload].figures
        results.add(
            Measurement(
                workload,
                system,
                number,
                outcome=outcome,
                message=message.strip(),
                figures={} if isinstance(found, str) else dict.fromkeys(names, float(found)),
                load=0.5 + number / 10,
                seconds=12.0,
            )
        )


def whole_run() -> Results:
    """Return a run with all that a report meets: groups, failures, counters, figures without ratios."""
    results = Results(
        machine={"date": "2026-11-24 08:00 UTC", "kernel": "Linux 6.18", "CPUs": "2 x Anything"}
    )
    worse = {
        "native": 0.8,
        KERNEL: 1.0,
        "pyoverlay": 5.0,
        "pyoverlay-slow-path": 12.0,
        "fuse-overlayfs": 3.0,
        "unionfs-fuse": 20.0,
        "another": 4.0,
    }
    names = {
        "metadata": ["stat-cold", "stat-warm", "walk-cold"],
        "data": ["read-cold", "copy-latency"],
        "changes": ["create", "remove-tree"],
        "real": ["git-clone"],
        "life": ["resident-memory", "mount-time"],
    }
    figures = {
        "read-cold": {"rate": "MB/s"},
        "copy-latency": {"p50": "\N{MICRO SIGN}s/op", "p99": "\N{MICRO SIGN}s/op"},
        "resident-memory": {"idle": "MiB"},
    }
    for group, workloads in names.items():
        for place, workload in enumerate(workloads):
            add_workload(
                results,
                workload,
                group,
                figures.get(workload, {"time": "ms"}),
                rounds=3 if group == "real" else 5,
            )
            for system, factor in worse.items():
                turn = len(system) % 5
                value = 100 / factor if workload == "read-cold" else 100 * factor * (1 + place)
                noise = [*_NOISE[turn:], *_NOISE[:turn]][: results.rounds[workload]]
                add_rounds(results, workload, system, [value * part for part in noise])
    _add_failures(results)
    _add_counts(results)
    return results


def _add_failures(results: Results) -> None:
    add_rounds(results, "create", "unionfs-fuse", ["hung: no answer within 60 s | and it was *ended*"] * 5)
    add_rounds(results, "remove-tree", "fuse-overlayfs", ["failed: [Errno 5] Input/output error", 250.0])
    add_rounds(results, "remove-tree", "native", ["not applicable: nothing lies below it"] * 5)
    add_rounds(results, "git-clone", "another", ["failed: [Errno 5] Input/output error"] * 3)
    for system in ("native", KERNEL):
        add_rounds(results, "resident-memory", system, [0.0] * 5)


def _add_counts(results: Results) -> None:
    for measurement in results.measurements:
        if measurement.system in ("native", KERNEL) or measurement.outcome != OK:
            continue
        measurement.daemon_cpu_seconds = 0.25
        measurement.requests = {
            "LOOKUP": 20_000,
            "GETATTR": 150,
            "OPEN": 7,
            "READ": 6,
            "FLUSH": 5,
            "RELEASE": 4,
        }
        if measurement.system.startswith("pyoverlay"):
            slow = measurement.system == "pyoverlay-slow-path"
            measurement.paths = {"pyfuse3": 20_172 if slow else 5_043, "fast": 0 if slow else 15_129}
