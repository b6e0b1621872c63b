"""Building graphs: what is described, and every way in which a file can be refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from changed_files import changed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgellm.errors import CorruptFileError, EdgeLLMError, InvalidSettingError, UnsupportedModelError
from edgellm.gguf import GGUFFile, open_gguf
from edgellm.graph import (
    Activation,
    Attention,
    CacheLayer,
    Embedding,
    Graph,
    Linear,
    Norm,
    Rope,
    Route,
    Scale,
    SelectRows,
    StackedLinear,
    Value,
    WeightedSum,
)
from edgellm.models import GraphBuilder, build_graph, known_architectures, registry

MakeModel = Callable[..., Path]


@pytest.fixture(scope="module")
def llama(tiny_model: MakeModel) -> Iterator[GGUFFile]:
    with open_gguf(tiny_model("llama")) as file:
        yield file


@pytest.fixture(scope="module")
def gemma3(tiny_model: MakeModel) -> Iterator[GGUFFile]:
    with open_gguf(tiny_model("gemma3", layers=7, window=40)) as file:
        yield file


def of_kind(graph: Graph, kind: type) -> list[Any]:
    return [operation for operation in graph.operations if isinstance(operation, kind)]


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "qwen2"])
def test_values_are_written_once_and_before_they_are_read(tiny_model: MakeModel, architecture: str) -> None:
    with open_gguf(tiny_model(architecture, layers=7, window=16, biases=architecture == "qwen2")) as file:
        graph = build_graph(file)
    written: set[str] = set()
    for operation in graph.operations:
        inputs = [field for name, field in vars(operation).items() if isinstance(field, Value) and name != "out"]
        assert {value.name for value in inputs} <= written
        assert operation.out.name not in written
        written.add(operation.out.name)
    assert graph.operations[-1].out == graph.logits
    assert graph.architecture == architecture


def test_llama(llama: GGUFFile) -> None:
    graph = build_graph(llama)
    assert (graph.vocabulary_size, graph.embedding_width, graph.context_length) == (271, 64, 256)
    assert [(layer.kv_heads, layer.key_dim, layer.value_dim, layer.window) for layer in graph.cache] == [
        (2, 16, 16, None)
    ] * 2
    assert all(rope.interleaved and len(rope.frequencies) == 8 for rope in of_kind(graph, Rope))
    assert [type(operation) for operation in graph.operations[-3:]] == [SelectRows, Norm, Linear]
    assert graph.operations[-1].weight == "token_embd.weight"  # tied


def test_a_head_of_its_own_is_used(tiny_model: MakeModel) -> None:
    with open_gguf(tiny_model("llama", tied=False)) as file:
        assert build_graph(file).operations[-1].weight == "output.weight"


def test_biases_are_used_where_there_are_some(tiny_model: MakeModel, llama: GGUFFile) -> None:
    assert {linear.bias for linear in of_kind(build_graph(llama), Linear)} == {None}
    with open_gguf(tiny_model("llama", biases=True)) as file:
        biases = [linear.bias for linear in of_kind(build_graph(file), Linear)]
    assert biases[:5] == ["blk.0.attn_q.bias", "blk.0.attn_k.bias", "blk.0.attn_v.bias", None, None]


def test_gemma3(gemma3: GGUFFile) -> None:
    graph = build_graph(gemma3)
    assert of_kind(graph, Embedding)[0].scale == 8.0
    attentions = of_kind(graph, Attention)
    assert [attention.window for attention in attentions] == [40] * 5 + [None] + [40]
    assert [layer.window for layer in graph.cache] == [40] * 5 + [None] + [40]
    assert {attention.scale for attention in attentions} == {0.25}
    keys = {"gemma3.rope.freq_base": 1e6, "gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 8.0}
    ropes = of_kind(build_graph(changed(gemma3, keys)), Rope)
    assert [rope.frequencies[0] for rope in ropes[::2]] == [1.0] * 5 + [0.125] + [1.0]
    assert [round(rope.frequencies[4], 6) for rope in ropes[8:11:2]] == [0.01, 0.000125]


def test_gemma3_pattern_and_window_from_the_file(gemma3: GGUFFile) -> None:
    def windows(**keys: Any) -> list[bool]:
        graph = build_graph(changed(gemma3, {f"gemma3.attention.{key}": value for key, value in keys.items()}))
        return [layer.window is not None for layer in graph.cache]

    assert windows(sliding_window_pattern=2) == [True, False, True, False, True, False, True]
    flags = [False, True, True, False, False, False, True]
    assert windows(sliding_window_pattern=np.array(flags)) == flags
    assert windows(sliding_window=0) == [False] * 7
    assert windows(sliding_window=None) == [False] * 7
    assert windows(sliding_window=256) == [False] * 7  # as long as the context: never reached


def test_gemma3_of_27b_scales_queries_by_width(tiny_model: MakeModel) -> None:
    with open_gguf(tiny_model("gemma3", layers=62, width=64, heads=2, kv_heads=1, feed_forward=32)) as file:
        assert of_kind(build_graph(file), Attention)[0].scale == pytest.approx(32**-0.5)


def test_unknown_architecture_is_named_with_the_nearest(llama: GGUFFile) -> None:
    with pytest.raises(UnsupportedModelError, match=r"'lama2' is not known; nearest: llama.*known: bitnet, .*gemma3"):
        build_graph(changed(llama, {"general.architecture": "lama2"}))
    with pytest.raises(UnsupportedModelError, match=r"'q{40}…' is not known; known: bitnet"):
        build_graph(changed(llama, {"general.architecture": "q" * 100_000}))


@pytest.mark.parametrize("name", [None, "", 7])
def test_a_file_without_architecture_is_refused(llama: GGUFFile, name: Any) -> None:
    with pytest.raises(CorruptFileError, match=r"general\.architecture"):
        build_graph(changed(llama, {"general.architecture": name}))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("block_count", None, "lacks the key llama.block_count"),
        ("block_count", 0, "llama.block_count is 0, expected 1 to 1024"),
        ("block_count", 2**31, "llama.block_count is 2147483648"),
        ("block_count", 3, r"blk\.2\..* is missing"),
        ("block_count", 1, r"does not use: blk\.1\."),
        ("embedding_length", "64", "llama.embedding_length must be a whole number, not a str"),
        ("embedding_length", 63, r"token_embd.weight has shape \(271, 64\), llama expects \(271, 63\)"),
        ("attention.head_count", -4, "attention.head_count is -4"),
        ("attention.head_count_kv", 3, "4 attention heads cannot be shared out to 3 key-value heads"),
        ("attention.head_count_kv", np.array([2, 2, 2]), "has 3 entries, expected one for each of 2 layers"),
        ("attention.head_count_kv", np.array([2, 0]), "head_count_kv is 0"),
        ("attention.key_length", 24, r"blk.0.attn_q.weight has shape \(64, 64\), llama expects \(96, 64\)"),
        ("attention.layer_norm_rms_epsilon", float("nan"), "layer_norm_rms_epsilon is nan"),
        ("attention.sliding_window", True, "sliding_window must be a whole number, not a bool"),
        ("context_length", 2**40, "context_length is 1099511627776"),
        ("feed_forward_length", None, "lacks the key llama.feed_forward_length"),
        ("rope.dimension_count", 18, "rope.dimension_count is 18, expected 2 to 16"),
        ("rope.dimension_count", 15, "rope.dimension_count is 15, expected an even number"),
        ("rope.freq_base", 0.0, "rope.freq_base is 0"),
        ("rope.freq_base", "large", "rope.freq_base must be a number"),
        ("rope.scaling.factor", 1e-9, "rotary scaling is out of range"),
        ("rope.scaling.type", 3, "rope.scaling.type must be a string"),
    ],
)
def test_a_damaged_key_is_named(llama: GGUFFile, key: str, value: Any, message: str) -> None:
    with pytest.raises((CorruptFileError, UnsupportedModelError), match=message) as caught:
        build_graph(changed(llama, {f"llama.{key}": value}))
    assert "\n" not in str(caught.value)


def test_heads_that_do_not_divide_the_width_need_a_key_length(llama: GGUFFile) -> None:
    with pytest.raises(CorruptFileError, match="an embedding of 64 cannot be shared out to 6 attention heads"):
        build_graph(changed(llama, {"llama.attention.head_count": 6, "llama.attention.key_length": None}))


@pytest.mark.parametrize("name", ["token_embd", "output_norm", "blk.0.attn_norm", "blk.1.ffn_down", "blk.1.attn_k"])
def test_a_missing_or_misshapen_tensor_is_named(llama: GGUFFile, name: str) -> None:
    with pytest.raises(CorruptFileError, match=f"tensor {name}.weight is missing"):
        build_graph(changed(llama, shapes={f"{name}.weight": None}))
    with pytest.raises(CorruptFileError, match=rf"tensor {name}.weight has shape \(3, 5, 7\)"):
        build_graph(changed(llama, shapes={f"{name}.weight": (3, 5, 7)}))


def test_tensors_that_would_be_left_out_are_named(llama: GGUFFile) -> None:
    with pytest.raises(
        UnsupportedModelError,
        match=r"1 tensors .* llama does not use: blk\.0\.attn_q_norm\.weight.*nearest that is used: blk\.0\.attn_",
    ):
        build_graph(changed(llama, shapes={"blk.0.attn_q_norm.weight": (16,)}))
    build_graph(changed(llama, shapes={"blk.0.attn_rot_embd": (8,)}))  # a table that is computed instead


@pytest.fixture(scope="module")
def mixture(llama: GGUFFile) -> GGUFFile:
    """A llama with six experts in each layer, of which two are chosen."""
    keys = {"llama.expert_count": 6, "llama.expert_used_count": 2, "llama.expert_feed_forward_length": 32}
    shapes: dict[str, tuple[int, ...] | None] = {}
    for layer in range(2):
        for name, shape in {"gate": (6, 32, 64), "up": (6, 32, 64), "down": (6, 64, 32)}.items():
            shapes[f"blk.{layer}.ffn_{name}.weight"] = None
            shapes[f"blk.{layer}.ffn_{name}_exps.weight"] = shape
        shapes[f"blk.{layer}.ffn_gate_inp.weight"] = (6, 64)
    return changed(llama, keys, shapes)  # type: ignore[return-value]


def test_experts(mixture: GGUFFile) -> None:
    graph = build_graph(mixture)
    route, down = of_kind(graph, Route)[0], of_kind(graph, StackedLinear)[2]
    assert (route.chosen, route.scores, route.normalize, route.scale, route.groups) == (2, "softmax", True, 1.0, 1)
    assert (down.parts, down.shared, down.x.width, down.out.width) == (2, False, 64, 128)
    steps = [type(operation) for operation in graph.operations if "exps" in operation.out.name]
    assert steps[:5] == [StackedLinear, StackedLinear, Activation, StackedLinear, WeightedSum]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"expert_used_count": 7}, "7 of 6 experts cannot be chosen"),
        ({"expert_used_count": None}, "lacks the key llama.expert_used_count"),
        ({"expert_count": 5}, r"ffn_gate_inp.weight has shape \(6, 64\), llama expects \(5, 64\)"),
        ({"expert_feed_forward_length": 33}, r"ffn_gate_exps.weight has shape"),
        ({"expert_group_count": 4}, "cannot be chosen from 1 of 4 groups"),
        ({"expert_group_count": 3, "expert_group_used_count": 4}, "from 4 of 3 groups"),
        ({"expert_group_count": 6, "expert_group_used_count": 1}, "2 of 6 experts cannot be chosen from 1 of 6 groups"),
        ({"expert_gating_func": 9}, "expert_gating_func 9 is not known"),
        ({"expert_weights_norm": 1}, "expert_weights_norm must be true or false"),
    ],
)
def test_damaged_keys_of_experts_are_named(mixture: GGUFFile, keys: dict[str, Any], message: str) -> None:
    with pytest.raises((CorruptFileError, UnsupportedModelError), match=message):
        build_graph(changed(mixture, {f"llama.{key}": value for key, value in keys.items()}))


def test_experts_in_tensors_of_their_own_are_refused_with_advice(mixture: GGUFFile) -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"keeps each expert in tensors of its own.*convert the model again"
    ):
        build_graph(changed(mixture, shapes={"blk.0.ffn_gate.0.weight": (32, 64)}))


def test_a_fused_matrix_is_used_part_by_part(llama: GGUFFile) -> None:
    shapes = {f"blk.0.attn_{letter}.weight": None for letter in "qkv"} | {"blk.0.attn_qkv.weight": (128, 64)}
    graph = build_graph(changed(llama, shapes=shapes))
    fused = [linear for linear in of_kind(graph, Linear) if linear.weight == "blk.0.attn_qkv.weight"]
    assert [(linear.rows, linear.out.width) for linear in fused] == [((0, 64), 64), ((64, 96), 32), ((96, 128), 32)]


def test_a_scale_of_a_whole_weight_multiplies_the_product(llama: GGUFFile) -> None:
    file = changed(llama, contents={"blk.0.attn_q.scale": np.array([0.5], np.float32)})
    assert [(op.x.name, op.factor) for op in of_kind(build_graph(file), Scale)] == [("blk.0.attn_q", 0.5)]
    with pytest.raises(UnsupportedModelError, match=r"blk\.0\.attn_q has a scale and a bias"):
        build_graph(changed(file, shapes={"blk.0.attn_q.bias": (64,)}))  # type: ignore[arg-type]


def test_longrope_factors_are_used_even_if_the_file_names_no_scaling(llama: GGUFFile) -> None:
    contents = {f"rope_factors_{n}.weight": np.full(8, f, np.float32) for n, f in (("short", 2.0), ("long", 8.0))}
    keys = {"llama.rope.scaling.original_context_length": 128, "llama.rope.scaling.attn_factor": 1.25}
    file = changed(llama, keys, contents=contents)
    for context_length, frequency in ((128, 0.5), (129, 0.125), (None, 0.125)):
        rope = of_kind(build_graph(file, context_length), Rope)[0]
        assert (rope.frequencies[0], rope.magnitude) == (frequency, 1.25)


def test_unknown_rope_scaling_is_named(llama: GGUFFile) -> None:
    with pytest.raises(UnsupportedModelError, match=r"rope scaling 'spiral' is not known; known: linear, yarn"):
        build_graph(changed(llama, {"llama.rope.scaling.type": "spiral"}))


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_frequency_tables_must_divide(llama: GGUFFile, value: float) -> None:
    with pytest.raises(CorruptFileError, match=r"rope_freqs\.weight"):
        build_graph(changed(llama, contents={"rope_freqs.weight": np.full(8, value, np.float32)}))


def test_context_length_is_the_models_own_or_less(llama: GGUFFile) -> None:
    assert build_graph(llama, 100).context_length == 100
    for length in (0, -1, 257):
        with pytest.raises(InvalidSettingError, match=f"a context of {length} tokens was asked for.* holds 256"):
            build_graph(llama, length)


KEYS = [
    "block_count",
    "embedding_length",
    "feed_forward_length",
    "context_length",
    "expert_count",
    "final_logit_softcapping",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.scale",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.freq_base_swa",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_ext_factor",
]
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, 2, 7, 16, 2**31 - 1, 2**63, -1]),
    st.integers(),
    st.floats(),
    st.sampled_from(["linear", "yarn", "longrope", "none", ""]),
    st.lists(st.integers(-1, 99), max_size=8).map(np.array),
    st.lists(st.floats(), max_size=8).map(np.array),
)


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keys=st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=4), length=st.none() | st.integers(1))
def test_any_keys_give_a_graph_or_a_clean_error(
    architecture: str, llama: GGUFFile, gemma3: GGUFFile, keys: dict[str, Any], length: int | None
) -> None:
    file = changed(llama if architecture == "llama" else gemma3, {f"{architecture}.{k}": v for k, v in keys.items()})
    try:
        graph = build_graph(file, length)
    except EdgeLLMError as error:
        assert "\n" not in str(error)
    else:
        numbers = [number for rope in of_kind(graph, Rope) for number in (*rope.frequencies, rope.magnitude)]
        assert np.isfinite(numbers).all()
        assert 1 <= graph.context_length < 2**31


def test_known_architectures() -> None:
    assert {"llama", "gemma3", "qwen2"} <= set(known_architectures())


def test_an_architecture_is_one_short_file() -> None:
    blocks = {"__init__", "registry", "parameters", "builder", "blocks", "rope", "speech_blocks"}
    for path in Path(registry.__file__).parent.glob("*.py"):
        most = 120 if path.stem in ("deepseek2", "whisper") else 60  # latent attention; an encoder and a decoder
        assert path.stem in blocks or len(path.read_text().splitlines()) < most, path.stem


def test_registering_a_name_twice_is_refused() -> None:
    known_architectures()
    with pytest.raises(ValueError, match="llama is registered twice"):
        registry.architecture("llama")(lambda model: model.embedding())


def test_a_new_architecture_needs_only_its_description(llama: GGUFFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_TABLE", dict(registry._TABLE))
    known_architectures()

    @registry.architecture("parallel-llama")
    def parallel(model: GraphBuilder) -> Value:
        rope = model.rope_table(interleaved=False)
        x = model.embedding()
        for layer in range(model.layers):
            attended = model.self_attention(model.norm(x, f"blk.{layer}.attn_norm"), layer, rope)
            fed = model.feed_forward(model.norm(x, f"blk.{layer}.ffn_norm"), layer, "relu_squared")
            x = model.add(x, model.add(attended, fed))
        return model.logits(x)

    keys = {key.replace("llama.", "parallel-llama."): value for key, value in llama.metadata.items()}
    graph = build_graph(changed(llama, keys | {"general.architecture": "parallel-llama"}))
    assert graph.architecture == "parallel-llama"
    assert len(graph.operations) == len(build_graph(llama).operations)
    assert graph.cache[0] == CacheLayer(2, 16, 16)
