"""Tokenizers built from the vocabulary in a GGUF file."""

from edgellm.tokenizer.decoding import StreamDecoder
from edgellm.tokenizer.tokenizer import Tokenizer
from edgellm.tokenizer.vocabulary import Kind, TokenType

__all__ = ["Kind", "StreamDecoder", "TokenType", "Tokenizer"]
