"""Multiple choice: the tasks in a file, and which ending has the highest probability."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from edgellm import LLM
from edgellm.cli.main import edgellm
from edgellm.errors import EdgeLLMError, InvalidSettingError
from edgellm.evaluation.multiple_choice import Task, measure_choices, parse_tasks, texts_of, wilson_interval
from edgellm.sampling import log_softmax

TASKS = [
    Task("hello the world", ("in the world", "hello hello the", "world", "old in"), 2),
    Task("the world in", ("hello", "hello world", "hello world the", "a"), 0),
    Task("in", ("the same", "the same again", "world"), 1),
    *(
        Task(f"the {word} in the hello world", (word, "world", "the old hello", "hello"), 3)
        for word in "abcdefghijklmnop"
    ),
]


def as_lines(tasks: list[Task]) -> str:
    return "".join("\n".join((task.context, str(task.label), *task.endings)) + "\n" for task in tasks)


def as_objects(tasks: list[Task]) -> str:
    entries = ({"ctx": task.context, "endings": task.endings, "label": str(task.label)} for task in tasks)
    return "\n".join(map(json.dumps, entries)) + "\n\n"


def test_both_formats() -> None:
    four = [task for task in TASKS if len(task.endings) == 4]
    assert parse_tasks(as_lines(four)) == four
    assert parse_tasks(as_objects(TASKS)) == TASKS
    entry = {"context": "a", "choices": ["b", "c"], "label": 1}
    assert parse_tasks(json.dumps(entry)) == [Task("a", ("b", "c"), 1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no tasks"),
        ("\n\n", "holds no tasks"),
        ("a\n0\nb\nc\nd\n", "5 lines, which is no multiple of 6"),
        ("a\n4\nb\nc\nd\ne\n", "line 2: the number of the right ending is '4', not 0 to 3"),
        ("a\nx\nb\nc\nd\ne\n", "line 2: the number"),
        ("{", "line 1 is not an object in JSON"),
        ("{}", "line 1 has no text called ctx or context"),
        ('{"ctx": "a"}', "line 1 has no list of texts"),
        ('{"ctx": "a", "endings": [1, 2]}', "line 1 has no list of texts"),
        ('{"ctx": "a", "endings": ["b"], "label": 0}', "line 1 has 1 endings, expected 2 to 64"),
        ('{"ctx": "a", "endings": ["b", "c"]}', "line 1: the number of the right ending is 'None'"),
        ('{"ctx": "a", "endings": ["b", "c"], "label": true}', "line 1: the number"),
        ('{"ctx": "a", "endings": ["b", "c"], "label": "²"}', "line 1: the number"),
    ],
)
def test_damaged_files(text: str, message: str) -> None:
    with pytest.raises(EdgeLLMError) as error:
        parse_tasks(text)
    assert message in str(error.value)


@given(st.text(max_size=200))
def test_any_text_is_tasks_or_an_error(text: str) -> None:
    try:
        assert all(task.label < len(task.endings) for task in parse_tasks(text))
    except EdgeLLMError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_against_each_text_by_itself(tiny_model: Callable[..., Path], backend: str) -> None:
    with LLM.load(tiny_model(), backend=backend) as llm:
        right = right_sums = tokens = 0
        for task in TASKS:
            texts = texts_of(llm.tokenizer, task)
            means, sums = [], []
            for text in texts:
                rows = log_softmax(llm.logits(text.tokens))[text.first - 1 : -1]
                values = rows[np.arange(len(rows)), list(text.tokens[text.first :])]
                means.append(values.mean())
                sums.append(values.sum())
                tokens += len(values)
            right += int(np.argmax(means)) == task.label
            right_sums += int(np.argmax(sums)) == task.label
        told: list[tuple[str, int, int]] = []
        found = measure_choices(llm, TASKS, progress=lambda *where: told.append(where))
        assert found.accuracy == right / len(TASKS)
        assert found.accuracy_of_sums == right_sums / len(TASKS)
        assert (found.tasks, found.tokens) == (len(TASKS), tokens)
        assert told == [("choices", done, 19) for done in (0, 16, 19)]
        assert measure_choices(llm, TASKS, most=2).tasks == 2
        with pytest.raises(InvalidSettingError):
            measure_choices(llm, [])


def test_what_endings_have_in_common_is_not_scored(tiny_model: Callable[..., Path]) -> None:
    with LLM.load(tiny_model(), backend="reference") as llm:
        for task in TASKS:
            texts = texts_of(llm.tokenizer, task)
            first = texts[0].first
            assert len({tuple(text.tokens[:first]) for text in texts}) == 1
            assert all(text.first == first < len(text.tokens) for text in texts)
            assert (
                len({text.tokens[first] for text in texts}) > 1 or min(len(text.tokens) for text in texts) == first + 1
            )
        with pytest.raises(EdgeLLMError, match="no text that could be scored"):
            texts_of(llm.tokenizer, Task("", ("", "a"), 0))


def test_interval() -> None:
    low, high = wilson_interval(8, 10)
    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # Brown, Cai and DasGupta 2001
    assert wilson_interval(0, 5)[0] == 0
    assert wilson_interval(5, 5)[1] == 1


def test_the_command(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "tasks.txt"
    path.write_text(as_objects(TASKS), encoding="utf-8")
    arguments = ["choices", str(tiny_model()), str(path), "--backend", "reference"]
    done = CliRunner().invoke(edgellm, [*arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    assert json.loads(done.stdout)["tasks"] == len(TASKS)
    done = CliRunner().invoke(edgellm, [*arguments, "--most", "3"])
    assert done.stdout.startswith("right ")
    assert "3 tasks" in done.stdout
    path.write_text("one\nline\n")
    done = CliRunner().invoke(edgellm, arguments)
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
