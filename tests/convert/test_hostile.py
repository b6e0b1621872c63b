"""Damaged and hostile checkpoints: each gives one line that names what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import read_safetensors, safetensors_bytes, write_json
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgellm.convert import ConvertSettings, convert
from edgellm.convert.safetensors import open_safetensors
from edgellm.errors import (
    CorruptFileError,
    EdgeLLMError,
    InvalidSettingError,
    ModelNotFoundError,
    UnsupportedModelError,
)


def _file(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def _entry(dtype: Any = "F32", shape: Any = (2,), place: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": place}


HEADERS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "0 bytes are too few"),
    "short": (b"\x08\0\0", "3 bytes are too few"),
    "length beyond the file": (_file({}, length=99), "says that its header takes 99 bytes"),
    "huge length": (_file({}, length=2**63), "says that its header takes 9223372036854775808 bytes"),
    "no JSON": (_file(b"{nonsense"), "is not valid JSON"),
    "no UTF-8": (_file(b'{"\xff": 1}'), "is not valid JSON"),
    "no object": (_file([1]), "is a JSON list"),
    "deep": (_file(b"[" * 100000), "is not valid JSON"),
    "long number": (_file(b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 8]}}'), "JSON"),
    "no entry": (_file({"a": 3}), "tensor a lacks dtype"),
    "no shape": (_file({"a": {"dtype": "F32", "data_offsets": [0, 8]}}), "tensor a lacks dtype, shape"),
    "unknown type": (_file({"a": _entry("Q4_0")}, bytes(8)), "tensor a has the unknown type Q4_0"),
    "type is no text": (_file({"a": _entry(7)}, bytes(8)), "tensor a has the unknown type 7"),
    "negative shape": (_file({"a": _entry(shape=(-2,))}, bytes(8)), "tensor a has no valid shape"),
    "fractional shape": (_file({"a": _entry(shape=(2.0,))}, bytes(8)), "tensor a has no valid shape"),
    "huge shape": (
        _file({"a": _entry(shape=(2**40, 2**40))}, bytes(8)),
        r"takes 4835703278458516698824704 bytes, not 8",
    ),
    "many dimensions": (_file({"a": _entry(shape=[1] * 99)}, bytes(8)), "tensor a has no valid shape"),
    "huge length of a dimension": (_file({"a": _entry(shape=(2**60,))}, bytes(8)), "tensor a has no valid shape"),
    "wrong size": (_file({"a": _entry(shape=(3,))}, bytes(8)), "takes 12 bytes, not 8"),
    "backwards": (_file({"a": _entry(place=(8, 0))}, bytes(8)), "tensor a lies at 8 to 0"),
    "out of range": (_file({"a": _entry(place=(0, 80), shape=(20,))}, bytes(8)), "lies at 0 to 80, but the data has 8"),
    "overlapping": (_file({"a": _entry(), "b": _entry(place=(4, 12))}, bytes(12)), "tensor b overlaps another"),
    "a gap": (
        _file({"a": _entry(), "b": _entry(place=(12, 20))}, bytes(20)),
        "tensor b leaves 4 bytes before it unused",
    ),
    "bytes left over": (_file({"a": _entry()}, bytes(12)), "its tensors take 8 bytes, but 12 follow"),
    "truncated": (_file({"a": _entry()}, bytes(4)), "lies at 0 to 8, but the data has 4"),
    "the same name twice": (
        _file(b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "a": {}}', bytes(1)),
        "its header has a twice",
    ),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers(name: str, tmp_path: Path) -> None:
    content, message = HEADERS[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CorruptFileError, match=message) as caught, open_safetensors([path]):
        pass
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@given(place=st.integers(0, 10**6), value=st.integers(0, 255))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_byte_gives_an_error_or_the_same_sizes(place: int, value: int, tmp_path: Path) -> None:
    tensors = {name: ("F32", np.ones((2, 3), np.float32)) for name in ("first", "second.weight")}
    content = bytearray(safetensors_bytes(tensors))
    content[place % len(content)] = value
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    try:
        with open_safetensors([path]) as files:
            for tensor in files[0].tensors.values():
                values = files[0].read(tensor, 0, tensor.shape[0] if tensor.shape else 1)
                assert values.nbytes == tensor.size_bytes
    except CorruptFileError as error:
        assert "\n" not in str(error)


@pytest.fixture
def checkpoint(shared: Path, tmp_path: Path) -> Path:
    """A copy of the llama fixture that may be changed."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(shared / "fixtures" / "llama" / name, folder / name)
    return folder


def _changed(name: str, **values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        write_json(path, {**json.loads(path.read_text()), **values})

    return change


def _tensors(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = read_safetensors(path)
        change(tensors)
        path.write_bytes(safetensors_bytes(tensors))

    return apply


def _remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _shards(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")


def _index(mapping: Any) -> Callable[[Path], None]:
    return lambda folder: write_json(folder / "model.safetensors.index.json", {"weight_map": mapping})


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _added(**values: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "tokenizer.json"
        tokenizer = json.loads(path.read_text())
        tokenizer["added_tokens"].append(values)
        write_json(path, tokenizer)

    return apply


def _merges(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["merges"][3] = ["a", "b", "c"]
    write_json(path, tokenizer)


ROPE = {"rope_theta": 1e4, "rope_type": "cubic", "factor": 2.0}
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"
CASES: dict[str, tuple[Callable[[Path], None], type[EdgeLLMError], str]] = {
    "no config": (_remove("config.json"), ModelNotFoundError, "has no config.json"),
    "config is no JSON": (
        lambda folder: (folder / "config.json").write_text("{"),
        CorruptFileError,
        "config.json is not",
    ),
    "no architecture": (_changed("config.json", architectures=None), UnsupportedModelError, "its model_type is llama"),
    "layers as text": (_changed("config.json", num_hidden_layers="3"), CorruptFileError, "num_hidden_layers is 3"),
    "layers without end": (
        _changed("config.json", num_hidden_layers=10**9),
        CorruptFileError,
        "num_hidden_layers is 1",
    ),
    "no layers": (_changed("config.json", num_hidden_layers=None), CorruptFileError, "has no num_hidden_layers"),
    "fewer layers": (
        _changed("config.json", num_hidden_layers=2),
        UnsupportedModelError,
        r"no tensor model\.layers\.2\.",
    ),
    "more layers": (
        _changed("config.json", num_hidden_layers=4),
        CorruptFileError,
        r"has no tensor model\.layers\.3\.",
    ),
    "epsilon is no number": (_changed("config.json", rms_norm_eps="x"), CorruptFileError, "rms_norm_eps is x"),
    "activation": (
        _changed("config.json", hidden_act="gelu"),
        UnsupportedModelError,
        "hidden_act = gelu.*known: 'silu'",
    ),
    "heads that do not fit": (
        _changed("config.json", num_attention_heads=7),
        CorruptFileError,
        "64 rows cannot be shared",
    ),
    "rope": (_changed("config.json", rope_parameters=ROPE), UnsupportedModelError, "rope_type 'cubic'.*known: default"),
    "a tensor is missing": (_tensors(lambda t: t.pop(Q_PROJ)), CorruptFileError, f"has no tensor {Q_PROJ}"),
    "a tensor is strange": (
        _tensors(lambda t: t.update({"model.layers.0.self_attn.w_proj.weight": ("F32", np.zeros(3, np.float32))})),
        UnsupportedModelError,
        r"have no tensor model\.layers\.0\.self_attn\.w_proj\.weight.*the nearest that is known: model",
    ),
    "a tensor of integers": (
        _tensors(lambda t: t.update({Q_PROJ: ("I64", np.zeros((64, 64), np.int64))})),
        UnsupportedModelError,
        "blk.1.attn_q.weight is stored as I64",
    ),
    "values too large for f16": (
        _tensors(lambda t: t.update({Q_PROJ: ("F32", np.full((64, 64), 1e6, np.float32))})),
        EdgeLLMError,
        "blk.1.attn_q.weight has values as large as 1e.06, f16 holds 65504.*bf16",
    ),
    "quantized": (
        _changed("config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        UnsupportedModelError,
        "quantized with gptq, which cannot be converted",
    ),
    "pickled": (_pickled, UnsupportedModelError, r"pytorch_model\.bin are pickled.*safetensors"),
    "no weights": (_remove("model.safetensors"), ModelNotFoundError, "has no model.safetensors"),
    "a shard is missing": (_shards, CorruptFileError, r"model-00002-of-00002\.safetensors is missing"),
    "the index names what is missing": (
        _index({Q_PROJ: "model.safetensors", "b": "other.safetensors"}),
        CorruptFileError,
        r"other\.safetensors is missing",
    ),
    "the index leads out of the folder": (
        _index({Q_PROJ: "../model.safetensors"}),
        CorruptFileError,
        "which is no valid file name",
    ),
    "the index names another tensor": (
        _index({Q_PROJ: "model.safetensors", "b": "model.safetensors"}),
        CorruptFileError,
        "tensor b is missing",
    ),
    "no tokenizer": (_remove("tokenizer.json"), CorruptFileError, "neither tokenizer.json nor"),
    "a token far away": (_added(id=10**12, content="x", special=True), CorruptFileError, "has the id 1000000000000"),
    "a token without an id": (_added(content="x"), CorruptFileError, "an added token has no id"),
    "a tensor of another shape": (
        _tensors(lambda t: t.update({"model.layers.2.mlp.up_proj.weight": ("F32", np.zeros((96, 64), np.float32))})),
        CorruptFileError,
        r"tensor blk\.2\.ffn_up\.weight has shape \(96, 64\)",
    ),
    "half a character": (
        _added(id=383, content="\ud800", special=True),
        CorruptFileError,
        r"the text .ud800, which is",
    ),
    "an empty tensor": (
        _tensors(lambda t: t.update({"lm_head.bias": ("F32", np.zeros(0, np.float32))})),
        CorruptFileError,
        r"tensor output\.bias would have the shape \(0,\)",
    ),
    "a token twice": (_added(id=383, content="he", special=False), CorruptFileError, "token he occurs twice"),
    "a merge of three": (_merges, CorruptFileError, "invalid merge"),
}


@pytest.mark.parametrize("name", CASES)
def test_checkpoints(name: str, checkpoint: Path) -> None:
    change, kind, message = CASES[name]
    change(checkpoint)
    output = checkpoint / "out.gguf"
    with pytest.raises(kind, match=message) as caught:
        convert(checkpoint, output, ConvertSettings(type="f16"))
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in checkpoint.iterdir() if "gguf" in path.name) == []


def test_a_file_or_nothing_instead_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="there is no folder"):
        convert(tmp_path / "absent")
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(ModelNotFoundError, match="is a file"):
        convert(tmp_path / "model.bin")


def test_settings_are_checked() -> None:
    with pytest.raises(InvalidSettingError, match="type 'q8' is not known; did you mean q8_0"):
        ConvertSettings(type="q8")
    with pytest.raises(InvalidSettingError, match="threads is 0"):
        ConvertSettings(threads=0)
