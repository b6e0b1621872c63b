"""The object files of compiled kernels: found again, made anew when damaged or out of date, safe to share."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from kernel_calls import Record, load_kernels

import edgellm
from edgellm.errors import InvalidSettingError
from edgellm.kernels import library, target
from edgellm.kernels.library import KernelError, KernelLibrary, cache_key, prune
from edgellm.kernels.object_files import ObjectCode, read_object, write_object
from edgellm.kernels.records import ROWS
from edgellm.kernels.target import Target, current_target, target_for

NAMES = ["rows.select", "pack.F16"]  # quick to compile


def run_python(code: str, *arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    """A fresh interpreter, which works where no package of that name lies about."""
    return subprocess.Popen(
        [sys.executable, "-P", "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment},
    )  # fmt: skip


LOAD = """
    import sys
    from pathlib import Path
    from edgellm.kernels.library import KernelLibrary
    from edgellm.kernels.target import current_target
    reports = []
    cache = Path(sys.argv[1])
    library = KernelLibrary(current_target(), cache, lambda *report: reports.append(report), shipped=cache)
    addresses = library.load(sys.argv[2:])
    assert all(addresses.values()) and len(addresses) == len(sys.argv) - 2
    print(len(reports), "numba" in sys.modules)
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, int, int]]]:
    """A folder with two compiled kernels, and what was reported while they were made."""
    folder = tmp_path_factory.mktemp("kernels")
    reports: list[tuple[str, int, int]] = []
    KernelLibrary(current_target(), folder, lambda *report: reports.append(report), folder).load(NAMES)
    return folder, reports


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever starts a process fails."""

    def refuse(*arguments: object, **settings: object) -> None:
        raise AssertionError("a compiler was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)


def test_progress_is_reported_from_none_to_all(compiled: tuple[Path, list[tuple[str, int, int]]]) -> None:
    assert compiled[1] == [("kernels", 0, 2), ("kernels", 1, 2), ("kernels", 2, 2)]


def test_compiled_kernels_are_found_again(compiled: tuple[Path, list[tuple[str, int, int]]], no_compiler: None) -> None:
    reports: list[object] = []
    found = KernelLibrary(current_target(), compiled[0], lambda *report: reports.append(report), compiled[0])
    addresses = found.load(NAMES)
    assert set(addresses) == set(NAMES)
    assert found.load(NAMES[:1]) == {NAMES[0]: addresses[NAMES[0]]}
    assert reports == []


def test_what_is_loaded_computes(compiled: tuple[Path, list[tuple[str, int, int]]]) -> None:
    """Not only an address: the kernel of this very folder."""
    team = load_kernels().flushing_team
    found = KernelLibrary(current_target(), compiled[0], shipped=compiled[0])
    x, output = np.arange(64, dtype=np.float32).reshape(4, 16), np.zeros((2, 16), np.float32)
    record = Record(
        ROWS, rows=np.array([2]), width=16, input=x, input_stride=64, output=output, output_stride=64,
        index=np.array([3, 1], np.int32),
    )  # fmt: skip
    team.run(np.array([[found.load(NAMES)["rows.select"], record.values.ctypes.data, 0, 0]]))
    assert np.array_equal(output, x[[3, 1]])


# Damage


def damages(data: bytes) -> dict[str, bytes]:
    """Ways in which a file of a header line and code may be wrong."""
    header, _, code = data.partition(b"\n")
    fields = json.loads(header)
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    return {
        "empty": b"",
        "cut short": data[:-1],
        "longer": data + b"\0",
        "one bit": bytes(flipped),
        "no header": code,
        "only the header": header,
        "not JSON": b"{" + data,
        "JSON of another shape": b"[1]\n" + code,
        "no checksum": json.dumps({"symbol": fields["symbol"]}).encode() + b"\n" + code,
        "no symbol": json.dumps({"sha256": fields["sha256"]}).encode() + b"\n" + code,
        "not text": b"\xff\xfe\n" + code,
        "zeros": bytes(len(data)),
    }


def test_a_damaged_object_is_never_loaded(compiled: tuple[Path, list[tuple[str, int, int]]], tmp_path: Path) -> None:
    source = compiled[0] / cache_key(current_target()) / "rows.select.o"
    whole = read_object(source)
    assert whole is not None
    assert whole.code.startswith((b"\x7fELF", b"\xcf\xfa\xed\xfe", b"d\x86"))
    for damage, data in damages(source.read_bytes()).items():
        path = tmp_path / "damaged.o"
        path.write_bytes(data)
        assert read_object(path) is None, damage
    assert read_object(tmp_path / "missing.o") is None
    assert read_object(tmp_path) is None


def test_a_damaged_object_is_compiled_again(compiled: tuple[Path, list[tuple[str, int, int]]], tmp_path: Path) -> None:
    folder = tmp_path / "kernels"
    shutil.copytree(compiled[0], folder)
    path = folder / cache_key(current_target()) / "rows.select.o"
    good = read_object(path)
    path.write_bytes(path.read_bytes()[:-10])
    reports: list[tuple[str, int, int]] = []
    KernelLibrary(current_target(), folder, lambda *report: reports.append(report), folder).load(NAMES)
    assert reports == [("kernels", 0, 1), ("kernels", 1, 1)]  # only that one
    again = read_object(path)
    assert again is not None
    assert good is not None
    assert again.symbol == good.symbol


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kernel.o"
    write_object(path, "symbol", b"old")

    def fail(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(KeyboardInterrupt):
        write_object(path, "symbol", b"new")
    assert read_object(path) == ObjectCode("symbol", b"old")
    assert list(tmp_path.iterdir()) == [path]


# The key


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the kernels' sources, of which the key is made from now on."""
    copy = tmp_path / "sources"
    shutil.copytree(Path(library.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    before = cache_key(current_target())
    monkeypatch.setattr(library, "__file__", str(copy / "library.py"))
    assert cache_key(current_target()) == before
    return copy


def test_the_key_changes_with_any_source(sources: Path) -> None:
    keys = {cache_key(current_target())}
    for path in sorted(sources.glob("*.py")):
        text = path.read_text()
        path.write_text(text + "# changed\n")
        keys.add(cache_key(current_target()))
        path.write_text(text)
    names = len(list(sources.glob("*.py")))
    assert len(keys) == names + 1
    (sources / "another.py").write_text("")
    keys.add(cache_key(current_target()))
    (sources / "another.py").rename(sources / "renamed.py")
    keys.add(cache_key(current_target()))
    assert len(keys) == names + 3


def test_the_key_changes_with_versions_and_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    native = current_target()
    keys = {cache_key(native)}
    keys.add(cache_key(Target("other", native.features, native.feature_string)))
    keys.add(cache_key(Target(native.cpu_name, native.features, native.feature_string + ",+other")))
    version = library._package_version
    assert version("numba") != version("llvmlite")
    for name in ("numba", "llvmlite"):
        assert importlib.metadata.version(name).encode() in version(name)
        with monkeypatch.context() as patch:
            patch.setattr(
                library, "_package_version", lambda asked, changed=name: version(asked) + b"1" * (asked == changed)
            )
            keys.add(cache_key(native))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "version", "3.99.0 (other)")
        keys.add(cache_key(native))
    assert len(keys) == 6


def test_a_changed_helper_is_compiled_into_its_callers(tmp_path: Path) -> None:
    """In a copy of the package: a function that a kernel calls is edited, and the kernel computes something else."""
    package = tmp_path / "edgellm"
    shutil.copytree(Path(edgellm.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("kernels", "platforms"):
        source = Path(sys.modules[f"edgellm.{name}"].__file__ or "").parent
        shutil.copytree(
            source, package / name, ignore=shutil.ignore_patterns("__pycache__", "objects"), dirs_exist_ok=True
        )
    code = """
        import sys
        from pathlib import Path
        import numpy as np
        from edgellm.kernels.library import KernelLibrary
        from edgellm.kernels.records import ACTIVATION, ACTIVATION as F
        from edgellm.kernels.target import current_target
        from edgellm.platforms.cpu_parts import make_record
        from edgellm.platforms.threads import KERNELS, ThreadTeam
        reports = []
        library = KernelLibrary(current_target(), Path(sys.argv[1]), lambda *report: reports.append(report))
        addresses = library.load(["activation.relu_squared", *KERNELS])
        x, out = np.full(16, 3, np.float32), np.zeros(16, np.float32)
        rows, factor = np.ones(1, np.int64), np.ones(1, np.float32)
        record = make_record(
            F, rows=rows.ctypes.data, width=16, a=x.ctypes.data, a_stride=64, output=out.ctypes.data, output_stride=64,
            factor=factor.ctypes.data,
        )
        ThreadTeam(addresses, 1).run(np.array([[addresses["activation.relu_squared"], record.ctypes.data, 0, 0]]))
        print(len(reports), out[0])
    """

    def run() -> list[str]:
        out, error = run_python(code, tmp_path / "cache", PYTHONPATH=str(tmp_path)).communicate()
        assert out, error
        return out.split()

    assert run() == ["5", "9.0"]
    assert run() == ["0", "9.0"]
    simd = package / "kernels" / "simd.py"
    text = simd.read_text()
    changed = text.replace("builder.select(builder.fcmp_ordered(sign, a, b), a, b)", "builder.fadd(b, b)", 1)
    assert changed != text
    simd.write_text(changed)
    assert run() == ["5", "36.0"]  # the larger of 0 and x is now x + x


# What is out of date


def aged(folder: Path, days: float) -> Path:
    folder.mkdir(parents=True)
    (folder / "kernel.o").write_bytes(b"code")
    Path(f"{folder}.lock").touch()
    os.utime(folder, (time.time() - 86400 * days,) * 2)
    return folder


def test_what_was_not_used_for_long_is_deleted(tmp_path: Path) -> None:
    own, recent, old = (aged(tmp_path / (letter * 24), days) for letter, days in (("a", 99), ("b", 29), ("c", 31)))
    other = aged(tmp_path / "something else", 99)
    prune(tmp_path, own)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [own.name, recent.name, other.name]
    assert not Path(f"{old}.lock").exists()


def test_only_the_last_used_are_kept(tmp_path: Path) -> None:
    folders = [aged(tmp_path / f"{number:024}", number) for number in range(12)]
    prune(tmp_path, folders[11])
    kept = [folder for folder in folders if folder.exists()]
    assert kept == [*folders[: library.KEPT_FOLDERS - 1], folders[11]]


def test_what_others_compile_into_is_not_deleted(tmp_path: Path) -> None:
    busy, old = aged(tmp_path / ("a" * 24), 99), aged(tmp_path / ("b" * 24), 99)
    with FileLock(f"{busy}.lock"):
        prune(tmp_path, tmp_path / ("c" * 24))
    assert busy.exists()
    assert not old.exists()


def test_use_counts(compiled: tuple[Path, list[tuple[str, int, int]]], no_compiler: None) -> None:
    folder = compiled[0] / cache_key(current_target())
    os.utime(folder, (time.time() - 40 * 86400,) * 2)
    KernelLibrary(current_target(), compiled[0], shipped=compiled[0]).load(NAMES)
    prune(compiled[0], compiled[0] / ("c" * 24))
    assert folder.exists()


# Processes and folders


def test_two_processes_at_once_compile_once(tmp_path: Path) -> None:
    both = [run_python(LOAD, tmp_path, *NAMES) for _ in range(2)]
    outputs = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    # Whoever came first reported 0, 1 and 2; the other found them when its turn came.
    assert sorted(out.split()[0] for out, _ in outputs) == ["0", "3"]


def test_neither_compiling_nor_loading_imports_numba_here(tmp_path: Path) -> None:
    for reports in ("2", "0"):
        process = run_python(LOAD, tmp_path, "rows.select")
        out, error = process.communicate()
        assert out.split() == [reports, "False"], error


def test_running_a_model_does_not_import_numba(tiny_model: Callable[..., Path]) -> None:
    process = run_python(
        """
        import sys
        import numpy as np
        from edgellm.gguf import open_gguf
        from edgellm.models import build_graph
        from edgellm.platforms.batch import Batch
        from edgellm.platforms.cpu import CPUExecutor
        from edgellm.weights import WeightStore
        with open_gguf(sys.argv[1]) as file:
            executor = CPUExecutor(build_graph(file), WeightStore(file), threads=2)
            executor.reserve(1)
            zero = np.zeros(1, np.int32)
            assert np.isfinite(executor.step(Batch(zero, zero, zero, zero[None], zero))).all()
            executor.close()
        print([name for name in sys.modules if name.partition(".")[0] in ("numba", "gguf", "jinja2", "regex", "rich")])
        """,
        tiny_model("llama", weight_types=("Q4_0", "Q8_0")),
    )
    out, error = process.communicate()
    assert out.strip() == "[]", error


def test_a_frozen_application_compiles_in_its_own_process(tmp_path: Path) -> None:
    process = run_python("\n    import sys\n    sys.frozen = True" + LOAD, tmp_path, "rows.select")
    out, error = process.communicate()
    assert out.split() == ["2", "True"], error


def test_modules_in_the_current_folder_are_not_taken_for_the_real_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler's process must see the modules that this one sees, wherever the user happens to be."""
    for name in ("numba", "llvmlite", "edgellm", "numpy", "queue"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('a module of the current folder was imported')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    assert KernelLibrary(current_target(), tmp_path / "kernels", shipped=tmp_path).load(["rows.select"])["rows.select"]


def assert_one_line(error: pytest.ExceptionInfo[KernelError], *words: str) -> None:
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_a_folder_that_cannot_be_made_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = KernelLibrary(current_target(), tmp_path / "file" / "kernels", shipped=tmp_path)
    assert found.load(["rows.select"])["rows.select"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    for words in ("cannot be kept", str(tmp_path), "EDGELLM_HOME"):
        assert words in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["file"]  # what was compiled for once is gone


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_done_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tmp_path.chmod(0o500)
    assert KernelLibrary(current_target(), tmp_path / "kernels", shipped=tmp_path).load(["rows.select"])
    tmp_path.chmod(0o700)
    assert "cannot be kept" in caplog.text


def test_a_kernel_that_does_not_compile_is_an_error_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(KernelError) as error:
        KernelLibrary(current_target(), tmp_path, shipped=tmp_path).load(["activation.unheard_of"])
    assert_one_line(error, "did not compile", "unheard_of")


def test_a_compiler_that_is_killed_is_an_error_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the system does when memory runs out."""
    killer = tmp_path / "killer"
    killer.mkdir()
    (killer / "sitecustomize.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    monkeypatch.setenv("PYTHONPATH", str(killer))
    with pytest.raises(KernelError) as error:
        KernelLibrary(current_target(), tmp_path / "kernels", shipped=tmp_path).load(["rows.select"])
    assert_one_line(error, "did not compile", "ended")


# The target


def test_an_unknown_instruction_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELLM_INSTRUCTION_SET", "sse9")
    with pytest.raises(InvalidSettingError, match=r"sse9.*native, plain, avx2, avx512"):
        current_target()


def test_what_the_cpu_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import llvmlite.binding as llvm

    host = {**llvm.get_host_cpu_features(), "avx2": False}
    monkeypatch.setattr(llvm, "get_host_cpu_features", lambda: host)
    target_for.cache_clear()
    try:
        with pytest.raises(InvalidSettingError, match="lacks avx2"):
            target_for("avx2")
        assert not target_for("native").has("avx2")
        assert "-avx2" in target_for("native").feature_string.split(",")
    finally:
        target_for.cache_clear()


@pytest.mark.parametrize("name", [*target.INSTRUCTION_SETS])
def test_a_forced_set_has_no_more_than_it_says(name: str) -> None:
    try:
        forced = target_for(name)
    except InvalidSettingError as error:
        pytest.skip(str(error))
    assert forced.instruction_set == name
    flags = forced.feature_string.split(",")
    assert {flag[1:] for flag in flags if flag[0] == "+"} == forced.features
    assert len(flags) == len({flag[1:] for flag in flags}) > 50  # all others are switched off by name
    assert forced.features <= target_for("native").features
    assert forced.forced == name
