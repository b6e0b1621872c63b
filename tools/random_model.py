"""Write a random model of a known shape, to learn how fast and how large it will be before downloading one.

    python -m edgellm.tools.random_model llama-1b.gguf --shape llama-1b --type Q4_K_M

The file has the architecture ``llama``, random weights whose logits stay finite, and a vocabulary of bytes filled up to
the shape's size, so that edgellm and llama.cpp load and run it; what it writes is noise. No more than some megabytes
are in memory at a time.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import click
import numpy as np

from edgellm.errors import EdgeLLMError, InvalidSettingError
from edgellm.gguf import TensorType
from edgellm.memory import format_bytes
from edgellm.tools.random_blocks import FLOATS, TYPES, random_rows

Progress = Callable[[int, int], None]

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("Ġ t", "h e", "Ġt he", "i n", "Ġ a", "r e")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MIXES = {"Q4_K_M": "Q4_K", "Q5_K_M": "Q5_K"}
"""Mixtures of llama.cpp's quantizer: the type of most matrices; attn_v and ffn_down of some layers are Q6_K."""

# What llama.cpp's quantizer takes where a row is no multiple of 256.
_SMALL_BLOCKS = {
    "Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "IQ4_XS": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
    "TQ1_0": "Q4_0", "TQ2_0": "Q4_0",
}  # fmt: skip
_FILE_TYPES = {"F32": "ALL_F32", "Q3_K": "MOSTLY_Q3_K_M", "Q4_K": "MOSTLY_Q4_K_S", "Q5_K": "MOSTLY_Q5_K_S"}
_SPARE_BYTES = 64 << 20


def _known_tokens() -> list[str]:
    """Special tokens, all bytes in GPT-2's printable stand-ins, and the products of ``MERGES``."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    characters = [chr(byte if byte in printable else next(others)) for byte in range(256)]
    return [*SPECIAL_TOKENS, *characters, *(merge.replace(" ", "") for merge in MERGES)]


@dataclass(frozen=True)
class Shape:
    """Sizes of a model of the Llama family, all in values or counts; ``tied``: the embedding is the output matrix."""

    layers: int
    width: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    rope_base: float = 10000.0
    tied: bool = True

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InvalidSettingError: one is not positive, or they do not go together.
        """
        for name, value in asdict(self).items():
            if name != "tied" and not 0 < value <= 1 << 24:
                raise InvalidSettingError(f"{name} is {value}", "give a number from 1 to 16 million")
        if self.heads % self.kv_heads:
            raise InvalidSettingError(f"{self.heads} heads cannot share {self.kv_heads} key/value heads evenly")
        if self.head_dim % 2:
            raise InvalidSettingError(f"head_dim is {self.head_dim}", "rotary embedding needs an even number")
        for name in ("width", "feed_forward"):
            if getattr(self, name) % 32:
                raise InvalidSettingError(f"{name} is {getattr(self, name)}", "give a multiple of 32")
        if self.heads * self.head_dim % 32:
            raise InvalidSettingError(f"{self.heads} heads of {self.head_dim}", "give a multiple of 32 together")
        smallest = len(_known_tokens())
        if self.vocabulary < smallest:
            raise InvalidSettingError(f"vocabulary is {self.vocabulary}", f"give at least {smallest}")


SHAPES = {
    "smollm2-135m": Shape(30, 576, 1536, 9, 3, 64, 49152, 8192, 100000.0),
    "smollm2-360m": Shape(32, 960, 2560, 15, 5, 64, 49152, 8192, 100000.0),
    "smollm2-1.7b": Shape(24, 2048, 8192, 32, 32, 64, 49152, 8192, 130000.0),
    "tinyllama-1.1b": Shape(22, 2048, 5632, 32, 4, 64, 32000, 2048, tied=False),
    "llama-1b": Shape(16, 2048, 8192, 32, 8, 64, 128256, 131072, 500000.0),
    "llama-3b": Shape(28, 3072, 8192, 24, 8, 128, 128256, 131072, 500000.0),
    "llama-8b": Shape(32, 4096, 14336, 32, 8, 128, 128256, 131072, 500000.0, tied=False),
    "mistral-7b": Shape(32, 4096, 14336, 32, 8, 128, 32768, 32768, 1000000.0, tied=False),
    "bitnet-2b": Shape(30, 2560, 6912, 20, 5, 128, 128256, 4096, 500000.0),
}
"""Shapes of published models: SmolLM2, TinyLlama, Llama 3.2 and 3.1, Mistral v0.3, BitNet b1.58 2B4T."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of the file to be: name, NumPy shape, ggml type."""

    name: str
    shape: tuple[int, ...]
    kind: str

    @property
    def size_bytes(self) -> int:
        """Without padding."""
        kind = TensorType[self.kind]
        return int(np.prod(self.shape)) // kind.block_size * kind.block_bytes


def write_random_model(
    path: Path,
    shape: Shape,
    kind: str = "Q4_0",
    embedding_kind: str | None = None,
    seed: int = 0,
    force: bool = False,
    progress: Progress | None = None,
) -> int:
    """Write a model with random weights; equal arguments give equal files.

    Args:
        path: the file; it appears when it is complete.
        shape: sizes of the model.
        kind: type of the matrices: one of ``TYPES`` or of ``MIXES``.
        embedding_kind: type of the output matrix, which is the embedding where these are one; by default what
            llama.cpp's quantizer takes: Q6_K, or Q8_0 for Q8_0, or the floating-point type itself.
        seed: of the random numbers.
        force: replace an existing file.
        progress: called with bytes written and bytes in all.

    Returns:
        The file's size in bytes.

    Raises:
        InvalidSettingError: the type is not known.
        EdgeLLMError: the file exists, there is no such folder, or the disk has too little room.
    """
    tensors = list(model_tensors(shape, kind, embedding_kind))
    if not path.parent.is_dir():
        raise EdgeLLMError(f"there is no folder {path.parent}")
    _refuse_existing(path, force)
    total = sum(tensor.size_bytes for tensor in tensors)
    free = shutil.disk_usage(path.parent).free
    if free < total + _SPARE_BYTES:
        raise EdgeLLMError(
            f"the model takes {format_bytes(total)}, {format_bytes(free)} are free in {path.parent}",
            "free some, choose another folder, or fewer --layers",
        )
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        _write(temporary, shape, kind, tensors, seed, progress)
        size = temporary.stat().st_size
        _refuse_existing(path, force)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return size


def _refuse_existing(path: Path, force: bool) -> None:
    if path.is_dir() or (path.exists() and not force):
        raise EdgeLLMError(f"{path} exists already", "choose another name, or replace it with --force")


def model_tensors(shape: Shape, kind: str, embedding_kind: str | None = None) -> Iterator[Tensor]:
    """All tensors of a model; see ``write_random_model``."""
    for given in (kind, embedding_kind):
        if given is not None and given not in TYPES and (given not in MIXES or given is embedding_kind):
            known = ", ".join([*TYPES, *(MIXES if given is kind else ())])
            raise InvalidSettingError(f"type {given!r} is not known", f"known: {known}")
    base = MIXES.get(kind, kind)
    head_kind = embedding_kind or (base if base in (*FLOATS, "Q8_0") else "Q6_K")

    def matrix(name: str, rows: int, columns: int, wanted: str) -> Tensor:
        return Tensor(f"{name}.weight", (rows, columns), _fitting(wanted, columns))

    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield matrix("token_embd", shape.vocabulary, shape.width, head_kind if shape.tied else base)
    yield Tensor("output_norm.weight", (shape.width,), "F32")
    if not shape.tied:
        yield matrix("output", shape.vocabulary, shape.width, head_kind)
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        finer = "Q6_K" if kind in MIXES and _is_sensitive(layer, shape.layers) else base
        yield Tensor(f"{block}.attn_norm.weight", (shape.width,), "F32")
        yield matrix(f"{block}.attn_q", queries, shape.width, base)
        yield matrix(f"{block}.attn_k", keys, shape.width, base)
        yield matrix(f"{block}.attn_v", keys, shape.width, finer)
        yield matrix(f"{block}.attn_output", shape.width, queries, base)
        yield Tensor(f"{block}.ffn_norm.weight", (shape.width,), "F32")
        yield matrix(f"{block}.ffn_gate", shape.feed_forward, shape.width, base)
        yield matrix(f"{block}.ffn_up", shape.feed_forward, shape.width, base)
        yield matrix(f"{block}.ffn_down", shape.width, shape.feed_forward, finer)


def _is_sensitive(layer: int, layers: int) -> bool:
    """Layers to which the mixtures give more bits: the first and last eighth, and every third between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _fitting(kind: str, columns: int) -> str:
    """The type itself, or one of about its size whose blocks fill the row."""
    return kind if columns % TensorType[kind].block_size == 0 else _SMALL_BLOCKS[kind]


class _RandomData:
    """Stands for a tensor's array where the writer wants one: makes its bytes as they are written."""

    def __init__(self, tensor: Tensor, generator: np.random.Generator, advance: Callable[[int], None]) -> None:
        self.nbytes = tensor.size_bytes
        self._tensor, self._generator, self._advance = tensor, generator, advance

    def tofile(self, file: IO[bytes]) -> None:
        if len(self._tensor.shape) == 1:  # the weight of a norm
            noise = self._generator.standard_normal(self._tensor.shape, np.float32)
            pieces = iter([(1 + np.float32(0.05) * noise).view(np.uint8)])
        else:
            rows, columns = self._tensor.shape
            # Rows of length 1 on average: activations and logits stay around 1 from layer to layer.
            pieces = random_rows(self._tensor.kind, rows, columns, columns**-0.5, self._generator)
        for piece in pieces:
            file.write(piece.data)
            self._advance(piece.nbytes)


def _write(path: Path, shape: Shape, kind: str, tensors: list[Tensor], seed: int, progress: Progress | None) -> None:
    import gguf

    writer: Any = gguf.GGUFWriter(path, "llama")
    _add_settings(writer, shape, kind)
    _add_vocabulary(writer, shape.vocabulary)
    for tensor in tensors:
        tensor_type = gguf.GGMLQuantizationType[tensor.kind]
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.size_bytes, tensor_type)
    total, written = sum(tensor.size_bytes for tensor in tensors), 0

    def advance(count: int) -> None:
        nonlocal written
        written += count
        if progress is not None:
            progress(written, total)

    generator = np.random.default_rng(seed)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            writer.write_tensor_data(_RandomData(tensor, generator, advance))
        for file in writer.fout:
            file.flush()
            os.fsync(file.fileno())
    finally:
        writer.close()


def _add_settings(writer: Any, shape: Shape, kind: str) -> None:
    import gguf

    writer.add_name(f"Random {kind} model of width {shape.width} with {shape.layers} layers")
    writer.add_file_type(int(gguf.LlamaFileType[_FILE_TYPES.get(kind, f"MOSTLY_{kind}")]))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocabulary)


def _add_vocabulary(writer: Any, size: int) -> None:
    import gguf

    known = _known_tokens()
    kinds = [gguf.TokenType.CONTROL] * len(SPECIAL_TOKENS) + [gguf.TokenType.NORMAL] * (len(known) - 3)
    unused = [f"<unused{number}>" for number in range(size - len(known))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(known + unused)
    writer.add_token_types([int(kind) for kind in kinds] + [int(gguf.TokenType.UNUSED)] * len(unused))
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _size_option(name: str, what: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(f"--{name}", type=click.IntRange(min=1), help=f"{what}, instead of the shape's.")


@click.command()
@click.argument("path", type=click.Path(path_type=Path), metavar="OUT.gguf")
@click.option("--shape", type=click.Choice(list(SHAPES)), required=True, help="Sizes of which published model.")
@click.option("--type", "kind", default="Q4_0", show_default=True, help=f"{', '.join([*TYPES, *MIXES])}.")
@click.option("--embedding-type", help="Type of the output matrix (and embedding, if one); by default mostly Q6_K.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--force", is_flag=True, help="Replace an existing file.")
@_size_option("layers", "Layers")
@_size_option("width", "Values in a row between layers")
@_size_option("feed-forward", "Width of the feed-forward part")
@_size_option("heads", "Query heads")
@_size_option("kv-heads", "Key/value heads")
@_size_option("head-dim", "Values in a head")
@_size_option("vocabulary", "Tokens")
@_size_option("context", "Most tokens of a sequence")
def main(
    path: Path,
    shape: str,
    kind: str,
    embedding_type: str | None,
    seed: int,
    force: bool,
    layers: int | None,
    width: int | None,
    feed_forward: int | None,
    heads: int | None,
    kv_heads: int | None,
    head_dim: int | None,
    vocabulary: int | None,
    context: int | None,
) -> None:
    """Write a random model of a known shape to OUT.gguf."""
    given: dict[str, Any] = {
        "layers": layers,
        "width": width,
        "feed_forward": feed_forward,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "vocabulary": vocabulary,
        "context": context,
    }
    try:
        changed = replace(SHAPES[shape], **{name: size for name, size in given.items() if size})
        with ExitStack() as stack:
            bars: list[Any] = []

            def show(done: int, total: int) -> None:
                if not bars:
                    bars.append(stack.enter_context(click.progressbar(length=total, label="writing", file=sys.stderr)))
                bars[0].update(done - bars[0].pos)

            size = write_random_model(path, changed, kind, embedding_type, seed, force, show)
    except EdgeLLMError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"cannot write {path}: {error.strerror or error}") from error
    click.echo(f"{path} ({format_bytes(size)})")


if __name__ == "__main__":
    main()
