"""Archives of compiled kernels: built for a named CPU, found, checked, and run where the CPU can."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from kernel_calls import Record

from edgellm.errors import InvalidSettingError
from edgellm.kernels import library
from edgellm.kernels.build import build, kernels_for, main
from edgellm.kernels.compiling import compile_in_children
from edgellm.kernels.library import KernelError, KernelLibrary, source_key
from edgellm.kernels.object_files import ObjectCode, read_archive, write_archive
from edgellm.kernels.records import ROWS
from edgellm.kernels.target import NAMED_TARGETS, Target, best_named_target, current_target, named_target, target_for
from edgellm.platforms.threads import KERNELS as TEAM_KERNELS
from edgellm.platforms.threads import ThreadTeam

NAMES = ["rows.select", *TEAM_KERNELS]


@pytest.fixture(scope="module")
def own_kind() -> str:
    """The named target that this machine runs."""
    kind = best_named_target(current_target())
    if kind is None:
        pytest.skip("no named target fits this machine")
    return kind


@pytest.fixture(scope="module")
def shipped(own_kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an archive for this machine."""
    folder = tmp_path_factory.mktemp("objects")
    assert build(own_kind, folder, NAMES) == folder / f"{own_kind}.kernels"
    return folder


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **settings: object) -> None:
        raise AssertionError("a compiler was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)


def test_what_is_shipped_runs_without_a_compiler_or_a_cache(shipped: Path, tmp_path: Path, no_compiler: None) -> None:
    cache = tmp_path / "cache"
    found = KernelLibrary(current_target(), cache, shipped=shipped)
    addresses = found.load(NAMES)
    x, output = np.arange(64, dtype=np.float32).reshape(4, 16), np.zeros((2, 16), np.float32)
    record = Record(
        ROWS, rows=np.array([2]), width=16, input=x, input_stride=64, output=output, output_stride=64,
        index=np.array([3, 1], np.int32),
    )  # fmt: skip
    team = ThreadTeam(addresses, 2, keep_alive=found)
    team.run(np.array([[addresses["rows.select"], record.values.ctypes.data, 0, 0]]))
    team.close()
    assert np.array_equal(output, x[[3, 1]])
    assert not cache.exists()


def test_only_what_is_not_shipped_is_compiled(shipped: Path, tmp_path: Path) -> None:
    reports: list[tuple[str, int, int]] = []
    found = KernelLibrary(current_target(), tmp_path, lambda *report: reports.append(report), shipped)
    assert all(found.load(["rows.select", "pack.F16"]).values())
    assert reports == [("kernels", 0, 1), ("kernels", 1, 1)]
    assert [path.name for path in found.folder.iterdir()] == ["pack.F16.o"]


def test_the_cache_comes_before_what_is_shipped(shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = KernelLibrary(current_target(), tmp_path, shipped=tmp_path)
    compiled.load(["rows.select"])
    asked: list[list[str]] = []

    def note(path: Path, sources: str, names: list[str]) -> dict[str, ObjectCode]:
        asked.append(names)
        return read_archive(path, sources, names)

    monkeypatch.setattr(library, "read_archive", note)
    KernelLibrary(current_target(), tmp_path, shipped=shipped).load(NAMES)
    assert asked == [list(TEAM_KERNELS)]


def test_an_archive_of_other_sources_is_ignored(shipped: Path, own_kind: str) -> None:
    path = shipped / f"{own_kind}.kernels"
    assert set(read_archive(path, source_key(), [*NAMES, "rows.unheard_of"])) == set(NAMES)
    assert read_archive(path, "other", NAMES) == {}


def test_a_damaged_archive_gives_only_what_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "some.kernels"
    objects = {"a.b": ObjectCode("a", b"first" * 9), "c.d": ObjectCode("c", b"second" * 9)}
    write_archive(path, "key", objects)
    assert read_archive(path, "key", ["a.b", "c.d"]) == objects
    data = path.read_bytes()
    header = json.loads(data.partition(b"\n")[0])
    for damaged, left in (
        (data[:-1], {"a.b"}),
        (data.replace(b"firstfirst", b"firstFirst", 1), {"c.d"}),
        (b"", set()),
        (data[:40], set()),
        (b"[]\n" + data, set()),
        (b"\xff" + data, set()),
        (bytes(len(data)), set()),
        (json.dumps(header | {"objects": {"a.b": ["a", -5, 3, "x"]}}).encode(), set()),
        (json.dumps(header | {"objects": {"a.b": ["a", 0, 1 << 70, "x"]}}).encode(), set()),
        (json.dumps(header | {"objects": {"a.b": 7}}).encode(), set()),
    ):
        path.write_bytes(damaged)
        assert set(read_archive(path, "key", ["a.b", "c.d"])) == left
    assert read_archive(tmp_path / "none.kernels", "key", ["a.b"]) == {}


def test_a_cpu_gets_the_best_archive_it_can_run() -> None:
    for name, named in NAMED_TARGETS.items():
        target = named_target(name)
        fits = best_named_target(Target("any", named.features, ""))
        if named.system == "linux" and named.triple.startswith(current_machine()):
            assert fits == name
        assert target.features == named.features
    assert best_named_target(Target("old", frozenset({"sse2"}), "")) is None


def current_machine() -> str:
    import platform

    return {"arm64": "aarch64", "AMD64": "x86_64"}.get(platform.machine(), platform.machine())


def test_a_forced_instruction_set_gets_no_better_archive() -> None:
    try:
        forced = target_for("avx2")
    except InvalidSettingError as error:
        pytest.skip(str(error))
    assert best_named_target(forced) in ("linux-x86_64-avx2", None)


@pytest.mark.parametrize("target", ["linux-x86_64-avx2", "linux-aarch64-i8mm", "macos-arm64-m1"])
def test_objects_are_of_the_system_they_are_for(target: str, tmp_path: Path) -> None:
    compile_in_children(["rows.select"], tmp_path, lambda done, total: None, target_name=target)
    code = (tmp_path / "rows.select.o").read_bytes().partition(b"\n")[2]
    if target.startswith("macos"):
        assert code[:8] == b"\xcf\xfa\xed\xfe\x0c\x00\x00\x01"  # Mach-O, 64 bits, ARM
    else:
        assert code[:5] == b"\x7fELF\x02"
        assert code[18] == (0xB7 if "aarch64" in target else 0x3E)


def test_every_kernel_is_listed() -> None:
    """What is not in its module's list is not shipped."""
    names = kernels_for("linux-x86_64-avx2")
    assert len(names) == len(set(names)) > 50
    for source in sorted(Path(library.__file__).parent.glob("*.py")):
        if "\ndef kernel(" in source.read_text(encoding="utf-8"):
            assert "\nVARIANTS = " in source.read_text(encoding="utf-8"), source.name
    for name in ("matmul.q4", "matmul.k6_fine", "floats.f16", "pack.Q4_K", "attention.f16", "norm.rms", *TEAM_KERNELS):
        assert name in names


def test_the_command(tmp_path: Path, own_kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--target", own_kind, "--output", str(tmp_path / "new"), "--kernel", "rows.select"])
    assert capsys.readouterr().out.startswith(str(tmp_path / "new" / f"{own_kind}.kernels"))
    assert set(read_archive(tmp_path / "new" / f"{own_kind}.kernels", source_key(), NAMES)) == {"rows.select"}
    with pytest.raises(SystemExit) as error:
        main(["--target", own_kind, "--output", str(tmp_path), "--kernel", "activation.none"])
    assert "did not compile" in str(error.value)
    with pytest.raises(SystemExit):
        main(["--target", "a-loom"])


def test_a_kernel_that_does_not_compile_leaves_no_archive(tmp_path: Path, own_kind: str) -> None:
    with pytest.raises(KernelError, match="unheard_of"):
        build(own_kind, tmp_path, ["activation.unheard_of"])
    assert list(tmp_path.iterdir()) == []
