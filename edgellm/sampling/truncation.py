"""Samplers that leave unlikely (or too likely) tokens out, and temperature.

Meaning and defaults are llama.cpp's (``src/llama-sampling.cpp``), so that settings found elsewhere mean the same here.
Each function returns its argument unchanged when its setting switches it off. Those that take ``min_keep`` keep so
many candidates at least.
"""

from __future__ import annotations

import math

import numpy as np

from edgellm.sampling.candidates import Candidates, Probabilities, in_order, largest, probabilities, weights

# top_p sorts so many tokens at first, and bins the logits in steps of 1/128 down to 32 below the largest after that.
_HEAD = 256
_BINS_PER_LOGIT = 128
_BINS = 32 * _BINS_PER_LOGIT


def top_k(candidates: Candidates, k: int) -> Candidates:
    """Keep the ``k`` most likely tokens; ``k <= 0`` keeps all.

    Source: Fan, Lewis, Dauphin, "Hierarchical Neural Story Generation", 2018, https://arxiv.org/abs/1805.04833
    """
    return largest(candidates, k) if k > 0 else candidates


def top_p(candidates: Candidates, p: float, min_keep: int = 0) -> Candidates:
    """Keep the fewest most likely tokens whose probabilities sum to at least ``p``; ``p >= 1`` keeps all.

    Source: Holtzman et al., "The Curious Case of Neural Text Degeneration", 2019, https://arxiv.org/abs/1904.09751
    """
    if p >= 1.0:
        return candidates
    shares = weights(candidates)
    wanted = p * shares.sum()
    # The nucleus is small as a rule, so that only the head needs sorting.
    head = largest(candidates, max(_HEAD, min_keep))
    reached = np.cumsum(weights(head)) >= wanted
    if reached[-1]:
        return head.keep(slice(max(int(reached.argmax()) + 1, min_keep)))
    return candidates if head.ids.size == candidates.ids.size else _wide_nucleus(candidates, shares, wanted)


def _wide_nucleus(candidates: Candidates, shares: Probabilities, wanted: float) -> Candidates:
    """The fewest most likely candidates whose ``shares`` sum to ``wanted``, for many of them.

    Sorting would take over 30 ms for a vocabulary of 262,144; here the logits are sorted into bins, and only the bin in
    which the sum is reached is sorted itself.
    """
    steps = (candidates.logits.max() - candidates.logits) * np.float32(_BINS_PER_LOGIT)
    bins = np.minimum(steps, np.float32(_BINS - 1)).astype(np.int64)
    sums = np.cumsum(np.bincount(bins, shares, minlength=_BINS))
    border = min(int(np.searchsorted(sums, wanted)), _BINS - 1)
    places = np.flatnonzero(bins == border)
    places = places[np.argsort(-candidates.logits[places], kind="stable")]
    before = sums[border - 1] if border else 0.0
    needed = int(np.searchsorted(before + np.cumsum(shares[places]), wanted)) + 1
    kept = bins < border
    kept[places[:needed]] = True
    return candidates.keep(kept)


def min_p(candidates: Candidates, p: float, min_keep: int = 0) -> Candidates:
    """Keep tokens at least ``p`` times as likely as the most likely one; ``p <= 0`` keeps all.

    Source: Nguyen et al., "Turning Up the Heat: Min-p Sampling", 2024, https://arxiv.org/abs/2407.01082
    """
    if p <= 0.0:
        return candidates
    likely = candidates.logits >= candidates.logits.max() + math.log(p)
    if np.count_nonzero(likely) < min_keep:
        return largest(candidates, min_keep)
    return candidates.keep(likely)


def typical(candidates: Candidates, p: float, min_keep: int = 0) -> Candidates:
    """Keep the tokens whose surprise is nearest to the entropy until their probabilities sum to more than ``p``.

    ``p >= 1`` keeps all. The most likely token may be left out: that is the method's point.

    Source: Meister et al., "Locally Typical Sampling", 2022, https://arxiv.org/abs/2202.00666
    """
    if p >= 1.0:
        return candidates
    shares = probabilities(candidates)
    surprise = -np.log(np.maximum(shares, np.finfo(np.float64).tiny))
    entropy = float(shares @ surprise)
    nearest = np.argsort(np.abs(surprise - entropy), kind="stable")
    exceeded = np.cumsum(shares[nearest]) > p
    kept = int(exceeded.argmax()) + 1 if exceeded.any() else nearest.size
    return candidates.keep(np.sort(nearest[: max(kept, min_keep)]))


def top_n_sigma(candidates: Candidates, n: float) -> Candidates:
    """Keep tokens whose logit is within ``n`` standard deviations of the largest; ``n <= 0`` keeps all.

    Source: Tang et al., "Top-nσ: Not All Logits Are You Need", 2024, https://arxiv.org/abs/2411.07641
    """
    if n <= 0.0 or candidates.ids.size <= 1:
        return candidates
    deviation = float(np.std(candidates.logits, dtype=np.float64))
    return candidates.keep(candidates.logits >= float(candidates.logits.max()) - n * deviation)


def xtc(candidates: Candidates, threshold: float, min_keep: int = 0) -> Candidates:
    """Exclude top choices: of the tokens at least ``threshold`` likely, keep only the least likely one.

    Changes nothing when fewer than two tokens reach the threshold, when it is over 0.5 (two tokens cannot both reach
    it), or when fewer than ``min_keep`` would remain. The caller decides by chance whether to apply it at all.

    Source: P. E. Weidmann, https://github.com/oobabooga/text-generation-webui/pull/6335
    """
    if threshold > 0.5 or candidates.ids.size < 2:
        return candidates
    candidates = in_order(candidates)
    likely = int(np.count_nonzero(probabilities(candidates) >= threshold))
    excluded = likely - 1
    if excluded < 1 or candidates.ids.size - excluded < min_keep:
        return candidates
    return candidates.keep(slice(excluded, None))


def temperature(candidates: Candidates, value: float) -> Candidates:
    """Divide the logits by ``value`` > 0: below 1 sharpens the distribution, above 1 flattens it.

    Source: Ackley, Hinton, Sejnowski, "A Learning Algorithm for Boltzmann Machines", 1985,
    https://doi.org/10.1207/s15516709cog0901_7
    """
    # Shifting first keeps the largest logit at 0, so that a tiny temperature cannot overflow.
    shifted = candidates.logits - candidates.logits.max()
    lowest = np.finfo(np.float32).min
    with np.errstate(over="ignore"):
        scaled = np.maximum(shifted / np.float32(value), lowest) if value != 1.0 else shifted
    return candidates._replace(logits=scaled)


def dynamic_temperature(candidates: Candidates, value: float, spread: float, exponent: float) -> Candidates:
    """Temperature between ``value - spread`` and ``value + spread``, growing with the entropy of the candidates.

    t = low + (high - low) * (entropy / largest possible entropy) ** exponent, with low not under 0. A sure model is
    thus sampled more coldly than an unsure one.

    Source: kalomaze's entropy sampling, https://github.com/ggml-org/llama.cpp/pull/4972
    """
    if candidates.ids.size <= 1:
        return candidates
    shares = probabilities(candidates)
    entropy = -float(shares @ np.log(np.maximum(shares, np.finfo(np.float64).tiny)))
    low, high = max(0.0, value - spread), value + spread
    share_of_maximum = min(max(entropy / math.log(candidates.ids.size), 0.0), 1.0)
    scale = low + (high - low) * share_of_maximum**exponent
    if scale <= 0.0:
        return largest(candidates, 1)
    return temperature(candidates, max(scale, float(np.finfo(np.float32).tiny)))
