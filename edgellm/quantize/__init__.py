"""Quantizing models: the mixtures of llama.cpp, importance matrices, and what measures the weights' errors."""

from edgellm.quantize.conversion import Quantized, QuantizedTensor, quantize
from edgellm.quantize.settings import QuantizeSettings

__all__ = ["QuantizeSettings", "Quantized", "QuantizedTensor", "quantize"]
