"""The inner loop of a team of threads: run a plan, meet at barriers, wait for the next plan.

A plan is an array of (kernel address, record address, barrier before it, record of the next product or 0). All threads
walk it together; each calls every kernel with its own number. Variants: ``run`` (one plan), ``start`` (let the workers
begin) and ``work`` (a worker's life). Work is shared equally: claiming it in chunks made decoding 5 to 15 % slower on a
quiet machine, and on a busy one it gained far less than leaving a thread out.

Whoever waits spins briefly, asking for its weights of the next product, then yields, then sleeps. Pure spinning is
ruinous beside other busy processes, and so is endless yielding: some schedulers take it as giving up the whole time
slice, and a core that yields is not idle, so that no late thread is moved to it. Threads sleep on Linux's futexes;
elsewhere they yield, and workers without a plan return to Python to sleep there.
"""

from __future__ import annotations

from edgellm.kernels.atomics import (
    atomic_add,
    atomic_exchange,
    atomic_load,
    call_clock,
    call_kernel,
    call_system,
    call_yield,
    flush_denormals,
    pause,
    restore_denormals,
)
from edgellm.kernels.memory import get, int64_at, prefetcher, set_int64
from edgellm.kernels.records import MATMUL
from edgellm.kernels.records import TEAM as F
from edgellm.kernels.simd import helper, share

RESULT = "int64"
_AT_ONCE = 256  # bytes that are asked for between two looks at a barrier
_MOST_AHEAD = 128 << 10  # bytes that are asked for before they are needed: some of the second-level cache
_SLEEP, _WAKE = 128 + 9, 128 + 10  # FUTEX_WAIT_BITSET and FUTEX_WAKE_BITSET, within the process
_EVERYBODY = 0xFFFFFFFF
_LAST_BIT = 31


@helper
def _bit(thread):
    """The bit of a thread in a futex's mask; those from 31 on share one."""
    return 1 << min(thread, _LAST_BIT)


@helper
def _sleep(team, sleepers, address, value, mask):
    """Sleep while the word at an address is ``value``, until somebody wakes one of the mask; may return early.

    Whoever changes the word looks at the number of sleepers afterwards. Both are changed by read-modify-write, so that
    either the sleeper sees the new value or the other one sees the sleeper.
    """
    atomic_add(sleepers, 1)
    if atomic_load(address) == value:
        call_system(get(team, F.system_call), get(team, F.futex), address, _SLEEP, value & _EVERYBODY, mask)
    atomic_add(sleepers, -1)


@helper
def _wake(team, sleepers, address, mask):
    if get(team, F.system_call) and atomic_add(sleepers, 0) > 0:
        call_system(get(team, F.system_call), get(team, F.futex), address, _WAKE, 1 << 30, mask)


@helper
def _now(team, yields):
    """Nanoseconds; where there is no clock a yield counts for a microsecond, about what it takes."""
    function = get(team, F.clock_function)
    return call_clock(function, get(team, F.clock)) if function else 1000 * yields


_ask_for = prefetcher(_AT_ONCE, ordered=False)


@helper
def _weights_of(product, thread, threads):
    """The addresses from and up to which a thread may ask for its weights of a product while it waits."""
    size = get(product, MATMUL.group_bytes)
    first, last = share(get(product, MATMUL.groups), thread, threads)
    begin = get(product, MATMUL.weights) + first * size
    return begin, begin + min((last - first) * size, _MOST_AHEAD)


@helper
def _wait_for_barrier(team, generation, ahead, end):
    """Return once the barrier's generation is another: the address up to which memory was asked for meanwhile."""
    waited = 0
    spins, yields = get(team, F.spins), get(team, F.barrier_yields)
    while waited < spins:
        if atomic_load(team + F.generation) != generation:
            return ahead
        if ahead < end:
            _ask_for(ahead)
            ahead += _AT_ONCE
        else:
            pause()
        waited += 1
    begin = _now(team, waited)
    while atomic_load(team + F.generation) == generation:
        if waited < spins + yields or get(team, F.system_call) == 0:
            call_yield(get(team, F.yield_function))
            waited += 1
        else:
            _sleep(team, team + F.late, team + F.generation, generation, _EVERYBODY)
    atomic_add(team + F.lost, _now(team, waited) - begin)
    return ahead


@helper
def _barrier(team, threads, ahead, end):
    """All threads arrive before any leaves; the last one opens it. Those that wait ask for memory from ``ahead`` to
    ``end``; returns how far they came."""
    if threads == 1:
        return ahead
    generation = atomic_load(team + F.generation)
    if atomic_add(team + F.arrived, 1) == threads - 1:
        atomic_exchange(team + F.arrived, 0)
        atomic_add(team + F.generation, 1)
        _wake(team, team + F.late, team + F.generation, _EVERYBODY)
        return ahead
    return _wait_for_barrier(team, generation, ahead, end)


@helper
def _run(team, thread, threads):
    state = flush_denormals()
    plan, count = get(team, F.plan), get(team, F.operations)
    product = ahead = end = 0
    for number in range(count):
        operation = plan + 32 * number
        following = int64_at(operation + 24)
        if following != product:
            product = following
            ahead, end = _weights_of(product, thread, threads) if product else (0, 0)
        if int64_at(operation + 16):
            ahead = _barrier(team, threads, ahead, end)
        call_kernel(int64_at(operation), int64_at(operation + 8), thread, threads)
    _barrier(team, threads, 0, 0)
    restore_denormals(state)


@helper
def _wait_for_work(team, thread, seen):
    """The number of the next step, or ``seen`` again when none came for a while and there are no futexes."""
    waited = 0
    spins, yields = get(team, F.spins), get(team, F.idle_yields)
    while True:
        current = atomic_load(team + F.step)
        if current != seen:
            return current
        if waited < spins:
            pause()
        elif waited < spins + yields:
            call_yield(get(team, F.yield_function))
        elif get(team, F.system_call):
            _sleep(team, team + F.sleeping, team + F.step, seen, _bit(thread))
        else:
            return seen
        waited += 1


VARIANTS = ("run", "work", "start")


def kernel(variant):
    """``run(team, thread, threads)``: one plan. ``start(team, threads, chunks)``: the workers begin with the plan.
    ``work(team, thread, seen)``: plans until the team is closed (returns -1), or, without futexes, until none comes
    for a while (returns the last step's number)."""

    def run(team, thread, threads):
        _run(team, thread, threads)
        set_int64(team + F.finished, get(team, F.step))
        return 0

    def work(team, thread, seen):
        while True:
            current = _wait_for_work(team, thread, seen)
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
        """Let the workers begin: everything written before is seen by them. 0 threads: everybody looks up."""
        step = ((atomic_load(team + F.step) >> 16) + 1 << 16) + threads
        atomic_exchange(team + F.step, step)
        mask = _EVERYBODY if threads == 0 or threads > _LAST_BIT else _bit(threads) - 1
        _wake(team, team + F.sleeping, team + F.step, mask)
        return step

    return {"run": run, "work": work, "start": start}[variant]
