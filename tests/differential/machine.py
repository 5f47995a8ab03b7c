"""The machine that draws: a stack of lowers, then operations, each performed on both kinds of overlay.

hypothesis chooses which families of operations a run is made of and the bytes that become choices
(`tests.differential.dice`). Every few steps the trees and the uppers are compared; in the end each upper is
mounted by the other program.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky
from hypothesis.internal.conjecture.providers import AVAILABLE_PROVIDERS, HypothesisProvider
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

import tests.differential.drawing_held
import tests.differential.drawing_looking  # noqa: F401 - both register their families
from tests.differential import operations
from tests.differential.dice import Dice
from tests.differential.drawing import FAMILIES, OF_HOLDERS, Maker, draw_operation
from tests.differential.drawn_layers import Layers, draw_layers
from tests.differential.operation import Operation, Outcome
from tests.differential.pair import FORGET, REMOUNT, MismatchError, Pair
from tests.differential.script import Script, live_pair
from tests.differential.tally import Tally
from tests.differential.variants import Room
from tests.differential.world import World, scan

STEPS_OF_A_RUN = 100
_RUNS_OF_A_PART = 40
_STEPS_BETWEEN_COMPARISONS = 20

_STACK = st.binary(min_size=500, max_size=500)
_STEP = st.binary(min_size=24, max_size=24)
_ROOT_MODES = (0o777, 0o755, 0o1777)


NEVER_FAIL = {
    "forget": "the kernel forgets what it may; it is asked through the mount, not by a call on a file",
    "remount": "what is held open is closed before; a mount that is refused is a difference, not an outcome",
}
"""The steps that have no way to fail, and why."""


class Even(HypothesisProvider):
    """hypothesis's way to choose, and nothing more.

    Its engine by itself would try many scripts that are short, all zeros, or repeat one step, to have one
    that is short when it fails. Scripts are shortened otherwise here, and most differences need many steps.
    """


AVAILABLE_PROVIDERS["even"] = Even


class Record:
    """What came of all runs: counts by operation and errno (None: it succeeded), the first failure."""

    def __init__(self, variant: str) -> None:
        self.variant = variant
        self.counts: Counter[tuple[str, str | None]] = Counter()
        self.tally: Tally[Maker] = Tally()
        self.script: Script | None = None
        self.failure: MismatchError | None = None

    @property
    def steps(self) -> int:
        return self.counts.total()

    @property
    def succeeded(self) -> float:
        """The share of steps that succeeded."""
        return sum(count for (_, error), count in self.counts.items() if error is None) / max(1, self.steps)

    def too_rare(self) -> list[str]:
        """What succeeded or failed in less than 2 of 1000 steps, though it can."""
        least = self.steps // 500
        return [
            f"{name} {what}: {count}"
            for name in sorted({name for name, _ in self.counts})
            for what, count in self._by_outcome(name).items()
            if count < least and not (what == "failed" and name in NEVER_FAIL)
        ]

    def _by_outcome(self, name: str) -> dict[str, int]:
        failed = sum(count for (of, error), count in self.counts.items() if of == name and error)
        return {"succeeded": self.counts[name, None], "failed": failed}

    def __str__(self) -> str:
        lines = [f"{self.variant}:"]
        for name in sorted({name for name, _ in self.counts}):
            errors = {error: count for (of, error), count in self.counts.items() if of == name and error}
            told = ", ".join(f"{error} {count}" for error, count in sorted(errors.items()))
            lines.append(
                f"{name:20} {self.counts[name, None]:6} succeeded, {sum(errors.values()):6} failed: {told}"
            )
        lines.append(f"{self.steps} steps, {self.succeeded:.0%} succeeded")
        return "\n".join(lines)


class Machine(RuleBasedStateMachine):
    """One run: a fresh stack, and as many steps as hypothesis wants."""

    record = Record("")
    room: Room

    def __init__(self) -> None:
        super().__init__()
        self._world = World()
        self._done: list[Operation] = []
        self._stack = Dice(b"\0")
        self._layers: Layers = ((),)
        self._mounts = contextlib.ExitStack()
        self._pair: Pair | None = None
        self._failed = False

    @initialize(data=_STACK)
    def stack(self, data: bytes) -> None:
        """Both are to be mounted over drawn layers; hypothesis breaks many runs off before a step."""
        self._stack = Dice(data)

    def _mount(self) -> Pair:
        root_mode = self._stack.pick(_ROOT_MODES)
        self._world.set_ids = self._stack.happens(70)
        self._world.maps_move_times = self.room.variant.upper != "tmpfs"
        self._layers = draw_layers(self._stack, set_ids=self._world.set_ids)
        pair = self._mounts.enter_context(live_pair(self._layers, self.room))
        self._pair, self._world.root = pair, os.fsencode(pair.kernel.path)
        self._step(operations.chmod(b".", root_mode))
        return pair

    @rule(data=_STEP)
    def making(self, data: bytes) -> None:
        self._draw("making", data)

    @rule(data=_STEP)
    def removing(self, data: bytes) -> None:
        self._draw("removing", data)

    @rule(data=_STEP)
    def renaming(self, data: bytes) -> None:
        self._draw("renaming", data)

    @rule(data=_STEP)
    def contents(self, data: bytes) -> None:
        self._draw("contents", data)

    @rule(data=_STEP)
    def attributes(self, data: bytes) -> None:
        self._draw("attributes", data)

    @rule(data=_STEP)
    def extended_attributes(self, data: bytes) -> None:
        self._draw("extended attributes", data)

    @rule(data=_STEP)
    def looking(self, data: bytes) -> None:
        self._draw("looking", data)

    @rule(data=_STEP)
    def opening(self, data: bytes) -> None:
        self._draw("opening", data)

    @rule(data=_STEP)
    def held(self, data: bytes) -> None:
        self._draw("held", data)

    @rule(data=_STEP)
    def held_contents(self, data: bytes) -> None:
        self._draw("held contents", data)

    @rule(data=_STEP)
    def held_attributes(self, data: bytes) -> None:
        self._draw("held attributes", data)

    @rule(data=_STEP)
    def held_names(self, data: bytes) -> None:
        self._draw("held names", data)

    @rule(data=_STEP)
    def maps(self, data: bytes) -> None:
        self._draw("maps", data)

    @rule(data=_STEP)
    def rare(self, data: bytes) -> None:
        """What succeeded or failed too rarely so far."""
        self._draw(self._rarest(), data)

    @rule(data=_STEP)
    def as_rare(self, data: bytes) -> None:
        """The same, twice as often as the others."""
        self._draw(self._rarest(), data)

    @rule(data=_STEP)
    def mounts(self, data: bytes) -> None:
        """Memory runs short, or, more rarely, both are mounted anew."""
        dice = Dice(data)
        if dice.happens(40):
            self._step(FORGET)
        elif dice.happens(30):
            self._step(REMOUNT)
        else:
            self._draw("opening", data)

    def teardown(self) -> None:
        """Compares everything, lets each read the other's upper, and removes both."""
        try:
            if self._pair is not None and not self._failed:
                with self._noting():
                    self._pair.finish()
                    self._pair.cross()
        finally:
            self._mounts.close()

    def _rarest(self) -> str:
        possible = {name: makers for name, makers in FAMILIES.items() if self._instead(name) == name}
        return self.record.tally.rarest(possible)

    def _instead(self, family: str) -> str:
        """The family itself, or the one that makes it possible: something must be held open first."""
        held = {slot.kind for slot in self._world.slots.values()}
        if family == "maps" and not self._world.maps:
            family = "mapping"
        if family == "held names" and "directory" not in held:
            return "opening directories"
        if family in ("held", "held contents", "mapping") and "file" not in held:
            return "opening"
        return "opening" if family in OF_HOLDERS and not held else family

    def _draw(self, family: str, data: bytes) -> None:
        maker, operation = draw_operation(self._instead(family), Dice(data), self._world, self.record.tally)
        outcome = self._step(operation)
        self.record.tally.note(maker, succeeded=outcome.succeeded)

    def _step(self, operation: Operation) -> Outcome:
        pair = self._pair or self._mount()
        if pair.is_over():
            return Outcome(None)
        self._done.append(operation)
        with self._noting():
            releases = pair.releases
            outcome = pair.perform(operation)
            self.record.counts[operation.name, outcome.error] += 1
            if outcome.succeeded:
                self._world.took_place(operation)
            if operation == REMOUNT or pair.releases > releases:
                self._world.forget_held()
            self._world.update(scan(os.fsencode(pair.kernel.path)))
            if not pair.is_over() and len(self._done) % _STEPS_BETWEEN_COMPARISONS == 0:
                pair.compare()
        return outcome

    @contextmanager
    def _noting(self) -> Iterator[None]:
        """Notes the script that led to a mismatch."""
        try:
            yield
        except MismatchError as error:
            self._failed = True
            self.record.failure = error
            self.record.script = Script(self._layers, tuple(self._done), self.record.variant)
            raise


def run(steps: int, seed: int, room: Room) -> Record:
    """Runs about `steps` steps, fixed by `seed` and the variant, in a room of it, to the first mismatch."""
    Machine.room = room
    record = Machine.record = Record(room.variant.name)
    for part in itertools.count():
        if record.steps >= steps or record.failure is not None:
            return record
        # hypothesis counts runs that it breaks off, too: so it is asked until there are enough steps.
        runs = min(_RUNS_OF_A_PART, -(-(steps - record.steps) // STEPS_OF_A_RUN))
        part_of_it = hypothesis.seed(f"{seed}.{room.variant.name}.{part}")(Machine)
        with contextlib.suppress(MismatchError, Flaky):
            run_state_machine_as_test(part_of_it, settings=_settings(runs))
    raise AssertionError("there is always one more part")


def _settings(runs: int) -> settings:
    return settings(
        max_examples=runs,
        stateful_step_count=STEPS_OF_A_RUN,
        backend="even",
        deadline=None,
        database=None,
        phases=[Phase.generate],  # a script, its own operations left out one by one, gets shorter than bytes
        suppress_health_check=list(HealthCheck),
        print_blob=False,
        report_multiple_bugs=False,
    )
