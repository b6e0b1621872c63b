"""The tokenizer's keys of a GGUF file from tokenizer.json, tokenizer.model and what lies beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgellm.convert.builder import Key
from edgellm.convert.config import Config
from edgellm.convert.pretokenizer import find_pre_tokenizer
from edgellm.convert.safetensors import parse_json, shown
from edgellm.convert.sentencepiece import BPE, Pieces, read_sentencepiece
from edgellm.convert.tiktoken import merges, read_tiktoken
from edgellm.errors import CorruptFileError, UnsupportedModelError
from edgellm.tokenizer.pretokenizers import PRE_TOKENIZERS

MAX_JSON_BYTES = 256 << 20
MAX_TOKENS = 1 << 22
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_PREFIX = "tokenizer.ggml."
_ROLES = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",
    "pad": "padding_token_id",
    "mask": "mask_token_id",
}
"""Role in tokenizer_config.json, and the key's name; "seperator" is how the format spells it."""

# Tokens that some models forget to call special.
_LOOKS_SPECIAL = frozenset({"<pad>", "<mask>", "<2mass>", "[@BOS@]"})


@dataclass
class Tokens:
    """A vocabulary in the making: everything by id."""

    model: str
    texts: list[str | bytes] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    scores: list[float] | None = None
    merges: list[str] | None = None
    pre_tokenizer: str = "default"
    add_space_prefix: bool | None = None

    def put(self, number: int, text: str, kind: int, score: float = 0.0) -> None:
        """Set a token, with unused ones before it where there is a gap."""
        if not 0 <= number < MAX_TOKENS:
            raise CorruptFileError(f"token {shown(text)} has the id {number}, which is out of range")
        while len(self.texts) <= number:
            self.texts.append(f"[PAD{len(self.texts)}]")
            self.types.append(UNUSED)
            if self.scores is not None:
                self.scores.append(-10000.0)
        self.texts[number], self.types[number] = text, kind
        if self.scores is not None:
            self.scores[number] = score


class TokenizerFiles:
    """The files of a checkpoint that describe its tokenizer; absent ones are empty."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer = self._json("tokenizer.json")
        self.settings = Config(self._json("tokenizer_config.json"), "tokenizer_config.json")
        self.added = self._json("added_tokens.json")
        self.generation = Config(self._json("generation_config.json"), "generation_config.json")
        self.has_pieces = (folder / "tokenizer.model").is_file()

    def _json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        if not path.is_file():
            return {}
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CorruptFileError(f"{name} has {path.stat().st_size} bytes, {MAX_JSON_BYTES} are allowed")
        return parse_json(path.read_bytes(), name)

    def pieces(self) -> Pieces | None:
        """What tokenizer.model says; None if there is none, or it is another format."""
        return read_sentencepiece(self.folder / "tokenizer.model") if self.has_pieces else None

    def added_tokens(self) -> dict[int, tuple[str, bool]]:
        """Id to text and whether it is special, from all places that name added tokens; the best comes last."""
        found: dict[int, tuple[str, bool]] = {}
        for text, number in self.added.items():
            if isinstance(number, int):
                found[number] = (text, False)
        decoder = self.settings.part("added_tokens_decoder").values
        listed = [{"id": int(number), **entry} for number, entry in decoder.items() if _is_entry(number, entry)]
        from_tokenizer = self.tokenizer.get("added_tokens")
        if isinstance(from_tokenizer, list):
            listed += [entry for entry in from_tokenizer if isinstance(entry, dict)]
        for entry in listed:
            given, content = entry.get("id"), entry.get("content")
            if not isinstance(given, int) or isinstance(given, bool) or not isinstance(content, str):
                raise CorruptFileError(
                    f"an added token has no id or text: {shown(str(entry))}", "fetch the files again"
                )
            found[given] = (content, entry.get("special") is True)
        return found


def _is_entry(number: str, entry: Any) -> bool:
    return number.isdecimal() and len(number) < 10 and isinstance(entry, dict)


def tokenizer_keys(
    files: TokenizerFiles, config: Config, rows: int, hint: str | None, forced: str | None, notices: list[str]
) -> dict[str, Key]:
    """All keys of the tokenizer.

    Args:
        files: of the checkpoint.
        config: its config.json, which may name special tokens.
        rows: of the embedding: the vocabulary is filled up to as many.
        hint: the family's own name for its way of cutting text.
        forced: the name to take in any case.
        notices: gets what the user should know.

    Raises:
        CorruptFileError: a file is missing or damaged.
        UnsupportedModelError: a kind of tokenizer or a way of cutting text that is not known.
    """
    tokens = _read_tokens(files, hint, forced)
    if len(tokens.texts) > rows:
        notices.append(f"{len(tokens.texts) - rows} tokens beyond the embedding's {rows} rows are left out")
        del tokens.texts[rows:], tokens.types[rows:]
        if tokens.scores is not None:
            del tokens.scores[rows:]
    if len(tokens.texts) < rows:
        tokens.put(rows - 1, f"[PAD{rows - 1}]", UNUSED, -10000.0)
    _make_unique(tokens)
    keys = {
        f"{_PREFIX}model": Key(tokens.model, "string"),
        f"{_PREFIX}pre": Key(tokens.pre_tokenizer, "string"),
        f"{_PREFIX}tokens": Key(tokens.texts, "strings"),
    }
    if tokens.scores is not None:
        keys[f"{_PREFIX}scores"] = Key(tokens.scores, "f32s")
    keys[f"{_PREFIX}token_type"] = Key(tokens.types, "i32s")
    if tokens.merges is not None:
        keys[f"{_PREFIX}merges"] = Key(tokens.merges, "strings")
    if tokens.add_space_prefix is not None:
        keys[f"{_PREFIX}add_space_prefix"] = Key(tokens.add_space_prefix, "bool")
    ids = {text: number for number, text in enumerate(tokens.texts)}
    keys.update(_special_keys(files, config, ids, rows))
    keys.update(_template_keys(files))
    return keys


def _read_tokens(files: TokenizerFiles, hint: str | None, forced: str | None) -> Tokens:
    model = files.tokenizer.get("model")
    kind = model.get("type", "BPE") if isinstance(model, dict) else None
    if kind is None:
        pieces = files.pieces()
        if pieces is None and (files.folder / "tiktoken.model").is_file():
            return _from_tiktoken(files, forced)
        if pieces is None:
            raise CorruptFileError(
                "the checkpoint has neither tokenizer.json nor a SentencePiece tokenizer.model",
                "fetch tokenizer.json too",
            )
        return _from_pieces(pieces, files)
    assert isinstance(model, dict)
    if kind == "BPE" and _is_byte_level(files.tokenizer):
        return _byte_level(model, files, hint, forced)
    if kind in ("BPE", "Unigram"):
        pieces = files.pieces()
        if pieces is not None:
            return _from_pieces(pieces, files)
        if kind == "BPE":
            return _from_merges(model, files)
    raise UnsupportedModelError(
        f"tokenizers of the kind {shown(str(kind))} cannot be converted from tokenizer.json",
        "known: BPE, SentencePiece BPE",
    )


def _is_byte_level(tokenizer: Mapping[str, Any]) -> bool:
    """Whether bytes are written as GPT-2's printable letters: a stage or the decoder says so."""

    def within(value: Any, depth: int = 0) -> bool:
        if isinstance(value, dict) and depth < 6:
            parts = [value.get(name) for name in ("pretokenizers", "decoders")]
            return value.get("type") == "ByteLevel" or any(within(part, depth + 1) for part in parts)
        return isinstance(value, list) and any(within(part, depth + 1) for part in value)

    return within(tokenizer.get("pre_tokenizer")) or within(tokenizer.get("decoder"))


def _vocabulary(model: Mapping[str, Any]) -> dict[str, int]:
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, dict) or not all(type(number) is int for number in vocabulary.values()):
        raise CorruptFileError("tokenizer.json has no valid vocabulary", "fetch it again")
    return vocabulary


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs, from either of the two ways they are written."""
    pairs = []
    listed = model.get("merges")
    for merge in listed if isinstance(listed, list) else []:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise CorruptFileError(f"tokenizer.json has the invalid merge {shown(str(merge))}", "fetch it again")
        pairs.append((parts[0], parts[1]))
    return pairs


def _byte_level(model: dict[str, Any], files: TokenizerFiles, hint: str | None, forced: str | None) -> Tokens:
    tokens = Tokens("gpt2")
    for text, number in _vocabulary(model).items():
        tokens.put(number, text, NORMAL)
    for number, (text, special) in files.added_tokens().items():
        is_control = special or _looks_special(text)
        tokens.put(number, text if is_control else text.replace("\u2581", " "), CONTROL if is_control else USER_DEFINED)
    # A space within a part would end it: it is written as GPT-2 writes a space.
    tokens.merges = [" ".join(part.replace(" ", "\u0120") for part in pair) for pair in _merges(model)]
    if forced is not None:
        tokens.pre_tokenizer = _known(forced)
    else:
        description = files.tokenizer.get("pre_tokenizer")
        tokens.pre_tokenizer = find_pre_tokenizer(description, model.get("ignore_merges") is True, hint)
    return tokens


def _from_tiktoken(files: TokenizerFiles, forced: str | None) -> Tokens:
    """A vocabulary whose way of cutting text is a program in the checkpoint, which is not run: it must be known."""
    if forced is None and files.settings.get("tokenizer_class") != "TikTokenTokenizer":
        raise UnsupportedModelError(
            "how tiktoken.model cuts text is not written anywhere", "name a known way: --pre-tokenizer NAME"
        )
    ranks = read_tiktoken(files.folder / "tiktoken.model")
    letters = byte_letters()
    tokens = Tokens("gpt2", pre_tokenizer=_known(forced) if forced else "kimi-k2")
    for token, rank in ranks.items():
        tokens.put(rank, token.decode("latin-1").translate(letters), NORMAL)
    tokens.merges = [" ".join(part.decode("latin-1").translate(letters) for part in pair) for pair in merges(ranks)]
    for number, (text, special) in files.added_tokens().items():
        tokens.put(number, text, CONTROL if special or _looks_special(text) else USER_DEFINED)
    return tokens


def byte_letters() -> dict[int, int]:
    """Byte to the printable character that GPT-2 writes it with."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return {byte: byte if byte in printable else next(others) for byte in range(0x100)}


def _known(name: str) -> str:
    if name not in PRE_TOKENIZERS:
        raise UnsupportedModelError(
            f"pre-tokenizer {shown(name)} is not known", f"known: {', '.join(sorted(PRE_TOKENIZERS))}"
        )
    return name


def _from_pieces(pieces: Pieces, files: TokenizerFiles) -> Tokens:
    if pieces.kind != BPE:
        raise UnsupportedModelError("tokenizer.model is a unigram model, which no known family here uses")
    tokens = Tokens("llama", scores=[], add_space_prefix=pieces.add_dummy_prefix)
    for number, (text, score, kind) in enumerate(zip(pieces.texts, pieces.scores, pieces.types, strict=True)):
        tokens.put(number, text, kind, score)
    _put_added(tokens, files)
    return tokens


def _from_merges(model: dict[str, Any], files: TokenizerFiles) -> Tokens:
    """SentencePiece's vocabulary from its rewriting as merges: the earlier a token is made, the higher its score."""
    tokens = Tokens("llama", scores=[], add_space_prefix=_prepends_space(files.tokenizer))
    ranks: dict[str, int] = {}
    for left, right in _merges(model):
        ranks.setdefault(left + right, len(ranks))
    unknown = model.get("unk_token")
    for text, number in _vocabulary(model).items():
        kind = NORMAL
        if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            kind = BYTE
        elif text == unknown:
            kind = UNKNOWN
        score = -float(ranks[text]) if text in ranks else -float(len(ranks)) if kind == NORMAL else 0.0
        tokens.put(number, text, kind, score)
    _put_added(tokens, files)
    return tokens


def _prepends_space(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a space is put before the text: by a normalizer, or by the stage that writes spaces as U+2581."""

    def stages(value: Any, depth: int = 0) -> list[Mapping[str, Any]]:
        if isinstance(value, list) and depth < 6:
            return [stage for part in value for stage in stages(part, depth + 1)]
        if not isinstance(value, dict) or depth >= 6:
            return []
        parts = [value.get(name) for name in ("normalizers", "pretokenizers")]
        return [value, *(stage for part in parts for stage in stages(part, depth + 1))]

    for stage in [*stages(tokenizer.get("normalizer")), *stages(tokenizer.get("pre_tokenizer"))]:
        scheme = stage.get("prepend_scheme", "always" if stage.get("add_prefix_space", True) else "never")
        if stage.get("type") == "Prepend" or (stage.get("type") == "Metaspace" and scheme != "never"):
            return True
    return False


def _put_added(tokens: Tokens, files: TokenizerFiles) -> None:
    for number, (text, special) in files.added_tokens().items():
        if number < len(tokens.types) and tokens.types[number] in (UNKNOWN, BYTE):
            continue
        is_control = special or _looks_special(text)
        shown_text = text if is_control else text.replace("\u2581", " ")
        tokens.put(number, shown_text, CONTROL if is_control else USER_DEFINED, -1000.0)


def _looks_special(text: str) -> bool:
    bars = (text.startswith("<|") and text.endswith("|>")) or (text.startswith("<\uff5c") and text.endswith("\uff5c>"))
    return bars or text in _LOOKS_SPECIAL or (text.startswith("<unused") and text.endswith(">"))


def _make_unique(tokens: Tokens) -> None:
    """Raise if a text stands for two tokens: readers look tokens up by their text."""
    seen: dict[str | bytes, int] = {}
    for number, text in enumerate(tokens.texts):
        if text in seen:
            raise CorruptFileError(
                f"token {shown(str(text))} occurs twice, as {seen[text]} and {number}", "fetch the tokenizer again"
            )
        seen[text] = number


def _special_keys(files: TokenizerFiles, config: Config, ids: Mapping[Any, int], rows: int) -> dict[str, Key]:
    """Ids of the tokens with a role, and which of them are added to every text."""
    keys: dict[str, Key] = {}
    names: dict[str, str | None] = {}
    for role, key in _ROLES.items():
        names[role] = text = _token_text(files.settings.get(f"{role}_token"))
        number = ids.get(text) if text is not None else None
        if number is None:
            number = _first_id(config.get(f"{role}_token_id"))
        if number is None:
            number = _first_id(files.generation.get(f"{role}_token_id"))
        if number is not None and 0 <= number < rows:
            keys[_PREFIX + key] = Key(number, "u32")
    for role, value in _added_to_texts(files, keys, ids).items():
        keys[f"{_PREFIX}add_{role}_token"] = Key(value, "bool")
    return keys


def _token_text(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _first_id(value: Any) -> int | None:
    if isinstance(value, list) and value:
        value = value[0]
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _added_to_texts(files: TokenizerFiles, keys: Mapping[str, Key], ids: Mapping[Any, int]) -> dict[str, bool]:
    """Whether BOS and EOS are added: what the post-processor does, unless tokenizer_config.json says it outright."""
    result: dict[str, bool] = {}
    processor = files.tokenizer.get("post_processor")
    parts = processor.get("processors", [processor]) if isinstance(processor, dict) else []
    for part in parts if isinstance(parts, list) else []:
        template = part.get("single") if isinstance(part, dict) and part.get("type") == "TemplateProcessing" else None
        if not isinstance(template, list) or len(template) < 2:
            continue
        for role, end in (("bos", template[0]), ("eos", template[-1])):
            special = end.get("SpecialToken") if isinstance(end, dict) else None
            if isinstance(special, dict):
                number = ids.get(special.get("id"))
                own = keys.get(f"{_PREFIX}{role}_token_id")
                result[role] = own is not None and own.value == number
    for role in ("bos", "eos"):
        value = files.settings.get(f"add_{role}_token")
        if isinstance(value, bool):
            result[role] = value
    return result


def _template_keys(files: TokenizerFiles) -> dict[str, Key]:
    """The chat template, and those with names of their own."""
    path = files.folder / "chat_template.jinja"
    templates: dict[str, str] = {}
    if path.is_file():
        templates["default"] = _text(path)
        for extra in sorted((files.folder / "additional_chat_templates").glob("*.jinja")):
            templates[extra.stem] = _text(extra)
    else:
        value = files.settings.get("chat_template")
        if value is None and (files.folder / "chat_template.json").is_file():
            name = "chat_template.json"
            value = parse_json(_text(files.folder / name).encode(), name).get("chat_template")
        if isinstance(value, str):
            templates["default"] = value
        elif isinstance(value, list):
            for entry in value:
                if isinstance(entry, dict) and isinstance(entry.get("template"), str):
                    templates[str(entry.get("name", "default"))] = entry["template"]
    keys: dict[str, Key] = {}
    others = {name: text for name, text in templates.items() if name != "default"}
    if others:
        keys["tokenizer.chat_templates"] = Key(list(others), "strings")
        keys.update({f"tokenizer.chat_template.{name}": Key(text, "string") for name, text in others.items()})
    if "default" in templates:
        keys["tokenizer.chat_template"] = Key(templates["default"], "string")
    return keys


def _text(path: Path) -> str:
    if path.stat().st_size > 16 << 20:
        raise CorruptFileError(f"{path.name} has {path.stat().st_size} bytes, too many for a chat template")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        raise CorruptFileError(f"{path.name} is not UTF-8", "fetch it again") from None
