"""The team of threads: barriers hold, sleepers wake, nothing hangs, whoever calls and however often."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from kernel_calls import Record, exit_status, load_kernels

from edgellm.kernels.records import ROWS
from edgellm.platforms import threads as threads_module
from edgellm.platforms.threads import KERNELS, ThreadTeam

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
PATIENCE = 120.0  # seconds until something that should happen at once is taken not to


def make_team(threads: int) -> ThreadTeam:
    library = load_kernels().library
    return ThreadTeam(library.load(KERNELS), threads, keep_alive=library)


@pytest.fixture
def team_of() -> Iterator[Callable[[int], ThreadTeam]]:
    """Makes teams, which are closed in the end."""
    made: list[ThreadTeam] = []

    def make(threads: int) -> ThreadTeam:
        made.append(make_team(threads))
        return made[-1]

    yield make
    for team in made:
        team.close()


def wait_until(condition: Callable[[], bool]) -> None:
    """Fails if the condition does not come true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.002)


class Shuffle:
    """A plan whose operations each read what all threads wrote before: rows permuted again and again.

    Without a barrier between two operations some row would be read before it is written.
    """

    def __init__(self, operations: int, rows: int = 97, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.first = generator.standard_normal((rows, 16)).astype(np.float32)
        self._start = self.first.copy()
        second = np.zeros_like(self.first)
        address = load_kernels().library.load(["rows.select"])["rows.select"]
        self._records, plan, order = [], [], np.arange(rows)
        source, target = self.first, second
        for _ in range(operations):
            index = generator.permutation(rows).astype(np.int32)
            record = Record(
                ROWS, rows=np.array([rows]), width=16, input=source, input_stride=64, output=target, output_stride=64,
                index=index,
            )  # fmt: skip
            self._records.append(record)
            plan.append((address, self._records[-1].values.ctypes.data, 1, 0))
            order = order[index]
            source, target = target, source
        self.plan = np.array(plan, np.int64)
        self._result, self._order = source, order

    def run(self, team: ThreadTeam, threads: int | None = None) -> None:
        """Run the plan and check its result."""
        self.first[...] = self._start
        team.run(self.plan, threads)
        assert np.array_equal(self._result, self._start[self._order])


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_every_operation_sees_what_all_threads_did_before(team_of: Callable[[int], ThreadTeam], threads: int) -> None:
    team = team_of(threads)
    for seed in range(20):
        Shuffle(50, seed=seed).run(team)


def test_fewer_rows_than_threads(team_of: Callable[[int], ThreadTeam]) -> None:
    for rows in (1, 2, 7):
        Shuffle(20, rows).run(team_of(8))


def test_an_empty_plan(team_of: Callable[[int], ThreadTeam]) -> None:
    for threads in (1, 3):
        team_of(threads).run(np.zeros((0, 4), np.int64))


@needs_fork
def test_many_small_plans() -> None:
    def work() -> None:
        team, shuffle = make_team(3), Shuffle(2, 7)
        for number in range(20_000):
            if number % 100:
                team.run(shuffle.plan)
            else:
                shuffle.run(team)
        team.close()

    assert exit_status(work) == 0


@needs_fork
def test_a_changing_part_of_the_team() -> None:
    """A thread that has no part in one plan may be late for it, but must take part in the next."""

    def work() -> None:
        generator = np.random.default_rng(1)
        team, shuffle = make_team(4), Shuffle(2, 7)
        for number in range(5_000):
            if number % 20:
                team.run(shuffle.plan, int(generator.integers(1, 5)))
            else:
                shuffle.run(team, int(generator.integers(1, 5)))
        team.close()

    assert exit_status(work) == 0


def test_sleeping_workers_wake_up(team_of: Callable[[int], ThreadTeam]) -> None:
    team, shuffle = team_of(4), Shuffle(10)
    for _ in range(20):
        wait_until(lambda: team._shared.sleeping == 3)
        shuffle.run(team)


@needs_fork
def test_workers_on_their_way_to_sleep_wake_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no patience at all every plan meets workers that are about to sleep, or about to wake."""
    monkeypatch.setattr(threads_module, "IDLE_YIELDS", 0)

    def work() -> None:
        team, shuffle = make_team(3), Shuffle(2, 7)
        for number in range(3_000):
            team.run(shuffle.plan)
            if number % 3 == 0:
                time.sleep(1e-5 * (number % 7))
        shuffle.run(team)
        team.close()

    assert exit_status(work) == 0


def test_an_idle_team_uses_no_processor(team_of: Callable[[int], ThreadTeam]) -> None:
    """Two spinning workers would use a second of processor time in half a second (or what the machine can give)."""
    team = team_of(3)
    Shuffle(2).run(team)
    wait_until(lambda: team._shared.sleeping == 2)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.2
    assert team._shared.sleeping == 2


def workers() -> int:
    """Threads of all teams that are still held by anyone."""
    gc.collect()
    return sum(thread.name.startswith("edgellm-") for thread in threading.enumerate())


def test_closing_ends_the_workers_awake_or_asleep() -> None:
    others = workers()
    for asleep in (False, True):
        team = make_team(3)
        Shuffle(2).run(team)
        assert workers() == others + 2
        if asleep:
            wait_until(lambda team=team: team._shared.sleeping == 2)  # type: ignore[misc]
        team.close()
        assert workers() == others
        team.close()
        with pytest.raises(RuntimeError, match="closed"):
            team.run(np.zeros((0, 4), np.int64))


def test_a_forgotten_team_ends_its_workers() -> None:
    others = workers()
    team = make_team(3)
    Shuffle(2).run(team)
    gone = weakref.ref(team)
    del team
    gc.collect()
    assert gone() is None
    wait_until(lambda: workers() == others)


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Do something in several threads at once; raises what any of them raised."""
    errors: list[BaseException] = []

    def guarded_work(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    callers = [threading.Thread(target=guarded_work, args=(number,), daemon=True) for number in range(count)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(PATIENCE)
        assert not caller.is_alive()
    if errors:
        raise errors[0]


def test_teams_side_by_side(team_of: Callable[[int], ThreadTeam]) -> None:
    teams = [team_of(threads) for threads in (2, 3, 1)]

    def work(number: int) -> None:
        shuffle = Shuffle(5, seed=number)
        for _ in range(50):
            shuffle.run(teams[number])

    in_threads(3, work)


def test_one_team_called_from_several_threads(team_of: Callable[[int], ThreadTeam]) -> None:
    team = team_of(2)

    def work(number: int) -> None:
        shuffle = Shuffle(3, seed=number)
        for _ in range(50):
            shuffle.run(team)

    in_threads(4, work)


def test_closing_while_others_call(team_of: Callable[[int], ThreadTeam]) -> None:
    """They get their result or are told that the team is closed."""
    for _ in range(10):
        team = team_of(2)
        ran = threading.Barrier(3)

        def work(number: int, team: ThreadTeam = team, ran: threading.Barrier = ran) -> None:
            shuffle = Shuffle(3, seed=number)
            shuffle.run(team)
            ran.wait(PATIENCE)
            if number == 2:
                team.close()
                return
            with pytest.raises(RuntimeError, match="closed"):
                while True:
                    shuffle.run(team)

        in_threads(3, work)


@needs_fork
def test_a_forked_child_has_a_team_of_its_own(team_of: Callable[[int], ThreadTeam]) -> None:
    team, shuffle = team_of(3), Shuffle(10)
    shuffle.run(team)

    def work() -> None:
        for _ in range(20):
            shuffle.run(team)
        assert workers() == 2
        team.close()

    assert exit_status(work) == 0
    assert exit_status(team.close) == 0  # without a call before
    shuffle.run(team)  # the parent's is as it was


@needs_fork
@pytest.mark.parametrize("asleep", [False, True])
def test_an_interrupt_between_two_calls_does_not_leave_workers_behind(asleep: bool) -> None:
    """Ctrl-C raises wherever the main thread is, so also when the workers have begun and it has not joined them."""

    def work() -> None:
        team, shuffle = make_team(3), Shuffle(4)
        start = team._shared.start

        def interrupted(*arguments: int) -> int:
            start(*arguments)
            raise KeyboardInterrupt

        for _ in range(5):
            if asleep:
                wait_until(lambda: team._shared.sleeping == 2)
            team._shared.start = interrupted  # type: ignore[assignment]
            with pytest.raises(KeyboardInterrupt):
                team.run(shuffle.plan)
            team._shared.start = start
            shuffle.run(team)
        team.close()

    assert exit_status(work) == 0


@needs_fork
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers")
def test_interrupts_at_any_moment() -> None:
    def work() -> None:
        class InterruptError(Exception):
            pass

        def interrupt(*arguments: object) -> None:
            raise InterruptError

        signal.signal(signal.SIGPROF, interrupt)
        team, shuffle = make_team(3), Shuffle(2, 7)
        hits = 0
        while hits < 200:
            try:
                signal.setitimer(signal.ITIMER_PROF, 0.002)
                while True:
                    team.run(shuffle.plan)
            except InterruptError:
                hits += 1
            shuffle.run(team)
        team.close()

    assert exit_status(work) == 0
