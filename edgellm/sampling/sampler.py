"""The sampler of one text: its settings, what was said so far, and its source of chance."""

from __future__ import annotations

import secrets
from array import array
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgellm.errors import EdgeLLMError, InvalidSettingError
from edgellm.sampling import mirostat, repetition, truncation
from edgellm.sampling.candidates import Candidates, Ids, Probabilities, from_logits, probabilities
from edgellm.sampling.settings import Sampling

Step = Callable[[Candidates], Candidates]


class Sampler:
    """Chooses the next token of one text.

    The logit biases come first, then the samplers in the order of ``sampling.samplers``; at last a token is drawn from
    what is left. Two short cuts:

    - temperature <= 0 chooses the token with the largest logit (the lowest id of equal ones) after biases, penalties
      and DRY. The other samplers are not asked, so that it is greedy whatever else is set.
    - Mirostat replaces the truncating samplers: biases, penalties, DRY, temperature, then Mirostat.

    Not for use by several threads at once.

    Args:
        sampling: the settings.
        vocabulary_size: number of logits.
        prompt_ids: the tokens before the first one chosen; the penalties see them too.
        end_of_generation: ids that ``ignore_eos`` rules out.
        token_text: the bytes a token stands for: for DRY's sequence breakers (None: none is ever seen) and for biases
            by text.
        encode: the tokens a text consists of, for biases by text. Without it a biased text must be a single token.

    Attributes:
        seed: the seed in use, the one drawn if none was given.

    Raises:
        InvalidSettingError: ``logit_bias`` names a token the model does not have.
    """

    def __init__(
        self,
        sampling: Sampling,
        vocabulary_size: int,
        prompt_ids: Sequence[int] | Ids = (),
        end_of_generation: frozenset[int] = frozenset(),
        token_text: Callable[[int], bytes] | None = None,
        *,
        encode: Callable[[str], Sequence[int]] | None = None,
    ) -> None:
        self.sampling = sampling
        self.vocabulary_size = vocabulary_size
        random = sampling.seed is None or sampling.seed == -1
        self.seed: int = secrets.randbits(32) if sampling.seed is None or random else sampling.seed
        self._random = np.random.Generator(np.random.PCG64(self.seed))
        self._mu = 2.0 * sampling.mirostat_tau
        self._greedy = sampling.temperature <= 0.0
        self._bias = _resolved_bias(sampling, vocabulary_size, end_of_generation, token_text, encode)
        self._steps = self._chosen_steps()
        self._history = array("q", np.asarray(prompt_ids, np.int64).tobytes())
        self._breakers = repetition.SequenceBreakers(sampling.dry_sequence_breakers, token_text)
        self._uses_dry = self._dry in self._steps
        if self._uses_dry:
            for token in _last(self._history, sampling.dry_penalty_last_n):
                self._breakers.push(token)

    def sample(self, logits: ArrayLike) -> int:
        """The id of the next token. ``accept`` it once it is part of the text.

        Args:
            logits: shape (vocabulary_size,), not modified. NaN and -inf are never chosen.

        Raises:
            EdgeLLMError: no token can be chosen, or the number of logits is wrong.
        """
        ids, shares = self.distribution(logits)
        if ids.size == 1:
            chosen = 0
        else:
            cumulated = np.cumsum(shares)
            target = self._random.random() * cumulated[-1]
            # Rounding may put the target on the very end; the last token that is possible at all is meant then.
            chosen = int(np.searchsorted(cumulated, target, side="right"))
            chosen = min(chosen, int(np.searchsorted(cumulated, cumulated[-1], side="left")))
        if self.sampling.mirostat and not self._greedy:
            self._mu = mirostat.updated_mu(
                self._mu, float(shares[chosen]), self.sampling.mirostat_tau, self.sampling.mirostat_eta
            )
        return int(ids[chosen])

    def distribution(self, logits: ArrayLike) -> tuple[Ids, Probabilities]:
        """The tokens ``sample`` draws from and their probabilities (float64, summing to 1), both of shape (n,).

        XTC draws a random number here, so a call changes what a seed gives afterwards when XTC is on.
        """
        candidates = from_logits(self._biased(logits))
        for step in self._steps:
            candidates = step(candidates)
        if self._greedy:
            # Argmax takes the first of equal values, and the candidates are sorted by id here.
            return candidates.ids[[int(np.argmax(candidates.logits))]], np.ones(1)
        if self.sampling.mirostat == 1:
            candidates = mirostat.mirostat_1(candidates, self._mu, self.vocabulary_size)
        elif self.sampling.mirostat == 2:
            candidates = mirostat.mirostat_2(candidates, self._mu)
        return candidates.ids, probabilities(candidates)

    def accept(self, id: int) -> None:
        """Take note that ``id`` is the next token of the text."""
        self._history.append(id)
        if self._uses_dry:
            self._breakers.push(id)

    def _chosen_steps(self) -> list[Step]:
        """The samplers that do anything, in order."""
        s = self.sampling
        penalised = s.repeat_last_n != 0 and (s.repeat_penalty, s.frequency_penalty, s.presence_penalty) != (1, 0, 0)
        dried = s.dry_multiplier != 0 and s.dry_base >= 1 and s.dry_penalty_last_n != 0
        steps: dict[str, tuple[Step, bool]] = {
            "penalties": (self._penalties, penalised),
            "dry": (self._dry, dried),
            "top_n_sigma": (lambda c: truncation.top_n_sigma(c, s.top_n_sigma), s.top_n_sigma > 0),
            "top_k": (lambda c: truncation.top_k(c, s.top_k), s.top_k > 0),
            "typ_p": (lambda c: truncation.typical(c, s.typical_p, s.min_keep), s.typical_p < 1),
            "top_p": (lambda c: truncation.top_p(c, s.top_p, s.min_keep), s.top_p < 1),
            "min_p": (lambda c: truncation.min_p(c, s.min_p, s.min_keep), s.min_p > 0),
            "xtc": (self._xtc, s.xtc_probability > 0 and s.xtc_threshold <= 0.5),
            "temperature": (self._temperature, not self._greedy),
        }
        names: Sequence[str] = s.samplers
        if self._greedy:
            names = [name for name in names if name in ("penalties", "dry")]
        elif s.mirostat:
            names = [*(name for name in names if name in ("penalties", "dry")), "temperature"]
        return [steps[name][0] for name in names if steps[name][1]]

    def _biased(self, logits: ArrayLike) -> NDArray[np.float32]:
        values = np.asarray(logits, np.float32)
        if values.shape != (self.vocabulary_size,):
            raise EdgeLLMError(
                f"logits of shape {values.shape}: this sampler was made for a vocabulary of {self.vocabulary_size}"
            )
        ids, bias = self._bias
        if ids.size:
            values = values.copy()
            with np.errstate(invalid="ignore"):  # never (-inf) wins over a logit of +inf: NaN is not chosen either
                values[ids] += bias
        return values

    def _window(self, length: int) -> Ids:
        # A copy: while a view of the array itself is about, the array cannot grow.
        return np.array(_last(self._history, length), np.int64)

    def _penalties(self, candidates: Candidates) -> Candidates:
        s = self.sampling
        recent = self._window(s.repeat_last_n)
        return repetition.penalties(candidates, recent, s.repeat_penalty, s.frequency_penalty, s.presence_penalty)

    def _dry(self, candidates: Candidates) -> Candidates:
        s = self.sampling
        return repetition.dry(
            candidates,
            self._window(s.dry_penalty_last_n),
            self._breakers.tokens_since,
            s.dry_multiplier,
            s.dry_base,
            s.dry_allowed_length,
            self._breakers.within,
        )

    def _xtc(self, candidates: Candidates) -> Candidates:
        if self._random.random() >= self.sampling.xtc_probability:
            return candidates
        return truncation.xtc(candidates, self.sampling.xtc_threshold, self.sampling.min_keep)

    def _temperature(self, candidates: Candidates) -> Candidates:
        s = self.sampling
        if s.dynatemp_range > 0 and not s.mirostat:
            return truncation.dynamic_temperature(candidates, s.temperature, s.dynatemp_range, s.dynatemp_exponent)
        return truncation.temperature(candidates, s.temperature)


def _last(tokens: array[int], length: int) -> array[int]:
    """The last ``length`` tokens, all for -1."""
    return tokens[max(len(tokens) - length, 0) :] if length >= 0 else tokens


def _resolved_bias(
    sampling: Sampling,
    vocabulary_size: int,
    end_of_generation: frozenset[int],
    token_text: Callable[[int], bytes] | None,
    encode: Callable[[str], Sequence[int]] | None,
) -> tuple[Ids, NDArray[np.float32]]:
    """The biased ids, int64, and what is added to their logits, float32, both of shape (n,)."""
    total: dict[int, float] = {}
    for token, value in sampling.logit_bias.items():
        ids = [token] if isinstance(token, int) else _tokens_of(token, vocabulary_size, token_text, encode)
        for id in ids:
            if not 0 <= id < vocabulary_size:
                raise InvalidSettingError(
                    f"logit_bias: token {id} does not exist, ids go from 0 to {vocabulary_size - 1}"
                )
            total[id] = total.get(id, 0.0) + value
    if sampling.ignore_eos:
        total.update(dict.fromkeys((id for id in end_of_generation if 0 <= id < vocabulary_size), -np.inf))
    return np.array(list(total), np.int64), np.array(list(total.values()), np.float32)


def _tokens_of(
    text: str,
    vocabulary_size: int,
    token_text: Callable[[int], bytes] | None,
    encode: Callable[[str], Sequence[int]] | None,
) -> Sequence[int]:
    if encode is not None:
        return list(dict.fromkeys(encode(text)))
    wanted = text.encode()
    same = [id for id in range(vocabulary_size) if token_text(id) == wanted] if token_text is not None else []
    if not same:
        raise InvalidSettingError(f"logit_bias: {text!r} is not a token of this model", "give token ids instead")
    return same
