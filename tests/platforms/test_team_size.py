"""The team's size follows how long threads wait and what steps take: simulated machines, no clocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from edgellm.platforms.idle_cores import LONGEST_GAP, IdleCores
from edgellm.platforms.team_size import LONGEST_PAUSE, TeamSize, team_sizes

Cost = Callable[[int, float], tuple[float, float]]


@dataclass
class Machine:
    """Cores, and other processes that want some of them at a time.

    A step takes ``work`` seconds of one thread, ``fixed`` of them only one thread's. With more threads than free cores
    all wait while the system gives one's core to another process: the step takes ``stall`` seconds longer.
    """

    cores: int = 2
    work: float = 0.008
    stall: float = 0.020
    fixed: float = 0.001
    others: Callable[[float], int] = lambda now: 0
    tells_idle: bool = True
    now: float = 0.0
    sizes: list[tuple[float, int]] = field(default_factory=list)
    _idle: float = 0.0
    _looked: float = -1.0

    def size(self, threads: int) -> TeamSize:
        return TeamSize(threads, idle_cores=self.idle_cores)

    def idle_cores(self, now: float) -> float | None:
        idle, self._idle = self._idle, 0.0
        last, self._looked = self._looked, now
        return idle / (now - last) if self.tells_idle else None

    def step(self, size: TeamSize, rows: int = 1) -> None:
        threads, busy = size.threads, self.others(self.now)
        work = self.work * rows
        seconds, waited = (work - self.fixed) / threads + self.fixed, 0.0
        if threads > max(1, self.cores - busy):
            seconds += self.stall
            waited = self.stall * (threads - 1)
        self.sizes.append((self.now, threads))
        self._idle += seconds * max(0, self.cores - busy - threads)
        self.now += seconds
        size.note(rows, seconds, waited, self.now)

    def run(self, size: TeamSize, until: float) -> float:
        """Steps per second."""
        begin, count = self.now, len(self.sizes)
        while self.now < until:
            self.step(size)
        return (len(self.sizes) - count) / (self.now - begin)

    def between(self, begin: float, end: float) -> set[int]:
        return {threads for now, threads in self.sizes if begin <= now < end}


def test_sizes_fall_to_one() -> None:
    assert team_sizes(1) == (1,)
    assert team_sizes(2) == (2, 1)
    assert team_sizes(3) == (3, 2, 1)
    assert team_sizes(8) == (8, 7, 6, 3, 1)
    for threads in range(1, 100):
        sizes = team_sizes(threads)
        assert sizes[0] == threads and sizes[-1] == 1
        assert all(a > b for a, b in pairwise(sizes))


def test_a_quiet_machine_keeps_the_whole_team() -> None:
    machine = Machine()
    machine.run(machine.size(2), 5.0)
    assert machine.between(0, 5) == {2}


def test_slower_steps_are_no_disturbance() -> None:
    """A growing context, or any other thing that has nothing to do with waiting."""
    machine = Machine()
    size = machine.size(2)
    while machine.now < 10:
        machine.work = 0.008 * (1 + machine.now)
        machine.step(size)
    assert machine.between(0, 10) == {2}


def test_a_pause_of_a_few_milliseconds_is_no_disturbance() -> None:
    size = TeamSize(2)
    for number in range(1000):
        pause = 0.01 * (number % 20 == 0)
        size.note(1, 0.005 + pause, pause, 0.005 * number)
        assert size.threads == 2


@pytest.mark.parametrize("tells_idle", [True, False])
def test_a_busy_machine_shrinks_the_team_which_recovers(tells_idle: bool) -> None:
    """Another process is there from second 2 to 6."""
    machine = Machine(others=lambda now: int(2 <= now < 6), tells_idle=tells_idle)
    size = machine.size(2)
    machine.run(size, 2.0)
    assert machine.between(0, 2) == {2}
    rate = machine.run(size, 6.0)
    assert rate > 0.9 / machine.work
    assert 2 not in machine.between(2.1, 3.0) or not tells_idle
    machine.run(size, 20.0)
    assert machine.between(6 + LONGEST_PAUSE + 0.5, 20) == {2}
    if tells_idle:
        assert machine.between(6.5, 20) == {2}


def test_busy_from_the_start() -> None:
    machine = Machine(others=lambda now: 2, stall=0.2)
    rate = machine.run(machine.size(2), 5.0)
    assert rate > 0.9 / machine.work


def test_where_nobody_tells_of_idle_cores_trials_become_rare() -> None:
    machine = Machine(others=lambda now: 1, tells_idle=False, stall=0.05)
    rate = machine.run(machine.size(2), 30.0)
    assert rate > 0.9 / machine.work


def test_a_larger_team_loses_only_as_many_as_it_must() -> None:
    machine = Machine(cores=8, others=lambda now: int(now >= 1))
    size = machine.size(8)
    machine.run(size, 5.0)
    assert machine.between(1.5, 5) == {7}
    machine.others = lambda now: 2
    machine.run(size, 10.0)
    assert machine.between(6, 10) == {6}
    machine.others = lambda now: 0
    machine.run(size, 15.0)
    assert machine.between(12, 15) == {8}


def test_where_fewer_threads_are_no_better_the_team_stays() -> None:
    """Threads that wait for each other because the work cannot be shared better."""
    size, now, sizes = TeamSize(4, idle_cores=lambda now: 0.0), 0.0, []
    while now < 20:
        sizes.append(size.threads)
        seconds = {4: 0.012, 3: 0.02}.get(size.threads, 0.03)
        now += seconds
        size.note(1, seconds, 0.5 * seconds * (size.threads - 1), now)
    assert sizes.count(4) > 0.9 * len(sizes)


def test_long_steps_shrink_the_team_at_once() -> None:
    """Prefill has few steps."""
    machine = Machine(others=lambda now: 1, stall=2.0)
    size = machine.size(2)
    for _ in range(4):
        machine.step(size, rows=256)
    assert [threads for _now, threads in machine.sizes] == [2, 1, 1, 1]


def test_steps_of_other_kinds_are_not_compared() -> None:
    """After a long step at two threads one-row steps at one say nothing; the team grows when cores are idle."""
    machine = Machine(others=lambda now: int(now < 2))
    size = machine.size(2)
    machine.step(size, rows=64)
    machine.run(size, 4.0)
    assert machine.between(0.8, 2) == {1}
    assert machine.between(2.5, 4) == {2}


def test_a_fixed_size_is_kept() -> None:
    for size in (TeamSize(2, adapt=False), TeamSize(1)):
        kept = size.threads
        for number in range(100):
            size.note(1, 0.01 * (1 + number % 5), 0.01, 0.1 * number)
            assert size.threads == kept


def test_idle_cores_are_some_of_those_there_are() -> None:
    cores = IdleCores()
    if cores(0.0) is None:
        pytest.skip("this system does not tell")
    assert cores(LONGEST_GAP + 0.1) == 0.0  # too long ago
    assert cores(LONGEST_GAP + 0.1) == 0.0  # no time in between


def test_idle_cores_are_counted_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = IdleCores()
    seconds = iter([100.0, 100.3, 100.4])
    monkeypatch.setattr(cores, "_idle_seconds", lambda: next(seconds))
    assert cores(5.0) == 0.0
    assert cores(5.2) == pytest.approx(1.5)
    assert cores(5.4) == pytest.approx(0.5)
