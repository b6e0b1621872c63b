"""Which of the known ways of cutting text a tokenizer.json describes, found by comparing what they do to a text.

A tokenizer.json spells its way out as a list of stages; a GGUF file only names one. The same way is written in several
forms, so what counts is the outcome: the stages are carried out on a text that tells the known ways apart.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from edgellm.convert.safetensors import shown
from edgellm.errors import CorruptFileError, UnsupportedModelError
from edgellm.tokenizer.pretokenizers import PRE_TOKENIZERS, Splitter

if TYPE_CHECKING:
    import regex

_SECONDS = 2.0
"""Most time a pattern from a file may take on the text below."""

PROBE = (
    "Hello world's end, I'LL say we'Ve been THERE. camelCaseWords XMLHttpRequest ÉcoleNormale ǅungla\n"
    "numbers 1 12 123 1234 12345 123456 1234567 3.14159 x86 4x4 ½ ²³ Ⅷ ٣٤٥ 1,000,000 v1.2.3-rc4\n\n"
    "  indented   text\twith\t\ttabs \n \n\n   \r\n end of line   \n\t\n"
    "signs: !!! ... ??? -- ++ == != <= >= && || /path/to\\file #tag @user $5 €7 50% a_b __init__ (x){y}[z] ~`^\n"
    "//comment\n/*!*/\nfoo/\n=//=\n\"quoted\" 'single' “curly” ’tis don’t can't 'M'd'tS\n"
    "中文汉字测试，标点。日本語のテキスト、カタカナ ひらがな "
    "한국어 텍스트 ภาษาไทย កាន់តែ हिन्दी में العربية עברית Ελληνικά Русский нещо\n"
    "emoji 🚀😶\u200d🌫️ 🦙🦙 ✅ é e\u0301 ñ\u00a0x\u2009y z\u3000w �� <|endoftext|> <s> [INST] apple中english文 漢2字\n"
    "two  12 three   345 tab\t67 line\n89\n        eight\n   "
    " four\n  two\n a b  c   d    e \u2028line\u2029para\x0bvt\x0cff\x85nel trailing   "
)

# Where one way has several names: the one that says most about the model, then the oldest.
_PREFERRED = (
    "gpt-2", "llama-bpe", "dbrx", "qwen2", "smollm", "tekken", "gpt-4o", "deepseek-v3", "deepseek-llm",
    "deepseek-coder", "kimi-k2", "falcon", "starcoder", "command-r", "bloom", "viking", "chameleon", "superbpe",
)  # fmt: skip


def find_pre_tokenizer(description: Any, ignore_merges: bool, hint: str | None) -> str:
    """The name for ``tokenizer.ggml.pre``.

    Args:
        description: ``pre_tokenizer`` of tokenizer.json.
        ignore_merges: of its model: words that are tokens are taken whole.
        hint: the name to take if it does the same; families have their own.

    Raises:
        UnsupportedModelError: no known way does the same; the nearest is named.
        CorruptFileError: the description is not valid.
    """
    wanted = cut(description, PROBE)
    fitting = [
        name
        for name, way in PRE_TOKENIZERS.items()
        if way.stages and way.byte_level and not way.only_matches and Splitter(way).split(PROBE) == wanted
    ]
    exact = [name for name in fitting if PRE_TOKENIZERS[name].ignore_merges == ignore_merges]
    for names in (exact, fitting):
        ordered = [name for name in (hint, *_PREFERRED, *names) if name in names]
        if ordered:
            return str(ordered[0])
    raise UnsupportedModelError(
        f"tokenizer.json cuts text in a way that is not known ({shown(str(description))})",
        f"the nearest is {_nearest(wanted)}; to take it nevertheless: --pre-tokenizer {_nearest(wanted)}",
    )


def _nearest(wanted: list[str]) -> str:
    ways = {name: PRE_TOKENIZERS[name] for name in _PREFERRED}
    likeness = {
        name: difflib.SequenceMatcher(None, wanted, Splitter(way).split(PROBE), autojunk=False).ratio()
        for name, way in ways.items()
    }
    return max(likeness, key=lambda name: likeness[name])


def cut(description: Any, text: str) -> list[str]:
    """Cut a text as a ``pre_tokenizer`` of tokenizer.json says, before bytes become letters."""
    pieces = [text]
    for stage in _stages(description):
        pieces = [part for piece in pieces for part in _apply(stage, piece) if part]
    return pieces


def _stages(description: Any, depth: int = 0) -> list[dict[str, Any]]:
    if description is None:
        return []
    if not isinstance(description, dict) or not isinstance(description.get("type"), str) or depth > 4:
        raise CorruptFileError("tokenizer.json: its pre_tokenizer is not valid", "fetch it again")
    if description["type"] != "Sequence":
        return [description]
    parts = description.get("pretokenizers")
    if not isinstance(parts, list) or len(parts) > 32:
        raise CorruptFileError("tokenizer.json: its pre_tokenizer is not valid", "fetch it again")
    return [stage for part in parts for stage in _stages(part, depth + 1)]


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_PUNCTUATION = r"[\p{P}!-/:-@\[-`{-~]"


def _apply(stage: dict[str, Any], text: str) -> list[str]:
    kind = stage["type"]
    if kind == "ByteLevel":
        text = " " + text if stage.get("add_prefix_space") and not text.startswith(" ") else text
        return _split(_GPT2, text, "Isolated") if stage.get("use_regex", True) else [text]
    if kind == "Digits":
        return _split(r"\p{Nd}|\p{Nl}|\p{No}" if stage.get("individual_digits") else r"\p{N}+", text, "Isolated")
    if kind == "Punctuation":
        return _split(_PUNCTUATION, text, str(stage.get("behavior", "Isolated")))
    if kind == "Split":
        pattern = stage.get("pattern")
        if isinstance(pattern, dict) and isinstance(pattern.get("Regex"), str):
            return _split(pattern["Regex"], text, str(stage.get("behavior")), bool(stage.get("invert")))
        if isinstance(pattern, dict) and isinstance(pattern.get("String"), str):
            import regex

            return _split(regex.escape(pattern["String"]), text, str(stage.get("behavior")), bool(stage.get("invert")))
    raise UnsupportedModelError(
        f"tokenizer.json cuts text by {shown(kind)}, which is not known",
        "name a known way that does the same: --pre-tokenizer NAME",
    )


def _split(pattern: str, text: str, behavior: str, invert: bool = False) -> list[str]:
    """Cut at the matches of a pattern; the behaviours are those of the tokenizers library."""
    parts = [(text[start:end], matched) for start, end, matched in _spans(pattern, text)]
    if invert:
        parts = [(part, not matched) for part, matched in parts]
    if behavior == "Isolated":
        return [part for part, _ in parts]
    if behavior == "Removed":
        return [part for part, matched in parts if not matched]
    pieces: list[str] = []
    before = False
    for part, matched in parts:
        joined = {
            "Contiguous": before == matched and bool(pieces),
            "MergedWithPrevious": matched and not before and bool(pieces),
            "MergedWithNext": before and not matched and bool(pieces),
        }.get(behavior)
        if joined is None:
            raise UnsupportedModelError(f"tokenizer.json cuts text by the unknown behavior {shown(behavior)}")
        pieces[-1:] = [pieces[-1] + part] if joined else [*pieces[-1:], part]
        before = matched
    return pieces


def _spans(pattern: str, text: str) -> list[tuple[int, int, bool]]:
    import regex

    spans: list[tuple[int, int, bool]] = []
    end = 0
    try:
        for match in _compile(pattern).finditer(text, timeout=_SECONDS):
            if match.start() > end:
                spans.append((end, match.start(), False))
            if match.end() > match.start():
                spans.append((match.start(), match.end(), True))
            end = max(end, match.end())
    except (regex.error, TimeoutError, RecursionError, MemoryError) as error:
        raise CorruptFileError(f"tokenizer.json: its pattern {shown(pattern)} does not work ({error})") from None
    if end < len(text):
        spans.append((end, len(text), False))
    return spans


def _compile(pattern: str) -> regex.Pattern[str]:
    import regex

    if len(pattern) > 20000:
        raise CorruptFileError("tokenizer.json: one of its patterns is too long")
    # Oniguruma joins classes with &&, the regex package in version 1 of its syntax only.
    return regex.compile("(?V1)" + pattern if "&&" in pattern else pattern)
