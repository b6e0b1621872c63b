"""Perplexity and divergence: windows and averages as llama.cpp has them, and figures that it gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edgellm import LLM
from edgellm.cli.main import edgellm
from edgellm.errors import ContextOverflowError, InvalidSettingError
from edgellm.evaluation.divergence import measure_divergence
from edgellm.evaluation.perplexity import mean_and_error, measure_perplexity
from edgellm.evaluation.windows import Windows, WindowSettings
from edgellm.tokenizer import Tokenizer

TEXT = "hello world, the world in the hello\n" * 40
SETTINGS = WindowSettings(48, 3)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Measurements are kept elsewhere; the compiled kernels where they are."""
    from edgellm.evaluation import records

    monkeypatch.setattr(records, "home_folder", lambda: tmp_path / "home")


def by_hand(llm: LLM, text: str, settings: WindowSettings) -> np.ndarray:
    """Losses, straight from the description."""
    ids = llm.tokenizer.encode(text.removesuffix("\n"))
    losses = []
    for start in range(0, settings.windows * settings.context, settings.context):
        window = ids[start : start + settings.context]
        if llm.tokenizer.add_bos:
            window[0] = llm.tokenizer.bos_id
        logits = llm.logits(window).astype(np.float64)
        for place in range(settings.context // 2, settings.context - 1):
            row = logits[place]
            losses.append(np.log(np.exp(row - row.max()).sum()) + row.max() - row[window[place + 1]])
    return np.array(losses)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_windows_and_averages(tiny_model: Callable[..., Path], backend: str) -> None:
    with LLM.load(tiny_model(), backend=backend, context=48) as llm:
        losses = by_hand(llm, TEXT, SETTINGS)
        told: list[tuple[str, int, int]] = []
        running: list[float] = []
        found = measure_perplexity(
            llm, TEXT, SETTINGS, lambda *where: told.append(where), lambda number, value: running.append(value)
        )
    assert len(losses) == found.tokens == 3 * 23
    assert found.perplexity == pytest.approx(np.exp(losses.mean()), rel=1e-5)
    error = losses.std() / np.sqrt(len(losses) - 1)
    assert found.standard_error == pytest.approx(error * np.exp(losses.mean()), rel=1e-3)
    assert (found.windows, found.context) == (3, 48)
    assert told == [("perplexity", done, 144) for done in (0, 48, 96, 144)]
    assert running[-1] == found.perplexity
    assert running[0] == pytest.approx(np.exp(losses[:23].mean()), rel=1e-5)


class _Tokenizer:
    """A token for every character."""

    bos_id, add_bos = 1, True

    def encode(self, text: str) -> list[int]:
        return [1, *map(ord, text)]


def test_the_token_that_begins_a_text_begins_each_window() -> None:
    tokenizer: Tokenizer = _Tokenizer()  # type: ignore[assignment]
    text = "abcdefghijklmnopqrstuvwxyz\n"
    windows = list(Windows(tokenizer, text, WindowSettings(9)))
    ids = tokenizer.encode(text.removesuffix("\n"))
    assert [list(window.tokens) for window in windows] == [[1, *ids[start + 1 : start + 9]] for start in (0, 9, 18)]
    assert {window.first for window in windows} == {5}
    assert len(Windows(tokenizer, text, WindowSettings(9, 2))) == 2
    assert len(Windows(tokenizer, text, WindowSettings(9, 7))) == 3
    with pytest.raises(InvalidSettingError, match="27 tokens, one window takes 28"):
        Windows(tokenizer, text, WindowSettings(28))


def test_settings_are_checked(tiny_model: Callable[..., Path]) -> None:
    for context, windows in ((7, None), (8, 0)):
        with pytest.raises(InvalidSettingError):
            WindowSettings(context, windows)
    with LLM.load(tiny_model(), backend="reference", context=32) as llm, pytest.raises(ContextOverflowError):
        measure_perplexity(llm, TEXT, SETTINGS)


def test_error_of_one_value() -> None:
    assert mean_and_error(np.array([3.0])) == (3.0, 0.0)


def test_divergence_by_hand(tiny_model: Callable[..., Path]) -> None:
    paths = [tiny_model(seed=seed) for seed in (0, 1)]
    with LLM.load(paths[0], backend="reference") as base, LLM.load(paths[1], backend="reference") as llm:
        found = measure_divergence(base, llm, TEXT, SETTINGS)
        losses = [by_hand(one, TEXT, SETTINGS) for one in (base, llm)]
    assert found.base_perplexity == pytest.approx(np.exp(losses[0].mean()), rel=1e-6)
    assert found.perplexity == pytest.approx(np.exp(losses[1].mean()), rel=1e-6)
    assert found.log_ratio == pytest.approx(losses[1].mean() - losses[0].mean(), abs=1e-6)
    change = np.exp(-losses[1]) - np.exp(-losses[0])
    assert found.mean_change == pytest.approx(change.mean(), rel=1e-3, abs=1e-9)
    assert found.rms_change == pytest.approx(np.sqrt(np.square(change).mean()), rel=1e-4)
    assert 0 < found.median < found.percentile_99 <= found.maximum
    assert found.mean > 0
    assert found.tokens == 69


def test_nothing_divides_a_model_from_itself(smollm2_path: Path, shared: Path) -> None:
    text = (shared / "text" / "wikitext2-valid.txt").read_text(encoding="utf-8")[:4000]
    with LLM.load(smollm2_path, context=128) as base, LLM.load(smollm2_path, context=128) as llm:
        found = measure_divergence(base, llm, text, WindowSettings(128, 2))
    assert found.mean == found.median == found.percentile_99 == found.maximum == 0
    assert found.mean_change == found.rms_change == found.log_ratio == 0
    assert found.same_best == 1


@pytest.mark.parametrize(("alias", "expected"), [("smollm2", 15.399), ("gemma3", 11.797)])
def test_llama_cpp_gives_the_same(alias: str, expected: float, shared: Path, request: pytest.FixtureRequest) -> None:
    """The first 16 windows, within 0.5 %."""
    path: Path = request.getfixturevalue(f"{alias}_path")
    text = shared / "text" / "wikitext2-valid.txt"
    arguments = ["perplexity", str(path), str(text), "--context", "512", "--windows", "16", "--json"]
    done = CliRunner().invoke(edgellm, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert found["perplexity"] == pytest.approx(expected, rel=5e-3)
    assert found["windows"] == 16
    assert 0.3 < found["standard_error"] < 1


def test_commands_tell_people(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    common = ["--context", "48", "--windows", "3", "--backend", "reference"]
    done = CliRunner().invoke(edgellm, ["perplexity", str(tiny_model()), str(text), *common])
    assert done.exit_code == 0
    assert done.stdout.startswith("perplexity ")
    assert "3 windows of 48 tokens, 69 tokens scored" in done.stdout
    done = CliRunner().invoke(edgellm, ["kl", str(tiny_model()), str(tiny_model(seed=1)), str(text), *common])
    assert done.exit_code == 0
    assert done.stdout.startswith("KL divergence ")
    assert "same best token" in done.stdout
    done = CliRunner().invoke(edgellm, ["kl", str(tiny_model()), str(tiny_model()), str(text), *common, "--json"])
    assert json.loads(done.stdout)["maximum"] == 0


def test_errors_are_one_line(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(b"\xff\xfe")
    for arguments, message in (
        ([str(tmp_path / "none.txt")], "cannot read"),
        ([str(text)], "is not UTF-8 text"),
        ([str(__file__), "--context", "100000"], "choose 1 to 256"),
    ):
        done = CliRunner().invoke(edgellm, ["perplexity", str(tiny_model()), *arguments, "--backend", "reference"])
        assert done.exit_code == 1
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
    text.write_text("hello")
    done = CliRunner().invoke(edgellm, ["kl", *2 * [str(tiny_model())], str(text), "--context", "48"])
    assert (done.exit_code, "one window takes 48" in done.stderr) == (1, True)


def test_fewer_bits_lose_more(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    """Rows of 256 weights, so that every type is used as it is; float weights, as those of a model that was quantized
    before may lie just where some type of few bits has its levels."""
    from edgellm.quantize import QuantizeSettings, quantize

    original = tiny_model(width=256, head_dim=64, feed_forward=512, layers=4, context_length=128, tied=False)
    found = []
    with LLM.load(original, context=128) as base:
        for kind in ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K"):
            path = tmp_path / f"{kind}.gguf"
            quantize(original, path, QuantizeSettings(kind))
            with LLM.load(path, context=128) as llm:
                found.append(measure_divergence(base, llm, TEXT, WindowSettings(128, 6)).mean)
    assert found[0] > 0
    assert found == sorted(found)
