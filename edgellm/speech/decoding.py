"""From encoded windows to tokens: greedy decoding, beam search and sampling, of several windows at once.

Sources: openai-whisper (``decoding.py``) for what is searched, ranked and when a search ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from edgellm.platforms.batch import Batch, Float32Array, Int32Array, SpeechExecutor
from edgellm.platforms.choosing import MOST_CANDIDATES, allowed_log_probabilities, best
from edgellm.speech.alignment import Aligner
from edgellm.speech.rules import TimestampRules, guard_against_repetition, token_bias
from edgellm.speech.sequences import BlockPool, tables
from edgellm.speech.settings import TranscriptionSettings
from edgellm.speech.tokens import WhisperTokens

_MOST_OUTPUTS = 64


@dataclass(frozen=True)
class Request:
    """A window to decode.

    Attributes:
        source: under which number its sound was encoded.
        prompt: all tokens before the transcript's first.
        start: place of the token in the prompt that begins the transcript.
        goes_on: the timestamp up to which there is speech, if that is known; see `TimestampRules.row`.
        said: tokens that the transcript begins with, known and not chosen; they stand in the result.
        said_score: log-probability of these; None: they were given, and their number does not count either.
    """

    source: int
    prompt: tuple[int, ...]
    start: int
    goes_on: int = 0
    said: tuple[int, ...] = ()
    said_score: float | None = None


@dataclass(frozen=True)
class Decoded:
    """What was heard in a window.

    Attributes:
        tokens: text and timestamps, without the end.
        average_log_probability: mean over the tokens and the end.
        no_speech_probability: of the window being without speech.
        temperature: at which it was decoded.
        log_probabilities: of each token.
    """

    tokens: tuple[int, ...]
    average_log_probability: float
    no_speech_probability: float
    temperature: float
    log_probabilities: tuple[float, ...] = ()


@dataclass
class _Hypothesis:
    """One way to go on. ``blocks`` hold the keys and values of all tokens but the last."""

    said: list[int] = field(default_factory=list)
    score: float = 0.0
    last_timestamp: int = -1
    scores: list[float] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)

    def plus(self, token: int, score: float, boundary: int) -> _Hypothesis:
        """This one with one more token; its blocks are still to be found."""
        stamp = token if token >= boundary else self.last_timestamp
        return _Hypothesis([*self.said, token], self.score + score, stamp, [*self.scores, score])


@dataclass
class _Search:
    """The search in one window. It draws by itself, so that no other window changes what it finds."""

    request: Request
    live: list[_Hypothesis]
    random: np.random.Generator
    finished: list[_Hypothesis] = field(default_factory=list)
    no_speech_probability: float = 0.0
    done: bool = False


Candidates = tuple[Int32Array, Float32Array]
Float64Array = npt.NDArray[np.float64]


class Decoder:
    """Decodes windows that the executor has encoded.

    Args:
        executor: of the model, whose cache has room for ``blocks`` blocks.
        tokens: the model's vocabulary.
        settings: how to decode.
        blocks: blocks in the cache.
    """

    def __init__(
        self, executor: SpeechExecutor, tokens: WhisperTokens, settings: TranscriptionSettings, blocks: int
    ) -> None:
        self._executor, self._tokens, self._settings = executor, tokens, settings
        self._context = executor.graph.context_length
        self._most = self._context // 2
        self._rules = TimestampRules(tokens, settings)
        self._bias = token_bias(tokens, settings)
        self._pool = BlockPool(blocks, executor.copy_block)
        self._guarded = settings.repetition_penalty != 1 or settings.no_repeat_ngram_size > 0
        executor.prepare_choosing(tokens.timestamps, self._bias)

    def decode(self, requests: Sequence[Request], temperature: float) -> list[Decoded]:
        """Decode windows side by side: by beam search at temperature 0, else by samples."""
        width = self._settings.beam_size if temperature == 0 else self._settings.best_of
        searches = [self._begun(request) for request in requests]
        try:
            for first in range(0, len(searches), _MOST_OUTPUTS // 2):
                self._prefill(searches[first : first + _MOST_OUTPUTS // 2], width, temperature)
            while running := [search for search in searches if not search.done]:
                self._step(running, width, temperature)
        finally:
            for search in searches:
                for hypothesis in search.live:
                    self._pool.give(hypothesis.blocks)
        return [self._result(search, width, temperature) for search in searches]

    def aligner(self, heads: tuple[tuple[int, int], ...]) -> Aligner:
        """What finds the times of words in the same windows."""
        return Aligner(self._executor, self._pool, self._tokens, heads)

    # -- steps --------------------------------------------------------------------------------------------------

    def _begun(self, request: Request) -> _Search:
        said, score = list(request.said), request.said_score or 0.0
        stamps = [token for token in said if token >= self._tokens.timestamps]
        root = _Hypothesis(said, score, max(stamps, default=-1), [score / max(1, len(said))] * len(said))
        return _Search(request, [root], np.random.default_rng(self._settings.seed))

    def _prefill(self, searches: Sequence[_Search], width: int, temperature: float) -> None:
        """Read the prompts, as many windows at once as a step has rows for, and begin the searches."""
        group: list[_Search] = []
        for search in searches:
            rows = sum(len(_given(other.request)) for other in group)
            if group and rows + len(_given(search.request)) > self._executor.max_rows:
                self._read_prompts(group, width, temperature)
                group = []
            group.append(search)
        self._read_prompts(group, width, temperature)

    def _read_prompts(self, searches: Sequence[_Search], width: int, temperature: float) -> None:
        ids: list[int] = []
        positions: list[int] = []
        sequences: list[int] = []
        last: list[int] = []
        start: list[int] = []
        for number, search in enumerate(searches):
            request, given, blocks = search.request, _given(search.request), search.live[0].blocks
            start.append(len(ids) + request.start)
            ids += given
            positions += range(len(given))
            sequences += [number] * len(given)
            last.append(len(ids) - 1)
            self._pool.writable(blocks, len(given) - 1)
        lists = [search.live[0].blocks for search in searches]
        sources = np.array([search.request.source for search in searches], np.int32)
        batch = Batch(
            np.array(ids, np.int32), np.array(positions, np.int32), np.array(sequences, np.int32), tables(lists),
            np.array([*last, *start], np.int32), sources=sources[sequences],
        )  # fmt: skip
        rules = self._rows([(search, search.live[0]) for search in searches])
        count = len(searches)
        found, scores = self._executor.choose(batch, np.concatenate([rules, rules]), self._wanted(width, temperature))
        candidates = found[:count], scores[:count]
        logits = self._executor.last_logits(2 * count)
        if temperature:
            drawn = [search.random.random(width) for search in searches]
            candidates = np.repeat(candidates[0], width, 0), np.repeat(candidates[1], width, 0)
            candidates = _draw(*candidates, np.concatenate(drawn), temperature)
        for search, row in zip(searches, logits[count:], strict=True):
            search.no_speech_probability = _probability(row, self._tokens.no_speech)
        for number, search in enumerate(searches):
            if temperature == 0:
                self._extend(search, (candidates[0][number : number + 1], candidates[1][number : number + 1]), width)
            else:
                part = slice(number * width, (number + 1) * width)
                self._begin_samples(search, (candidates[0][part], candidates[1][part]))

    def _step(self, searches: Sequence[_Search], width: int, temperature: float) -> None:
        """One more token for every live hypothesis."""
        live = [(search, hypothesis) for search in searches for hypothesis in search.live]
        ids, positions, sources = [], [], []
        for search, hypothesis in live:
            position = len(search.request.prompt) + len(hypothesis.said) - 1
            ids.append(hypothesis.said[-1])
            positions.append(position)
            sources.append(search.request.source)
            self._pool.writable(hypothesis.blocks, position)
        rows = np.arange(len(live), dtype=np.int32)
        batch = Batch(
            np.array(ids, np.int32), np.array(positions, np.int32), rows,
            tables([hypothesis.blocks for _, hypothesis in live]), rows, sources=np.array(sources, np.int32),
        )  # fmt: skip
        rules = self._rows(live)
        if self._guarded:
            said = [hypothesis.said for _, hypothesis in live]
            found, scores = self._choose_here(self._executor.step(batch), rules, said, self._wanted(width, temperature))
        else:
            found, scores = self._executor.choose(batch, rules, self._wanted(width, temperature))
        if temperature:
            drawn = np.concatenate([search.random.random(len(search.live)) for search in searches])
            found, scores = _draw(found, scores, drawn, temperature)
        first = 0
        for search in searches:
            part = slice(first, first + len(search.live))
            first = part.stop
            if temperature == 0:
                self._extend(search, (found[part], scores[part]), width)
            else:
                self._extend_samples(search, (found[part], scores[part]))

    def _rows(self, hypotheses: Sequence[tuple[_Search, _Hypothesis]]) -> Int32Array:
        """The rules for the next token of each."""
        rows = [self._rules.row(one.said, one.last_timestamp, search.request.goes_on) for search, one in hypotheses]
        return np.array(rows, np.int32)

    def _wanted(self, width: int, temperature: float) -> int:
        """Candidates for each row."""
        if temperature:
            return MOST_CANDIDATES
        return width + 1 if width > 1 else 1

    def _choose_here(
        self, logits: Float32Array, rules: Int32Array, said: Sequence[Sequence[int]], count: int
    ) -> Candidates:
        """Candidates in NumPy, where logits are changed first."""
        logits = np.array(logits[: len(rules)])
        for row, before in zip(logits, said, strict=True):
            guard_against_repetition(row, before, self._settings)
        return best(allowed_log_probabilities(logits, self._bias, rules, self._tokens.timestamps), count)

    # -- searches -----------------------------------------------------------------------------------------------

    def _extend(self, search: _Search, candidates: Candidates, width: int) -> None:
        """Keep the ``width`` best continuations; those that end are put aside."""
        tokens, scores = candidates[0].tolist(), candidates[1].tolist()
        order = sorted(
            (
                (hypothesis.score + score, parent, token, score)
                for parent, hypothesis in enumerate(search.live)
                for token, score in zip(tokens[parent], scores[parent], strict=True)
                if token >= 0
            ),
            key=lambda entry: -entry[0],
        )
        most = max(1, round(width * self._settings.patience))
        parents: list[int] = []
        following: list[_Hypothesis] = []
        for _, parent, token, score in order:
            hypothesis = search.live[parent].plus(token, score, self._tokens.timestamps)
            if token == self._tokens.end:
                if len(search.finished) < most:
                    search.finished.append(hypothesis)
                if width == 1:
                    break
            else:
                following.append(hypothesis)
                parents.append(parent)
                if len(following) == width:
                    break
        self._hand_over(search, following, parents)
        search.done = len(search.finished) >= most or not search.live or self._is_full(search)

    def _hand_over(self, search: _Search, following: list[_Hypothesis], parents: Sequence[int]) -> None:
        """Give the new hypotheses their parents' blocks."""
        used = set()
        for hypothesis, parent in zip(following, parents, strict=True):
            blocks = search.live[parent].blocks
            hypothesis.blocks = self._pool.share(blocks) if parent in used else blocks
            used.add(parent)
        for parent, hypothesis in enumerate(search.live):
            if parent not in used:
                self._pool.give(hypothesis.blocks)
        search.live = following

    def _begin_samples(self, search: _Search, candidates: Candidates) -> None:
        """As many hypotheses as there were draws, all from the same prompt."""
        root = search.live[0]
        search.live = [replace(root, blocks=self._pool.share(root.blocks)) for _ in range(len(candidates[0]))]
        self._pool.give(root.blocks)
        self._extend_samples(search, candidates)

    def _extend_samples(self, search: _Search, candidates: Candidates) -> None:
        """Each hypothesis by what was drawn for it."""
        going: list[_Hypothesis] = []
        for hypothesis, token, score in zip(
            search.live, candidates[0][:, 0].tolist(), candidates[1][:, 0].tolist(), strict=True
        ):
            following = hypothesis.plus(token, score, self._tokens.timestamps)
            following.blocks = hypothesis.blocks
            if token == self._tokens.end or token < 0:
                self._pool.give(following.blocks)
                search.finished.append(following)
            else:
                going.append(following)
        search.live = going
        search.done = not going or self._is_full(search)

    def _is_full(self, search: _Search) -> bool:
        """Whether a window has as many tokens as it may have."""
        said = len(search.live[0].said) if search.live else 0
        return said >= self._most or len(search.request.prompt) + said >= self._context

    def _result(self, search: _Search, width: int, temperature: float) -> Decoded:
        finished = list(search.finished)
        if len(finished) < width:  # what did not come to its end counts as it is
            finished += sorted(search.live, key=lambda hypothesis: -hypothesis.score)[: width - len(finished)]
        if not finished:
            return Decoded((), -math.inf, search.no_speech_probability, temperature)
        given = len(search.request.said) if search.request.said_score is None else 0
        best_one = max(finished, key=lambda hypothesis: hypothesis.score / self._length_factor(hypothesis, given))
        said = self._without_end(best_one)
        return Decoded(
            tuple(said), best_one.score / (len(said) - given + 1), search.no_speech_probability, temperature,
            tuple(best_one.scores[: len(said)]),
        )  # fmt: skip

    def _without_end(self, hypothesis: _Hypothesis) -> list[int]:
        said = hypothesis.said
        return said[:-1] if said and said[-1] == self._tokens.end else said

    def _length_factor(self, hypothesis: _Hypothesis, given: int) -> float:
        length = max(1, len(self._without_end(hypothesis)) - given)
        alpha = self._settings.length_penalty
        return float(length) if alpha is None else float(((5 + length) / 6) ** alpha)


def _given(request: Request) -> tuple[int, ...]:
    """All tokens before the first that is chosen."""
    return (*request.prompt, *request.said)


def _draw(tokens: Int32Array, scores: Float32Array, drawn: Float64Array, temperature: float) -> Candidates:
    """One token for each row of its likeliest, by a number from 0 to 1 for each."""
    with np.errstate(over="ignore"):  # what is as good as impossible becomes so
        weights = np.where(tokens >= 0, np.exp((scores - scores[:, :1]) / np.float32(temperature)), 0)
    weights = weights.cumsum(axis=1)
    places = np.minimum((weights <= (drawn * weights[:, -1])[:, None]).sum(axis=1), tokens.shape[1] - 1)
    rows = np.arange(len(tokens))
    return tokens[rows, places][:, None], scores[rows, places][:, None]


def _probability(logits: Float32Array, token: int) -> float:
    """Of one token by the softmax of a row."""
    peak = logits.max()
    if not np.isfinite(peak):
        return 0.0
    return float(np.exp(logits[token] - peak) / np.exp(logits - peak).sum())
