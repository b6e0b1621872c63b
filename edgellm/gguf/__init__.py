"""GGUF files: a validated, memory-mapped reader and the reference codec of every tensor type."""

from edgellm.gguf.codecs import decode
from edgellm.gguf.file import GGUFFile, open_gguf
from edgellm.gguf.header import TensorInfo
from edgellm.gguf.types import TensorType
from edgellm.gguf.values import Metadata, MetadataValue, StringArray

__all__ = [
    "GGUFFile",
    "Metadata",
    "MetadataValue",
    "StringArray",
    "TensorInfo",
    "TensorType",
    "decode",
    "open_gguf",
]
