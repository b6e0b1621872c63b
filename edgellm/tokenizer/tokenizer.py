"""The tokenizer of a model: text to ids and back, by the rules its file states."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from edgellm.gguf import GGUFFile, open_gguf
from edgellm.tokenizer.decoding import StreamDecoder, TokenBytes
from edgellm.tokenizer.encoders import BytePairEncoder, Encoder, SentencePieceEncoder
from edgellm.tokenizer.special import SpecialFinder
from edgellm.tokenizer.vocabulary import CUTTING_TYPES, Kind, TokenType, read_vocabulary


class Tokenizer:
    """Turns text into the ids a model knows, and ids into text.

    Loading reads the tokens; what only encoding needs (merges, patterns) is read when it is first used. May be used
    from several threads.

    Attributes:
        vocabulary_size: number of tokens.
        bos_id, eos_id, eot_id, eom_id, unknown_id, separator_id, padding_id, mask_id: special tokens, or None.
        fim_prefix_id, fim_suffix_id, fim_middle_id: tokens around a gap to be filled in, or None.
        end_of_generation: ids after which an answer is complete.
        add_bos, add_eos: whether ``encode`` puts these tokens around a text.
        kind: how text becomes tokens.
        warning: what in the file may make answers worse, or None.
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        """Read the vocabulary from the keys of a GGUF file.

        Raises:
            CorruptFileError: the vocabulary breaks its own rules.
            UnsupportedModelError: a kind of tokenizer that this version does not have.
        """
        self._metadata = metadata
        self._vocabulary = vocabulary = read_vocabulary(metadata)
        self._token_bytes = TokenBytes(vocabulary)
        special = vocabulary.special
        self.vocabulary_size: int = len(vocabulary.tokens)
        self.kind: Kind = vocabulary.kind
        self.bos_id: int | None = special.bos
        self.eos_id: int | None = special.eos
        self.eot_id: int | None = special.eot
        self.eom_id: int | None = special.eom
        self.unknown_id: int | None = special.unknown
        self.separator_id: int | None = special.separator
        self.padding_id: int | None = special.padding
        self.mask_id: int | None = special.mask
        self.fim_prefix_id: int | None = special.fim_prefix
        self.fim_suffix_id: int | None = special.fim_suffix
        self.fim_middle_id: int | None = special.fim_middle
        self.end_of_generation: frozenset[int] = vocabulary.end_of_generation
        self.add_bos: bool = vocabulary.rules.add_bos
        self.add_eos: bool = vocabulary.rules.add_eos
        self.warning: str | None = vocabulary.warning

    @classmethod
    def load(cls, source: str | os.PathLike[str] | GGUFFile) -> Tokenizer:
        """The tokenizer of a GGUF file, which may hold nothing but a vocabulary.

        Args:
            source: a path, or an open file that stays open at least until the first text is encoded.

        Raises:
            CorruptFileError: the file or its vocabulary is damaged.
            UnsupportedModelError: a kind of tokenizer that this version does not have.
        """
        if isinstance(source, GGUFFile):
            return cls(source.metadata)
        return cls(open_gguf(source).metadata)

    def prepare(self) -> None:
        """Read what encoding needs now, and not with the first text.

        Raises:
            CorruptFileError: the merges are damaged.
        """
        _ = self._encoder, self._every_special

    def encode(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """The ids of ``text``.

        Args:
            text: any string; unpaired surrogates count as U+FFFD.
            add_special: put BOS, EOS or separator around it where the file asks for that.
            parse_special: the texts of control tokens in ``text`` stand for the tokens. Leave it off for text that
                comes from outside, or that text can take over the conversation.
        """
        ids = self._encode_parts(text, parse_special)
        if not add_special:
            return ids
        rules, special = self._vocabulary.rules, self._vocabulary.special
        if self.kind is Kind.WPM:
            before = [special.bos] if special.bos is not None else []
            after = [special.separator] if special.separator is not None else []
            return before + ids + after
        if rules.add_bos and special.bos is not None:
            ids.insert(0, special.bos)
        if rules.add_eos and special.eos is not None:
            ids.append(special.eos)
        return ids

    def encode_prompt(self, text: str) -> list[int]:
        """The ids of a rendered chat template: control tokens in it count.

        BOS comes first if the file asks for it and the template has not written it already. EOS is never added: the
        model is to go on.
        """
        ids = self._encode_parts(text, parse_special=True)
        if self.add_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        return ids

    def decode(self, ids: Iterable[int], special: bool = True) -> str:
        """The text of ``ids``. Bytes that are no UTF-8 become U+FFFD.

        Args:
            ids: any ids of the vocabulary.
            special: show the texts of control tokens; else leave them out.

        Raises:
            InvalidSettingError: an id is not in the vocabulary.
        """
        if self.kind is not Kind.WPM:
            return self.decode_bytes(ids, special).decode("utf-8", "replace")
        decoder = self.stream(special=special)
        return "".join([*map(decoder.push, ids), decoder.flush()])

    def decode_bytes(self, ids: Iterable[int], special: bool = True) -> bytes:
        """The same as bytes, which need not be whole characters."""
        return b"".join(map(self.stream(special=special).push_bytes, ids))

    def stream(self, special: bool = True, after: Sequence[int] = ()) -> StreamDecoder:
        """A decoder for ids that come one by one.

        Args:
            special: show the texts of control tokens; else leave them out.
            after: the ids that come before, if any, such as the prompt. Only the last one matters: SentencePiece
                vocabularies write a space before the first word of a text, which is left out at the start or after a
                special token, but must stay where a text goes on.
        """
        starts = len(after) == 0 or self._vocabulary.types[after[-1]] in CUTTING_TYPES
        return StreamDecoder(self._vocabulary, self._token_bytes, special=special, starts=bool(starts))

    def token_bytes(self, number: int) -> bytes:
        """The bytes that one token adds to a text: often part of a character, with its leading space.

        Raises:
            InvalidSettingError: the id is not in the vocabulary.
        """
        return self._token_bytes(number)

    def token_id(self, text: str) -> int | None:
        """The id of the token the file spells ``text``, such as ``<|im_end|>``, or None."""
        return self._vocabulary.ids.get(text.encode("utf-8", "replace"))

    def is_special(self, number: int) -> bool:
        """Whether a token controls the model and is not part of a text.

        Raises:
            InvalidSettingError: the id is not in the vocabulary.
        """
        self._token_bytes(number)
        return self._vocabulary.types[number] in (TokenType.CONTROL, TokenType.UNKNOWN)

    def _encode_parts(self, text: str, parse_special: bool) -> list[int]:
        if not text:
            return []
        text = _valid(text)
        finder = self._every_special if parse_special else self._user_defined
        ids: list[int] = []
        starts = True
        for part in finder.split(text):
            if isinstance(part, str):
                ids += self._encoder.encode(part, starts)
                starts = False
            else:
                ids.append(part)
                starts = True
        return ids

    @cached_property
    def _encoder(self) -> Encoder:
        match self.kind:
            case Kind.BPE:
                return BytePairEncoder(self._vocabulary, self._metadata)
            case Kind.SPM:
                return SentencePieceEncoder(self._vocabulary)
            case Kind.WPM:
                from edgellm.tokenizer.wordpiece import WordPieceEncoder

                return WordPieceEncoder(self._vocabulary)
            case Kind.UGM:
                from edgellm.tokenizer.unigram import UnigramEncoder

                return UnigramEncoder(self._vocabulary, self._metadata)

    @cached_property
    def _every_special(self) -> SpecialFinder:
        return SpecialFinder(self._vocabulary, CUTTING_TYPES)

    @cached_property
    def _user_defined(self) -> SpecialFinder:
        return SpecialFinder(self._vocabulary, (TokenType.USER_DEFINED,))


def _valid(text: str) -> str:
    """``text`` with paired surrogates joined and others as U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
