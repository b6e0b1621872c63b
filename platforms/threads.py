"""A team of threads that run plans of kernels together, without the interpreter.

The calling thread is number 0. The workers spin between the steps of a generation, yield after some microseconds and
sleep after some milliseconds, so that an idle team uses no CPU.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import weakref
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edgellm.kernels.packing import aligned_empty
from edgellm.kernels.records import TEAM, TEAM_BYTES

KERNELS = ("team.run", "team.work", "team.start")
IDLE_YIELDS = 5000
"""How often a worker yields before it sleeps: some milliseconds."""

# Numba's calling convention: result, error, arguments; returns a status.
_Function = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64
)
Plan = NDArray[np.int64]


def _yield_function() -> int:
    """Address of the system's function that gives the core to another thread."""
    if sys.platform == "win32":
        function = ctypes.windll.kernel32.SwitchToThread
    else:
        function = ctypes.CDLL(None).sched_yield
    return ctypes.cast(function, ctypes.c_void_p).value or 0


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

    def __init__(self, addresses: Mapping[str, int], keep_alive: object) -> None:
        self.memory = aligned_empty(TEAM_BYTES).view(np.int64)
        self.memory[:] = 0
        self.memory[TEAM.yield_function // 8] = _yield_function()
        self.memory[TEAM.idle_yields // 8] = IDLE_YIELDS
        self.address = self.memory.ctypes.data
        self.work_address = addresses["team.work"]
        self.start = _Call(addresses["team.start"])
        self.wake = threading.Condition()
        self.sleeping = 0
        self.keep_alive = keep_alive

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
        """Wake those that sleep; they look whether there is something to do."""
        if self.sleeping:
            with self.wake:
                self.wake.notify_all()


def _worker(shared: _Shared, thread: int) -> None:
    """A worker's life: run plans, sleep when none comes for a while."""
    work = _Call(shared.work_address)
    seen = 0
    while True:
        seen = work(shared.address, thread, seen)
        if seen < 0:
            return
        with shared.wake:
            # Counted before looking at the step: whoever starts a step looks at the count after it.
            shared.sleeping += 1
            while shared.step() == seen:
                shared.wake.wait()
            shared.sleeping -= 1


def _close(shared: _Shared, workers: list[threading.Thread], process: int) -> None:
    if process != os.getpid():
        return  # a forked child has no workers to end
    shared.memory[TEAM.closed // 8] = 1
    shared.start_workers(0)
    for worker in workers:
        if worker is not threading.current_thread():
            worker.join()


class ThreadTeam:
    """Runs plans on ``threads`` threads.

    Args:
        addresses: of the kernels named in `KERNELS`.
        threads: size of the team, the caller included.
        keep_alive: whatever owns the compiled code.
    """

    def __init__(self, addresses: Mapping[str, int], threads: int, keep_alive: object = None) -> None:
        self.threads = threads
        self._addresses, self._keep_alive = addresses, keep_alive
        self._lock = threading.Lock()
        self._run = _Call(addresses["team.run"])
        self._closed = False
        self._begin()

    def _begin(self) -> None:
        self._shared = _Shared(self._addresses, self._keep_alive)
        self._process = os.getpid()
        workers = [
            threading.Thread(target=_worker, args=(self._shared, thread), name=f"edgellm-{thread}", daemon=True)
            for thread in range(1, self.threads)
        ]
        for worker in workers:
            worker.start()
        self._finalizer = weakref.finalize(self, _close, self._shared, workers, self._process)

    def run(self, plan: Plan, threads: int | None = None) -> None:
        """Run a plan (operations, 4): kernel address, record address, 1 for a barrier before it, 0.

        ``threads``: how many of the team take part; None: all.
        """
        threads = self.threads if threads is None else threads
        with self._lock:
            if self._closed:
                raise RuntimeError("the thread team is closed")
            if self._process != os.getpid():
                self._finalizer.detach()  # forked: the workers stayed in the parent
                self._begin()
            memory = self._shared.memory
            memory[TEAM.plan // 8] = plan.ctypes.data
            memory[TEAM.operations // 8] = len(plan)
            try:
                if threads > 1:
                    self._shared.start_workers(threads)
                self._run(self._shared.address, 0, threads)
            finally:
                if self._shared.unfinished():  # Ctrl-C came in between, and the workers wait for this thread
                    self._shared.wake_workers()
                    self._run(self._shared.address, 0, threads)

    def close(self) -> None:
        """End the workers."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._finalizer()
