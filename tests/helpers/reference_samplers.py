"""Slow samplers in plain Python, written from the descriptions, to compare the fast ones with.

A distribution is a list of (id, logit) pairs.
"""

from __future__ import annotations

import math

Pairs = list[tuple[int, float]]


def ranked(pairs: Pairs) -> Pairs:
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))


def softmax(pairs: Pairs) -> list[float]:
    top = max(logit for _, logit in pairs)
    shares = [math.exp(logit - top) for _, logit in pairs]
    total = math.fsum(shares)
    return [share / total for share in shares]


def top_p(pairs: Pairs, p: float, min_keep: int) -> Pairs:
    pairs = ranked(pairs)
    total = 0.0
    for count, share in enumerate(softmax(pairs), start=1):
        total += share
        if total >= p and count >= min_keep:
            return pairs[:count]
    return pairs


def min_p(pairs: Pairs, p: float, min_keep: int) -> Pairs:
    pairs = ranked(pairs)
    shares = softmax(pairs)
    return [pair for rank, pair in enumerate(pairs) if shares[rank] >= p * shares[0] or rank < min_keep]


def typical(pairs: Pairs, p: float, min_keep: int) -> Pairs:
    shares = softmax(pairs)
    entropy = -math.fsum(share * math.log(share) for share in shares if share > 0)
    distance = [abs(-math.log(share) - entropy) if share > 0 else math.inf for share in shares]
    total = 0.0
    kept = []
    for place in sorted(range(len(pairs)), key=lambda place: distance[place]):
        kept.append(pairs[place])
        total += shares[place]
        if total > p and len(kept) >= min_keep:
            break
    return kept


def top_n_sigma(pairs: Pairs, n: float) -> Pairs:
    mean = math.fsum(logit for _, logit in pairs) / len(pairs)
    deviation = math.sqrt(math.fsum((logit - mean) ** 2 for _, logit in pairs) / len(pairs))
    top = max(logit for _, logit in pairs)
    return [pair for pair in pairs if pair[1] >= top - n * deviation]


def xtc(pairs: Pairs, threshold: float, min_keep: int) -> Pairs:
    pairs = ranked(pairs)
    likely = [share >= threshold for share in softmax(pairs)]
    last = max((rank for rank, reached in enumerate(likely) if reached), default=0)
    return pairs[last:] if last > 0 and len(pairs) - last >= min_keep else pairs


def penalties(pairs: Pairs, recent: list[int], repeat: float, frequency: float, presence: float) -> Pairs:
    result = []
    for id, logit in pairs:
        count = recent.count(id)
        if count:
            logit = logit * repeat if logit <= 0 else logit / repeat
            logit -= count * frequency + presence
        result.append((id, logit))
    return result


def repeats(history: list[int], limit: int) -> dict[int, int]:
    """Per token: the longest suffix of ``history`` (up to ``limit`` tokens) that it followed earlier."""
    found: dict[int, int] = {}
    for place in range(1, len(history)):
        length = 0
        while length < min(limit, place) and history[place - 1 - length] == history[len(history) - 1 - length]:
            length += 1
        token = history[place]
        found[token] = max(found.get(token, 0), length)
    return found
