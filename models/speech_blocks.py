"""The building blocks of encoder-decoder models: convolutions, attention without order, attention to a source."""

from __future__ import annotations

from dataclasses import replace

from edgellm.graph import Attention, CacheLayer, CrossAttention, Embedding, Graph, Input, StoreSource, Unfold, Value
from edgellm.models.blocks import GraphBuilder

_TAPS = 3


class SpeechBuilder(GraphBuilder):
    """Operations of encoder-decoder models."""

    def input(self, width: int) -> Value:
        """Rows that the step is given."""
        out = self._value("input", width)
        self._operations.append(Input(out))
        return out

    def scaled_embedding(self) -> Value:
        """Look the tokens up in a table that is the head's too; a file may have a factor for each of its columns."""
        out = self.embedding()
        table = self._operations[-1]
        if self.has("token_embd_scale.weight"):
            assert isinstance(table, Embedding)
            self._operations[-1] = replace(table, scales=self.tensor("token_embd_scale.weight", self.width))
        return out

    def convolution(self, x: Value, weight: str, width: int, stride: int) -> Value:
        """A convolution of three rows and GELU."""
        out = self._value(f"{x.name}.unfolded", _TAPS * x.width)
        self._operations.append(Unfold(out, x, _TAPS, stride))
        return self.activation("gelu", self.linear(out, weight, width))

    def whole_attention(self, q: Value, k: Value, v: Value, layer: int) -> Value:
        """Attention in which every row sees all rows."""
        out = self.attention(q, k, v, layer)
        causal = self._operations[-1]
        assert isinstance(causal, Attention)
        self._operations[-1] = replace(causal, causal=False)
        return out

    def store_source(self, k: Value, v: Value, layer: int) -> None:
        """Keep keys and values for the decoder."""
        self._operations.append(StoreSource(self._value(f"source.{layer}", k.width), k, v, layer))

    def cross_attention(self, x: Value, layer: int) -> Value:
        """Attention to the encoder's rows from projection to projection."""
        block, heads = f"blk.{layer}", self.heads[layer]
        q = self.linear(x, f"{block}.cross_attn_q", self.width)
        out = self._value(f"{block}.cross_attention", q.width)
        self._operations.append(CrossAttention(out, q, layer, heads, (q.width // heads) ** -0.5))
        return self.linear(out, f"{block}.cross_attn_output", self.width)

    def plain_block(self, x: Value, prefix: str, layer: int, causal: bool) -> Value:
        """Pre-norm self-attention and its residual."""
        normed = self.norm(x, f"{prefix}.attn_norm", kind="layer")
        q, k, v = (self.linear(normed, f"{prefix}.attn_{part}", self.width) for part in "qkv")
        seen = self.attention(q, k, v, layer) if causal else self.whole_attention(q, k, v, layer)
        return self.add(x, self.linear(seen, f"{prefix}.attn_output", self.width))

    def plain_feed_forward(self, x: Value, prefix: str) -> Value:
        """Pre-norm feed-forward without gate and its residual."""
        width = self.parameters.integer("feed_forward_length")
        hidden = self.linear(self.norm(x, f"{prefix}.ffn_norm", kind="layer"), f"{prefix}.ffn_up", width)
        return self.add(x, self.linear(self.activation("gelu", hidden), f"{prefix}.ffn_down", self.width))

    def used(self) -> set[str]:
        """Names of all tensors that operations name."""
        return self._used_tensors

    def graph(self, result: Value, source: tuple[CacheLayer, ...], source_length: int) -> Graph:
        """What was written down."""
        cache = tuple(self._cache[layer] for layer in range(self.layers))
        return Graph(
            self.architecture, tuple(self._operations), cache, result, self.context_length, self.width, source,
            source_length,
        )  # fmt: skip
