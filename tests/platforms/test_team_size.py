"""The team's size follows what steps take: simulated machines, no clocks."""

from __future__ import annotations

from collections.abc import Callable

from edgellm.platforms.team_size import LONGEST_PAUSE, TeamSize


def simulate(size: TeamSize, seconds: Callable[[int, float], float], until: float) -> tuple[float, list[int]]:
    """Run steps until a time; ``seconds(threads, now)`` tells what one takes. Returns steps per second and sizes."""
    now, sizes = 0.0, []
    while now < until:
        sizes.append(size.threads)
        duration = seconds(size.threads, now)
        now += duration
        size.note(duration, now)
    return len(sizes) / now, sizes


def test_quiet_machine_keeps_the_whole_team() -> None:
    _rate, sizes = simulate(TeamSize(2), lambda threads, now: 0.005 if threads == 2 else 0.009, 5.0)
    assert set(sizes) == {2}


def test_growing_context_is_no_disturbance() -> None:
    _rate, sizes = simulate(TeamSize(2), lambda threads, now: 0.005 + 0.002 * now, 20.0)
    assert set(sizes) == {2}


def test_busy_machine_shrinks_to_one_and_recovers() -> None:
    """Other processes are there from second 2 to 6."""

    def seconds(threads: int, now: float) -> float:
        if 2.0 <= now < 6.0:
            return 0.050 if threads == 2 else 0.010
        return 0.005 if threads == 2 else 0.009

    rate, sizes = simulate(TeamSize(2), seconds, 2.0 + 4.0 + 2 * LONGEST_PAUSE)
    assert 1 in sizes
    assert set(sizes[-100:]) == {2}
    fixed_two = simulate(TeamSize(2, adapt=False), seconds, 2.0 + 4.0 + 2 * LONGEST_PAUSE)[0]
    assert rate > fixed_two


def test_while_busy_the_whole_team_is_tried_ever_more_rarely() -> None:
    """The cost of trying stays below a tenth."""
    size = TeamSize(2)
    simulate(size, lambda threads, now: 0.005, 1.0)
    rate, _sizes = simulate(size, lambda threads, now: 0.050 if threads == 2 else 0.010, 30.0)
    assert rate > 0.9 / 0.010


def test_where_one_thread_is_no_better_the_team_stays() -> None:
    """Slow steps that have nothing to do with the number of threads."""
    size = TeamSize(4)
    simulate(size, lambda threads, now: 0.005, 1.0)
    _rate, sizes = simulate(size, lambda threads, now: 0.012 if threads == 4 else 0.030, 20.0)
    assert sizes.count(1) < 0.1 * len(sizes)


def test_a_fixed_size_is_kept() -> None:
    _rate, sizes = simulate(TeamSize(2, adapt=False), lambda threads, now: 0.01 * (1 + int(now) % 5), 10.0)
    assert set(sizes) == {2}
    _rate, sizes = simulate(TeamSize(1), lambda threads, now: 0.01 * (1 + int(now) % 5), 10.0)
    assert set(sizes) == {1}
