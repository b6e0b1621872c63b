"""The team of threads: barriers hold, sleepers wake, nothing hangs, whoever calls and however often."""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from kernel_calls import Record, exit_status, load_kernels

from edgellm.kernels.records import ROWS
from edgellm.platforms import threads as threads_module
from edgellm.platforms.threads import KERNELS, ThreadTeam

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
PATIENCE = 120.0  # seconds until something that should happen at once is taken not to


SYSTEM = threads_module.system_functions()
WITHOUT_FUTEXES = {name: value for name, value in SYSTEM.items() if name not in ("system_call", "futex")}


def make_team(threads: int) -> ThreadTeam:
    library = load_kernels().library
    return ThreadTeam(library.load(KERNELS), threads, keep_alive=library)


@pytest.fixture(params=["futex", "python"])
def sleep_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How waiting threads sleep: by the system's futexes, or yielding at barriers and in Python between plans."""
    if request.param == "python":
        monkeypatch.setattr(threads_module, "system_functions", lambda: WITHOUT_FUTEXES)
    elif "futex" not in SYSTEM:
        pytest.skip("this system has no futexes")
    return str(request.param)


def without_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits sleeps at once."""
    for name in ("SPINS", "CROWDED_SPINS", "BARRIER_YIELDS", "CROWDED_BARRIER_YIELDS", "IDLE_YIELDS"):
        monkeypatch.setattr(threads_module, name, 0)


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
def test_every_operation_sees_what_all_threads_did_before(
    sleep_by: str, team_of: Callable[[int], ThreadTeam], threads: int
) -> None:
    team = team_of(threads)
    for seed in range(20):
        Shuffle(50, seed=seed).run(team)


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_no_wake_up_is_lost(
    sleep_by: str, team_of: Callable[[int], ThreadTeam], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of barriers at which everybody sleeps, and plans that find all workers asleep."""
    without_patience(monkeypatch)
    team = team_of(threads)
    shuffle = Shuffle(100, 7)
    for _ in range(60):
        shuffle.run(team)


@needs_fork
def test_no_wake_up_is_lost_when_barriers_just_begin_to_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some patience makes sleepers meet openers at all moments."""
    for name in ("SPINS", "CROWDED_SPINS"):
        monkeypatch.setattr(threads_module, name, 3)
    for name in ("BARRIER_YIELDS", "CROWDED_BARRIER_YIELDS", "IDLE_YIELDS"):
        monkeypatch.setattr(threads_module, name, 1)

    def work() -> None:
        team, shuffle = make_team(3), Shuffle(50, 7)
        for _ in range(400):
            shuffle.run(team)
        team.close()

    assert exit_status(work) == 0


def test_waiting_is_told(sleep_by: str, team_of: Callable[[int], ThreadTeam]) -> None:
    """One thread has all the work: the others wait for it as long as it takes. One alone waits for nobody."""
    team, rows, width = team_of(2), 1, 1 << 20
    data = np.ones((rows, width), np.float32)
    target = np.zeros_like(data)
    record = Record(
        ROWS, rows=np.array([rows]), width=width, input=data, input_stride=4 * width, output=target,
        output_stride=4 * width, index=np.zeros(rows, np.int32),
    )  # fmt: skip
    address = load_kernels().library.load(["rows.select"])["rows.select"]
    plan = np.array([(address, record.values.ctypes.data, 1, 0)] * 50, np.int64)
    begin = time.perf_counter()
    team.run(plan)
    waited = team.waited
    assert 0.0 < waited < 2 * (time.perf_counter() - begin)
    team.run(plan, 1)
    assert team.waited == waited


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
@pytest.mark.parametrize("patient", [True, False])
def test_a_changing_part_of_the_team(sleep_by: str, patient: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that has no part in one plan may be late for it, but must take part in the next."""
    if not patient:
        without_patience(monkeypatch)

    def work() -> None:
        generator = np.random.default_rng(1)
        team, shuffle = make_team(4), Shuffle(2, 7)
        for number in range(2_000):
            if number % 20:
                team.run(shuffle.plan, int(generator.integers(1, 5)))
            else:
                shuffle.run(team, int(generator.integers(1, 5)))
        team.close()

    assert exit_status(work) == 0


def test_a_crowd_of_threads(team_of: Callable[[int], ThreadTeam]) -> None:
    """More threads than a futex's mask has bits; those without a part sleep on."""
    team, shuffle = team_of(40), Shuffle(10)
    for threads in (40, 2, 31, 32, 33, 40):
        wait_until(lambda: team._shared.sleeping == 39)
        shuffle.run(team, threads)


def test_sleeping_workers_wake_up(sleep_by: str, team_of: Callable[[int], ThreadTeam]) -> None:
    team, shuffle = team_of(4), Shuffle(10)
    for _ in range(20):
        wait_until(lambda: team._shared.sleeping == 3)
        shuffle.run(team)


@needs_fork
def test_workers_on_their_way_to_sleep_wake_up(sleep_by: str, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_an_idle_team_uses_no_processor(sleep_by: str, team_of: Callable[[int], ThreadTeam]) -> None:
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


def test_closing_ends_the_workers_awake_or_asleep(sleep_by: str) -> None:
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
def test_a_child_forked_in_the_middle_of_a_plan(team_of: Callable[[int], ThreadTeam]) -> None:
    """Another thread holds the team's lock at that moment, and does not exist in the child."""
    team, shuffle = team_of(3), Shuffle(10)
    ending = threading.Event()

    def keep_running(number: int) -> None:
        while not ending.is_set():
            Shuffle(100).run(team)

    caller = threading.Thread(target=keep_running, args=(0,), daemon=True)
    caller.start()

    def work() -> None:
        for _ in range(20):
            shuffle.run(team)
        team.close()

    try:
        for _ in range(20):
            assert exit_status(work) == 0
    finally:
        ending.set()
        caller.join(PATIENCE)
    shuffle.run(team)


@needs_fork
def test_a_child_of_a_child(team_of: Callable[[int], ThreadTeam]) -> None:
    team, shuffle = team_of(2), Shuffle(10)

    def work() -> None:
        shuffle.run(team)
        assert exit_status(lambda: shuffle.run(team)) == 0
        shuffle.run(team)

    assert exit_status(work) == 0
    shuffle.run(team)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="this system sends no signals to threads")
def test_signals_are_handled_by_the_applications_threads(team_of: Callable[[int], ThreadTeam]) -> None:
    """Workers block them, so that a handler in C does not run on a worker's small stack either."""
    team, shuffle = team_of(3), Shuffle(10)
    shuffle.run(team)
    blocked = []
    for thread in threading.enumerate():
        if re.fullmatch(r"edgellm-\d+", thread.name):
            status = Path(f"/proc/self/task/{thread.native_id}/status")
            if not status.exists():
                pytest.skip("this system does not tell which signals a thread blocks")
            line = next(line for line in status.read_text().splitlines() if line.startswith("SigBlk"))
            blocked.append(int(line.split()[1], 16))
    assert len(blocked) >= 2
    for mask in blocked:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1, signal.SIGCHLD):
            assert mask >> (number - 1) & 1
        assert not mask >> (signal.SIGSEGV - 1) & 1


@pytest.mark.parametrize("daemon", ["idle", "running"])
def test_an_interpreter_ends_with_a_team_in_use(daemon: str) -> None:
    """Nobody closes the team; a daemon thread of the application may even be computing."""
    script = f"""
import sys, threading, time
sys.path[:0] = {sys.path!r}
from test_threads import Shuffle, make_team
team, shuffle = make_team(3), Shuffle(10)
shuffle.run(team)
def keep_running():
    while True:
        shuffle.run(team)
if {daemon!r} == "running":
    threading.Thread(target=keep_running, daemon=True).start()
    time.sleep(0.1)
print("done")
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE, check=False, env=environment
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


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
