"""Multiple choice: which of several endings a model finds most probable, as in HellaSwag (Zellers et al. 2019)."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgellm.errors import EdgeLLMError, InvalidSettingError
from edgellm.evaluation.windows import Progress

if TYPE_CHECKING:
    from edgellm.llm import LLM
    from edgellm.scoring import ScoredText
    from edgellm.tokenizer import Tokenizer

TASKS_AT_ONCE = 16
MOST_ENDINGS = 64
_LINES = 6  # of a task in llama.cpp's text format: context, number of the right ending, four endings


@dataclass(frozen=True)
class Task:
    """A context, its possible endings, and the number of the right one."""

    context: str
    endings: tuple[str, ...]
    label: int


@dataclass(frozen=True)
class ChoiceResult:
    """What came out.

    Attributes:
        accuracy: share of tasks whose right ending had the highest mean log-probability of a token, as llama.cpp
            and others count ("acc_norm").
        low, high: its 95 % interval (Wilson 1927).
        accuracy_of_sums: the share by the log-probability of whole endings, which favours short ones.
        tasks: how many.
        tokens: how many were scored.
        seconds: computing, without loading.
    """

    accuracy: float
    low: float
    high: float
    accuracy_of_sums: float
    tasks: int
    tokens: int
    seconds: float


def parse_tasks(text: str) -> list[Task]:
    """The tasks in a file.

    Args:
        text: llama.cpp's format, six lines a task (context, number of the right ending, four endings); or an object in
            JSON a line, with "ctx" or "context", "endings" or "choices", and "label".

    Raises:
        EdgeLLMError: a task is not well formed; the line is named.
    """
    lines = text.split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    first = next((line for line in lines if line.strip()), "")
    tasks = _from_objects(lines) if first.lstrip().startswith("{") else _from_lines(lines)
    if not tasks:
        raise EdgeLLMError("the file holds no tasks", "give six lines a task, or an object in JSON a line")
    return tasks


def _from_lines(lines: Sequence[str]) -> list[Task]:
    if len(lines) % _LINES:
        raise EdgeLLMError(
            f"the file has {len(lines)} lines, which is no multiple of {_LINES}",
            "a task is its context, the number of the right ending, and four endings, each on a line",
        )
    tasks = []
    for start in range(0, len(lines), _LINES):
        context, label, *endings = lines[start : start + _LINES]
        tasks.append(Task(context, tuple(endings), _label(label.strip(), len(endings), start + 2)))
    return tasks


def _from_objects(lines: Sequence[str]) -> list[Task]:
    tasks = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            raise EdgeLLMError(f"line {number} is not an object in JSON") from None
        tasks.append(_from_object(entry, number))
    return tasks


def _from_object(entry: Any, number: int) -> Task:
    values = entry if isinstance(entry, dict) else {}
    context = values.get("ctx", values.get("context"))
    endings = values.get("endings", values.get("choices"))
    if not isinstance(context, str):
        raise EdgeLLMError(f"line {number} has no text called ctx or context")
    if not isinstance(endings, list) or not all(isinstance(ending, str) for ending in endings):
        raise EdgeLLMError(f"line {number} has no list of texts called endings or choices")
    if not 2 <= len(endings) <= MOST_ENDINGS:
        raise EdgeLLMError(f"line {number} has {len(endings)} endings, expected 2 to {MOST_ENDINGS}")
    return Task(context, tuple(endings), _label(values.get("label"), len(endings), number))


def _label(value: Any, endings: int, line: int) -> int:
    text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    if not (text.isascii() and text.isdigit() and len(text) < 4 and int(text) < endings):
        raise EdgeLLMError(
            f"line {line}: the number of the right ending is {str(value)[:20]!r}, not 0 to {endings - 1}"
        )
    return int(text)


def measure_choices(
    llm: LLM, tasks: Sequence[Task], most: int | None = None, progress: Progress | None = None
) -> ChoiceResult:
    """How often the model prefers the right ending.

    A context is computed once for all its endings.

    Args:
        llm: any model.
        tasks: see ``parse_tasks``.
        most: how many of them, from the first; None: all.
        progress: called with ("choices", tasks done, tasks in all).

    Raises:
        InvalidSettingError: there is no task.
        ContextOverflowError: a task is longer than the model's context.
    """
    chosen = list(tasks[:most])
    if not chosen:
        raise InvalidSettingError("there is no task to measure", "give at least one")
    begin = time.perf_counter()
    right = right_sums = tokens = done = 0
    if progress is not None:
        progress("choices", 0, len(chosen))
    for batch in _batches(chosen):
        for task, means, sums, count in _answers(llm, batch):
            right += means.index(max(means)) == task.label
            right_sums += sums.index(max(sums)) == task.label
            tokens += count
        done += len(batch)
        if progress is not None:
            progress("choices", done, len(chosen))
    seconds = time.perf_counter() - begin
    low, high = wilson_interval(right, len(chosen))
    return ChoiceResult(
        right / len(chosen), low, high, right_sums / len(chosen), len(chosen), tokens, round(seconds, 4)
    )


def _batches(tasks: Iterable[Task]) -> Iterator[list[Task]]:
    remaining = iter(tasks)
    while batch := list(itertools.islice(remaining, TASKS_AT_ONCE)):
        yield batch


def _answers(llm: LLM, tasks: Sequence[Task]) -> Iterator[tuple[Task, list[float], list[float], int]]:
    """Of each task: means and sums of its endings' log-probabilities, and how many tokens were scored."""
    from edgellm.scoring import ScoredText

    texts = [texts_of(llm.tokenizer, task) for task in tasks]
    # The contexts first, so that the endings find them in the cache.
    contexts = [ScoredText(group[0].tokens[: group[0].first], group[0].first, remember=True) for group in texts]
    for _ in llm.score(contexts):
        pass
    found = llm.score(list(itertools.chain.from_iterable(texts)))
    for task, group in zip(tasks, texts, strict=True):
        logprobs = [next(found).logprobs for _ in group]
        sums = [float(values.sum()) for values in logprobs]
        means = [total / len(values) for total, values in zip(sums, logprobs, strict=True)]
        yield task, means, sums, sum(map(len, logprobs))


def texts_of(tokenizer: Tokenizer, task: Task) -> list[ScoredText]:
    """Context and ending, of each ending, scored from the first token on that not all have in common.

    Raises:
        EdgeLLMError: context and endings are empty.
    """
    from edgellm.scoring import ScoredText

    ids = [tokenizer.encode(f"{task.context} {ending}") for ending in task.endings]
    shortest = min(map(len, ids))
    if shortest < 2:
        raise EdgeLLMError("a task has no text that could be scored", "give each a context and endings")
    common = 0
    while common < shortest - 1 and all(one[common] == ids[0][common] for one in ids):
        common += 1
    return [ScoredText(one, max(1, common), remember=True) for one in ids]


def wilson_interval(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """The interval that holds a share with 95 % confidence (Wilson 1927)."""
    share, square = successes / trials, z * z / trials
    middle = (share + square / 2) / (1 + square)
    half = z * math.sqrt(share * (1 - share) / trials + square / (4 * trials)) / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)
