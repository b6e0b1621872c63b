"""Whisper's tokens: the special ones by their names, prompts, and words (Radford et al. 2022; openai-whisper)."""

from __future__ import annotations

import string
from collections.abc import Sequence
from functools import cached_property

from edgellm.errors import CorruptFileError, InvalidSettingError
from edgellm.languages import LANGUAGES
from edgellm.speech.settings import Task
from edgellm.tokenizer import Tokenizer

SECONDS_PER_TIMESTAMP = 0.02
_NOT_SPOKEN = (
    *'"#()*+/:;<=>@[\\]^_`{|}~「」『』',
    *[
        "<<",
        ">>",
        "<<<",
        ">>>",
        "--",
        "---",
        "-(",
        "-[",
        "('",
        '("',
        "((",
        "))",
        "(((",
        ")))",
        "[[",
        "]]",
        "{{",
        "}}",
        "♪♪",
        "♪♪♪",
    ],
)
_MUSIC = "♩♪♫♬♭♮♯"
_WITHOUT_SPACES = frozenset({"zh", "ja", "th", "lo", "my", "yue"})


class WhisperTokens:
    """The vocabulary of a Whisper model.

    Attributes:
        tokenizer: of its text.
        end, start, transcribe, translate, previous, no_speech, no_timestamps: special tokens; ``start`` begins every
            transcript, ``previous`` the text before it.
        timestamps: the first of the timestamps, 0.00 s, which are the last tokens of the vocabulary.
        multilingual: whether the model knows other languages than English.
        languages: token of each language, by its code.
        size: of the vocabulary.

    Raises:
        CorruptFileError: one of the special tokens is missing.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.size = tokenizer.vocabulary_size
        self.end = self._special("endoftext")
        self.start = self._special("startoftranscript")
        self.translate = self._special("translate")
        self.transcribe = self._special("transcribe")
        self.previous = self._special("startofprev")
        self.no_speech = self._special("nospeech")
        self.no_timestamps = self._special("notimestamps")
        self.timestamps = self._special("0.00")
        found = {code: tokenizer.token_id(f"<|{code}|>") for code in LANGUAGES}
        self.languages = {code: token for code, token in found.items() if token is not None}
        self.multilingual = self.size >= 51865
        if not self.end < self.start < self.no_timestamps < self.timestamps < self.size:
            raise CorruptFileError("the special tokens are not in Whisper's order", "convert the model again")

    def _special(self, name: str) -> int:
        token = self.tokenizer.token_id(f"<|{name}|>")
        if token is None:
            raise CorruptFileError(f"the vocabulary has no token <|{name}|>", "convert the model again")
        return token

    def encode(self, text: str) -> list[int]:
        """Ids of a text, in which nothing stands for a special token."""
        return self.tokenizer.encode(text, add_special=False)

    def text(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without special ones and timestamps."""
        return self.tokenizer.decode([token for token in tokens if token < self.end])

    def start_sequence(self, language: str, task: Task, timestamps: bool) -> list[int]:
        """What a transcript begins with.

        Raises:
            InvalidSettingError: the model does not know the language, or cannot translate.
        """
        sequence = [self.start]
        if self.multilingual:
            if language not in self.languages:
                raise InvalidSettingError(f"this model does not know the language {language!r}", "use another model")
            sequence += [self.languages[language], self.translate if task == "translate" else self.transcribe]
        elif language != "en" or task == "translate":
            raise InvalidSettingError(
                f"this model knows English alone; asked for: {task}, {LANGUAGES.get(language, language)}",
                "use a multilingual model, such as base",
            )
        return sequence if timestamps else [*sequence, self.no_timestamps]

    @cached_property
    def not_spoken(self) -> tuple[int, ...]:
        """Symbols that stand for no speech: brackets, notes and the like, with a space before them or without."""
        found = {self.encode(" -")[0], self.encode(" '")[0]}
        for symbol in (*_NOT_SPOKEN, *_MUSIC):
            for tokens in (self.encode(symbol), self.encode(f" {symbol}")):
                if len(tokens) == 1 or symbol in _MUSIC:
                    found.add(tokens[0])
        return tuple(sorted(found))

    def never_chosen(self, suppress: Sequence[int]) -> list[int]:
        """Tokens that are suppressed in every window: those asked for, and those that only prompts have.

        Raises:
            InvalidSettingError: a token is not in the vocabulary.
        """
        chosen = (set(suppress) - {-1}) | (set(self.not_spoken) if -1 in suppress else set())
        for token in chosen:
            if not 0 <= token < self.size:
                raise InvalidSettingError(f"suppress_tokens has {token}", f"use -1 or 0 to {self.size - 1}")
        chosen -= {self.end}
        chosen |= set(range(self.start, self.timestamps))
        return sorted(chosen)

    def split_to_words(self, tokens: Sequence[int], language: str) -> list[tuple[str, list[int]]]:
        """Text tokens as words with their tokens: at spaces, or at whole characters where a language has no spaces."""
        pieces = self._split_to_characters(tokens)
        if language in _WITHOUT_SPACES:
            return pieces
        words: list[tuple[str, list[int]]] = []
        for text, part in pieces:
            special = part[0] >= self.end
            alone = text.strip() in string.punctuation
            if special or text.startswith(" ") or alone or not words:
                words.append((text, part))
            else:
                words[-1] = (words[-1][0] + text, words[-1][1] + part)
        return words

    def _split_to_characters(self, tokens: Sequence[int]) -> list[tuple[str, list[int]]]:
        """Runs of tokens that are whole characters."""
        found: list[tuple[str, list[int]]] = []
        waiting: list[int] = []
        for token in tokens:
            waiting.append(token)
            data = self.tokenizer.decode_bytes(waiting)
            try:
                text = data.decode("utf-8")
            except UnicodeDecodeError:
                if len(waiting) < 8:
                    continue
                text = data.decode("utf-8", "replace")
            found.append((text, waiting))
            waiting = []
        if waiting:
            found.append((self.tokenizer.decode(waiting), waiting))
        return found
