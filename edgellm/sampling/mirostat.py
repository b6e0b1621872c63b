"""Mirostat: keeps the surprise of the text near a target instead of cutting the distribution at a fixed place.

Source: Basu et al., "Mirostat: A Neural Text Decoding Algorithm that Directly Controls Perplexity", 2020,
https://arxiv.org/abs/2007.14966. The state is one number, ``mu``, the largest surprise allowed at present, in bits; it
starts at twice the target.
"""

from __future__ import annotations

import math

import numpy as np

from edgellm.sampling.candidates import Candidates, largest, probabilities

# How many of the most likely tokens the exponent of Zipf's law is estimated from (llama.cpp's and the paper's choice).
_ESTIMATED_FROM = 100


def mirostat_1(candidates: Candidates, mu: float, vocabulary_size: int) -> Candidates:
    """Keep the k most likely tokens, k such that under Zipf's law their surprise is about ``mu`` bits (algorithm 1)."""
    # Differences of logits are logarithms of ratios of probabilities.
    drops = -np.diff(largest(candidates, _ESTIMATED_FROM).logits.astype(np.float64))
    if not drops.size:
        return candidates
    ranks = np.arange(1, drops.size + 1)
    steps = np.log((ranks + 1) / ranks)
    exponent = float(steps @ drops) / float(steps @ steps)
    return largest(candidates, _tokens_allowed(exponent, mu, vocabulary_size, candidates.ids.size))


def _tokens_allowed(exponent: float, mu: float, vocabulary_size: int, available: int) -> int:
    """k = ((s - 1) 2^mu / (1 - N^(1 - s))) ^ (1 / s), from 1 to ``available``."""
    if exponent <= 0.0:
        # Equally likely tokens: there is no tail to cut.
        return available
    excess = exponent - 1.0
    log_size = math.log(vocabulary_size) if vocabulary_size > 1 else 1.0
    # excess / (1 - N^-excess) tends to 1 / ln N as the excess vanishes; expm1 stays exact near there.
    power = -excess * log_size
    if abs(power) < 1e-9:
        ratio = 1.0 / log_size
    elif power > 700.0:
        return 1
    else:
        ratio = -excess / math.expm1(power)
    log_k = (math.log(max(ratio, 1e-300)) + mu * math.log(2.0)) / exponent
    return max(1, min(available, int(math.exp(log_k)))) if log_k < math.log(available) + 1.0 else available


def mirostat_2(candidates: Candidates, mu: float) -> Candidates:
    """Keep the tokens whose surprise is at most ``mu`` bits, the most likely one at least (algorithm 2)."""
    allowed = probabilities(candidates) >= 2.0 ** min(-mu, 1000.0)
    return candidates.keep(allowed) if allowed.any() else largest(candidates, 1)


def updated_mu(mu: float, probability: float, target: float, rate: float) -> float:
    """The next ``mu`` after a token of that probability (among those kept): mu - rate * (surprise - target)."""
    return mu - rate * (-math.log2(probability) - target)
