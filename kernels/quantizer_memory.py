"""Where a quantizer keeps what, in the scratch memory of one thread: offsets in bytes.

A chunk is 16 groups of values that share a scale; the groups are the lanes of vectors. This module does not import
Numba, so that others can use it cheaply.
"""

from __future__ import annotations

LANES = 16
LARGEST_GROUP = 256
_CHUNK_BYTES = 4 * LANES * LARGEST_GROUP
VALUES = 0
"""float32 (LARGEST_GROUP, 16): the values of a chunk, one lane a group."""
IMPORTANCE = VALUES + _CHUNK_BYTES
"""float32, the same for the weights of the errors."""
ROWS = IMPORTANCE + _CHUNK_BYTES
"""float32: the values as they lie in the file, group after group."""
CODES = ROWS + _CHUNK_BYTES
"""One byte a code, group after group."""
SMALL = CODES + LANES * LARGEST_GROUP
"""int32 (2, 16): small scales and minima of the groups."""
BLOCKS = SMALL + 2 * 4 * LANES
"""Blocks that are written here first, where fewer are wanted than a chunk has."""
LARGEST_BLOCK = 256
SCRATCH_BYTES = BLOCKS + LANES * LARGEST_BLOCK

KINDS = {"F32": 0, "F16": 1, "BF16": 2, "Q8_0": 3}
"""Types of tensors that the kernels read, and their numbers in the record."""
