"""What else the machine was doing while something was measured."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

BUSY_CORES = 0.1
"""From so many cores' worth of other work on, figures are not to be trusted to some percent."""


@dataclass(frozen=True)
class MachineLoad:
    """How busy other processes kept the machine.

    Attributes:
        other_cores: cores' worth of time that went to processes that are not part of the measurement, and to other
            guests of a virtual machine's host; None where the system does not tell.
        load_average: the system's average number of running processes over the last minute, the measurement included.
    """

    other_cores: float | None
    load_average: float | None

    @property
    def busy(self) -> bool:
        """Whether other processes disturb measurements."""
        return self.other_cores is not None and self.other_cores > BUSY_CORES

    def as_object(self) -> dict[str, float | None]:
        """For JSON."""
        return {
            "other_cores": None if self.other_cores is None else round(self.other_cores, 2),
            "load_average": None if self.load_average is None else round(self.load_average, 2),
        }


def busy_seconds() -> float | None:
    """Seconds that all cores together were not idle since the system started; time taken by the host counts."""
    try:
        line = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
        user, nice, system, _idle, _waiting, interrupts, soft_interrupts, stolen = map(int, line.split()[1:9])
    except (OSError, ValueError, IndexError):
        return None
    return (user + nice + system + interrupts + soft_interrupts + stolen) / os.sysconf("SC_CLK_TCK")


def process_seconds(process: int) -> float:
    """Processor seconds that a process has used, all its threads together; 0 if that cannot be told."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
        fields = text.rpartition(")")[2].split()  # the name before may hold spaces and brackets
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0


def load_average() -> float | None:
    """The system's load average over a minute."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


class LoadMeter:
    """Adds up what other processes use while measurements run.

    Call ``begin`` before and ``end`` after each measurement, with the processes that take part in it.
    """

    def __init__(self) -> None:
        self._other = self._wall = 0.0
        self._begun: tuple[float, float, float] | None = None

    def begin(self, processes: list[int]) -> None:
        """A measurement begins."""
        busy = busy_seconds()
        self._begun = None if busy is None else (time.perf_counter(), busy, sum(map(process_seconds, processes)))

    def end(self, processes: list[int]) -> None:
        """It is over."""
        busy = busy_seconds()
        if self._begun is None or busy is None:
            return
        began, busy_before, own_before = self._begun
        self._wall += time.perf_counter() - began
        self._other += busy - busy_before - (sum(map(process_seconds, processes)) - own_before)

    def load(self) -> MachineLoad:
        """The average over all measurements so far."""
        other = max(0.0, self._other / self._wall) if self._wall > 0 else None
        return MachineLoad(other, load_average())


def load_now(seconds: float = 0.5) -> MachineLoad:
    """The load over a short while, during which this process sleeps."""
    meter = LoadMeter()
    meter.begin([os.getpid()])
    time.sleep(seconds)
    meter.end([os.getpid()])
    return meter.load()
