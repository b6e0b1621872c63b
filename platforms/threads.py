"""A team of threads that run plans of kernels together, without the interpreter.

The calling thread is number 0. The workers spin between the steps of a generation, yield after some microseconds and
sleep after some milliseconds, so that an idle team uses no CPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.packing import aligned_empty
from edgellm.kernels.records import TEAM, TEAM_BYTES
from edgellm.platforms.features import available_cores

KERNELS = ("team.run", "team.work", "team.start")
SPINS = 1000
"""How often a thread looks at what it waits for before it yields: about 20 microseconds."""
CROWDED_SPINS = 10
"""The same where there are more threads than cores: who spins keeps the one from working that it waits for."""
BARRIER_YIELDS, CROWDED_BARRIER_YIELDS = 50, 1000
"""How often a thread yields at a barrier before it sleeps. Yielding does not let the system see that the core could
take a thread from another one, sleeping costs microseconds."""
IDLE_YIELDS = 5000
"""How often a worker yields between plans before it sleeps: some milliseconds."""
FUTEX = {"x86_64": 202, "aarch64": 98}
"""Number of the system call on Linux's machines of 64 bits."""

# Numba's calling convention: result, error, arguments; returns a status.
_Function = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64
)
Plan = NDArray[np.int64]


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def system_functions() -> dict[str, int]:
    """What the system has to yield, to sleep and to tell the time, as fields of the team's memory."""
    if sys.platform == "win32":
        return {"yield_function": _address(ctypes.windll.kernel32.SwitchToThread)}
    library = ctypes.CDLL(None)
    fields = {
        "yield_function": _address(library.sched_yield),
        "clock_function": _address(library.clock_gettime),
        "clock": time.CLOCK_MONOTONIC,
    }
    futex = FUTEX.get(platform.machine()) if sys.platform == "linux" and sys.maxsize > 1 << 32 else None
    if futex is not None:
        fields |= {"system_call": _address(library.syscall), "futex": futex}
    return fields


class _Call:
    """One compiled function of `edgellm.kernels.team`, with room for the result of one caller."""

    def __init__(self, address: int) -> None:
        self._function = _Function(address)
        self._result, self._error = ctypes.c_int64(), ctypes.c_void_p()
        self._pointers = ctypes.addressof(self._result), ctypes.addressof(self._error)

    def __call__(self, first: int, second: int, third: int) -> int:
        self._function(*self._pointers, first, second, third)
        return self._result.value


class _Shared:
    """What the workers hold of a team: not the team itself, so that it can be collected."""

    def __init__(self, addresses: Mapping[str, int], threads: int, keep_alive: object) -> None:
        self.memory = aligned_empty(TEAM_BYTES).view(np.int64)
        self.memory[:] = 0
        crowded = threads > len(available_cores())
        fields = {
            "spins": CROWDED_SPINS if crowded else SPINS,
            "barrier_yields": CROWDED_BARRIER_YIELDS if crowded else BARRIER_YIELDS,
            "idle_yields": IDLE_YIELDS,
            **system_functions(),
        }
        for name, value in fields.items():
            self.memory[getattr(TEAM, name) // 8] = value
        self.address = self.memory.ctypes.data
        self.work_address = addresses["team.work"]
        self.start = _Call(addresses["team.start"])
        self.wake = threading.Condition()
        self.sleeping_in_python = 0
        self.in_use = threading.Lock()  # held while a plan runs
        self.keep_alive = keep_alive

    @property
    def sleeping(self) -> int:
        """Workers that sleep until there is something to do."""
        return self.sleeping_in_python + int(self.memory[TEAM.sleeping // 8])

    def step(self) -> int:
        return int(self.memory[TEAM.step // 8])

    def unfinished(self) -> bool:
        """Whether workers were started for a plan that the caller's thread has not run."""
        return bool(self.memory[TEAM.step // 8] != self.memory[TEAM.finished // 8])

    def start_workers(self, threads: int) -> None:
        """Let so many threads, the caller's among them, take up the plan in the shared memory."""
        self.start(self.address, threads, 0)
        self.wake_workers()

    def wake_workers(self) -> None:
        """Wake those that sleep in Python; they look whether there is something to do."""
        if self.sleeping_in_python:
            with self.wake:
                self.wake.notify_all()


@contextlib.contextmanager
def _signals_left_to_others() -> Iterator[None]:
    """Threads started in here inherit a mask: the host application's signal handlers run in its own threads.

    A worker that masked them itself would handle those that come before it got so far.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    own = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGTRAP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - own)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _worker(shared: _Shared, thread: int) -> None:
    """A worker's life: run plans; where there are no futexes, sleep when none comes for a while."""
    work = _Call(shared.work_address)
    seen = 0
    while True:
        seen = work(shared.address, thread, seen)
        if seen < 0:
            return
        with shared.wake:
            # Counted before looking at the step: whoever starts a step looks at the count after it.
            shared.sleeping_in_python += 1
            while shared.step() == seen:
                shared.wake.wait()
            shared.sleeping_in_python -= 1


def _close(shared: _Shared, workers: list[threading.Thread], process: int) -> None:
    if process != os.getpid():
        return  # a forked child has no workers to end
    # At the interpreter's exit a daemon thread may still be in the middle of a plan: it keeps its workers.
    if not shared.in_use.acquire(timeout=1.0):
        return
    try:
        shared.memory[TEAM.closed // 8] = 1
        shared.start_workers(0)
        for worker in workers:
            if worker is not threading.current_thread():
                worker.join()
    finally:
        shared.in_use.release()


_teams: weakref.WeakSet[ThreadTeam] = weakref.WeakSet()


def _renew_teams() -> None:
    for team in list(_teams):
        team.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_teams)


class ThreadTeam:
    """Runs plans on ``threads`` threads. In a forked child it begins anew, with workers of its own.

    Args:
        addresses: of the kernels named in `KERNELS`.
        threads: size of the team, the caller included.
        keep_alive: whatever owns the compiled code.

    Attributes:
        waited: seconds that threads waited for each other beyond the first microseconds, all together, in all plans.
    """

    def __init__(self, addresses: Mapping[str, int], threads: int, keep_alive: object = None) -> None:
        self.threads = threads
        self.waited = 0.0
        self._addresses, self._keep_alive = addresses, keep_alive
        self._lock = threading.Lock()
        self._run = _Call(addresses["team.run"])
        self._closed = False
        self._begun = False
        self._shared = _Shared(addresses, threads, keep_alive)
        _teams.add(self)
        self._begin()

    def _begin(self) -> None:
        """Start the workers."""
        workers = [
            threading.Thread(target=_worker, args=(self._shared, thread), name=f"edgellm-{thread}", daemon=True)
            for thread in range(1, self.threads)
        ]
        with _signals_left_to_others():
            for worker in workers:
                worker.start()
        self._begun = True
        self._finalizer = weakref.finalize(self, _close, self._shared, workers, os.getpid())

    def renew(self) -> None:
        """In a child after a fork: the workers, and whoever held the lock, stayed in the parent."""
        self._lock = threading.Lock()
        self._shared = _Shared(self._addresses, self.threads, self._keep_alive)
        self._begun = False
        self._finalizer.detach()

    def run(self, plan: Plan, threads: int | None = None) -> None:
        """Run a plan (operations, 4): kernel address, record address, 1 for a barrier before it, record of the
        next product (see `edgellm.kernels.team`) or 0.

        Args:
            plan: the operations.
            threads: how many of the team take part; None: all.

        Raises:
            RuntimeError: the team is closed.
        """
        threads = self.threads if threads is None else threads
        with self._lock:
            if self._closed:
                raise RuntimeError("the thread team is closed")
            if not self._begun:
                self._begin()
            shared = self._shared
            memory = shared.memory
            with shared.in_use:
                if memory[TEAM.closed // 8]:  # the interpreter is about to exit
                    raise RuntimeError("the thread team is closed")
                memory[TEAM.plan // 8] = plan.ctypes.data
                memory[TEAM.operations // 8] = len(plan)
                memory[TEAM.lost // 8] = 0
                try:
                    if threads > 1:
                        shared.start_workers(threads)
                    self._run(shared.address, 0, threads)
                finally:
                    if shared.unfinished():  # Ctrl-C came in between, and the workers wait for this thread
                        shared.wake_workers()
                        self._run(shared.address, 0, threads)
                if threads > 1:
                    self.waited += float(memory[TEAM.lost // 8]) * 1e-9

    def close(self) -> None:
        """End the workers."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._finalizer()
