"""Whisper (Radford et al. 2022): an encoder of log-mel frames and a decoder of text that attends to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgellm.errors import CorruptFileError, UnsupportedModelError
from edgellm.graph import CacheLayer, Graph, Value
from edgellm.models.speech_blocks import SpeechBuilder

if TYPE_CHECKING:
    from edgellm.gguf import GGUFFile

MOST_SOURCE_ROWS = 1 << 14


@dataclass(frozen=True)
class WhisperGraphs:
    """A whole model.

    Attributes:
        encoder: from log-mel frames (2 * source_length, mel_bins) to what each decoder layer keeps of them; its
            "logits" are the encoder's output (source_length, width).
        decoder: from tokens to logits.
        mel_bins: of a frame.
        alignment_heads: (layer, head) of the cross-attention that follows the speech.
    """

    encoder: Graph
    decoder: Graph
    mel_bins: int
    alignment_heads: tuple[tuple[int, int], ...]


def build_whisper(file: GGUFFile) -> WhisperGraphs:
    """Describe the model in ``file``; every weight that the graphs name exists and has the right shape.

    Raises:
        UnsupportedModelError: it is another kind of model, or has tensors that this version does not know.
        CorruptFileError: a key or tensor is missing, of the wrong kind or shape, or out of range.
    """
    name = file.metadata.get("general.architecture")
    if name != "whisper":
        raise UnsupportedModelError(
            f"{file.path.name} is not a speech model: its architecture is {str(name)[:40]!r}", "try tiny.en"
        )
    encoder, decoder = SpeechBuilder(file, "whisper.encoder"), SpeechBuilder(file, "whisper")
    for builder, which in ((encoder, "encoder"), (decoder, "decoder")):
        if builder.width % builder.heads[0]:
            raise CorruptFileError(f"the {which}'s width {builder.width} is not a multiple of its heads")
        if {*builder.heads, *builder.kv_heads} != {builder.heads[0]}:
            raise CorruptFileError(f"the {which}'s layers differ in their heads, or in those of keys and values")
    bins = encoder.parameters.integer("mel_bins", maximum=1024)
    if encoder.context_length > MOST_SOURCE_ROWS or decoder.context_length > MOST_SOURCE_ROWS:
        raise CorruptFileError(f"contexts of {encoder.context_length} and {decoder.context_length} are out of range")
    head = decoder.width // decoder.heads[0]
    source = (CacheLayer(decoder.heads[0], head, head),) * decoder.layers
    encoded = _describe_encoder(encoder, decoder, bins)
    logits = _describe_decoder(decoder)
    unused = [tensor for tensor in file.tensors if tensor not in encoder.used() | decoder.used()]
    if unused:
        raise UnsupportedModelError(f"the file has tensors that Whisper does not use: {unused[0][:60]}")
    length = encoder.context_length
    return WhisperGraphs(
        encoder.graph(encoded, source, length),
        decoder.graph(logits, source, length),
        bins,
        _alignment_heads(file.metadata.get("whisper.alignment_heads"), decoder.layers, decoder.heads[0]),
    )


def _describe_encoder(model: SpeechBuilder, decoder: SpeechBuilder, bins: int) -> Value:
    """Two convolutions, the second of every other row; blocks; and each decoder layer's keys and values."""
    x = model.convolution(model.input(bins), "enc.conv1", model.width, 1)
    x = model.convolution(x, "enc.conv2", model.width, 2)
    x = model.add(x, model.position_embedding("enc.position_embd"))
    for layer in range(model.layers):
        x = model.plain_block(x, f"enc.blk.{layer}", layer, causal=False)
        x = model.plain_feed_forward(x, f"enc.blk.{layer}")
    encoded = model.norm(x, "enc.output_norm", kind="layer")
    for layer in range(decoder.layers):
        k, v = (model.linear(encoded, f"blk.{layer}.cross_attn_{part}", decoder.width) for part in "kv")
        model.store_source(k, v, layer)
    return encoded


def _describe_decoder(model: SpeechBuilder) -> Value:
    x = model.add(model.scaled_embedding(), model.position_embedding())
    for layer in range(model.layers):
        block = f"blk.{layer}"
        x = model.plain_block(x, block, layer, causal=True)
        x = model.add(x, model.cross_attention(model.norm(x, f"{block}.cross_attn_norm", kind="layer"), layer))
        x = model.plain_feed_forward(x, block)
    return model.logits(x, kind="layer")


def _alignment_heads(listed: object, layers: int, heads: int) -> tuple[tuple[int, int], ...]:
    """Those of the file; where it has none, all heads of the second half of the layers, as openai-whisper does."""
    if listed is None:
        return tuple((layer, head) for layer in range(layers // 2, layers) for head in range(heads))
    numbers = listed.tolist() if isinstance(listed, np.ndarray) and listed.dtype.kind in "iu" else [-1]
    pairs = tuple(zip(numbers[::2], numbers[1::2], strict=False))
    if not pairs or len(numbers) % 2 or not all(0 <= layer < layers and 0 <= head < heads for layer, head in pairs):
        raise CorruptFileError("whisper.alignment_heads is no list of layers and heads of this model")
    return pairs
