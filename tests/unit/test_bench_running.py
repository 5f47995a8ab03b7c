"""Are systems chosen, trials planned and requests counted as asked?"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import pyoverlay
from bench.errors import BenchError
from bench.requests import count_by_opcode
from bench.runner import plan, reason_against, rounds_of
from bench.systems import System, choose, known_systems
from bench.workloads.catalogue import ALL
from bench.workloads.workload import GROUPS, Scale

TRACE = """\
# tracer: nop
  ls-2765    [001] ...1.  5.343878: fuse_request_send: connection 39 req 8 opcode 22 (FUSE_GETXATTR)
  <...>-2766    [001] ...1.  5.346428: fuse_request_send: connection 39 req 24 opcode 14 (FUSE_OPEN)
   opcode 14 (x)-2766    [000] ...1.  5.346532: fuse_request_send: connection 39 req 26 opcode 15 (FUSE_READ)
  cat-2766    [001] ...1.  5.346586: fuse_request_send: connection 39 req 28 opcode 22 (FUSE_GETXATTR)
"""


def test_requests_are_counted_by_opcode() -> None:
    assert count_by_opcode(TRACE) == {"GETXATTR": 2, "OPEN": 1, "READ": 1}


def test_the_systems_take_turns_and_so_do_those_that_begin() -> None:
    workload = next(iter(ALL.values()))
    order = [
        (planned.round, planned.system.name) for planned in plan(workload, choose("native,kernel", []), 2)
    ]

    assert order == [(0, "native"), (0, "kernel"), (1, "kernel"), (1, "native")]


def test_heavy_work_and_quick_runs_have_fewer_rounds() -> None:
    heavy = next(workload for workload in ALL.values() if workload.heavy)
    light = next(workload for workload in ALL.values() if not workload.heavy)

    assert rounds_of(light, None, Scale.FULL) == 5
    assert rounds_of(heavy, None, Scale.FULL) == rounds_of(light, None, Scale.QUICK) == 3
    assert rounds_of(heavy, 7, Scale.QUICK) == 7


def test_a_quick_run_covers_each_group() -> None:
    assert {workload.group for workload in ALL.values() if workload.quick} == set(GROUPS)


def test_all_systems_are_compared_unless_some_are_named() -> None:
    assert [system.name for system in choose(None, [])] == list(known_systems())
    assert [system.name for system in choose("kernel,native", [])] == ["kernel", "native"]


def test_a_program_comes_after_the_known_systems() -> None:
    systems = choose(None, ["peer=/bin/true -o one"])

    assert systems[-1].name == "peer"
    command = systems[-1].mount_command(["0", "1"], Path("/u"), Path("/w"), Path("/m"))
    assert command == ["/bin/true", "-o", "one", "-o", "lowerdir=0:1,upperdir=/u,workdir=/w", "/m"]


def test_pyoverlay_appears_as_it_is_and_with_each_trick_switched() -> None:
    shown = {name: system.command_shown() for name, system in known_systems().items()}

    assert shown["pyoverlay"].startswith("pyoverlay -o lowerdir=")
    assert " fast_path=off " in shown["pyoverlay-slow-path"]
    assert " passthrough=off " in shown["pyoverlay-no-passthrough"]
    assert " passthrough=all " in shown["pyoverlay-passthrough-all"]


def test_a_read_only_mount_has_no_upper() -> None:
    for system in known_systems().values():
        if system.has_layers:
            _program, *arguments = system.mount_command(["0", "1"], None, None, Path("/m"))
            assert not {"upper", "work", "None", "RW"} & set(re.split(r"\W|dir=", " ".join(arguments)))


def test_variants_are_measured_by_workloads_that_name_them_and_wherever_they_are_asked_for() -> None:
    work = ALL["mmap-random-read"]

    def measured(systems: list[System]) -> set[str]:
        return {system.name for system in systems if reason_against(work, system) is None}

    always = {"native", "kernel", "pyoverlay", "fuse-overlayfs", "unionfs-fuse"}
    assert measured(choose(None, [])) == always | {"pyoverlay-passthrough-all"}
    assert measured(choose("pyoverlay-slow-path", [])) == {"pyoverlay-slow-path"}
    slow_path = known_systems()["pyoverlay-slow-path"]
    assert reason_against(work, slow_path) == slow_path.left_out_because


def test_workloads_name_known_systems_only() -> None:
    for work in ALL.values():
        assert work.variants | set(work.not_for) <= set(known_systems())


def test_the_package_that_is_imported_is_the_one_that_is_mounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = known_systems()["pyoverlay"]
    assert ours.version().startswith(pyoverlay.__version__)
    (tmp_path / "pyoverlay").mkdir()
    (tmp_path / "pyoverlay" / "__init__.py").write_text("")
    monkeypatch.setattr(ours, "environment", lambda: {"PYTHONPATH": str(tmp_path)})

    with pytest.raises(BenchError, match="would be measured"):
        ours.version()


@pytest.mark.parametrize("name", ["", "zfs", "kernel,zfs"])
def test_an_unknown_system_is_refused(name: str) -> None:
    with pytest.raises(BenchError, match="known are native, kernel"):
        choose(name, [])
