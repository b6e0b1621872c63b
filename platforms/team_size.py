"""How many threads to use from one step to the next.

Threads that meet at hundreds of barriers a step wait for the slowest. When another process takes a core away for some
milliseconds all of them stand still, and one thread fewer is faster: measured on two cores with one busy process beside
it, two threads decode at 20 to 60 % of the speed of one, however they wait and share their work. So the team shrinks
when its threads wait long for each other, and grows again when the system says that cores are idle. Both are tried for
some steps, and undone if equal steps take longer than before. Results do not depend on the number of threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from statistics import fmean

STALLED = 0.35
"""The share of the time that threads wait for each other from which on fewer threads are tried; on a quiet machine it
is 0.05 in decoding and 0.2 in prefill."""
LOOK_BACK = 4  # steps
LONG_STALL = 0.04
"""Seconds of waiting that are reason enough if it is a single step; a pause of some milliseconds is none."""
TRIAL = 4  # steps
TRIAL_SECONDS = 0.2  # of long steps fewer are enough
HOPELESS = 2.0  # a trial's step so much slower than before ends it
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 4.0  # seconds to the next trial; doubled whenever one fails
IDLE = 0.7  # of each core that the larger team would use in addition


def team_sizes(threads: int) -> tuple[int, ...]:
    """The sizes that are tried, falling: one or two fewer, for as many busy processes, then halves, at last 1."""
    sizes = [size for size in (threads, threads - 1, threads - 2) if size >= 1]
    while sizes[-1] > 1:
        sizes.append(max(1, sizes[-1] // 2))
    return tuple(sizes)


class _Pause:
    """Until when not to try the same again."""

    def __init__(self) -> None:
        self._seconds = FIRST_PAUSE
        self.until = 0.0

    def succeeded(self) -> None:
        self._seconds = FIRST_PAUSE

    def failed(self, now: float) -> None:
        self.until = now + self._seconds
        self._seconds = min(2 * self._seconds, LONGEST_PAUSE)


class TeamSize:
    """Chooses the size of the team by how long its threads waited for each other, and by what equal steps took.

    Args:
        threads: the whole team.
        adapt: False: always the whole team.
        idle_cores: called with the time now and then between steps, while the team is smaller; returns how many cores
            were idle since the last call, None if it cannot tell.
    """

    def __init__(
        self, threads: int, adapt: bool = True, idle_cores: Callable[[float], float | None] | None = None
    ) -> None:
        self._sizes = team_sizes(threads) if adapt else (threads,)
        self._idle_cores = idle_cores or (lambda now: None)
        self._level = 0
        self._steps: deque[tuple[int, float, float]] = deque(maxlen=LOOK_BACK)  # rows, seconds, seconds stalled
        self._before: dict[int, list[float]] = {}  # seconds of steps of so many rows, before the trial
        self._came_from: int | None = None  # the level before the trial
        self._shrinking, self._growing = _Pause(), _Pause()
        self._look_at = 0.0

    @property
    def threads(self) -> int:
        """The size for the next step."""
        return self._sizes[self._level]

    def note(self, rows: int, seconds: float, waited: float, now: float) -> None:
        """A step of so many rows took so long.

        Args:
            rows: what makes steps comparable.
            seconds: from beginning to end.
            waited: seconds that threads waited at barriers, all together.
            now: the time of a monotonic clock.
        """
        if len(self._sizes) == 1:
            return
        self._steps.append((rows, seconds, waited / max(1, self.threads - 1)))
        if self._came_from is not None:
            self._judge(rows, now)
        elif self._level < len(self._sizes) - 1 and now >= self._shrinking.until and self._disturbed():
            self._try(self._level + 1, now)
        elif self._level > 0 and now >= self._growing.until and self._cores_are_idle(now):
            self._try(self._level - 1, now)

    def _disturbed(self) -> bool:
        stalls = [stalled for _rows, seconds, stalled in self._steps if stalled > STALLED * seconds]
        total = sum(seconds for _rows, seconds, _stalled in self._steps)
        return sum(stalls) > STALLED * total and (len(stalls) > 1 or sum(stalls) > LONG_STALL)

    def _cores_are_idle(self, now: float) -> bool:
        """Whether the cores that a larger team needs are idle; True where nobody can tell, so that it is tried."""
        if now < self._look_at:
            return False
        self._look_at = now + FIRST_PAUSE
        idle = self._idle_cores(now)
        return idle is None or idle >= IDLE * (self._sizes[self._level - 1] - self.threads)

    def _try(self, level: int, now: float) -> None:
        self._before = {}
        for rows, seconds, stalled in self._steps:
            # Those before the disturbance say nothing of what comes.
            if level < self._level or stalled > STALLED * seconds:
                self._before.setdefault(rows, []).append(seconds)
        self._came_from, self._level = self._level, level
        self._steps.clear()

    def _judge(self, rows: int, now: float) -> None:
        """Decide a trial once there are enough steps."""
        taken = [seconds for a_rows, seconds, _stalled in self._steps if a_rows == rows]
        if rows not in self._before:  # another kind of step: there is nothing to compare with
            if len(self._steps) == LOOK_BACK:
                self._finish(True, now)
            return
        before = fmean(self._before[rows])
        if taken[-1] > HOPELESS * before:
            self._finish(False, now)
        elif len(taken) >= TRIAL or sum(taken) >= TRIAL_SECONDS:
            self._finish(fmean(taken) < before, now)

    def _finish(self, better: bool, now: float) -> None:
        assert self._came_from is not None
        pause = self._growing if self._level < self._came_from else self._shrinking
        if better:
            pause.succeeded()
        else:
            pause.failed(now)
            self._level = self._came_from
            self._steps.clear()
        self._came_from = None
        if self._level > 0:
            self._idle_cores(now)  # counts from now on
            self._look_at = now + FIRST_PAUSE
