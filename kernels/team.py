"""The inner loop of a team of threads: run a plan, meet at barriers, wait for the next plan.

A plan is an array of (kernel address, record address, barrier before it, unused). All threads walk it together; each
calls every kernel with its own number. Variants: ``run`` (one plan) and ``work`` (a worker's life).

Waiting spins briefly and then yields: with other busy processes on the machine pure spinning is ruinous, and sleeping
costs microseconds at each of the hundreds of barriers of a step.
"""

from __future__ import annotations

from edgellm.kernels.atomics import (
    atomic_add,
    atomic_exchange,
    atomic_load,
    call_kernel,
    call_yield,
    flush_denormals,
    pause,
    restore_denormals,
)
from edgellm.kernels.records import TEAM as F
from edgellm.kernels.simd import get, helper, int64_at, set_int64

RESULT = "int64"
_SPINS = 1000  # about 20 microseconds


@helper
def _wait_while(address, value, team):
    """Return once the integer at an address is no longer ``value``."""
    spins = 0
    while atomic_load(address) == value:
        if spins < _SPINS:
            pause()
            spins += 1
        else:
            call_yield(get(team, F.yield_function))


@helper
def _barrier(team, threads):
    """All threads arrive before any leaves; the last one opens it."""
    if threads == 1:
        return
    generation = atomic_load(team + F.generation)
    if atomic_add(team + F.arrived, 1) == threads - 1:
        atomic_exchange(team + F.arrived, 0)
        atomic_add(team + F.generation, 1)
    else:
        _wait_while(team + F.generation, generation, team)


@helper
def _run(team, thread, threads):
    state = flush_denormals()
    plan, count = get(team, F.plan), get(team, F.operations)
    for number in range(count):
        operation = plan + 32 * number
        if int64_at(operation + 16):
            _barrier(team, threads)
        call_kernel(int64_at(operation), int64_at(operation + 8), thread, threads)
    _barrier(team, threads)
    restore_denormals(state)


@helper
def _wait_for_work(team, seen):
    """The number of the next step, or ``seen`` again when none came for a while."""
    waited = 0
    idle = get(team, F.idle_yields)
    while waited < _SPINS + idle:
        current = atomic_load(team + F.step)
        if current != seen:
            return current
        if waited < _SPINS:
            pause()
        else:
            call_yield(get(team, F.yield_function))
        waited += 1
    return seen


VARIANTS = ("run", "work", "start")


def kernel(variant):
    """``run(team, thread, threads)``: one plan. ``work(team, thread, seen)``: plans until none comes for a while
    (returns the last step's number) or the team is closed (returns -1)."""

    def run(team, thread, threads):
        _run(team, thread, threads)
        set_int64(team + F.finished, get(team, F.step))
        return 0

    def work(team, thread, seen):
        while True:
            current = _wait_for_work(team, seen)
            if current == seen:
                return seen
            seen = current
            if atomic_load(team + F.closed):
                return -1
            # In the step itself: a thread without a part in this plan may be so late that the next is being written.
            threads = current & 0xFFFF
            if thread < threads:
                _run(team, thread, threads)

    def start(team, threads, unused):
        """Let the workers begin: everything written before is seen by them."""
        step = ((atomic_load(team + F.step) >> 16) + 1 << 16) + threads
        atomic_exchange(team + F.step, step)
        return step

    return {"run": run, "work": work, "start": start}[variant]
