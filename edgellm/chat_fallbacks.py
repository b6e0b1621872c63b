"""Chat templates for files that carry none: one per family, chosen by the special tokens the vocabulary has.

The token sequences are the families' own, as their model cards give them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# Some callers send content as a list of parts; these templates print the text of each.
_TEXT = """
{%- macro text(content) -%}
    {%- if content is string -%}{{ content }}
    {%- elif content -%}{%- for part in content -%}{{ part.text }}{%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
"""

# Families whose turns have no place for a system message put it before the first turn of the user.
_SYSTEM_FIRST = """
{%- set first = namespace(text='') -%}
{%- if messages and messages[0].role == 'system' -%}
    {%- set first.text = text(messages[0].content) | trim ~ '\n\n' -%}
    {%- set messages = messages[1:] -%}
{%- endif -%}
"""

TEMPLATES: Mapping[str, str] = {
    "chatml": _TEXT
    + """
{%- for message in messages -%}
    {{ '<|im_start|>' ~ message.role ~ '\n' ~ text(message.content) ~ '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}
""",
    "llama3": _TEXT
    + """
{{- bos_token -}}
{%- for message in messages -%}
    {{ '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\n\n' ~ text(message.content) | trim ~ '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif -%}
""",
    "gemma": _TEXT
    + _SYSTEM_FIRST
    + """
{{- bos_token -}}
{%- for message in messages -%}
    {%- set role = 'model' if message.role == 'assistant' else message.role -%}
    {{ '<start_of_turn>' ~ role ~ '\n' ~ first.text ~ text(message.content) | trim ~ '<end_of_turn>\n' }}
    {%- set first.text = '' -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}
""",
    "llama2": _TEXT
    + """
{%- set system = namespace(text='') -%}
{%- if messages and messages[0].role == 'system' -%}
    {%- set system.text = '<<SYS>>\n' ~ text(messages[0].content) | trim ~ '\n<</SYS>>\n\n' -%}
    {%- set messages = messages[1:] -%}
{%- endif -%}
{%- for message in messages -%}
    {%- if message.role == 'assistant' -%}
        {{ ' ' ~ text(message.content) | trim ~ ' ' ~ eos_token }}
    {%- else -%}
        {{ bos_token ~ '[INST] ' ~ system.text ~ text(message.content) | trim ~ ' [/INST]' }}
        {%- set system.text = '' -%}
    {%- endif -%}
{%- endfor -%}
""",
    "mistral": _TEXT
    + _SYSTEM_FIRST
    + """
{{- bos_token -}}
{%- for message in messages -%}
    {%- if message.role == 'assistant' -%}
        {{ text(message.content) | trim ~ eos_token }}
    {%- else -%}
        {{ '[INST]' ~ first.text ~ text(message.content) | trim ~ '[/INST]' }}
        {%- set first.text = '' -%}
    {%- endif -%}
{%- endfor -%}
""",
    "phi3": _TEXT
    + """
{%- for message in messages -%}
    {{ '<|' ~ message.role ~ '|>\n' ~ text(message.content) ~ '<|end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>\n' }}{%- endif -%}
""",
    "granite": _TEXT
    + """
{%- for message in messages -%}
    {{ '<|start_of_role|>' ~ message.role ~ '<|end_of_role|>' ~ text(message.content) ~ '<|end_of_text|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif -%}
""",
    "command-r": _TEXT
    + """
{{- bos_token -}}
{%- set names = {'user': '<|USER_TOKEN|>', 'assistant': '<|CHATBOT_TOKEN|>'} -%}
{%- for message in messages -%}
    {{ '<|START_OF_TURN_TOKEN|>' ~ names.get(message.role, '<|SYSTEM_TOKEN|>') }}
    {{- text(message.content) | trim ~ '<|END_OF_TURN_TOKEN|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{%- endif -%}
""",
    "deepseek": _TEXT
    + _SYSTEM_FIRST
    + """
{{- bos_token ~ first.text -}}
{%- for message in messages -%}
    {%- if message.role == 'assistant' -%}
        {{ '<｜Assistant｜>' ~ text(message.content) ~ eos_token }}
    {%- else -%}
        {{ '<｜User｜>' ~ text(message.content) }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<｜Assistant｜>' }}{%- endif -%}
""",
}

# The first family whose token the vocabulary has is taken.
_MARKS = {
    "<|im_start|>": "chatml",
    "<|start_header_id|>": "llama3",
    "<start_of_turn>": "gemma",
    "<|start_of_role|>": "granite",
    "<|START_OF_TURN_TOKEN|>": "command-r",
    "<｜Assistant｜>": "deepseek",
    "[INST]": "mistral",
    "<|end|>": "phi3",
}
_ARCHITECTURES = {"gemma": "gemma", "gemma2": "gemma", "gemma3": "gemma", "phi3": "phi3", "command-r": "command-r"}


def nearest(metadata: Mapping[str, Any]) -> str:
    """Name of the family whose template suits a file best.

    Args:
        metadata: the file's; its vocabulary, architecture and kind of tokenizer are looked at.
    """
    tokens: Any = metadata.get("tokenizer.ggml.tokens", ())
    listed: Iterable[Any] = tokens.tolist() if hasattr(tokens, "tolist") else tokens
    wanted = {mark.encode(): mark for mark in _MARKS}
    present = {wanted[token] for token in map(_as_bytes, listed) if token in wanted}
    for mark, family in _MARKS.items():
        if mark in present:
            return family
    architecture = metadata.get("general.architecture")
    if architecture == "llama" and metadata.get("tokenizer.ggml.model") == "llama":
        return "llama2"
    return _ARCHITECTURES.get(str(architecture), "chatml")


def _as_bytes(token: object) -> bytes:
    return token if isinstance(token, bytes) else str(token).encode(errors="replace")
