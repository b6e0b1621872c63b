"""Which experts work on a row: choosing them by the router's logits, and listing each expert's rows.

Variants: ``softmax`` and ``sigmoid``, the scores of the logits, choose as `edgellm.graph.Route` says. ``lists`` then
writes, ordered by expert, all pairs of a row and a place among its chosen experts, and where each expert's begin.

Whatever the logits are, numbers of existing experts are chosen; what is not a number ranks last.
"""

from __future__ import annotations

from edgellm.kernels.memory import float_at, get, int32_at, int64_at, load_floats, set_float, set_int32, store_floats
from edgellm.kernels.records import ROUTE as F
from edgellm.kernels.records import ROUTE_LISTS as LISTS
from edgellm.kernels.simd import exponential, helper, share, splat_float

VARIANTS = ("softmax", "sigmoid", "lists")


@helper
def _softmax(source, scores, experts):
    peak = float_at(source)
    for expert in range(1, experts):
        peak = max(peak, float_at(source + 4 * expert))
    for expert in range(0, experts, 16):
        store_floats(scores + 4 * expert, exponential(load_floats(source + 4 * expert) - splat_float(peak)))
    total = float_at(scores)
    for expert in range(1, experts):
        total += float_at(scores + 4 * expert)
    for expert in range(0, experts, 16):
        store_floats(scores + 4 * expert, load_floats(scores + 4 * expert) / splat_float(total))


@helper
def _sigmoid(source, scores, experts):
    one = splat_float(1.0)
    for expert in range(0, experts, 16):
        negative = splat_float(0.0) - load_floats(source + 4 * expert)
        store_floats(scores + 4 * expert, one / (one + exponential(negative)))


@helper
def _take_best(ranks, taken, first, end):
    """The highest rank that is not taken, the first among equals, which is taken now; -1 if all are."""
    index, best = -1, float_at(ranks)
    for number in range(first, end):
        if int32_at(taken + 4 * number) == 0:
            rank = float_at(ranks + 4 * number)
            if index < 0 or rank > best or (best != best and rank == rank):
                index, best = number, rank
    if index >= 0:
        set_int32(taken + 4 * index, 1)
    return index


@helper
def _mark(taken, first, end, value):
    for number in range(first, end):
        set_int32(taken + 4 * number, value)


@helper
def _keep_best_groups(record, ranks, taken, worth, taken_groups):
    """Mark all experts as taken but those of the best groups."""
    experts, groups = get(record, F.experts), get(record, F.groups)
    size = experts // groups
    _mark(taken_groups, 0, groups, 0)
    for group in range(groups):
        total = float_at(ranks) - float_at(ranks)
        for _ in range(get(record, F.best_of_group)):
            best = _take_best(ranks, taken, group * size, (group + 1) * size)
            if best >= 0:
                total += float_at(ranks + 4 * best)
        set_float(worth + 4 * group, total)
    _mark(taken, 0, experts, 1)
    for _ in range(get(record, F.chosen_groups)):
        best = _take_best(worth, taken_groups, 0, groups)
        if best >= 0:
            _mark(taken, best * size, (best + 1) * size, 0)


@helper
def _choose(record, scores, ranks, taken, output):
    """Write numbers and weights of the chosen experts."""
    chosen, experts, bias = get(record, F.chosen), get(record, F.experts), get(record, F.bias)
    padded = -(-experts // 16) * 16
    for expert in range(experts):
        rank = float_at(scores + 4 * expert)
        if bias:
            rank += float_at(bias + 4 * expert)
        set_float(ranks + 4 * expert, rank)
    _mark(taken, 0, experts, 0)
    if get(record, F.groups) > 1:
        worth = taken + 4 * padded
        _keep_best_groups(record, ranks, taken, worth, worth + 4 * padded)
    weights = output + 4 * chosen
    for place in range(chosen):
        expert = max(_take_best(ranks, taken, 0, experts), 0)
        set_float(output + 4 * place, expert)
        set_float(weights + 4 * place, float_at(scores + 4 * expert))
    if get(record, F.normalize):
        total = float_at(weights)
        for place in range(1, chosen):
            total += float_at(weights + 4 * place)
        for place in range(chosen):
            set_float(weights + 4 * place, float_at(weights + 4 * place) / total)
    for place in range(chosen):
        set_float(weights + 4 * place, float_at(weights + 4 * place) * float_at(get(record, F.scale)))


@helper
def _matrix_at(record, pair):
    """The number of a pair's matrix; 0 for what is not the number of any."""
    row, place = pair // get(record, LISTS.chosen), pair % get(record, LISTS.chosen)
    number = float_at(get(record, LISTS.routes) + row * get(record, LISTS.routes_stride) + 4 * place)
    return int(number) if 0.0 <= number < get(record, LISTS.matrices) else 0


def _lists(record, thread, threads):
    """A counting sort, by the first thread alone: it is little work."""
    if thread:
        return
    matrices, starts = get(record, LISTS.matrices), get(record, LISTS.starts)
    count = int64_at(get(record, LISTS.rows)) * get(record, LISTS.chosen)
    _mark(starts, 0, matrices + 1, 0)
    for pair in range(count):
        place = starts + 4 * _matrix_at(record, pair) + 4
        set_int32(place, int32_at(place) + 1)
    for matrix in range(matrices):  # counts become ends
        place = starts + 4 * matrix
        set_int32(place + 4, int32_at(place) + int32_at(place + 4))
    for pair in range(count - 1, -1, -1):  # from the last, so that ends become starts and the order stays
        place = starts + 4 * _matrix_at(record, pair) + 4
        set_int32(place, int32_at(place) - 1)
        set_int32(get(record, LISTS.pairs) + 4 * int32_at(place), pair)
    for matrix in range(matrices):
        set_int32(starts + 4 * matrix, int32_at(starts + 4 * matrix + 4))
    set_int32(starts + 4 * matrices, count)


def kernel(variant):
    """The kernel for one kind of score, or that which writes the lists."""
    if variant == "lists":
        return _lists
    score = _softmax if variant == "softmax" else _sigmoid

    def route(record, thread, threads):
        experts = get(record, F.experts)
        scores = get(record, F.scratch) + thread * get(record, F.scratch_stride)
        ranks = scores + 4 * (-(-experts // 16) * 16)
        taken = ranks + (ranks - scores)
        first, end = share(int64_at(get(record, F.rows)), thread, threads)
        for row in range(first, end):
            score(get(record, F.input) + row * get(record, F.input_stride), scores, experts)
            _choose(record, scores, ranks, taken, get(record, F.output) + row * get(record, F.output_stride))

    return route
