"""What the system tells about memory, and how its texts are read."""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from edgellm import memory


def test_this_machine_tells() -> None:
    free, resident, peak = memory.available_bytes(), memory.resident_bytes(), memory.peak_bytes()
    assert free is not None and free > 1 << 20
    assert resident is not None and peak is not None
    assert 1 << 20 < resident <= peak


def test_resident_follows_use() -> None:
    before = memory.resident_bytes()
    with mmap.mmap(-1, 64 << 20) as block:
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1
        during = memory.resident_bytes()
    after = memory.resident_bytes()
    assert before is not None and during is not None and after is not None
    assert during - before > 60 << 20
    assert during - after > 60 << 20


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"),
    reason="other C libraries give memory back in their own ways",
)
def test_trim_gives_freed_memory_back() -> None:
    memory.trim()
    # Pieces too small for the C library to map each on its own; every other one stays, so that the heap cannot shrink.
    pieces = [np.ones(64 << 10, np.uint8) for _ in range(2048)]
    during = memory.resident_bytes()
    del pieces[::2]
    memory.trim()
    after = memory.resident_bytes()
    assert during is not None and after is not None
    assert during - after > 50 << 20
    assert len(pieces) == 1024


def write_group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_control_group_version_2(tmp_path: Path) -> None:
    write_group(
        tmp_path / "a", memory__max="1000\n", memory__current="900\n", memory__stat="anon 1\ninactive_file 300\n"
    )
    write_group(tmp_path / "a" / "b", memory__max="max\n", memory__current="900\n")
    assert memory._control_group_left("0::/a/b\n", tmp_path) == 400  # the group above limits it
    assert memory._control_group_left("0::/elsewhere\n", tmp_path) is None


def test_control_group_version_1(tmp_path: Path) -> None:
    write_group(
        tmp_path / "memory",  # in a container the path named is missing and the mount is the group itself
        memory__limit_in_bytes="5000\n",
        memory__usage_in_bytes="1000\n",
        memory__stat="total_inactive_file 500\n",
    )
    membership = "9:cpu:/\n4:memory:/docker/123\nnonsense\n"
    assert memory._control_group_left(membership, tmp_path) == 4500
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert memory._control_group_left(membership, tmp_path) is None


def test_meminfo_lines() -> None:
    text = "MemTotal:       16384 kB\nMemAvailable:    1024 kB\nHugePages_Total:       0\n"
    assert memory._status_bytes(text, "MemAvailable") == 1 << 20
    assert memory._status_bytes(text, "Missing") is None


def test_vm_stat() -> None:
    text = (
        "Mach Virtual Memory Statistics: (page size of 16384 bytes)\n"
        "Pages free:                               100.\n"
        "Pages active:                           50000.\n"
        "Pages inactive:                            20.\n"
        'Pages purgeable:                             3.\n"Translation faults":    12345.\n'
    )
    assert memory.parse_vm_stat(text) == 123 * 16384
    assert memory.parse_vm_stat("") is None


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="ulimit -v is read on Linux")
def test_address_space_limit() -> None:
    import subprocess

    code = (
        "import resource, edgellm.memory as m; resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30));"
        "print(m.available_bytes())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 0 < int(out) < 3 << 30


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (184 << 20, "184.0 MiB"), (3 << 40, "3.0 TiB")]
)
def test_sizes_are_readable(size: int, text: str) -> None:
    assert memory.format_bytes(size) == text


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells where a library's code is")
def test_code_that_is_let_go_is_read_again() -> None:
    import llvmlite.binding as llvm

    def resident() -> int:
        size, inside = 0, False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            first = line.split()[0]
            if not first.endswith(":"):
                inside = "r-xp" in line and "llvmlite" in line
            elif inside and first == "Rss:":
                size += int(line.split()[1])
        return size

    llvm.initialize_native_target()
    llvm.parse_assembly("define i32 @f() { ret i32 1 }")
    before = resident()
    assert before > 0
    memory.release_code("llvmlite")
    assert resident() < before / 4
    assert "ret i32 2" in str(llvm.parse_assembly("define i32 @f() { ret i32 2 }"))
