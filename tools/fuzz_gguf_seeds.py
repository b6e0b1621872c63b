"""What the fuzzer of the GGUF reader starts from: small valid files, a map of each, and ways to damage them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np

from edgellm.gguf import TensorType

_NUMBER_FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_TENSOR_COUNT_AT, _KEY_COUNT_AT = 8, 16


@dataclass
class Layout:
    """A GGUF file read in the plainest way, believing everything it says.

    It serves to aim mutations, and as a second opinion on files that the reader accepts.

    Attributes:
        values: key to value: a number, bytes for strings and for arrays of numbers, lists for arrays of the rest.
        tensors: name to (dimensions in ggml's order, type id, offset within the data).
        numbers: (offset, width) of every length, count, type, dimension and offset.
        keys: where each key begins, and where the last ends.
        infos: where each tensor description begins, and where the last ends.
        alignment: what the offsets of tensors are multiples of.
        data_offset: where the tensor data begins.
    """

    values: dict[str, object] = field(default_factory=dict)
    tensors: dict[str, tuple[tuple[int, ...], int, int]] = field(default_factory=dict)
    numbers: list[tuple[int, int]] = field(default_factory=lambda: [(4, 4), (_TENSOR_COUNT_AT, 8), (_KEY_COUNT_AT, 8)])
    keys: list[int] = field(default_factory=list)
    infos: list[int] = field(default_factory=list)
    alignment: int = 32
    data_offset: int = 0


class _PlainReader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 24
        self.layout = Layout()

    def number(self, width: int) -> int:
        self.layout.numbers.append((self.at, width))
        return int.from_bytes(self.bytes(width), "little")

    def bytes(self, count: int) -> bytes:
        self.at += count
        return self.data[self.at - count : self.at]

    def value(self, value_type: int) -> object:
        if value_type == _STRING:
            return self.bytes(self.number(8))
        if value_type != _ARRAY:
            packing = struct.Struct(_NUMBER_FORMATS[value_type])
            return packing.unpack(self.bytes(packing.size))[0]
        item_type, count = self.number(4), self.number(8)
        if item_type in _NUMBER_FORMATS:
            return self.bytes(count * struct.calcsize(_NUMBER_FORMATS[item_type]))
        return [self.value(item_type) for _ in range(count)]

    def read(self) -> Layout:
        layout = self.layout
        tensor_count, key_count = struct.unpack_from("<QQ", self.data, _TENSOR_COUNT_AT)
        for _ in range(key_count):
            layout.keys.append(self.at)
            key = self.bytes(self.number(8)).decode()
            layout.values[key] = self.value(self.number(4))
        layout.keys.append(self.at)
        for _ in range(tensor_count):
            layout.infos.append(self.at)
            name = self.bytes(self.number(8)).decode()
            dimensions = tuple(self.number(8) for _ in range(self.number(4)))
            layout.tensors[name] = (dimensions, self.number(4), self.number(8))
        layout.infos.append(self.at)
        if (len(layout.values), len(layout.tensors)) != (key_count, tensor_count):
            raise ValueError("a key or tensor appears twice")
        alignment = layout.values.get("general.alignment")
        layout.alignment = alignment if isinstance(alignment, int) else 32
        layout.data_offset = -(-self.at // layout.alignment) * layout.alignment
        return layout


def read_plainly(data: bytes) -> Layout:
    """Read a file that is known to be valid."""
    return _PlainReader(data).read()


@dataclass(frozen=True)
class Seed:
    """A valid model to damage: its files by name (several for a split model) and their layouts."""

    files: dict[str, bytes]
    layouts: dict[str, Layout]


def make_seed(files: dict[str, bytes]) -> Seed:
    return Seed(files, {name: read_plainly(data) for name, data in files.items()})


def build_seeds(folder: Path) -> list[Seed]:
    """Write small valid files of every kind into ``folder`` with the gguf package, and read them back."""
    names = [_write_values(folder), _write_types(folder), _write_nested(folder), _write_vocabulary(folder)]
    seeds = [make_seed({name: (folder / name).read_bytes()}) for name in names]
    old = bytearray(seeds[0].files[names[0]])
    old[4] = 2
    seeds.append(make_seed({"version2.gguf": bytes(old)}))
    parts = _write_split(folder)
    seeds.append(make_seed({name: (folder / name).read_bytes() for name in parts}))
    return seeds


def _finish(writer: object) -> None:
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()


def _write_values(folder: Path) -> str:
    """Every type of value, arrays of each, tensors of one to four dimensions and an alignment of its own."""
    from gguf import GGUFValueType, GGUFWriter

    writer = GGUFWriter(folder / "values.gguf", "llama")
    writer.add_custom_alignment(64)
    numbers = [member for member in GGUFValueType if member not in (GGUFValueType.STRING, GGUFValueType.ARRAY)]
    for member in numbers:
        value = True if member == GGUFValueType.BOOL else 7
        writer.add_key_value(f"test.{member.name.lower()}", value, member)
        writer.add_key_value(f"test.{member.name.lower()}.array", [value] * 5, GGUFValueType.ARRAY, member)
    writer.add_string("test.string", "naïve text of ünusual letters")
    writer.add_string("test.long", "long " * 200)
    for rank in range(1, 5):
        writer.add_tensor(f"rank{rank}", np.arange(2**rank * 3, dtype=np.float32).reshape(*[2] * (rank - 1), -1))
    _finish(writer)
    return "values.gguf"


def _write_types(folder: Path) -> str:
    """A small tensor of every type whose size the gguf package knows as ggml does."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(folder / "types.gguf", "llama")
    random = np.random.default_rng(1)
    for tensor_type in TensorType:
        if tensor_type.name not in GGMLQuantizationType.__members__:
            continue
        known = GGML_QUANT_SIZES.get(GGMLQuantizationType(tensor_type.value))
        if known == (tensor_type.block_size, tensor_type.block_bytes):
            rows = random.integers(
                0, 256, (2, max(2, 256 // tensor_type.block_size) * tensor_type.block_bytes), np.uint8
            )
            writer.add_tensor(
                f"blk.0.{tensor_type.name.lower()}.weight", rows, raw_dtype=GGMLQuantizationType(tensor_type.value)
            )
    _finish(writer)
    return "types.gguf"


def _write_nested(folder: Path) -> str:
    from gguf import GGUFWriter

    writer = GGUFWriter(folder / "nested.gguf", "llama")
    writer.add_array("test.numbers", [[1, 2, 3], [4], [5, 6]])
    writer.add_array("test.texts", [["a", "b"], ["c" * 300]])
    writer.add_array("test.deep", [[[[True, False]], [[True]]], [[[False]]]])
    writer.add_tensor("weight", np.ones((3, 8), np.float16))
    _finish(writer)
    return "nested.gguf"


def _write_vocabulary(folder: Path) -> str:
    """Keys only, with the arrays of a tokenizer; some strings are longer than 255 bytes."""
    from gguf import GGUFWriter

    writer = GGUFWriter(folder / "vocabulary.gguf", "llama")
    tokens = [f"token{index}" if index % 40 else "x" * (250 + index) for index in range(300)]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_scores([-float(index) for index in range(len(tokens))])
    writer.add_token_merges(["a b", "c d", "ab cd"])
    _finish(writer)
    return "vocabulary.gguf"


def _write_split(folder: Path) -> list[str]:
    from gguf import GGUFWriter

    writer = GGUFWriter(folder / "split.gguf", "llama", split_max_tensors=2)
    for index in range(5):
        writer.add_tensor(f"blk.{index}.weight", np.full((2, 16), index, np.float32))
    _finish(writer)
    return sorted(path.name for path in folder.glob("split-*.gguf"))


def _lying_number(random: Random, honest: int, width: int, size: int) -> int:
    top = 1 << 8 * width
    choices = [0, 1, 2, 3, 8, 9, honest + 1, honest - 1, honest * 2, honest + 8, size, size - 24, size // 2, size * 2]
    choices += [top - 1, top // 2, top // 2 - 1, top // 8, top // 4 + 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 16]
    choices += [random.randrange(top), random.randrange(1 << random.randrange(1, 8 * width + 1)), random.randrange(64)]
    return random.choice(choices) % top


def _bump(data: bytearray, at: int, by: int) -> None:
    count = (int.from_bytes(data[at : at + 8], "little") + by) % (1 << 64)
    data[at : at + 8] = count.to_bytes(8, "little")


def _flip_bits(random: Random, data: bytearray, layout: Layout, _: Seed) -> str:
    end = max(1, len(data) if random.random() < 0.2 else min(len(data), layout.infos[-1]))
    places = [(random.randrange(end), random.randrange(8)) for _ in range(random.choice((1, 1, 2, 4, 16)))]
    for at, bit in places:
        data[at] ^= 1 << bit
    return "flip bits " + " ".join(f"{at}.{bit}" for at, bit in places)


def _truncate(random: Random, data: bytearray, layout: Layout, _: Seed) -> str:
    end = (
        random.randrange(len(data)) if random.random() < 0.5 else random.choice(layout.numbers)[0] + random.randrange(9)
    )
    del data[end:]
    return f"truncate to {len(data)}"


def _lie(random: Random, data: bytearray, layout: Layout, _: Seed) -> str:
    at, width = random.choice(layout.numbers)
    number = _lying_number(random, int.from_bytes(data[at : at + width], "little"), width, len(data))
    data[at : at + width] = number.to_bytes(width, "little")
    return f"write {number} at {at} ({width} bytes)"


def _swap(random: Random, data: bytearray, layout: Layout, _: Seed) -> str:
    (one, width), (other, other_width) = random.choice(layout.numbers), random.choice(layout.numbers)
    width = min(width, other_width)
    data[one : one + width], data[other : other + width] = data[other : other + width], data[one : one + width]
    return f"swap {width} bytes at {one} and {other}"


def _splice(random: Random, data: bytearray, layout: Layout, other: Seed) -> str:
    name = random.choice(list(other.files))
    theirs = other.layouts[name]
    here, there = random.choice(layout.keys + layout.infos), random.choice(theirs.keys + theirs.infos)
    if random.random() < 0.3:
        here, there = random.randrange(len(data) + 1), random.randrange(len(other.files[name]))
    data[here:] = other.files[name][there:]
    return f"splice {name} from {there} on at {here}"


def _repeat(random: Random, data: bytearray, layout: Layout, _: Seed) -> str:
    borders, count_at = random.choice(((layout.keys, _KEY_COUNT_AT), (layout.infos, _TENSOR_COUNT_AT)))
    if len(borders) < 2:
        return "repeat nothing"
    index = random.randrange(len(borders) - 1)
    item = data[borders[index] : borders[index + 1]]
    times = random.choice((1, 1, 2, 50))
    data[borders[index] : borders[index]] = item * times
    _bump(data, count_at, times)
    return f"repeat item {index} at {borders[index]} {times} times"


def _drop(random: Random, data: bytearray, layout: Layout, _: Seed) -> str:
    borders, count_at = random.choice(((layout.keys, _KEY_COUNT_AT), (layout.infos, _TENSOR_COUNT_AT)))
    if len(borders) < 2:
        return "drop nothing"
    index = random.randrange(len(borders) - 1)
    del data[borders[index] : borders[index + 1]]
    if random.random() < 0.8:
        _bump(data, count_at, -1)
    return f"drop item {index} at {borders[index]}"


def _nest(random: Random, data: bytearray, layout: Layout, _: Seed) -> str:
    """Insert a key whose value is arrays in arrays, possibly thousands deep."""
    depth, width = random.choice(((3, 1), (7, 1), (8, 1), (9, 1), (5000, 1), (1, 4000), (2, 70000)))
    name = f"nest{random.randrange(1000)}".encode()
    key = struct.pack("<Q", len(name)) + name + struct.pack("<I", _ARRAY)
    inner = struct.pack("<IQ", _ARRAY, 1) * depth + struct.pack("<IQ", 0, 0)
    if width > 1:
        inner = struct.pack("<IQ", _ARRAY, width) + struct.pack("<IQ", 0, 0) * width
    at = random.choice(layout.keys)
    data[at:at] = key + inner
    _bump(data, _KEY_COUNT_AT, 1)
    return f"insert arrays {depth} deep and {width} wide at {at}"


def _overwrite(random: Random, data: bytearray, layout: Layout, _: Seed) -> str:
    count = random.randrange(1, 33)
    at = random.randrange(layout.infos[-1])
    data[at : at + count] = random.randbytes(count)
    return f"write {count} random bytes at {at}"


def _extend(random: Random, data: bytearray, _: Layout, __: Seed) -> str:
    count = random.choice((1, 31, 4096))
    data += random.randbytes(count)
    return f"append {count} random bytes"


_Mutation = Callable[[Random, bytearray, Layout, Seed], str]
_MUTATIONS: list[_Mutation] = [_flip_bits, _truncate, _lie, _lie, _lie, _swap, _splice]
_MUTATIONS += [_repeat, _drop, _nest, _overwrite, _extend]


def mutate(random: Random, seeds: list[Seed]) -> tuple[dict[str, bytes], str, str]:
    """Damage a randomly chosen seed.

    Returns:
        the files by name, the name of the one to open, and what was done.
    """
    seed, other = random.choice(seeds), random.choice(seeds)
    files = dict(seed.files)
    name = random.choice(list(files))
    data, layout = bytearray(files[name]), seed.layouts[name]
    done = []
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        if len(data) >= layout.infos[-1]:
            done.append(random.choice(_MUTATIONS)(random, data, layout, other))
    files[name] = bytes(data)
    if len(files) > 1 and random.random() < 0.05:
        gone = random.choice([part for part in files if part != name])
        del files[gone]
        done.append(f"remove {gone}")
    return files, random.choice(list(files)), f"{name}: " + ", then ".join(done)
