"""How much memory is free and how much this process uses. None wherever the system does not tell."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_UNLIMITED = 1 << 60
"""Control groups of version 1 write a huge number where there is no limit."""


def available_bytes() -> int | None:
    """Bytes this process can still use without swapping: the least of the machine's and of the limits set for it."""
    if sys.platform == "win32":
        return _windows_available()
    free = _mac_available() if sys.platform == "darwin" else _linux_available()
    limits = [size for size in (free, _address_space_left()) if size is not None]
    return max(0, min(limits)) if limits else None


def resident_bytes() -> int | None:
    """Physical memory this process occupies now."""
    if sys.platform == "win32":
        return _windows_process("WorkingSetSize")
    if sys.platform == "darwin":
        text = _run(["ps", "-o", "rss=", "-p", str(os.getpid())])
        return int(text) * 1024 if text.isdigit() else None
    return _status_bytes(_read("/proc/self/status"), "VmRSS")


def peak_bytes() -> int | None:
    """Most physical memory this process ever occupied."""
    if sys.platform == "win32":
        return _windows_process("PeakWorkingSetSize")
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Not getrusage: on Linux its peak outlives exec, so it may be that of the parent process.
    return _status_bytes(_read("/proc/self/status"), "VmHWM")


def trim() -> None:
    """Hand memory that was freed back to the system; C libraries keep much of it for the next allocation."""
    if sys.platform == "win32":
        return
    import ctypes

    library = ctypes.CDLL(None)
    if sys.platform == "darwin":
        library.malloc_zone_pressure_relief(None, ctypes.c_size_t(0))
    elif hasattr(library, "malloc_trim"):  # the GNU C library; others give memory back by themselves
        library.malloc_trim(ctypes.c_size_t(0))


def release_code(library: str) -> None:
    """Let go of the pages of a shared library's code, which the system reads again where they are needed.

    For a large library whose work is done. Only Linux tells where its code is; elsewhere nothing happens.

    Args:
        library: part of its file's name.
    """
    advise = 4  # MADV_DONTNEED: on pages that nobody can write to, nothing is lost
    if sys.platform != "linux":
        return
    import ctypes

    system = ctypes.CDLL(None)
    for line in _read("/proc/self/maps").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[1] == "r-xp" and library in Path(fields[5]).name:
            begin, _, end = fields[0].partition("-")
            first, size = int(begin, 16), int(end, 16) - int(begin, 16)
            system.madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), ctypes.c_int(advise))


def format_bytes(size: int) -> str:
    """A size as people read it: 512 B, 1.5 KiB, 184.0 MiB."""
    if size < 1024:
        return f"{size} B"
    amount = float(size)
    for unit in ("KiB", "MiB", "GiB"):
        amount /= 1024
        if amount < 1024:
            return f"{amount:.1f} {unit}"
    return f"{amount / 1024:.1f} TiB"


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _status_bytes(text: str, name: str) -> int | None:
    """A line ``Name:  123 kB`` of /proc/meminfo or /proc/self/status, in bytes."""
    for line in text.splitlines():
        key, _, rest = line.partition(":")
        value = rest.split()
        if key == name and value and value[0].isdigit():
            return int(value[0]) * 1024
    return None


def _linux_available() -> int | None:
    meminfo = _read("/proc/meminfo")
    free = _status_bytes(meminfo, "MemAvailable")
    if free is None:
        free = _status_bytes(meminfo, "MemFree")
    left = _control_group_left(_read("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    return min((size for size in (free, left) if size is not None), default=None)


def _control_group_left(membership: str, root: Path) -> int | None:
    """Bytes left under the memory limits of this process's control groups and all above them (containers, systemd).

    Args:
        membership: the text of /proc/self/cgroup, lines ``id:controllers:path``; version 2 has no controllers.
        root: where the control groups are mounted.
    """
    left: list[int] = []
    for line in membership.splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3:
            continue
        if parts[1] == "":
            base, names = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in parts[1].split(","):
            base, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # Inside a container the path is that of the host and may be missing here; the mount itself is then the group.
        relative = Path(parts[2].lstrip("/"))
        for folder in [base / relative, *(base / above for above in relative.parents), base]:
            size = _group_left(folder, *names)
            if size is not None:
                left.append(size)
    return min(left, default=None)


def _group_left(folder: Path, limit_name: str, used_name: str, reclaimable_name: str) -> int | None:
    limit, used = _read(folder / limit_name).strip(), _read(folder / used_name).strip()
    if not limit.isdigit() or not used.isdigit() or int(limit) >= _UNLIMITED:
        return None
    # File pages nobody used lately are given up before the limit bites.
    reclaimable = 0
    for line in _read(folder / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == reclaimable_name and value.strip().isdigit():
            reclaimable = int(value)
    return max(0, int(limit) - max(0, int(used) - reclaimable))


def _address_space_left() -> int | None:
    """What ``ulimit -v`` leaves."""
    if sys.platform == "win32":
        return None
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY or limit <= 0:
        return None
    return max(0, limit - (_status_bytes(_read("/proc/self/status"), "VmSize") or 0))


def _run(command: list[str]) -> str:
    import subprocess  # takes time to import, and only macOS needs it

    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _mac_available() -> int | None:
    return parse_vm_stat(_run(["vm_stat"]))


def parse_vm_stat(text: str) -> int | None:
    """Bytes that macOS can hand out at once, by what ``vm_stat`` prints: free, inactive, speculative, purgeable."""
    page, pages, found = 4096, 0, False
    for line in text.splitlines():
        if "page size of" in line:
            page = int("".join(c for c in line.split("page size of")[1] if c.isdigit()) or page)
        key, _, value = line.partition(":")
        count = value.strip().rstrip(".")
        if key in ("Pages free", "Pages inactive", "Pages speculative", "Pages purgeable") and count.isdigit():
            pages += int(count)
            found = True
    return page * pages if found else None


if sys.platform == "win32":
    import ctypes
    from ctypes import wintypes

    class _MemoryStatus(ctypes.Structure):
        """MEMORYSTATUSEX."""

        _fields_ = (
            ("length", wintypes.DWORD),
            ("load", wintypes.DWORD),
            ("total_physical", ctypes.c_uint64),
            ("available_physical", ctypes.c_uint64),
            ("total_page_file", ctypes.c_uint64),
            ("available_page_file", ctypes.c_uint64),
            ("total_virtual", ctypes.c_uint64),
            ("available_virtual", ctypes.c_uint64),
            ("available_extended_virtual", ctypes.c_uint64),
        )

    class _ProcessCounters(ctypes.Structure):
        """PROCESS_MEMORY_COUNTERS."""

        _fields_ = (
            ("cb", wintypes.DWORD),
            ("PageFaultCount", wintypes.DWORD),
            ("PeakWorkingSetSize", ctypes.c_size_t),
            ("WorkingSetSize", ctypes.c_size_t),
            ("QuotaPeakPagedPoolUsage", ctypes.c_size_t),
            ("QuotaPagedPoolUsage", ctypes.c_size_t),
            ("QuotaPeakNonPagedPoolUsage", ctypes.c_size_t),
            ("QuotaNonPagedPoolUsage", ctypes.c_size_t),
            ("PagefileUsage", ctypes.c_size_t),
            ("PeakPagefileUsage", ctypes.c_size_t),
        )

    def _windows_available() -> int | None:
        status = _MemoryStatus()
        status.length = ctypes.sizeof(status)
        if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
            return None
        return int(min(status.available_physical, status.available_page_file))

    def _windows_process(field: str) -> int | None:
        counters = _ProcessCounters()
        counters.cb = ctypes.sizeof(counters)
        kernel = ctypes.windll.kernel32
        kernel.GetCurrentProcess.restype = wintypes.HANDLE
        kernel.K32GetProcessMemoryInfo.argtypes = (wintypes.HANDLE, ctypes.c_void_p, wintypes.DWORD)
        ok = kernel.K32GetProcessMemoryInfo(kernel.GetCurrentProcess(), ctypes.byref(counters), counters.cb)
        return int(getattr(counters, field)) if ok else None
