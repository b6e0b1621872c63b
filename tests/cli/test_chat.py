"""``edgellm chat`` as a whole: pipes, JSON lines, and a real terminal."""

from __future__ import annotations

import errno
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_llm import FakeLLM

from edgellm.errors import EdgeLLMError
from edgellm.hub import ALIASES


def test_piped_text_is_one_message(run) -> None:
    model = FakeLLM("The answer.")
    result = run("chat", "fake", model=model, input="line one\n\n/help is text too\n")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "The answer.\n", "")
    assert model.calls[0]["messages"] == [{"role": "user", "content": "line one\n\n/help is text too"}]
    assert model.closed


def test_default_model(run) -> None:
    assert run("chat", model=FakeLLM("x"), input="hi").loaded[0].model == "smollm2"


def test_system_message_of_an_alias(run) -> None:
    model = FakeLLM(*"xyz")
    run("chat", model=model, input="hi")
    run("chat", "--system", "Mine.", model=model, input="hi")
    run("chat", "other.gguf", model=model, input="hi")
    firsts = [call["messages"][0] for call in model.calls]
    assert firsts[0] == {"role": "system", "content": ALIASES["smollm2"].system}
    assert [message["content"] for message in firsts[1:]] == ["Mine.", "hi"]


def test_prompt_and_system(run, tmp_path: Path) -> None:
    (tmp_path / "system.txt").write_text("From a file.")
    model = FakeLLM("a", "b")
    assert run("chat", "-p", "hi", "--system", "Be brief.", model=model).stdout == "a\n"
    assert run("chat", "-p", "hi", "--system-file", str(tmp_path / "system.txt"), model=model).exit_code == 0
    assert [call["messages"][0]["content"] for call in model.calls] == ["Be brief.", "From a file."]
    both = run("chat", "--system", "x", "--system-file", "y", model=model)
    assert (both.exit_code, "exclude each other" in both.stderr) == (2, True)


def test_load(run, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    path.write_text(json.dumps([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]))
    model = FakeLLM("x")
    run("chat", "--load", str(path), "-p", "on", model=model)
    assert [message["content"] for message in model.calls[0]["messages"]] == ["hi", "ho", "on"]
    result = run("chat", "--load", str(tmp_path / "nowhere"), "-p", "on", model=model)
    assert (result.exit_code, result.stderr.startswith("error: cannot read")) == (1, True)


def test_empty_input(run) -> None:
    result = run("chat", model=FakeLLM(), input="\n")
    assert (result.exit_code, result.stderr) == (
        1,
        "error: the message is empty; pipe a text in, or give --prompt TEXT\n",
    )


def test_input_that_is_not_text(run) -> None:
    result = run("chat", model=FakeLLM(), input=b"\xff\xfe")
    assert (result.exit_code, result.stderr) == (
        1,
        "error: standard input is not UTF-8 text: invalid start byte at byte 0\n",
    )


def test_template_warning_goes_to_stderr(run) -> None:
    result = run("chat", model=FakeLLM("x", warning="no template; using \x1b[1mchatml"), input="hi")
    assert (result.stdout, result.stderr) == ("x\n", "no template; using [1mchatml\n")


def test_escape_sequences_are_taken_out(run) -> None:
    assert run("chat", model=FakeLLM("a\x1b[31mb"), input="hi").stdout == "a[31mb\n"


def test_json_lines(run) -> None:
    model = FakeLLM("one", "two\n\x1b[0m", "three")
    lines = ['{"content": "first"}', "", '"second"', "plain {third}"]
    result = run("chat", "fake", "--json", model=model, input="\n".join(lines))
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["content"] for answer in answers] == ["one", "two\n\x1b[0m", "three"]
    assert all(ord(character) < 127 and (character >= " " or character == "\n") for character in result.stdout)
    assert [message["content"] for message in model.calls[2]["messages"]][::2] == ["first", "second", "plain {third}"]
    assert answers[0]["role"] == "assistant"
    assert answers[0]["finish_reason"] == "stop"
    assert (answers[0]["context_used"], answers[0]["context_length"]) == (3, 1000)
    assert answers[0]["timings"]["prompt_tokens"] == 2
    assert result.exit_code == 0


def test_json_errors_answer_too(run) -> None:
    model = FakeLLM(EdgeLLMError("broken", "mend it"), "fine")
    result = run("chat", "--json", model=model, input=b'x\n{"a": 1}\n{bad\n\xff\n{"content": "\\ud800"}\nok\n')
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert answers[0] == {"error": "broken", "hint": "mend it"}
    assert ["error" in answer for answer in answers] == [True, True, True, True, True, False]
    assert answers[-1]["content"] == "fine"
    assert result.exit_code == 1


def test_json_with_a_prompt(run) -> None:
    result = run("chat", "--json", "-p", '{"content": 3}', model=FakeLLM("x"))
    assert json.loads(result.stdout)["content"] == "x"


CHILD = """
import json, sys
sys.path.insert(0, sys.argv.pop(1))
answers = json.loads(sys.argv.pop(1))
from fake_llm import FakeLLM
from edgellm.cli import loading
from edgellm.cli.main import main
model = FakeLLM(*answers, pause=0.02)
loading.open_model = lambda options: model
main()
"""


COUNTING = " ".join(str(number) for number in range(2000))


class Terminal:
    """A child process on a pseudo-terminal."""

    def __init__(self, answers: list[str], *arguments: str) -> None:
        import pty

        helpers = str(Path(__file__).resolve().parents[1] / "helpers")
        self._terminal, child_end = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-c", CHILD, helpers, json.dumps(answers), *arguments],
            stdin=child_end,
            stdout=child_end,
            stderr=child_end,
            start_new_session=True,
            preexec_fn=_take_terminal,
            env={**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
        )
        os.close(child_end)
        self._seen = ""
        self._passed = 0

    def type(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    def wait_for(self, text: str, seconds: float = 60.0) -> None:
        """Read until ``text`` comes, after what was waited for before."""
        deadline = time.monotonic() + seconds
        while text not in self._seen[self._passed :]:
            ready, _, _ = select.select([self._terminal], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{text!r} did not come: {self._seen[self._passed :]!r}"
            self._seen += self._read()
        self._passed = self._seen.index(text, self._passed) + len(text)

    def _read(self) -> str:
        try:
            content = os.read(self._terminal, 65536)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            content = b""
        assert content, f"the chat ended: {self._seen!r}"
        return content.decode("utf-8", "replace")

    def end(self) -> int:
        code = self._process.wait(30)
        os.close(self._terminal)
        return code


def _take_terminal() -> None:
    """Make the pseudo-terminal the controlling one, so that Ctrl-C becomes a signal."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_real_terminal() -> None:
    terminal = Terminal(["Hello to you.", COUNTING, "Still here."], "chat", "fake")
    terminal.wait_for("/help lists the commands")
    terminal.wait_for(">>>")
    terminal.type("hi\r")
    terminal.wait_for("Hello to you.")
    terminal.wait_for("context 5 / 1 000")
    terminal.wait_for(">>>")
    terminal.type("count\r")
    terminal.wait_for("7 8 9")
    terminal.type("\x03")
    terminal.wait_for("stopped; what there is stays in the conversation")
    terminal.wait_for(">>>")
    terminal.type("/show messages\r")
    terminal.wait_for("assistant: 0 1 2 3")
    terminal.wait_for(">>>")
    terminal.type("\x03")
    terminal.wait_for(">>>")
    terminal.type("and now?\r")
    terminal.wait_for("Still here.")
    terminal.wait_for(">>>")
    terminal.type("\x04")
    assert terminal.end() == 0


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("arguments", [["generate", "fake", "-p", "x"], ["chat", "-p", "x"]])
def test_interrupted_output_ends_with_130(arguments: list[str]) -> None:
    terminal = Terminal([COUNTING], *arguments)
    terminal.wait_for("7 8 9")
    terminal.type("\x03")
    assert terminal.end() == 130
