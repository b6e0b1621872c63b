"""What the machine is: cores that may be used, and its description."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import pytest

from edgellm.platforms import features


@pytest.fixture(autouse=True)
def forget() -> None:
    features.physical_cores.cache_clear()


@pytest.fixture
def linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Linux machine whose /sys and /proc lie in a folder."""
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(features, "Path", lambda name: tmp_path / str(name).lstrip("/"))
    return tmp_path


def write(root: Path, name: str, text: str) -> None:
    path = root / name.lstrip("/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def siblings(root: Path, groups: list[str], cores: list[int]) -> None:
    for core, group in zip(cores, groups, strict=True):
        write(root, f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list", group + "\n")


@pytest.mark.parametrize(
    ("groups", "cores", "quota", "expected"),
    [
        (["0", "1", "2", "3"], [0, 1, 2, 3], None, 4),
        (["0,2", "1,3", "0,2", "1,3"], [0, 1, 2, 3], None, 2),  # two threads a core
        (["0,4", "1,5"], [4, 5], None, 2),  # only some of them may be used
        (["0-1", "0-1"], [0, 1], None, 1),
        (["0", "1", "2", "3"], [0, 1, 2, 3], "max 100000", 4),
        (["0", "1", "2", "3"], [0, 1, 2, 3], "200000 100000", 2),
        (["0", "1", "2", "3"], [0, 1, 2, 3], "160000 100000", 2),
        (["0", "1", "2", "3"], [0, 1, 2, 3], "10000 100000", 1),  # never none
        (["0", "1"], [0, 1], "800000 100000", 2),
        (["0", "1"], [0, 1], "nonsense", 2),
    ],
)
def test_cores_of_a_linux_machine(
    linux: Path, monkeypatch: pytest.MonkeyPatch, groups: list[str], cores: list[int], quota: str | None, expected: int
) -> None:
    monkeypatch.setattr(features, "available_cores", lambda: cores)
    siblings(linux, groups, cores)
    if quota is not None:
        write(linux, "/sys/fs/cgroup/cpu.max", quota)
    assert features.physical_cores() == expected


def test_without_topology_every_core_counts(linux: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "available_cores", lambda: [0, 3, 5])
    assert features.physical_cores() == 3


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"hw.perflevel0.physicalcpu": "4", "hw.physicalcpu": "8"}, 4),
        ({"hw.physicalcpu": "6"}, 6),
        ({}, 2),
        ({"hw.perflevel0.physicalcpu": "0", "hw.physicalcpu": "nonsense"}, 2),
    ],
)
def test_cores_of_a_mac(monkeypatch: pytest.MonkeyPatch, answers: dict[str, str], expected: int) -> None:
    def control(command: list[str], **settings: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, answers.get(command[-1], "") + "\n", "")

    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(subprocess, "run", control)
    monkeypatch.setattr(features, "available_cores", lambda: [0, 1])
    assert features.physical_cores() == expected


@pytest.mark.parametrize("error", [OSError("no such program"), subprocess.TimeoutExpired("sysctl", 5)])
def test_a_mac_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def control(command: list[str], **settings: object) -> None:
        raise error

    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(subprocess, "run", control)
    assert features.physical_cores() == len(features.available_cores())


def test_this_machine_is_described() -> None:
    description = features.describe()
    cores = description["logical_cores"]
    physical = description["physical_cores"]
    assert isinstance(cores, int)
    assert isinstance(physical, int)
    assert 1 <= physical <= cores <= (os.cpu_count() or 1)
    assert all(description[key] for key in ("name", "architecture", "llvm_name", "features", "instruction_set"))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot bind a process to cores")
def test_only_the_cores_of_this_process_count() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert features.available_cores() == [min(before)]
        assert features.physical_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
        features.physical_cores.cache_clear()


def test_the_name_of_the_processor(linux: Path) -> None:
    write(linux, "/proc/cpuinfo", "processor\t: 0\nmodel name\t: Fine CPU @ 3 GHz\n")
    assert features.cpu_model() == "Fine CPU @ 3 GHz"
    write(linux, "/proc/cpuinfo", "nothing known\n")
    assert isinstance(features.cpu_model(), str)
