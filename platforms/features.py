"""What machine this is: the CPU, its features, how many cores a team of threads should use."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from pathlib import Path

from edgellm.kernels.target import current_target


def available_cores() -> list[int]:
    """Logical cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _linux_physical_cores(cores: list[int]) -> int:
    """Distinct sets of sibling threads among the cores this process may use."""
    siblings = set()
    for core in cores:
        topology = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
        try:
            siblings.add(topology.read_text().strip())
        except OSError:
            return len(cores)
    return len(siblings)


def _linux_quota() -> float | None:
    """Cores that the control group grants, if it limits them (containers)."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _system_control(name: str) -> str:
    """One value of macOS's sysctl, or an empty string."""
    try:
        result = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip()


@cache
def physical_cores() -> int:
    """Cores to compute on: physical ones, performance cores where there are two kinds, within this process's share."""
    cores = available_cores()
    if platform.system() == "Linux":
        count = _linux_physical_cores(cores)
        quota = _linux_quota()
        return max(1, count if quota is None else min(count, round(quota)))
    if platform.system() == "Darwin":
        for name in ("hw.perflevel0.physicalcpu", "hw.physicalcpu"):
            value = _system_control(name)
            if value.isdigit() and int(value) > 0:
                return int(value)
    return max(1, len(cores))


def cpu_model() -> str:
    """The processor's name as its maker prints it."""
    if platform.system() == "Linux":
        try:
            for line in Path("/proc/cpuinfo").read_text().splitlines():
                if line.startswith(("model name", "Model")):
                    return line.partition(":")[2].strip()
        except OSError:
            pass
    if platform.system() == "Darwin":
        return _system_control("machdep.cpu.brand_string") or platform.machine()
    return platform.processor() or platform.machine()


def describe() -> dict[str, object]:
    """What ``edgellm doctor`` tells of the machine; where the CPU has AMX it is tried out, if nobody has yet."""
    from edgellm.platforms.amx import amx_status

    target, tiles = current_target(), amx_status()
    return {
        "name": cpu_model(),
        "architecture": platform.machine(),
        "llvm_name": target.cpu_name,
        "features": sorted(target.features),
        "instruction_set": target.instruction_set,
        "amx": None if tiles.state == "absent" else str(tiles),
        "physical_cores": physical_cores(),
        "logical_cores": len(available_cores()),
    }
