"""Which type each tensor gets: llama.cpp's rules, stated for single cases, and compared with llama.cpp itself."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.errors import InvalidSettingError
from edgellm.gguf import TensorInfo, TensorType, open_gguf
from edgellm.quantize import QuantizeSettings, quantize
from edgellm.quantize.mixtures import (
    MIXTURES,
    WEIGHT_TYPES,
    Model,
    Overrides,
    choose_types,
    find_mixture,
    is_quantized,
)

LAYER = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def tensor(name: str, *shape: int) -> TensorInfo:
    return TensorInfo(name, TensorType.F16, shape, 2 * shape[-1], 2 * shape[0] * shape[-1], 0)


def model_tensors(layers: int, columns: int = 256, output: bool = True) -> list[TensorInfo]:
    names = ["token_embd.weight", *(["output.weight"] if output else [])]
    names += [f"blk.{layer}.{part}.weight" for layer in range(layers) for part in LAYER]
    return [tensor(name, 64, columns) for name in names] + [tensor("output_norm.weight", columns)]


def types(
    mixture: str,
    layers: int = 16,
    columns: int = 256,
    output: bool = True,
    overrides: Overrides | None = None,
    architecture: str = "llama",
    heads_per_group: int = 1,
    experts: int = 0,
    importance: bool = False,
) -> dict[str, str]:
    model = Model(architecture, layers, heads_per_group, experts, layers, output, importance)
    chosen = choose_types(
        model_tensors(layers, columns, output), find_mixture(mixture), model, overrides or Overrides()
    )
    return {name.removesuffix(".weight"): kind.name for name, kind in chosen.items()}


def layers_with(chosen: dict[str, str], part: str, kind: str) -> list[int]:
    return [int(name.split(".")[1]) for name, own in chosen.items() if name.endswith(f".{part}") and own == kind]


def test_q4_k_m() -> None:
    """The first and last eighth of 16 layers and every third between, of values and of what leads down."""
    chosen = types("Q4_K_M")
    more = [0, 1, 4, 7, 10, 13, 14, 15]
    assert layers_with(chosen, "attn_v", "Q6_K") == layers_with(chosen, "ffn_down", "Q6_K") == more
    assert chosen["output"] == "Q6_K"
    assert chosen["token_embd"] == "Q4_K"
    assert {chosen[f"blk.{layer}.attn_q"] for layer in range(16)} == {"Q4_K"}
    assert chosen["output_norm"] == "F16"  # as it was


def test_others() -> None:
    assert types("Q4_0")["output"] == "Q6_K"
    assert types("Q8_0")["output"] == "Q8_0"
    assert types("Q4_K_M", output=False)["token_embd"] == "Q6_K"  # it is the output matrix as well
    assert types("TQ2_0")["token_embd"] == "Q4_K"
    chosen = types("Q2_K")
    assert chosen["blk.5.attn_v"] == chosen["blk.5.ffn_down"] == chosen["blk.5.attn_output"] == "Q3_K"
    assert types("Q2_K", heads_per_group=4)["blk.5.attn_v"] == "Q4_K"
    chosen = types("Q3_K_M")
    assert layers_with(chosen, "attn_v", "Q5_K") == [0, 1]
    assert layers_with(chosen, "ffn_down", "Q5_K") == [0]
    assert chosen["blk.9.attn_output"] == chosen["blk.9.ffn_down"] == "Q4_K"
    assert layers_with(types("Q4_K_S"), "ffn_down", "Q5_K") == [0, 1]
    assert layers_with(types("Q4_K_S"), "attn_v", "Q5_K") == [0, 1, 2, 3]
    assert layers_with(types("IQ4_XS"), "ffn_down", "Q5_K") == [0, 1]
    assert layers_with(types("IQ4_XS", importance=True), "ffn_down", "Q5_K") == []
    assert layers_with(types("Q4_0", importance=True), "ffn_down", "Q4_1") == [0, 1]
    assert types("Q4_K_M", experts=8)["blk.3.attn_k"] == "Q8_0"
    assert types("Q4_K_M", experts=8)["blk.3.attn_output"] == "Q5_K"
    assert types("Q3_K_L", architecture="falcon")["blk.3.ffn_down"] == "Q4_K"
    assert set(types("F16").values()) == {"F16"}


@pytest.mark.parametrize(
    ("mixture", "instead"),
    [("Q4_K_S", "Q5_0"), ("Q5_K_S", "Q5_1"), ("Q6_K", "Q8_0"), ("IQ4_XS", "IQ4_NL"), ("Q3_K_S", "Q4_0")],
)
def test_rows_that_are_no_whole_blocks(mixture: str, instead: str) -> None:
    assert types(mixture, columns=288)["blk.9.attn_q"] == instead
    assert types(mixture, columns=290)["blk.9.attn_q"] == "F16"
    assert types(mixture, columns=288)["output"] == "Q8_0"


def test_overrides() -> None:
    kinds = TensorType
    overrides = Overrides(kinds.Q8_0, kinds.F16, ((re.compile(r"blk\.[0-3]\.attn"), kinds.Q5_1),))
    chosen = types("Q4_K_M", overrides=overrides)
    assert (chosen["output"], chosen["token_embd"]) == ("Q8_0", "F16")
    assert (chosen["blk.2.attn_v"], chosen["blk.4.attn_v"]) == ("Q5_1", "Q6_K")
    assert set(types("Q4_K_M", overrides=Overrides(pure=True)).values()) == {"Q4_K", "F16"}


def test_names() -> None:
    assert find_mixture("q4_k").name == "Q4_K_M"
    with pytest.raises(InvalidSettingError, match="Q4_K_M"):
        find_mixture("Q4_K_X")
    for wrong in ({"output_type": "Q9"}, {"tensor_types": (("attn", "I8"),)}, {"tensor_types": (("(", "Q4_0"),)}):
        with pytest.raises(InvalidSettingError):
            QuantizeSettings("Q4_0", **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", ["output_norm.weight", "blk.0.ffn_gate_inp.weight", "blk.0.attn_q.bias", "position_embd.weight"]
)
def test_what_stays_as_it_is(name: str) -> None:
    assert not is_quantized(tensor(name, 64, 256))
    assert not is_quantized(tensor("blk.0.attn_q.weight", 1, 256))


@given(
    st.sampled_from(list(MIXTURES)),
    st.integers(1, 100),
    st.sampled_from([32, 256, 288, 100, 1536]),
    st.booleans(),
    st.sampled_from(["llama", "falcon", ""]),
    st.integers(0, 9),
    st.sampled_from([0, 1, 8, 64]),
    st.sampled_from([None, *WEIGHT_TYPES]),
)
def test_every_row_is_whole_blocks(
    mixture: str,
    layers: int,
    columns: int,
    output: bool,
    architecture: str,
    heads: int,
    experts: int,
    own: TensorType | None,
) -> None:
    overrides = Overrides(own, own, ((re.compile("ffn"), own),) if own else ())
    for kind in types(mixture, layers, columns, output, overrides, architecture, heads, experts).values():
        assert columns % TensorType[kind].block_size == 0


PROGRAM = """
import ctypes, json, sys
import llama_cpp

quiet = llama_cpp.llama_log_callback(lambda *_: None)
llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
for line in sys.stdin:
    source, target, file_type, pure = json.loads(line)
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.pure, parameters.nthread = file_type, pure, 2
    failed = llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(parameters))
    print(json.dumps(failed), flush=True)
"""


@pytest.mark.parametrize(
    "settings",
    [
        {"layers": 11, "width": 256, "feed_forward": 512},
        {"layers": 9, "width": 256, "feed_forward": 256, "heads": 8, "kv_heads": 1, "tied": False},
        {"layers": 5, "width": 288, "feed_forward": 768, "tied": False},
        {"architecture": "gemma3", "layers": 6, "width": 256, "feed_forward": 320},
    ],
)
def test_the_same_types_as_llamacpp(tiny_model: Callable[..., Path], tmp_path: Path, settings: dict[str, int]) -> None:
    default = Path.home() / ".cache" / "edgellm-peers" / "bin" / "python"
    python = os.environ.get("EDGELLM_PEERS_PYTHON") or str(default)
    if not Path(python).exists() or subprocess.run([python, "-c", "import llama_cpp"], capture_output=True).returncode:
        pytest.skip(f"no interpreter {python} with llama-cpp-python: see peers/setup of the shared material")
    source = tiny_model(**{"architecture": "llama", **settings})
    with subprocess.Popen([python, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer:
        assert peer.stdin is not None
        assert peer.stdout is not None
        for mixture in MIXTURES.values():
            target = tmp_path / f"{mixture.name}.gguf"
            peer.stdin.write(json.dumps([str(source), str(target), mixture.file_type, False]) + "\n")
            peer.stdin.flush()
            assert json.loads(peer.stdout.readline()) == 0
            planned = quantize(source, tmp_path / "own.gguf", QuantizeSettings(mixture.name), dry_run=True)
            with open_gguf(target) as made:
                theirs = {name: info.type.name for name, info in made.tensors.items()}
                assert {own.name: own.type for own in planned.tensors} == theirs, mixture.name
                assert planned.size_bytes == made.size_bytes
        peer.stdin.close()
