"""Adapters: the logits of a model with adapters are those of the checkpoint into which they were merged in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapters import RANK, RandomAdapter, make_adapter, merged_checkpoint, write_adapter

from edgellm import LLM, Adapter, Sampling
from edgellm.convert import ConvertSettings, convert, convert_adapter, merge
from edgellm.errors import CorruptFileError, EdgeLLMError, InvalidSettingError, UnsupportedModelError
from edgellm.gguf import open_gguf

F32 = ConvertSettings(type="f32", name="tiny", threads=1)
IDS = [5, 17, 9, 33, 58, 21, 40, 7, 12, 50, 44, 31]
GREEDY = Sampling(temperature=0, ignore_eos=True)
MODULES = {
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "qwen2": ("q_proj", "v_proj", "down_proj"),
    "gemma2": ("q_proj", "k_proj", "o_proj", "up_proj"),
    "phi3": ("qkv_proj", "gate_up_proj", "down_proj"),
    "gpt2": ("c_attn", "attn.c_proj", "c_fc"),
    "smollm3": ("q_proj", "k_proj"),
}


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def gguf(source: Path, path: Path) -> Path:
    convert(source, path, replace(F32, force=True))
    return path


@pytest.fixture(scope="module")
def llama(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, RandomAdapter, Path]:
    """Checkpoint, its GGUF file, an adapter, and that as a GGUF file."""
    folder, checkpoint = tmp_path_factory.mktemp("llama"), shared / "fixtures" / "llama"
    base = gguf(checkpoint, folder / "base.gguf")
    adapter = make_adapter(folder / "first", checkpoint, MODULES["llama"], 1)
    convert_adapter(adapter.folder, base, folder / "first.gguf")
    return checkpoint, base, adapter, folder / "first.gguf"


@pytest.mark.parametrize("family", MODULES)
def test_applied_and_merged_give_the_logits_of_the_merged_checkpoint(family: str, shared: Path, tmp_path: Path) -> None:
    checkpoint, transposed = shared / "fixtures" / family, family == "gpt2"
    adapter = make_adapter(tmp_path / "adapter", checkpoint, MODULES[family], 7, transposed)
    base = gguf(checkpoint, tmp_path / "base.gguf")
    expected_file = gguf(
        merged_checkpoint(tmp_path / "merged", checkpoint, [(adapter, 1.5)], transposed), tmp_path / "expected.gguf"
    )
    # The base may be named as a folder or as a file; both give the same bytes.
    convert_adapter(adapter.folder, checkpoint, tmp_path / "a.gguf", ConvertSettings(name="x"))
    convert_adapter(adapter.folder, base, tmp_path / "b.gguf", ConvertSettings(name="x"))
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    merge(base, [Adapter(tmp_path / "a.gguf", 1.5)], tmp_path / "merged.gguf")
    with LLM.load(expected_file, backend="reference") as llm:
        expected = llm.logits(IDS)
    with LLM.load(tmp_path / "merged.gguf", backend="reference") as llm:
        assert relative(llm.logits(IDS), expected) < 1e-5
    with LLM.load(base, backend="reference") as llm:
        plain = llm.logits(IDS)
    assert relative(plain, expected) > 0.05
    with LLM.load(base, backend="reference", adapters=[Adapter(tmp_path / "a.gguf", 1.5)]) as llm:
        assert relative(llm.logits(IDS), expected) < 1e-5
        assert np.array_equal(llm.logits(IDS, adapters={}), plain)


def test_the_compiled_kernels_apply_adapters(llama: tuple[Path, Path, RandomAdapter, Path], tmp_path: Path) -> None:
    checkpoint, base, adapter, path = llama
    expected_file = gguf(merged_checkpoint(tmp_path / "merged", checkpoint, [(adapter, 0.5)]), tmp_path / "e.gguf")
    with LLM.load(expected_file, threads=2, cache_type="f32") as llm:
        expected = llm.logits(IDS)
    with LLM.load(base, threads=2, cache_type="f32") as llm:
        plain = llm.logits(IDS)
    with LLM.load(base, threads=2, cache_type="f32", adapters=[Adapter(path, name="a")]) as llm:
        assert relative(llm.logits(IDS, adapters={"a": 0.5}), expected) < 1e-5
        assert relative(llm.logits(IDS), expected) > 0.05
        assert np.array_equal(llm.logits(IDS, adapters={"a": 0}), plain)


def test_scale_nothing_is_the_quantized_base_exactly(
    llama: tuple[Path, Path, RandomAdapter, Path], tmp_path: Path
) -> None:
    # Activations are quantized for the base's products but not for the adapter's: neither may disturb the other.
    checkpoint, _, _, path = llama
    convert(checkpoint, tmp_path / "q8.gguf", replace(F32, type="q8_0"))
    with LLM.load(tmp_path / "q8.gguf", threads=2) as llm:
        plain = llm.logits(IDS)
    with LLM.load(tmp_path / "q8.gguf", threads=2, adapters=[Adapter(path, scale=0)]) as llm:
        assert np.array_equal(llm.logits(IDS), plain)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_several_at_once_switched_by_request(
    backend: Any, llama: tuple[Path, Path, RandomAdapter, Path], tmp_path: Path
) -> None:
    checkpoint, base, adapter, path = llama
    other = make_adapter(tmp_path / "second", checkpoint, ("q_proj", "up_proj"), 2)
    convert_adapter(other.folder, checkpoint, tmp_path / "second.gguf")
    both = gguf(merged_checkpoint(tmp_path / "m", checkpoint, [(adapter, 0.75), (other, -1)]), tmp_path / "m.gguf")
    prompt = IDS * 6  # longer than a block of the cache
    texts = {}
    for name, file in {"base": base, "both": both}.items():
        with LLM.load(file, backend=backend, threads=1) as llm:
            texts[name] = llm.generate(prompt, max_tokens=12, sampling=GREEDY).ids
    assert texts["base"] != texts["both"]
    adapters = [Adapter(path), Adapter(tmp_path / "second.gguf", 0.0)]
    with LLM.load(base, backend=backend, threads=1, adapters=adapters) as llm:
        assert dict(llm.adapters) == {"first": 1.0, "second": 0.0}
        for _ in range(2):  # the second time what was computed is found again, each with its own setting
            done = [
                llm.generate(prompt, max_tokens=12, sampling=GREEDY, adapters={}),
                llm.generate(prompt, max_tokens=12, sampling=GREEDY, adapters={"first": 0.75, "second": -1.0}),
            ]
            assert [completion.ids for completion in done] == [texts["base"], texts["both"]]
        assert [completion.cached_tokens for completion in done] == [len(prompt) - 1] * 2
        assert llm.generate(prompt, max_tokens=1, sampling=GREEDY).cached_tokens == 0
        with pytest.raises(InvalidSettingError, match=r"third.*first, second"):
            llm.generate(prompt, adapters={"third": 1.0})
        with pytest.raises(InvalidSettingError, match="give a number"):
            llm.generate(prompt, adapters={"first": float("nan")})


def test_interleaved_requests_keep_their_own_scales(llama: tuple[Path, Path, RandomAdapter, Path]) -> None:
    _, base, _, path = llama
    with LLM.load(base, threads=1, adapters=[Adapter(path, name="a")]) as llm:
        settings: list[dict[str, float]] = [{}, {"a": 1.0}, {"a": -0.5}]
        alone = [llm.generate(IDS, max_tokens=10, sampling=GREEDY, adapters=chosen).ids for chosen in settings]
        assert len({tuple(ids) for ids in alone}) > 1
        streams = [llm.stream(IDS, max_tokens=10, sampling=GREEDY, adapters=chosen) for chosen in settings]
        together = [[step.id for step in steps] for steps in zip(*streams, strict=True)]
    assert [list(ids) for ids in zip(*together, strict=True)] == alone


def test_scales_by_root_and_by_module(shared: Path, tmp_path: Path) -> None:
    # peft: alpha / sqrt(r) with use_rslora, alpha of the module's own where alpha_pattern has one.
    checkpoint = shared / "fixtures" / "llama"
    extra = {"use_rslora": True, "alpha_pattern": {"layers.0.self_attn.q_proj": 15.0}}
    adapter = make_adapter(tmp_path / "adapter", checkpoint, ("q_proj", "v_proj"), 3, **extra)
    parts = []
    for module, pair in adapter.matrices.items():
        alpha = 15.0 if module.endswith("layers.0.self_attn.q_proj") else adapter.alpha
        parts.append((RandomAdapter(adapter.folder, {module: pair}, alpha * RANK**0.5), 1.0))
    expected = gguf(merged_checkpoint(tmp_path / "merged", checkpoint, parts), tmp_path / "expected.gguf")
    base = gguf(checkpoint, tmp_path / "base.gguf")
    convert_adapter(adapter.folder, base, tmp_path / "a.gguf")
    with LLM.load(expected, backend="reference") as llm:
        logits = llm.logits(IDS)
    with LLM.load(base, backend="reference", adapters=[Adapter(tmp_path / "a.gguf")]) as llm:
        assert relative(llm.logits(IDS), logits) < 1e-5


def test_the_file_is_as_llama_cpp_writes_it(llama: tuple[Path, Path, RandomAdapter, Path]) -> None:
    _, _, adapter, path = llama
    with open_gguf(path) as file:
        assert file.metadata["general.type"] == "adapter" and file.metadata["adapter.type"] == "lora"
        assert file.metadata["general.architecture"] == "llama"
        assert file.metadata["adapter.lora.alpha"] == pytest.approx(adapter.alpha)
        a, b = adapter.matrices["model.layers.0.mlp.down_proj"]
        assert np.array_equal(file.decode("blk.0.ffn_down.weight.lora_a"), a)
        assert np.array_equal(file.decode("blk.0.ffn_down.weight.lora_b"), b)
        assert len(file.tensors) == 2 * len(adapter.matrices)


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0"])
def test_types_of_adapters_and_of_merged_weights(
    kind: str, llama: tuple[Path, Path, RandomAdapter, Path], tmp_path: Path
) -> None:
    _, base, adapter, path = llama
    with LLM.load(base, backend="reference", adapters=[Adapter(path)]) as llm:
        expected = llm.logits(IDS)
    convert_adapter(adapter.folder, base, tmp_path / "small.gguf", ConvertSettings(type=kind))
    assert (tmp_path / "small.gguf").stat().st_size < path.stat().st_size
    merge(base, [Adapter(path)], tmp_path / "merged.gguf", kind)
    with open_gguf(tmp_path / "merged.gguf") as file, open_gguf(base) as before:
        assert file.tensors["blk.0.attn_q.weight"].type.name == kind.upper()
        assert file.tensors["token_embd.weight"].type == before.tensors["token_embd.weight"].type
        assert all(file.stored_key(name) == before.stored_key(name) for name in before.metadata)
    bound = {"f16": 0.005, "bf16": 0.05, "q8_0": 0.1}[kind]
    for backend in ("reference", "cpu"):
        with LLM.load(base, backend=backend, threads=1, adapters=[Adapter(tmp_path / "small.gguf")]) as llm:  # type: ignore[arg-type]
            assert relative(llm.logits(IDS), expected) < bound
    with LLM.load(tmp_path / "merged.gguf", backend="reference") as llm:
        assert relative(llm.logits(IDS), expected) < bound


MATRIX = np.zeros((RANK, RANK), np.float32)
Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "LOHA"}, "peft_type"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights"),
        ({"alpha_pattern": {"(a+)+$": 2}}, "regular expression"),
        ({"lora_alpha": 0}, "lora_alpha"),
        ({"r": "many"}, "r is many"),
    ],
)
def test_settings_that_a_file_cannot_hold(
    config: dict[str, Any], said: str, llama: tuple[Path, Path, RandomAdapter, Path], tmp_path: Path
) -> None:
    write_adapter(tmp_path, {f"{Q}.lora_A.weight": ("F32", MATRIX), f"{Q}.lora_B.weight": ("F32", MATRIX)}, **config)
    with pytest.raises(EdgeLLMError) as caught:
        convert_adapter(tmp_path, llama[1], tmp_path / "a.gguf")
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "a.gguf").exists()


@pytest.mark.parametrize(
    ("names", "error", "said"),
    [
        ([f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"], UnsupportedModelError, "do not fit blk.0.attn_q.weight"),
        ([f"{Q}.lora_A.weight"], CorruptFileError, "missing"),
        ([f"{Q}.lora_magnitude_vector"], UnsupportedModelError, "DoRA"),
        (["base_model.model.model.embed_tokens.lora_embedding_A"], UnsupportedModelError, "embeddings"),
        ([Q.replace("q_proj", "x_proj") + f".lora_{side}.weight" for side in "AB"], UnsupportedModelError, "x_proj"),
        ([Q.replace(".0.", ".99.") + f".lora_{side}.weight" for side in "AB"], UnsupportedModelError, "no blk.99"),
        ([], CorruptFileError, "empty"),
    ],
)
def test_tensors_that_do_not_fit(
    names: list[str],
    error: type[EdgeLLMError],
    said: str,
    llama: tuple[Path, Path, RandomAdapter, Path],
    tmp_path: Path,
) -> None:
    write_adapter(tmp_path, dict.fromkeys(names, ("F32", MATRIX)))
    with pytest.raises(error, match=said):
        convert_adapter(tmp_path, llama[1], tmp_path / "a.gguf")


def test_files_that_do_not_fit(
    llama: tuple[Path, Path, RandomAdapter, Path], converted_qwen2: Path, tmp_path: Path
) -> None:
    _, base, adapter, path = llama
    for wrong, said in ((base, "is a model"), (adapter.folder, "edgellm convert"), (tmp_path / "no.gguf", "no file")):
        with pytest.raises(EdgeLLMError, match=said):
            LLM.load(base, adapters=[Adapter(wrong)])
    with pytest.raises(UnsupportedModelError, match=r"'llama'.*'qwen2'"):
        LLM.load(converted_qwen2, adapters=[Adapter(path)])
    with pytest.raises(InvalidSettingError, match="two adapters"):
        LLM.load(base, adapters=[Adapter(path), Adapter(path)])
    with pytest.raises(InvalidSettingError, match="scale"):
        Adapter(path, scale=float("inf"))
    with pytest.raises(EdgeLLMError, match="exists"):
        merge(base, [Adapter(path)], path)


@pytest.fixture(scope="module")
def converted_qwen2(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gguf(shared / "fixtures" / "qwen2", tmp_path_factory.mktemp("qwen2") / "qwen2.gguf")


def test_commands(
    llama: tuple[Path, Path, RandomAdapter, Path], tmp_path: Path, run_command: Callable[..., Any]
) -> None:
    _, base, adapter, _ = llama
    asked = run_command("convert", adapter.folder, "-o", tmp_path / "no.gguf")
    assert asked.exit_code == 2 and "--base" in asked.output
    done = run_command("convert", adapter.folder, "--base", base, "-o", tmp_path / "a.gguf")
    assert done.exit_code == 0, done.output
    done = run_command("merge", base, f"{tmp_path / 'a.gguf'}:0.5", "-o", tmp_path / "m.gguf")
    assert done.exit_code == 0, done.output
    texts = []
    options = ("--prompt", "he the", "--max-tokens", 8, "--temperature", 0, "--backend", "reference", "--json")
    for more in ((tmp_path / "m.gguf",), (base, "--lora", f"{tmp_path / 'a.gguf'}:0.5"), (base,)):
        done = run_command("generate", *more, *options)
        assert done.exit_code == 0, done.output
        texts.append(done.stdout.split('"ids": ')[1].split("]")[0])
    assert texts[0] == texts[1] != texts[2]


@pytest.fixture
def run_command() -> Callable[..., Any]:
    from click.testing import CliRunner

    from edgellm.cli.main import edgellm

    return lambda *arguments: CliRunner().invoke(edgellm, [str(argument) for argument in arguments])
