"""What a family writes its model down with: keys of the file to be, and tensors under their new names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from edgellm.convert.config import MAX_LAYERS, Config, rope_parameters
from edgellm.convert.safetensors import shown
from edgellm.convert.tensors import LazyTensor
from edgellm.errors import CorruptFileError, UnsupportedModelError
from edgellm.gguf import TensorType

Transform = Callable[[LazyTensor], LazyTensor]
ValueType = Literal["u32", "i32", "f32", "string", "bool", "strings", "i32s", "f32s", "bools"]

# Left behind by old versions of the modelling code: masks and frequencies that are computed anyway.
_IGNORED = re.compile(
    r"(.*\.)?(rotary_emb\.inv_freq|attn\.bias|attn\.masked_bias|attention\.bias|attention\.masked_bias)"
)


@dataclass(frozen=True)
class Key:
    """A value of the file's metadata."""

    value: Any
    type: ValueType


@dataclass(frozen=True)
class Output:
    """A tensor of the file to be; without a type it takes the one that is asked for."""

    name: str
    tensor: LazyTensor
    type: TensorType | None = None


class Builder:
    """Collects keys and tensors, and watches that no tensor of the checkpoint is forgotten.

    Attributes:
        config: of the text model.
        rope: its rotary parameters.
        keys: of the file to be; those added with ``u32`` and so on begin with the architecture's name.
        outputs: its tensors in order.
        notices: what the user should know.
    """

    def __init__(self, config: Config, tensors: Mapping[str, LazyTensor]) -> None:
        text = config.values.get("text_config")
        self.config = config.merged(text) if isinstance(text, dict) else config
        self.rope = rope_parameters(self.config)
        self.architecture = ""
        self.keys: dict[str, Key] = {}
        self.outputs: list[Output] = []
        self.notices: list[str] = []
        self.token_keys: dict[str, Key] = {}
        self.pre_tokenizer_hint: str | None = None
        self._tensors = dict(tensors)
        self._unused = set(tensors)

    # Keys

    def key(self, name: str, value: Any, kind: ValueType) -> None:
        """A key with its full name."""
        self.keys[name] = Key(value, kind)

    def u32(self, name: str, value: int) -> None:
        """A count."""
        self.key(f"{self.architecture}.{name}", value, "u32")

    def f32(self, name: str, value: float) -> None:
        """A real number."""
        self.key(f"{self.architecture}.{name}", value, "f32")

    def string(self, name: str, value: str) -> None:
        """A text."""
        self.key(f"{self.architecture}.{name}", value, "string")

    def flag(self, name: str, value: bool) -> None:
        """True or false."""
        self.key(f"{self.architecture}.{name}", value, "bool")

    def flags(self, name: str, values: list[bool]) -> None:
        """One truth value for each layer."""
        self.key(f"{self.architecture}.{name}", values, "bools")

    # What the config says, under the names that most families share

    @property
    def layers(self) -> int:
        """Blocks."""
        return self.config.integer("num_hidden_layers", "n_layer", "num_layers", maximum=MAX_LAYERS)

    @property
    def width(self) -> int:
        """Values of a token between blocks."""
        return self.config.integer("hidden_size", "n_embd")

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.config.integer("num_attention_heads", "n_head")

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""
        return self.config.integer("num_key_value_heads", default=self.heads)

    @property
    def head_dim(self) -> int:
        """Values of a head."""
        return self.config.integer("head_dim", default=max(1, self.width // self.heads))

    # Tensors

    def has(self, name: str) -> bool:
        """Whether the checkpoint has a tensor of this full name."""
        return name in self._tensors

    def take(self, name: str) -> LazyTensor:
        """A tensor of the checkpoint by its full name."""
        tensor = self._tensors.get(name)
        if tensor is None:
            near = difflib.get_close_matches(name, self._unused, n=1)
            hint = f"the nearest there is: {shown(near[0])}" if near else "fetch the checkpoint again"
            raise CorruptFileError(f"the checkpoint has no tensor {name}", hint)
        self._unused.discard(name)
        return tensor

    def put(self, name: str, tensor: LazyTensor, kind: TensorType | None = None) -> None:
        """A tensor of the file to be, by its full name."""
        self.outputs.append(Output(name, tensor, kind))

    def move(self, old: str, new: str, change: Transform | None = None, optional: bool = False) -> None:
        """Weight, and bias if there is one, under a new name; both names without their ending."""
        if optional and not self.has(f"{old}.weight"):
            return
        for ending in ("weight", "bias"):
            if ending == "weight" or self.has(f"{old}.{ending}"):
                tensor = self.take(f"{old}.{ending}")
                self.put(f"{new}.{ending}", change(tensor) if change else tensor)

    def rename(self, change: Callable[[str], str | None]) -> None:
        """Give all tensors of the checkpoint other names; those that get None are left out."""
        renamed: dict[str, LazyTensor] = {}
        for old, tensor in self._tensors.items():
            new = change(old)
            if new is not None:
                if new in renamed:
                    raise CorruptFileError(f"the checkpoint has tensor {shown(new)} twice")
                renamed[new] = tensor
        self._tensors, self._unused = renamed, set(renamed)

    def drop(self, pattern: str) -> int:
        """Leave out what matches a regular expression; return how many did."""
        dropped = {name for name in self._unused if re.fullmatch(pattern, name)}
        self._unused -= dropped
        return len(dropped)

    def finish(self) -> None:
        """Raise UnsupportedModelError if tensors are left over."""
        left = sorted(name for name in self._unused if not _IGNORED.fullmatch(name))
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            near = difflib.get_close_matches(left[0], set(self._tensors) - self._unused, n=1, cutoff=0.6)
            hint = f"the nearest that is known: {shown(near[0])}" if near else "another version of the model may do"
            raise UnsupportedModelError(
                f"{self.architecture} models have no tensor {shown(left[0])}{more} that is known", hint
            )
