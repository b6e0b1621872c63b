"""What types of a model take: against the executor's own count and the files that are really written."""

from __future__ import annotations

import dataclasses
import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgellm import LLM
from edgellm.cli.main import edgellm
from edgellm.errors import InvalidSettingError
from edgellm.evaluation import records
from edgellm.evaluation.fit import Fit, FitSettings, fit, with_perplexities
from edgellm.evaluation.perplexity import Perplexity
from edgellm.evaluation.records import Record, model_identity, read_records, records_file, remember
from edgellm.gguf import open_gguf
from edgellm.quantize import QuantizeSettings, quantize

MEASURED = Perplexity(12.5, 0.5, 16, 4080, 512, 3.0)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Measurements are kept elsewhere; the compiled kernels where they are."""
    monkeypatch.setattr(records, "home_folder", lambda: tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def model(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model(width=256, head_dim=64, feed_forward=512, weight_types=("F16",), embedding_type="F16")


def test_memory_is_what_the_executor_takes(model: Path) -> None:
    report = fit(model, FitSettings(context=256, threads=2))
    (one,) = (one for one in report.types if one.is_file)
    with LLM.load(model, context=256, threads=2) as llm:
        memory = llm.memory()
        blocks = llm._engine.cache.capacity
    assert (one.weights, one.scratch) == (memory["weights"], memory["buffers"])
    assert one.cache * blocks == memory["cache"] * 8  # 256 tokens are 8 blocks
    assert one.file_bytes == model.stat().st_size
    assert one.total == one.weights + one.cache + one.scratch + report.program


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K_M"])
def test_other_types_are_what_quantize_writes(model: Path, tmp_path: Path, kind: str) -> None:
    report = fit(model, FitSettings(context=256, threads=2))
    (one,) = (one for one in report.types if one.type == kind)
    path = tmp_path / "small.gguf"
    quantize(model, path, QuantizeSettings(kind))
    assert one.file_bytes == path.stat().st_size
    with LLM.load(path, context=256, threads=2) as llm:
        memory = llm.memory()
    assert (one.weights, one.scratch) == (memory["weights"], memory["buffers"])
    assert not one.is_file
    (itself,) = (one for one in fit(path, FitSettings(context=256)).types if one.is_file)
    assert itself.type == kind


def test_what_fits(model: Path) -> None:
    everything = fit(model, FitSettings(context=128, memory=1 << 40, threads=2))
    assert all(one.fits and one.longest_context == 256 for one in everything.types)
    assert everything.best == everything.types[0].type == "F16"
    bits = [one.bits_per_weight for one in everything.types]
    assert bits == sorted(bits, reverse=True)
    # The program's own size may change from one call to the next; the choice of memory leaves room for that.
    middle = everything.types[len(bits) // 2]
    between = (everything.types[0].total + middle.total) // 2
    some = fit(model, FitSettings(context=128, memory=between, threads=2))
    assert [one.fits for one in some.types] == [one.total <= between for one in some.types]
    nothing = fit(model, FitSettings(context=128, memory=1000, threads=2))
    assert nothing.best is None
    assert all(one.longest_context == 0 for one in nothing.types)
    with pytest.raises(InvalidSettingError, match="choose 1 to 256"):
        fit(model, FitSettings(context=257))


def test_ternary_models(shared: Path, tmp_path: Path) -> None:
    from edgellm.convert import ConvertSettings, convert

    path = convert(shared / "models" / "bitnet-tiny", tmp_path / "b.gguf", ConvertSettings(type="tq2_0")).path
    report = fit(path)
    assert report.cache_type == "f32"
    assert [one.type for one in report.types if one.is_file] == ["TQ2_0"]
    assert {one.type for one in report.types} == {"F16", "TQ1_0", "TQ2_0"}


def record(kind: str, perplexity: float, windows: int = 16) -> Record:
    return Record("m", kind, 1, "text", 512, windows, perplexity, 0.1)


def test_costs() -> None:
    fits = [
        Fit(kind, False, 0, bits, 0, 0, 0, 0, True, 1) for kind, bits in (("Q8_0", 8.5), ("Q6_K", 6.6), ("Q2_K", 3))
    ]
    assert with_perplexities(fits, []) == (None, fits)
    found = [record("Q8_0", 10.0, 4), record("Q8_0", 11.0), record("Q2_K", 12.1), record("IQ1_S", 99)]
    measure, with_costs = with_perplexities(fits, found)
    assert measure == ("text", 512, 16)
    assert [one.perplexity for one in with_costs] == [11.0, None, 12.1]
    assert [one.cost for one in with_costs] == [0.0, None, pytest.approx(0.1)]


def test_measurements_are_kept(model: Path, home: Path) -> None:
    with open_gguf(model) as file:
        identity = model_identity(file)
        remember(file, "a text", MEASURED)
        remember(file, "a text", dataclasses.replace(MEASURED, perplexity=12.25))
        remember(file, "another", MEASURED)
    assert [one.perplexity for one in read_records(identity)] == [12.25, 12.5]
    assert read_records("another model") == []
    report = fit(model, FitSettings(context=64))
    assert [one.perplexity for one in report.types if one.is_file] == [12.25] or report.measure is not None
    assert sorted(path.name for path in home.iterdir()) == [".measurements.json.lock", "measurements.json"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b"[1, null, {}]", b"{}", b"[" * 100000, b'[{"model": 1}]', b"[]" + b" " * 2_000_000]
)
def test_damaged_measurements_count_as_none(model: Path, home: Path, content: bytes) -> None:
    home.mkdir()
    records_file().write_bytes(content)
    assert read_records() == []
    with open_gguf(model) as file:
        remember(file, "a text", MEASURED)
    assert len(read_records()) == 1


@pytest.mark.parametrize("field", ["perplexity", "windows", "type"])
def test_damaged_entries_are_left_out(home: Path, field: str) -> None:
    home.mkdir()
    good = dataclasses.asdict(record("Q8_0", 10.0))
    bad = [{**good, field: value} for value in (None, True, [], {}, -1.5)]
    bad.append({name: value for name, value in good.items() if name != field})
    records_file().write_text(json.dumps([*bad, good, {**good, "more": 1}]))
    assert read_records() == [record("Q8_0", 10.0)]


def test_a_full_disk_costs_the_measurement_only(
    model: Path, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with open_gguf(model) as file:
        remember(file, "a text", MEASURED)
        before = records_file().read_bytes()
        monkeypatch.setattr("os.fsync", full)
        remember(file, "another", MEASURED)
    assert "was not kept" in caplog.text
    assert records_file().read_bytes() == before
    assert not list(home.glob("*.tmp"))


def test_the_command(model: Path) -> None:
    done = CliRunner().invoke(edgellm, ["fit", str(model), "--json", "--memory", "1G"], catch_exceptions=False)
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert (found["memory"], found["best"], found["context"]) == (10**9, "F16", 256)
    assert found["types"][0]["weights"] > 0
    done = CliRunner().invoke(edgellm, ["fit", str(model), "--memory", "1M"])
    assert "no type fits" in done.stdout
    assert "this file" in done.stdout
    done = CliRunner().invoke(edgellm, ["fit", str(model), "--memory", "lots"])
    assert done.exit_code == 2
