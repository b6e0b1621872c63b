"""Results of a generation as JSON objects, and as a line for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from edgellm.cli.console import number
from edgellm.results import Completion, Step, Timings


def to_json(value: object) -> str:
    """One line of JSON in ASCII: no control character of a model's output reaches a terminal."""
    return json.dumps(value, ensure_ascii=True, allow_nan=False)


def timings_object(timings: Timings) -> dict[str, Any]:
    """Counts, seconds, and tokens per second."""
    return {
        "prompt_tokens": timings.prompt_tokens,
        "cached_tokens": timings.cached_tokens,
        "prompt_seconds": round(timings.prompt_seconds, 6),
        "prompt_per_second": round(timings.prompt_per_second, 3),
        "generated_tokens": timings.generated_tokens,
        "generated_seconds": round(timings.generated_seconds, 6),
        "generated_per_second": round(timings.generated_per_second, 3),
    }


def step_objects(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """Per token: its id, its log-probability, and the most probable tokens with theirs."""
    return [
        {"id": step.id, "logprob": step.logprob, "top": [[token, logprob] for token, logprob in step.top_logprobs]}
        for step in steps
        if step.id is not None
    ]


def completion_object(model: str, completion: Completion, logprobs: bool) -> dict[str, Any]:
    """What ``edgellm generate --json`` prints."""
    return {
        "model": model,
        "prompt_ids": completion.prompt_ids,
        "ids": completion.ids,
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "stop_text": completion.stop_text,
        "logprobs": step_objects(completion.steps) if logprobs else None,
        "timings": timings_object(completion.timings),
        "cached_tokens": completion.cached_tokens,
    }


def speed_line(timings: Timings) -> str:
    """How fast prompt and answer were."""
    prompt = f"prompt {number(timings.prompt_tokens)} tokens"
    if timings.cached_tokens:
        prompt += f" ({number(timings.cached_tokens)} cached)"
    if timings.prompt_per_second:
        prompt += f", {timings.prompt_per_second:.1f} tok/s"
    answer = f"answer {number(timings.generated_tokens)} tokens"
    if timings.generated_per_second:
        answer += f", {timings.generated_per_second:.1f} tok/s"
    return f"{prompt}; {answer}"
