"""How many of the cores that this process may use were idle, as the system counts it."""

from __future__ import annotations

import os
from pathlib import Path

from edgellm.platforms.features import available_cores

LONGEST_GAP = 0.5
"""Seconds between two looks beyond which the time between says nothing: the process did other things meanwhile."""
_STATISTICS = Path("/proc/stat")


class IdleCores:
    """Call it now and then with the time of a monotonic clock: returns the cores that were idle since the last call,
    0.0 if that was too long ago, None where the system does not tell."""

    def __init__(self) -> None:
        self._names = {f"cpu{core}" for core in available_cores()}
        self._last: tuple[float, float] | None = None

    def __call__(self, now: float) -> float | None:
        """See the class."""
        seconds = self._idle_seconds()
        if seconds is None:
            return None
        last, self._last = self._last, (now, seconds)
        if last is None or not 0.0 < now - last[0] <= LONGEST_GAP:
            return 0.0
        return (seconds - last[1]) / (now - last[0])

    def _idle_seconds(self) -> float | None:
        """Since the system started, all cores together."""
        try:
            lines = [line.split() for line in _STATISTICS.read_text(encoding="ascii").splitlines()]
            # Without work, and waiting for a disk.
            ticks = sum(int(line[4]) + int(line[5]) for line in lines if line and line[0] in self._names)
            return ticks / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, IndexError, AttributeError):
            return None
