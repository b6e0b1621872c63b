"""Checkpoints whose weights are not plain numbers: which are read, and a clear error for the others."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgellm.convert.checkpoint import Checkpoint
from edgellm.convert.config import Config
from edgellm.convert.encode import to_float32
from edgellm.convert.safetensors import shown
from edgellm.convert.tensors import Array, LazyTensor
from edgellm.errors import CorruptFileError, UnsupportedModelError

_HINT = "convert the unquantized model, or look for a GGUF file of this one"


def unquantized(checkpoint: Checkpoint) -> dict[str, LazyTensor]:
    """The tensors of a checkpoint as weights, whichever way they are packed.

    Raises:
        UnsupportedModelError: they are quantized in a way that is not known.
    """
    settings = checkpoint.config.part("quantization_config")
    if not settings.values:
        settings = checkpoint.config.part("text_config").part("quantization_config")
    if not settings.values:
        return checkpoint.tensors
    method = settings.text("quant_method", default="unknown").lower()
    if method == "bitnet":
        return _bitnet(checkpoint.tensors, settings)
    if method == "fp8":
        return _fp8(checkpoint.tensors, settings)
    if method == "mxfp4":
        return checkpoint.tensors  # the family repacks them as they are
    raise UnsupportedModelError(
        f"the checkpoint is quantized with {shown(method)}, which cannot be converted",
        f"known: bitnet, mxfp4, fp8; {_HINT}",
    )


def _bitnet(tensors: dict[str, LazyTensor], settings: Config) -> dict[str, LazyTensor]:
    """BitNet's ternary weights: packed four to a byte, or floating-point weights that become ternary when used.

    The scale multiplies the values of the layer class ``autobitlinear`` and divides those of ``bitlinear``.
    """
    settings.require("linear_class", "bitlinear", "autobitlinear")
    settings.require("quantization_mode", "offline", "online")
    divides = settings.get("linear_class") != "autobitlinear"
    online = settings.get("quantization_mode") == "online"
    result: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(".weight_scale"):
            continue
        scale = tensors.get(f"{name}_scale")
        if name.endswith("_proj.weight") and tensor.kind == "U8":
            if scale is None or scale.size != 1:
                raise CorruptFileError(f"tensor {shown(name)} is packed but has no weight_scale", "fetch it again")
            result[name] = _unpacked(tensor, scale, divides)
        elif name.endswith("_proj.weight") and online:
            result[name] = rounded_to_ternary(tensor)
        else:
            result[name] = tensor
    return result


def _unpacked(tensor: LazyTensor, scale: LazyTensor, divides: bool) -> LazyTensor:
    """Bits 2i and 2i+1 of row r hold the value plus one of row ``i * rows + r`` of the matrix."""
    if len(tensor.shape) != 2:
        raise CorruptFileError(f"packed weights have the shape {tensor.shape}, expected two dimensions")
    packed_rows, columns = tensor.shape
    rows = 4 * packed_rows

    def load(start: int, stop: int) -> Array:
        factor = to_float32(scale.load(0, 1), scale.kind).reshape(-1)[0]
        if not np.isfinite(factor) or factor == 0:
            raise CorruptFileError(f"a weight_scale is {factor}", "fetch the checkpoint again")
        parts = []
        row = start
        while row < stop:
            quarter, first = divmod(row, packed_rows)
            count = min(stop - row, packed_rows - first)
            codes = tensor.load(first, first + count) >> np.uint8(2 * quarter) & np.uint8(3)
            if (codes > 2).any():
                raise CorruptFileError("packed weights hold a value that is not ternary", "fetch the checkpoint again")
            parts.append(codes)
            row += count
        values = np.concatenate(parts).astype(np.float32) - np.float32(1)
        scaled: Array = values / factor if divides else values * factor
        return scaled

    return LazyTensor((rows, columns), "F32", load, is_ternary=True)


def rounded_to_ternary(tensor: LazyTensor) -> LazyTensor:
    """Weights as BitNet's layers use them: divided by their mean magnitude, rounded to -1, 0 or 1, scaled back."""

    def load(start: int, stop: int) -> NDArray[np.float32]:
        values = to_float32(tensor.load(start, stop), tensor.kind)
        scale = np.float32(max(np.abs(values).mean(dtype=np.float64), 1e-5))
        rounded: NDArray[np.float32] = np.clip(np.rint(values / scale), -1, 1) * scale
        return rounded

    return LazyTensor(tensor.shape, "F32", load, tensor.shape[0], is_ternary=True)


def _fp8(tensors: dict[str, LazyTensor], settings: Config) -> dict[str, LazyTensor]:
    """DeepSeek V3's weights: 8-bit floats with a scale for each block of 128 x 128 values."""
    size = settings.get("weight_block_size")
    if not (
        isinstance(size, list) and len(size) == 2 and all(type(item) is int and 0 < item <= 65536 for item in size)
    ):
        raise UnsupportedModelError("fp8 weights without weight_block_size cannot be converted", _HINT)
    result: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        if name.endswith("_scale_inv"):
            continue
        scales = tensors.get(f"{name}_scale_inv")
        result[name] = tensor if scales is None else _scaled_blocks(name, tensor, scales, (size[0], size[1]))
    return result


def _scaled_blocks(name: str, tensor: LazyTensor, scales: LazyTensor, block: tuple[int, int]) -> LazyTensor:
    rows, columns = tensor.shape if len(tensor.shape) == 2 else (0, 0)
    if tensor.kind != "F8_E4M3" or scales.shape != (-(-rows // block[0]), -(-columns // block[1])):
        raise CorruptFileError(f"tensor {shown(name)} and its scales do not go together", "fetch the checkpoint again")

    def load(start: int, stop: int) -> NDArray[np.float32]:
        values = _E4M3[tensor.load(start, stop)]
        first, last = start // block[0], -(-stop // block[0])
        factors = to_float32(scales.load(first, last), scales.kind)
        by_row = factors[np.arange(start, stop) // block[0] - first]
        return values * np.repeat(by_row, block[1], axis=1)[:, :columns]

    return LazyTensor(tensor.shape, "F32", load)


def _e4m3() -> NDArray[np.float32]:
    """The numbers of OCP's 8-bit format E4M3: no infinities, two codes that are not numbers."""
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    numbers = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    numbers = np.where(codes & 0x80, -numbers, numbers)
    numbers[(codes & 0x7F) == 0x7F] = np.nan
    return numbers.astype(np.float32)


_E4M3 = _e4m3()
