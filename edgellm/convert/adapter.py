"""From a LoRA adapter in Hugging Face's format (peft) to a GGUF file as llama.cpp writes it.

The matrices keep the orientation that peft stores: A (rank, input width), B (output width, rank). Where the conversion
of the base model reorders rows of a weight, the rows of its B are reordered likewise.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgellm.convert.builder import Key
from edgellm.convert.checkpoint import open_checkpoint, read_json
from edgellm.convert.common import ATTENTION, GATED_FEED_FORWARD
from edgellm.convert.config import Config
from edgellm.convert.conversion import FILE_TYPES, Converted, describe, output_path
from edgellm.convert.encode import FLOATS, to_float32
from edgellm.convert.safetensors import SafetensorsFile, open_safetensors, shown
from edgellm.convert.settings import ConvertSettings
from edgellm.convert.tensors import Array, LazyTensor, permuted_heads
from edgellm.convert.writer import Planned, new_file, refuse_existing, write_file
from edgellm.errors import CorruptFileError, InvalidSettingError, ModelNotFoundError, UnsupportedModelError
from edgellm.gguf import TensorType, open_gguf
from edgellm.lora import A_ENDING, B_ENDING

Progress = Callable[[str, int, int], None]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
NEIGHBOURS = ("llama", "granite", "smollm3")
"""Architectures whose files have the rows of q and k reordered: see ``common.neighbours``."""

_TYPES = ("auto", "f32", "f16", "bf16", "q8_0")
_NAMES = {
    **ATTENTION,
    **GATED_FEED_FORWARD,
    "self_attn.dense": "attn_output",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
    "self_attn.qkv_proj": "attn_qkv",
    "mlp.gate_up_proj": "ffn_up",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "mlp.gate": "ffn_gate_inp",
    "mlp.router": "ffn_gate_inp",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    **{f"mlp.{part}.{kind}_proj": f"ffn_{kind}_shexp" for part in ("shared_expert", "shared_experts")
       for kind in ("gate", "up", "down")},
}  # fmt: skip
"""Modules of a block to the weights of a file, of all families together: no name means two things."""

_MODULE = re.compile(r"(?:.+\.)?(?:layers|h)\.(?P<layer>\d{1,4})\.(?P<name>.+)")
_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_STARTS_ELSEWHERE = ("pissa", "olora", "corda", "loftq", "eva-base")
"""Initializations that change the base model's own weights."""
_PLAIN_PATTERN = re.compile(r"[A-Za-z0-9_.]+")


@dataclass(frozen=True)
class _Base:
    """What must be known of the model that an adapter is for: shapes of its weights, and how many heads it has."""

    architecture: str
    shapes: Mapping[str, tuple[int, ...]]
    heads: int
    kv_heads: int


def is_adapter(source: str | os.PathLike[str]) -> bool:
    """Whether a folder holds an adapter in Hugging Face's format."""
    return (Path(source) / CONFIG).is_file()


def convert_adapter(
    source: str | os.PathLike[str],
    base: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    settings: ConvertSettings | None = None,
    progress: Progress | None = None,
) -> Converted:
    """Convert a LoRA adapter into a GGUF file.

    Args:
        source: the folder with adapter_config.json and adapter_model.safetensors.
        base: the model it is for: a GGUF file, or a folder in Hugging Face's format (its weights are not read).
        output: the file to write, or a folder for it; by default ``NAME-TYPE.gguf`` in the current folder.
        settings: type of the matrices and so on; "auto" keeps the stored one.
        progress: told how far it is.

    Raises:
        ModelNotFoundError: there is no such folder or base.
        CorruptFileError: a file breaks the rules of its format, or a matrix is missing.
        UnsupportedModelError: another kind of adapter than plain LoRA, or not for this base.
        EdgeLLMError: the file exists, or cannot be written.
    """
    settings = settings or ConvertSettings()
    if settings.type not in _TYPES:
        raise InvalidSettingError(f"an adapter cannot have the type {settings.type}", f"known: {', '.join(_TYPES)}")
    began, folder = time.monotonic(), Path(source)
    model, config = _describe_base(Path(base)), _Settings(Config(read_json(folder, CONFIG), CONFIG))
    with _open_weights(folder) as file:
        pairs = _pairs(file)
        stored = next(iter(pairs.values()))["A"].kind
        kind = settings.type if settings.type != "auto" else {"F64": "f32"}.get(stored, stored.lower())
        planned = [plan for module, pair in pairs.items() for plan in _plan(module, pair, config, model, kind)]
        _refuse_twice(planned)
        path = output_path(output, folder, settings, kind)
        refuse_existing(path, settings.force)
        report = None if progress is None else lambda done, total: progress("convert", done, total)
        with new_file(path, sum(tensor.size_bytes for tensor in planned), settings.force) as temporary:
            keys = _keys(folder, config, settings, kind)
            size = write_file(temporary, model.architecture, keys, planned, settings.threads or 1, report)
    count = sum(math.prod(tensor.shape) for tensor in planned)
    return Converted(
        path, model.architecture, kind, len(planned), count, size, time.monotonic() - began, tuple(config.notices)
    )


def _keys(folder: Path, config: _Settings, settings: ConvertSettings, kind: str) -> dict[str, Key]:
    name = settings.name or folder.resolve().name.replace("-", " ").replace("_", " ")
    return {
        "general.type": Key("adapter", "string"),
        "general.name": Key(name, "string"),
        "general.file_type": Key(FILE_TYPES[kind], "u32"),
        "general.quantization_version": Key(2, "u32"),
        "adapter.type": Key("lora", "string"),
        "adapter.lora.alpha": Key(config.alpha, "f32"),
    }


class _Settings:
    """What adapter_config.json says: refused where a GGUF file cannot hold it, else the scales of all modules."""

    def __init__(self, config: Config) -> None:
        self.notices: list[str] = []
        config.require("peft_type", "LORA")
        config.require("bias", "none")
        for name in ("use_dora", "lora_bias", "use_qalora", "use_bdlora"):
            config.require(name, False)
        for name in (
            "modules_to_save",
            "layer_replication",
            "trainable_token_indices",
            "target_parameters",
            "alora_invocation_tokens",
            "arrow_config",
            "megatron_config",
        ):
            if config.get(name):
                raise UnsupportedModelError(f"adapters with {name} cannot be written to a GGUF file")
        start = config.get("init_lora_weights")
        if isinstance(start, str) and start.lower().startswith(_STARTS_ELSEWHERE):
            raise UnsupportedModelError(
                f"the adapter was trained with init_lora_weights = {shown(start)}, on changed weights of the base",
                "save it with path_initial_model_for_weight_conversion, which makes it a plain one",
            )
        self._rank = config.integer("r")
        self._alpha = config.real("lora_alpha")
        if self._alpha <= 0:
            raise UnsupportedModelError(f"{CONFIG}: lora_alpha is {self._alpha}, which means nothing to a GGUF file")
        self._by_root = config.flag("use_rslora", False)
        self._alphas = _pattern(config, "alpha_pattern")

    def _scale(self, alpha: float, rank: int) -> float:
        return alpha / (math.sqrt(rank) if self._by_root else rank)

    @property
    def alpha(self) -> float:
        """The file's alpha, by which a reader multiplies after dividing by the rank of each pair."""
        return self._scale(self._alpha, self._rank) * self._rank

    def factor(self, module: str, rank: int) -> float:
        """What B must be multiplied by, so that a reader comes to the right scale for this module."""
        own = next((value for name, value in self._alphas.items() if f".{module}".endswith(f".{name}")), self._alpha)
        return self._scale(own, rank) * rank / self.alpha


def _pattern(config: Config, name: str) -> dict[str, float]:
    """Ends of modules' names, to numbers; regular expressions are refused: they can run for ever."""
    part = config.part(name)
    for pattern in part.values:
        if not _PLAIN_PATTERN.fullmatch(pattern):
            raise UnsupportedModelError(f"{name} has the regular expression {shown(pattern)}", "name modules plainly")
    return {pattern: part.real(pattern) for pattern in part.values}


@contextmanager
def _open_weights(folder: Path) -> Iterator[SafetensorsFile]:
    path = folder / WEIGHTS
    if not path.is_file():
        if (folder / "adapter_model.bin").is_file():
            raise UnsupportedModelError(
                "the weights in adapter_model.bin are pickled, and reading a pickle can run any program",
                "save the adapter as safetensors: save_pretrained(folder, safe_serialization=True)",
            )
        raise ModelNotFoundError(f"{folder} has no {WEIGHTS}", "fetch it too")
    with open_safetensors([path]) as files:
        yield files[0]


def _pairs(file: SafetensorsFile) -> dict[str, dict[str, LazyTensor]]:
    """The module's name to its A and B, in the order of the names."""
    pairs: dict[str, dict[str, LazyTensor]] = {}
    for name, stored in sorted(file.tensors.items()):
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise UnsupportedModelError(
                f"tensor {shown(name)} is no part of a plain LoRA adapter of linear layers",
                "embeddings, biases, magnitudes (DoRA) and modules saved whole cannot be converted",
            )
        if len(stored.shape) != 2 or 0 in stored.shape or stored.kind not in FLOATS:
            raise UnsupportedModelError(f"tensor {shown(name)} is {stored.kind} of {stored.shape}, no matrix of floats")

        def load(start: int, stop: int, stored: Any = stored) -> Array:
            return file.read(stored, start, stop)

        pairs.setdefault(match["module"], {})[match["side"]] = LazyTensor(stored.shape, stored.kind, load)
    for module, pair in pairs.items():
        if pair.keys() != {"A", "B"}:
            raise CorruptFileError(f"one of the two matrices for {shown(module)} is missing", "fetch the adapter again")
    if not pairs:
        raise CorruptFileError(f"{WEIGHTS} is empty", "fetch the adapter again")
    return pairs


def _plan(
    module: str, pair: dict[str, LazyTensor], config: _Settings, base: _Base, kind: str
) -> tuple[Planned, Planned]:
    """The two tensors for a module."""
    name, (a, b) = _weight_name(module), (pair["A"], pair["B"])
    shape = base.shapes.get(name)
    if shape is None:
        hint = " (the model has no output layer of its own, but its embedding)" if name == "output.weight" else ""
        raise UnsupportedModelError(f"the adapter changes {shown(module)}, the base has no {name}{hint}", "see --base")
    if (b.shape[0], a.shape[1]) != shape or a.shape[0] != b.shape[1]:
        raise UnsupportedModelError(
            f"the matrices for {shown(module)}, {b.shape} and {a.shape}, do not fit {name} of {shape}",
            "name the model that the adapter was made for with --base",
        )
    factor = config.factor(module, a.shape[0])
    if not math.isclose(factor, 1.0, rel_tol=1e-9):
        b = _times(b, factor)
    if base.architecture in NEIGHBOURS and name.endswith((".attn_q.weight", ".attn_k.weight")):
        b = permuted_heads(b, base.heads if name.endswith("q.weight") else base.kv_heads)
    return Planned(name + A_ENDING, a, _type(a, kind)), Planned(name + B_ENDING, b, _type(b, kind))


def _type(tensor: LazyTensor, kind: str) -> TensorType:
    wanted = TensorType[kind.upper()]
    return wanted if tensor.shape[-1] % wanted.block_size == 0 else TensorType.F16


def _times(tensor: LazyTensor, factor: float) -> LazyTensor:
    def load(start: int, stop: int) -> Array:
        return to_float32(tensor.load(start, stop), tensor.kind) * factor

    return LazyTensor(tensor.shape, "F32", load, tensor.step)


def _weight_name(module: str) -> str:
    if module == "lm_head":
        return "output.weight"
    match = _MODULE.fullmatch(module)
    new = None if match is None else _NAMES.get(match["name"])
    if match is None or new is None:
        known = "known are the linear layers of attention and feed-forward parts, but not those of experts"
        raise UnsupportedModelError(f"the adapter changes {shown(module)}, which cannot be converted", known)
    return f"blk.{int(match['layer'])}.{new}.weight"


def _refuse_twice(planned: list[Planned]) -> None:
    names = [tensor.name for tensor in planned]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise CorruptFileError(f"two modules of the adapter stand for {twice}")


def _describe_base(path: Path) -> _Base:
    """Raises as ``open_gguf`` and ``open_checkpoint`` do."""
    if path.is_dir():
        with open_checkpoint(path) as checkpoint:
            model = describe(checkpoint)
            shapes = {output.name: output.tensor.shape for output in model.outputs}
            heads = model.heads
            return _Base(model.architecture, shapes, heads, model.kv_heads)
    with open_gguf(path) as file:
        architecture = str(file.metadata.get("general.architecture"))
        values = Config(file.metadata, path.name)
        shapes = {name: info.shape for name, info in file.tensors.items()}
        if architecture not in NEIGHBOURS:
            return _Base(architecture, shapes, 0, 0)
        heads = values.integer(f"{architecture}.attention.head_count")
        return _Base(
            architecture, shapes, heads, values.integer(f"{architecture}.attention.head_count_kv", default=heads)
        )
