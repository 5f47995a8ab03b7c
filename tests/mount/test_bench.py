"""Does the benchmark run each system, and does it tell when one fails or hangs?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import kernel, mounting, runner
from bench.errors import BenchError
from bench.layers import LayerRecipe
from bench.results import FAILED, HUNG, NOT_APPLICABLE, OK, Measurement, Results
from bench.runner import Runner
from bench.systems import OverlayProgram, System, choose, known_systems
from bench.trial import Trial
from bench.workloads.workload import Caches, Scale, Unit, Workload
from tests.harness.disk import file_system

TINY = "create,stat-cold"
VARIANTS = {"pyoverlay-slow-path"}
"""Those that both of TINY name."""
FUSE_SYSTEMS = {"pyoverlay", *VARIANTS, "fuse-overlayfs", "unionfs-fuse"}
SYSTEMS = {"native", "kernel", *FUSE_SYSTEMS}


def bench(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        capture_output=True,
        text=True,
        check=check,
        timeout=240,
        stdin=subprocess.DEVNULL,
    )


# --- the command -------------------------------------------------------------------------------------------


def test_two_workloads_are_measured_on_all_systems(tmp_path: Path) -> None:
    out = tmp_path / "tiny.json"

    bench(
        "run",
        "--quick",
        "--repeat",
        "1",
        "--workloads",
        TINY,
        "--directory",
        str(tmp_path),
        "--out",
        str(out),
    )

    everything = json.loads(out.read_text())["measurements"]
    left_out = {trial["system"] for trial in everything if trial["outcome"] == NOT_APPLICABLE}
    assert left_out == set(known_systems()) - SYSTEMS
    trials = [trial for trial in everything if trial["outcome"] != NOT_APPLICABLE]
    assert {(trial["workload"], trial["system"]) for trial in trials} == {
        (workload, system) for workload in TINY.split(",") for system in SYSTEMS
    }
    for trial in trials:
        assert (trial["outcome"], trial["message"]) == (OK, "")
        assert all(value > 0 for value in trial["figures"].values())
    _check_daemons(trials)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.json"], "the layers are removed"
    _check_report(out)
    _check_resumed(out)


def _check_daemons(trials: list[dict[str, Any]]) -> None:
    for trial in trials:
        is_fuse = trial["system"] in FUSE_SYSTEMS
        assert (trial["daemon_cpu_seconds"] is not None) == is_fuse
        if is_fuse and trial["workload"] == "stat-cold":
            assert trial["requests"]["LOOKUP"] > 100
        if not is_fuse:
            assert trial["requests"] is None


def _check_report(out: Path) -> None:
    written = [Path(line) for line in bench("report", str(out)).stdout.splitlines()]

    assert out.with_suffix(".md") in written
    assert {path.suffix for path in written} == {".md", ".svg", ".png"}
    text = out.with_suffix(".md").read_text()
    for name in SYSTEMS:
        assert name in text
    assert "nothing" not in bench("compare", str(out), str(out)).stderr


def _check_resumed(out: Path) -> None:
    before = json.loads(out.read_text())["measurements"]
    bench("run", "--quick", "--repeat", "1", "--workloads", "create", "--resume", "--out", str(out))
    assert json.loads(out.read_text())["measurements"] == before, "what is there isn't measured again"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--systems", "kernel,zfs"], "no zfs"),
        (["--workloads", "stat-luke-warm"], "no stat-luke-warm"),
        (["--system", "peer"], "NAME=/path/to/program"),
        (["--system", "peer=/nowhere/at-all"], "/nowhere/at-all is no program"),
        (["--directory", "/nowhere/at-all"], "/nowhere/at-all"),
    ],
)
def test_bad_arguments_are_explained_and_change_nothing(
    tmp_path: Path, arguments: list[str], said: str
) -> None:
    ran = bench("run", "--out", str(tmp_path / "out.json"), *arguments, check=False)

    assert ran.returncode == 1
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not list(tmp_path.iterdir())


def test_a_program_of_the_same_command_line_is_a_system(tmp_path: Path) -> None:
    out = tmp_path / "peer.json"
    program = f"{sys.executable} -m pyoverlay -o noatime"

    bench(
        "run",
        "--quick",
        "--repeat",
        "1",
        "--workloads",
        "create",
        "--systems",
        "mine",
        "--system",
        f"mine={program}",
        "--out",
        str(out),
    )

    (trial,) = Results.load(out).measurements
    assert (trial.system, trial.outcome, trial.message) == ("mine", OK, "")


# --- what goes wrong ---------------------------------------------------------------------------------------


def one_file(_scale: Scale) -> LayerRecipe:
    def build(directory: Path) -> None:
        (directory / "0").mkdir()
        (directory / "0" / "file").write_text("lower")

    return LayerRecipe("one-file", build)


def make_workload(run: Any, **different: Any) -> Workload:  # noqa: ANN401 - fields of Workload
    fields: dict[str, Any] = {
        "name": "made-up",
        "group": "life",
        "title": "made up",
        "stands_for": "nothing",
        "figures": {"time": Unit.MILLISECONDS},
        "layers": one_file,
        "caches": Caches.FRESH,
        "heavy": False,
        "quick": True,
        "writes": True,
        "mounts": True,
        "limit_seconds": 60,
        "not_for": {},
        "variants": frozenset(),
        "read_only": False,
        "fill_upper": None,
        "run": run,
    }
    return Workload(**(fields | different))


def measure(base: Path, workload: Workload, *systems: System, rounds: int = 1) -> list[Measurement]:
    """Measure in a process of its own, as the command does: with mounts that only it sees."""
    out = base / "results.json"
    process = os.fork()
    if process == 0:
        try:
            kernel.enter_private_mount_namespace()
            kernel.adopt_orphans()
            results = Results()
            directory = base / "work"
            directory.mkdir()
            trials = Runner(directory, Scale.QUICK, results)
            trials.run_workload(workload, list(systems), rounds, lambda _planned: None)
            trials.close()
            results.save(out)
        finally:
            os._exit(0)
    os.waitpid(process, 0)
    assert not (base / "work").exists()
    return Results.load(out).measurements


def test_a_trial_that_hangs_is_recorded_and_the_run_goes_on(base: Path) -> None:
    def hang_on_one(trial: Trial) -> None:
        with trial.measured():
            if trial.system_name == "pyoverlay":
                os.mkfifo(trial.root / "fifo")
                (trial.root / "fifo").read_bytes()

    workload = make_workload(hang_on_one, limit_seconds=5)

    hung, went_on = measure(base, workload, *choose("pyoverlay,kernel", []))

    assert (hung.outcome, hung.figures) == (HUNG, {})
    assert "5 s" in hung.message
    assert went_on.outcome == OK


def test_a_daemon_that_hangs_is_aborted(base: Path) -> None:
    def stop_the_daemon(trial: Trial) -> None:
        with trial.measured():
            for pid in trial.mounted.daemon_pids:
                os.kill(pid, 19)
            (trial.root / "file").read_bytes()

    workload = make_workload(stop_the_daemon, limit_seconds=5)

    hung, went_on = measure(base, workload, *choose("fuse-overlayfs,pyoverlay", []))

    assert (hung.outcome, went_on.outcome) == (HUNG, HUNG)


def test_work_that_a_system_gets_wrong_is_recorded_with_the_reason(base: Path) -> None:
    def expect_much(trial: Trial) -> None:
        with trial.measured():
            (trial.root / "no-such-file").read_bytes()

    (failed,) = measure(base, make_workload(expect_much), *choose("pyoverlay", []))

    assert failed.outcome == FAILED
    assert "no-such-file" in failed.message


def test_a_system_that_cannot_mount_is_recorded_with_what_it_said(base: Path) -> None:
    program = base / "program"
    program.write_text("#!/bin/sh\necho out of luck >&2\nexit 3\n")
    program.chmod(0o755)

    (failed,) = measure(base, make_workload(lambda _trial: None), OverlayProgram("peer", [str(program)]))

    assert failed.outcome == FAILED
    assert "exit status 3, out of luck" in failed.message


def test_a_workload_without_meaning_for_a_system_is_recorded_with_the_reason(base: Path) -> None:
    workload = make_workload(lambda _trial: None, not_for={"native": "nothing to copy up"})

    (measurement,) = measure(base, workload, *choose("native", []))

    assert (measurement.outcome, measurement.message) == (NOT_APPLICABLE, "nothing to copy up")


def test_a_figure_that_a_workload_forgot_is_a_failure(base: Path) -> None:
    (failed,) = measure(base, make_workload(lambda _trial: None), *choose("kernel", []))

    assert failed.outcome == FAILED
    assert "time" in failed.message


def test_requests_are_counted_exactly(base: Path) -> None:
    def stat_what_is_missing(trial: Trial) -> None:
        with trial.measured():
            for number in range(100):
                assert not (trial.root / str(number)).exists()

    for measurement in measure(
        base, make_workload(stat_what_is_missing), *choose("pyoverlay,fuse-overlayfs", [])
    ):
        assert measurement.requests is not None
        assert measurement.requests["LOOKUP"] == 100


def test_a_plain_directory_is_copied_for_work_that_writes(base: Path) -> None:
    def overwrite(trial: Trial) -> None:
        assert (trial.root / "file").read_text() == "lower"
        with trial.measured():
            (trial.root / "file").write_text("upper")

    trials = measure(base, make_workload(overwrite), *choose("native,kernel", []), rounds=2)

    assert [trial.outcome for trial in trials] == [OK] * 4


def test_what_a_failed_trial_leaves_running_is_killed(base: Path) -> None:
    def leave_a_process_behind(trial: Trial) -> None:
        sleeper = subprocess.Popen(["sleep", "600"], cwd=trial.root, start_new_session=True)
        pids = [sleeper.pid, *trial.mounted.daemon_pids]
        (base / "pids").write_text(" ".join(str(pid) for pid in pids))
        raise RuntimeError("gave up")

    (failed,) = measure(base, make_workload(leave_a_process_behind), *choose("unionfs-fuse", []))

    assert (failed.outcome, failed.message) == (FAILED, "RuntimeError: gave up")
    pids = (base / "pids").read_text().split()
    assert len(pids) == 2
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_dropped_caches_spoil_a_trial_and_it_is_done_again(base: Path) -> None:
    def be_disturbed_once(trial: Trial) -> None:
        with trial.measured():
            if not (base / "disturbed").exists():
                (base / "disturbed").touch()
                kernel.drop_caches()

    def be_disturbed(trial: Trial) -> None:
        with trial.measured():
            kernel.drop_caches()

    (once,) = measure(base, make_workload(be_disturbed_once), *choose("kernel", []))
    (always,) = measure(base, make_workload(be_disturbed), *choose("kernel", []))

    assert once.outcome == OK
    assert always.outcome == FAILED
    assert "dropped the machine's caches" in always.message


def test_a_plain_directory_that_nobody_may_write_is_the_merged_tree_itself(base: Path) -> None:
    def write(trial: Trial) -> None:
        with trial.measured():
            (trial.root / "file").write_text("upper")

    (failed,) = measure(base, make_workload(write, writes=False), *choose("native", []))

    assert failed.outcome == FAILED
    assert "Read-only" in failed.message


def test_a_read_only_mount_shows_the_lowers_and_takes_no_writes(base: Path) -> None:
    def try_both(trial: Trial) -> None:
        assert trial.upper is None
        with trial.measured():
            assert (trial.root / "file").read_text() == "lower"
        with pytest.raises(OSError, match="Read-only"):
            (trial.root / "file").write_text("upper")
        assert (trial.below[0] / "file").exists()

    def two_layers(_scale: Scale) -> LayerRecipe:
        # The kernel wants two without an upper.
        def build(directory: Path) -> None:
            one_file(Scale.QUICK).build(directory)
            (directory / "1").mkdir()

        return LayerRecipe("two-layers", build)

    workload = make_workload(try_both, writes=False, read_only=True, layers=two_layers)

    for trial in measure(base, workload, *choose("native,kernel,pyoverlay,fuse-overlayfs", [])):
        assert (trial.system, trial.outcome, trial.message) == (trial.system, OK, "")


def test_an_upper_holds_what_the_workload_put_there(base: Path) -> None:
    def fill(upper: Path, *, scale: Scale) -> None:
        (upper / "ours").write_text(scale.value)

    def read(trial: Trial) -> None:
        with trial.measured():
            assert (trial.root / "ours").read_text() == "quick"
        assert (trial.root / "file").read_text() == "lower"
        assert (trial.below[0] / "ours").exists()

    workload = make_workload(read, writes=False, fill_upper=fill)

    for trial in measure(base, workload, *choose(",".join(SYSTEMS), [])):
        assert (trial.system, trial.outcome, trial.message) == (trial.system, OK, "")


def test_what_hung_is_not_tried_again(base: Path) -> None:
    def hang(trial: Trial) -> None:
        with trial.measured():
            os.mkfifo(trial.root / "fifo")
            (trial.root / "fifo").read_bytes()

    first, second = measure(base, make_workload(hang, limit_seconds=3), *choose("kernel", []), rounds=2)

    assert (first.outcome, second.outcome) == (HUNG, HUNG)
    assert second.seconds < 1
    assert "not tried again" in second.message


def test_a_trial_that_cannot_be_cleared_away_is_recorded_and_the_run_goes_on(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[Path] = []

    def stays_once(place: Path, process: int | None = None) -> None:
        removed.append(place)
        if len(removed) == 1:
            raise BenchError("stays mounted")
        mounting.remove_everything(place, process)

    def work(trial: Trial) -> None:
        with trial.measured():
            (trial.root / "file").read_bytes()

    monkeypatch.setattr(runner, "remove_everything", stays_once)

    first, second = measure(base, make_workload(work), *choose("kernel", []), rounds=2)

    assert (first.outcome, second.outcome) == (FAILED, OK)
    assert "stays mounted" in first.message


@pytest.mark.parametrize(("kind", "spread"), [("ext4", True), ("tmpfs", False)])
def test_trials_are_spread_over_the_disk_where_that_can_be(kind: str, spread: bool) -> None:
    with file_system(kind) as disk:
        kernel.spread_directories(disk)
        listed = subprocess.run(["lsattr", "-d", disk], capture_output=True, text=True, check=True).stdout
        assert ("T" in listed.split()[0]) == spread
