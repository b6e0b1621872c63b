"""Every error a user can meet: one line that says what happened, and a hint that says what to do."""

from __future__ import annotations


class EdgeLLMError(Exception):
    """Base of all errors raised on purpose.

    Args:
        message: what happened and what was expected, in one line.
        hint: what the user can do about it.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class CorruptFileError(EdgeLLMError):
    """A file breaks the rules of its own format."""


class UnsupportedModelError(EdgeLLMError):
    """A well-formed model that this version cannot run."""


class ModelNotFoundError(EdgeLLMError):
    """No model answers to the given name."""


class DownloadError(EdgeLLMError):
    """A model could not be fetched or did not match its checksum."""


class ContextOverflowError(EdgeLLMError):
    """A prompt is longer than the context.

    ``prompt_tokens`` and ``context_length`` hold both numbers.
    """

    def __init__(self, prompt_tokens: int, context_length: int, hint: str | None = None) -> None:
        message = f"the prompt has {prompt_tokens} tokens, the context holds {context_length}"
        super().__init__(message, hint or "shorten the prompt or load the model with a larger --context")
        self.prompt_tokens = prompt_tokens
        self.context_length = context_length


class OutOfMemoryError(EdgeLLMError):
    """What was asked for does not fit the memory that is free."""


class TemplateError(EdgeLLMError):
    """A chat template failed, looped or asked for too much."""


class InvalidSettingError(EdgeLLMError):
    """A setting is out of range or of the wrong kind."""
