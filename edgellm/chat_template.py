"""From messages to the text the model was trained on, by the chat template in the model file.

The norm is ``apply_chat_template`` of Hugging Face's transformers
(https://huggingface.co/docs/transformers/chat_templating): same Jinja settings, functions and variables.

The text of messages is data: no template syntax in it is ever looked at. The names of special tokens in it, such as
``<|im_end|>``, are not removed; as with transformers and llama.cpp the tokenizer reads them as these tokens.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from edgellm.errors import TemplateError

if TYPE_CHECKING:
    import jinja2

    from edgellm.chat_sandbox import ChatEnvironment

_DEFAULT = "default"
_TOOL_USE = "tool_use"
_RESERVED = ("messages", "tools", "documents", "add_generation_prompt")
# What a template may print for a short conversation, and for each character of a long one.
_LONGEST_OUTPUT = 1_000_000
_OUTPUT_PER_INPUT = 10
_DEEPEST_MESSAGE = 64
_HINT = "the template of the file may be damaged; try another file of this model"


class ChatTemplate:
    """The chat template of a model. Safe to use from several threads.

    Args:
        templates: Jinja sources by name; the one named "default", or else the first, is the one that is used.
        bos_text: text of the token that begins a text, "" if there is none.
        eos_text: text of the token that ends a text.
        name: the template to use instead of the default.

    Attributes:
        name: name of the template in use.
        warning: why the template in use is not the file's own; None if it is.

    Raises:
        TemplateError: there is no such template, or it is not valid.
    """

    def __init__(
        self, templates: Mapping[str, str], bos_text: str = "", eos_text: str = "", name: str | None = None
    ) -> None:
        self._templates = dict(templates)
        self._chosen = name is not None
        self.name = name or (_DEFAULT if _DEFAULT in templates else next(iter(templates), _DEFAULT))
        if self.name not in templates:
            raise TemplateError(
                f"there is no chat template {self.name!r}", f"there are: {', '.join(templates) or 'none'}"
            )
        self._variables = {"bos_token": bos_text, "eos_token": eos_text}
        self.warning: str | None = None
        self._compiled = {self.name: _Compiled(self._templates[self.name])}
        self._lock = threading.Lock()

    @staticmethod
    def from_metadata(
        metadata: Mapping[str, Any], bos_text: str, eos_text: str, name: str | None = None
    ) -> ChatTemplate:
        """The template of a model file, or that of a similar family, with a warning, if it has none that works.

        Args:
            metadata: the file's; ``tokenizer.chat_template`` and ``tokenizer.chat_template.NAME`` hold templates.
            bos_text: text of the token that begins a text, "" if there is none.
            eos_text: text of the token that ends a text.
            name: a template of the file, or of the families in chat_fallbacks.py.

        Raises:
            TemplateError: the file has no template ``name``.
        """
        from edgellm.chat_fallbacks import TEMPLATES, nearest

        found = templates_of(metadata)
        if name is not None and name in TEMPLATES and name not in found:
            return ChatTemplate({name: TEMPLATES[name]}, bos_text, eos_text)
        problem = "the file has no chat template"
        if found or name is not None:
            template = _first_that_works(found, bos_text, eos_text, name)
            if isinstance(template, ChatTemplate):
                return template
            problem = template
        family = nearest(metadata)
        fallback = ChatTemplate({family: TEMPLATES[family]}, bos_text, eos_text)
        fallback.warning = f"{problem}; using the {family} template, answers may be worse"
        return fallback

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all templates there are."""
        return tuple(self._templates)

    @property
    def source(self) -> str:
        """The Jinja source of the template in use."""
        return self._templates[self.name]

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt for a conversation.

        With ``tools``, a template named "tool_use" is used if the file has one and none was chosen by name.

        Args:
            messages: each with a "role" and, as a rule, "content".
            add_generation_prompt: end with the beginning of the assistant's turn.
            tools: JSON schemas of functions the model may call.
            variables: anything else the template understands, such as ``enable_thinking``.

        Raises:
            TemplateError: the messages do not suit the template, or it fails, or takes too long or too much memory.
        """
        given = dict(variables or {})
        for name in _RESERVED[:2] + _RESERVED[3:]:
            if name in given:
                raise TemplateError(f"{name!r} cannot be given as a variable of the chat template", "use the argument")
        _check_roles(messages)
        plain = _Plain()
        values = {
            **self._variables,
            "documents": None,
            **{name: plain.copy(value, name) for name, value in given.items()},
            "messages": plain.copy(list(messages), "messages"),
            "tools": None if tools is None else plain.copy(list(tools), "tools"),
            "add_generation_prompt": bool(add_generation_prompt),
        }
        with self._lock:
            return self._template_for(tools).render(values, plain.size)

    def _template_for(self, tools: Sequence[Mapping[str, Any]] | None) -> _Compiled:
        name = self.name if self._chosen or not tools or _TOOL_USE not in self._templates else _TOOL_USE
        if name not in self._compiled:
            self._compiled[name] = _Compiled(self._templates[name])
        return self._compiled[name]


def templates_of(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The chat templates in a file by name, the unnamed one as "default"."""
    prefix = "tokenizer.chat_template"
    found = {_DEFAULT: metadata.get(prefix)}
    found |= {key.removeprefix(f"{prefix}."): value for key, value in metadata.items() if key.startswith(f"{prefix}.")}
    return {name: source for name, source in found.items() if isinstance(source, str) and source.strip()}


def _first_that_works(found: dict[str, str], bos_text: str, eos_text: str, name: str | None) -> ChatTemplate | str:
    """The template, or what is wrong with it."""
    if name is not None and name not in found:
        raise TemplateError(f"there is no chat template {name!r}", f"there are: {', '.join(found) or 'none'}")
    try:
        return ChatTemplate(found, bos_text, eos_text, name)
    except TemplateError as error:
        return error.message


class _Compiled:
    """One template, compiled. Not for several threads at once.

    Raises:
        TemplateError: it is not valid.
    """

    def __init__(self, source: str) -> None:
        # Jinja takes 0.1 s to import, which a command that does not chat need not wait for.
        from edgellm.chat_sandbox import ChatEnvironment

        problem = None
        self._environment: ChatEnvironment = ChatEnvironment()
        try:
            self._template: jinja2.Template = self._environment.compile_chat(source)
        except Exception as error:
            problem = _described(error, getattr(error, "lineno", None))
        # Outside of the except clause: the error must not hold on to what filled the memory.
        if problem is not None:
            raise TemplateError(f"the chat template is not valid: {problem}", _HINT)

    @cached_property
    def _refused(self) -> type[Exception]:
        from edgellm.chat_sandbox import RefusedError

        return RefusedError

    def render(self, values: dict[str, Any], input_size: int) -> str:
        from edgellm.chat_budget import Budget

        self._environment.budget = Budget(input_size)
        limit = _LONGEST_OUTPUT + _OUTPUT_PER_INPUT * input_size
        try:
            return self._printed(values, limit)
        except self._refused as error:
            problem, hint = f"the chat template refuses this conversation: {_described(error, None)}", None
        except TemplateError as error:
            problem, hint = error.message, error.hint
        except Exception as error:
            problem, hint = f"the chat template failed: {_described(error, self._line(error))}", _HINT
        raise TemplateError(problem, hint)

    def _printed(self, values: dict[str, Any], limit: int) -> str:
        pieces = []
        for piece in self._template.root_render_func(self._template.new_context(values)):
            limit -= len(piece)
            if limit < 0:
                raise TemplateError("the chat template failed: it prints far more than it was given", _HINT)
            pieces.append(piece)
        return "".join(pieces)

    def _line(self, error: BaseException) -> int | None:
        """The line of the template an error comes from."""
        from edgellm.chat_sandbox import FILE_NAME

        line = None
        traceback = error.__traceback__
        while traceback is not None:
            if traceback.tb_frame.f_code.co_filename == FILE_NAME:
                line = self._template.get_corresponding_lineno(traceback.tb_lineno)
            traceback = traceback.tb_next
        return line


def _described(error: BaseException, line: int | None) -> str:
    """One line of limited length."""
    text = getattr(error, "message", None) or str(error)
    if isinstance(error, RecursionError):
        text = "it is nested, or calls itself, too deeply"
    elif isinstance(error, MemoryError):
        text = "there is not enough memory for it"
    text = " ".join(text[:2000].split()) or type(error).__name__
    text = text if len(text) <= 300 else text[:297] + "..."
    return text if line is None else f"line {line}: {text}"


def _check_roles(messages: Sequence[Mapping[str, Any]]) -> None:
    for place, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise TemplateError(
                f"messages[{place}] is not a mapping with a 'role'", "as in {'role': 'user', 'content': 'hi'}"
            )


class _Plain:
    """Copies values made of plain data only, so that a template can reach nothing else, and adds up their size.

    Attributes:
        size: bytes of what was copied, about.
    """

    def __init__(self) -> None:
        self.size = 0

    def copy(self, value: Any, where: str, depth: int = 0) -> Any:
        """Raises TemplateError, naming ``where``, for all but strings, numbers, None, lists and mappings of them."""
        self.size += 64
        if isinstance(value, str):
            self.size += len(value)
            return str.__str__(value)
        if value is None or isinstance(value, bool | float):
            return value
        if isinstance(value, int) and value.bit_length() <= 4096:
            return int(value)
        if depth > _DEEPEST_MESSAGE:
            raise TemplateError(f"{where} is nested more than {_DEEPEST_MESSAGE} deep")
        if isinstance(value, Mapping):
            return {self.copy(key, where): self.copy(item, f"{where}.{key}", depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.copy(item, f"{where}[{place}]", depth + 1) for place, item in enumerate(value)]
        raise TemplateError(
            f"{where} is a {type(value).__name__}: a chat template takes strings, numbers, lists, mappings"
        )
