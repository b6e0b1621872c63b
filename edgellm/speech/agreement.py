"""Which words of a transcript that keeps growing are certain: those on which successive hypotheses agree.

LocalAgreement-n of Liu et al. 2020 ("Low-Latency Sequence-to-Sequence Speech Recognition and Translation by Partial
Hypothesis Selection"), as Macháček et al. 2023 apply it to Whisper ("Turning Whisper into Real-Time Transcription
System"): what n hypotheses in a row begin with becomes firm, and firm words are never taken back.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from itertools import takewhile

from edgellm.speech.results import Word

_HURRIED = 0.5
"""Of how sure a word must be, where many wait."""


class Agreement:
    """The firm words, and those that may still change.

    A word that is not sure is held back, with what follows it, until what was said after it is heard as well. What had
    to wait long is worth waiting for longer: it must be surer.

    Args:
        count: of hypotheses in a row that must agree, 2 or more.
        sure: how sure a word must be not to be held back; see `sureness`.
        surer: how sure a word must be that is overdue; as sure as any other if that is more.

    Attributes:
        firm: certain, in order.
        partial: what the last hypothesis says beyond them.
    """

    def __init__(self, count: int = 2, sure: float = 0.0, surer: float = 0.0) -> None:
        self.firm: list[Word] = []
        self.partial: list[Word] = []
        self._count, self._sure, self._surer = count, sure, max(sure, surer)
        self._before = 0
        self._earlier: deque[list[str]] = deque(maxlen=count - 1)
        """What the last hypotheses said beyond the firm words, as it sounds."""

    def update(
        self,
        hypothesis: Sequence[Word],
        heard_until: float,
        waited_until: float = 0.0,
        overdue_until: float = 0.0,
        hurried: bool = False,
    ) -> list[Word]:
        """Take a new hypothesis for the sound that was not dropped; returns the words that became firm.

        Args:
            hypothesis: all words of that sound, from its beginning.
            heard_until: second up to which words count as heard whole; a word that ends later may go on.
            waited_until: second up to which words are firm, however unsure or new.
            overdue_until: second up to which words are overdue.
            hurried: words need half of the sureness, overdue ones no more than others.
        """
        rest = self._beyond_firm(hypothesis)
        texts = [plain(word.text) for word in rest]
        agreed = 0
        if len(self._earlier) >= self._count - 1:
            agreed = min([len(rest), *(_common(texts, earlier) for earlier in self._earlier)])
        self._earlier.append(texts)
        agreed = sum(1 for _ in takewhile(lambda word: word.end <= heard_until, rest[:agreed]))
        sure, surer = (self._sure * _HURRIED,) * 2 if hurried else (self._sure, self._surer)
        needed = [surer if word.end <= overdue_until else sure for word in rest[:agreed]]
        return self._accept(rest, self._certain(rest, needed, waited_until))

    def wait(self, waited_until: float) -> list[Word]:
        """Time went by; returns the words that became firm because they were waited for long enough."""
        return self._accept(self.partial, self._certain(self.partial, [], waited_until))

    def finish(self, hypothesis: Sequence[Word]) -> list[Word]:
        """Take the last hypothesis: all of it becomes firm; returns what is new."""
        rest = self._beyond_firm(hypothesis)
        self._earlier.clear()
        return self._accept(rest, len(rest))

    def restore(self, hypothesis: Sequence[Word]) -> None:
        """What came after this hypothesis was no speech: forget what later ones said."""
        self._earlier.clear()
        self.partial = list(self._beyond_firm(hypothesis))

    def _certain(self, words: Sequence[Word], needed: Sequence[float], waited_until: float) -> int:
        """How many words at the beginning are firm: those waited for long enough, or agreed on and sure.

        Args:
            words: beyond the firm ones.
            needed: how sure each of those must be that were agreed on.
            waited_until: second up to which words are firm in any case.
        """
        count = sum(1 for _ in takewhile(lambda word: word.end <= waited_until, words))
        before = self.firm[-1].probability if self.firm else 1.0
        probabilities = [before, *(word.probability for word in words), 1.0]
        while count < len(needed) and sureness(*probabilities[count : count + 3]) >= needed[count]:
            count += 1
        return count

    def drop_before(self, seconds: float) -> list[Word]:
        """Hypotheses will begin at this time from now on; returns the firm words that lie before it."""
        first = self._before
        while self._before < len(self.firm) and _middle(self.firm[self._before]) < seconds:
            self._before += 1
        return self.firm[first : self._before]

    def _accept(self, rest: Sequence[Word], count: int) -> list[Word]:
        accepted = _after(rest[:count], self.firm[-1].end if self.firm else 0.0)
        self.firm += accepted
        self.partial = list(rest[count:])
        self._earlier = deque((earlier[count:] for earlier in self._earlier), self._earlier.maxlen)
        return accepted

    def _beyond_firm(self, hypothesis: Sequence[Word]) -> Sequence[Word]:
        """The hypothesis without the words that are firm already, in whatever spelling it has them now."""
        firm = self.firm[self._before :]
        return hypothesis[matching_prefix(firm, hypothesis) :]


def sureness(before: float, probability: float, after: float) -> float:
    """How sure a word is: its probability times the geometric mean of its neighbours'.

    A word that was misheard takes its neighbours along, so that this tells more than its own probability.
    """
    return float(probability * math.sqrt(before * after))


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """How many words both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def matching_prefix(known: Sequence[Word], words: Sequence[Word]) -> int:
    """How many of ``words`` stand for all of ``known``: the prefix with the least edit distance.

    Of prefixes that are as close, the one whose last word ends nearest to the last one known.
    """
    if not known:
        return 0
    texts = [plain(word.text) for word in words]
    distances = list(range(len(words) + 1))  # of the known words so far to each prefix
    for word in known:
        text, row = plain(word.text), [distances[0] + 1]
        for place, other in enumerate(texts):
            row.append(min(distances[place] + (other != text), distances[place + 1] + 1, row[place] + 1))
        distances = row
    end = known[-1].end
    return min(
        range(len(words) + 1),
        key=lambda count: (distances[count], abs(words[count - 1].end - end) if count else abs(end)),
    )


def plain(text: str) -> str:
    """A word as it sounds: without case and punctuation."""
    return "".join(character for character in text.casefold() if character.isalnum())


def _middle(word: Word) -> float:
    return (word.start + word.end) / 2


def _after(words: Sequence[Word], seconds: float) -> list[Word]:
    """The words with times that do not run backwards from ``seconds`` on."""
    result = []
    for word in words:
        start = max(word.start, seconds)
        seconds = max(word.end, start)
        result.append(Word(start, seconds, word.text, word.probability, word.speaker))
    return result
