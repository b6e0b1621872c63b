"""Reading tiktoken.model: byte-pair tokens with their ranks, and the merges that these imply (Kimi K2).

Source: the file format of OpenAI's tiktoken: a line for each token, its bytes in base 64 and its rank.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

from edgellm.errors import CorruptFileError

MAX_FILE_BYTES = 64 << 20
MAX_TOKEN_BYTES = 1024
MAX_WORK = 1 << 27
"""Joining the bytes of a token takes time in the square of their number; real vocabularies need a tenth of this."""


def read_tiktoken(path: Path) -> dict[bytes, int]:
    """Token to rank, which is its id.

    Raises:
        CorruptFileError: a line is not of the form, or a token or rank is there twice.
    """
    if path.stat().st_size > MAX_FILE_BYTES:
        raise CorruptFileError(f"{path.name} has {path.stat().st_size} bytes, {MAX_FILE_BYTES} are allowed")
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            text, rank = line.split()
            token = base64.b64decode(text, validate=True)
            if not 0 < len(token) <= MAX_TOKEN_BYTES or token in ranks or not rank.isdigit() or len(rank) > 9:
                raise ValueError
            ranks[token] = int(rank)
        except (ValueError, binascii.Error):
            raise CorruptFileError(
                f"{path.name}: line {number} is no new token with a rank", "fetch it again"
            ) from None
    if sum(len(token) ** 2 for token in ranks) > MAX_WORK:
        raise CorruptFileError(f"{path.name} has too many long tokens", "fetch it again")
    if not ranks or len(set(ranks.values())) != len(ranks):
        raise CorruptFileError(f"{path.name} has no tokens, or two with one rank", "fetch it again")
    return ranks


def merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The two parts that each token was made of, in the order of the ranks.

    A token's parts are what its bytes become when only pairs of lower rank are joined, the lowest first.
    """
    pairs = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = _join(ranks, token, rank)
        if len(parts) == 2:
            pairs.append((parts[0], parts[1]))
    return pairs


def _join(ranks: dict[bytes, int], token: bytes, below: int) -> list[bytes]:
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 1:
        best, place = min((ranks.get(parts[i] + parts[i + 1], below), i) for i in range(len(parts) - 1))
        if best >= below:
            break
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts
