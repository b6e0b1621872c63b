"""How many threads to use from one step to the next.

Threads that meet at hundreds of barriers a step wait for the slowest. When another process takes a core away for a few
milliseconds all of them stand still, and one thread alone is faster: measured on two cores, with one busy process
beside it, two threads decode at 15 to 60 % of the speed of one. So the team shrinks to one thread while it pays and
grows again when the cores are free. Results do not depend on the number of threads.
"""

from __future__ import annotations

from collections import deque
from statistics import median

SUSPICIOUS = 1.6  # a step this much slower than the quickest of late makes us try one thread
TRIAL = 4  # steps of a trial
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 4.0  # seconds with one thread until the whole team is tried again


class TeamSize:
    """Chooses between the whole team and one thread by what equal steps took.

    Args:
        threads: the whole team.
        adapt: False: always the whole team.
    """

    def __init__(self, threads: int, adapt: bool = True) -> None:
        self._whole = threads
        self._adapt = adapt and threads > 1
        self.threads = threads
        self._quickest = float("inf")
        self._slow_steps = 0
        self._trial: deque[float] = deque(maxlen=TRIAL)
        self._usual: deque[float] = deque(maxlen=2 * TRIAL)
        self._trying = False
        self._pause = FIRST_PAUSE
        self._try_at = 0.0

    def note(self, seconds: float, now: float) -> None:
        """A step of the same kind as those before took so long; ``now`` is the time of a monotonic clock."""
        if not self._adapt:
            return
        if self._trying:
            self._trial.append(seconds)
            if len(self._trial) == TRIAL:
                self._decide(now)
            return
        self._usual.append(seconds)
        if self.threads == 1:
            if now >= self._try_at and len(self._usual) >= TRIAL:
                self._try(self._whole)
            return
        # The quickest step counts less as time goes by: longer contexts make all steps slower.
        self._quickest = min(self._quickest * 1.002, seconds)
        self._slow_steps = self._slow_steps + 1 if seconds > SUSPICIOUS * self._quickest else 0
        if self._slow_steps >= 2 and now >= self._try_at:
            self._try(1)

    def _try(self, threads: int) -> None:
        self.threads = threads
        self._trying = True
        self._trial.clear()

    def _decide(self, now: float) -> None:
        """Keep what was tried if it was quicker than what was usual."""
        tried, usual = median(self._trial), median(self._usual)
        self._trying = False
        self._slow_steps = 0
        other = 1 if self.threads == self._whole else self._whole
        if tried < usual:
            self._usual = deque(self._trial, maxlen=2 * TRIAL)
            self._pause = FIRST_PAUSE
        else:
            self.threads = other
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
        self._try_at = now + self._pause
