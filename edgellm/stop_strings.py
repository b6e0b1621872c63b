"""Find stop strings in text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence

from edgellm.errors import InvalidSettingError


class StopStrings:
    """Passes text on, up to the first stop string that is complete; what may still become one is held back.

    The first to be complete wins; of those complete at the same character, the longest. So the outcome depends on the
    text alone, not on where it was cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Take the stop strings.

        Raises:
            InvalidSettingError: one of them is empty or not a string.
        """
        for stop in stops:
            if not isinstance(stop, str) or not stop:
                raise InvalidSettingError(
                    f"a stop string is {stop!r}", "every stop string must be a text of some length"
                )
        self._stops = tuple(stops)
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """Add text; returns what is now known to stand before any stop string. Nothing follows once one matched."""
        if not self._stops:
            return text
        if self.matched is not None or not text:
            return ""
        text = self._held + text
        begin, stop = self._first_match(text)
        if stop is not None:
            self.matched = stop
            self._held = ""
            return text[:begin]
        keep = self._possible_start(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """The text held back: nothing follows that could complete a stop string."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> tuple[int, str | None]:
        best: tuple[int, int] | None = None
        found: str | None = None
        for stop in self._stops:
            begin = text.find(stop)
            if begin >= 0 and (best is None or (begin + len(stop), begin) < best):
                best, found = (begin + len(stop), begin), stop
        return (best[1] if best else 0), found

    def _possible_start(self, text: str) -> int:
        """Length of the longest end of the text with which a stop string begins."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:length]):
                    longest = length
                    break
        return longest
