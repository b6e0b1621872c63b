"""The commands other than chat, and what is common to all: help, errors, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_llm import FakeLLM

from edgellm.cli import loading
from edgellm.cli.console import clean
from edgellm.cli.main import COMMANDS, edgellm
from edgellm.cli.options import ModelOptions
from edgellm.errors import EdgeLLMError
from edgellm.folders import models_folder


def test_help_lists_every_command_and_every_command_has_help(run) -> None:
    overview = run("--help")
    assert overview.exit_code == 0
    for name, (_, summary) in COMMANDS.items():
        assert f"{name}" in overview.stdout
        assert summary in overview.stdout
        command = run(name, "-h")
        assert command.exit_code == 0
        assert command.stdout.startswith(f"Usage: edgellm {name} ")
    assert edgellm.list_commands(None) == list(COMMANDS)


def test_version(run) -> None:
    assert run("--version").stdout.startswith("edgellm, version ")


def test_unknown_command(run) -> None:
    result = run("chatt")
    assert (result.exit_code, "No such command 'chatt'" in result.stderr) == (2, True)


@pytest.mark.parametrize("arguments", ["--help", "list", "generate --help", "pull --help"])
def test_heavy_libraries_are_not_imported_for_nothing(own_home: Path, arguments: str) -> None:
    code = (
        "import sys\nfrom edgellm.cli.main import main\nsys.argv = ['edgellm', *sys.argv[1:]]\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        "heavy = {'numba', 'jinja2', 'rich', 'prompt_toolkit', 'gguf', 'requests', 'urllib.request'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, *arguments.split()], check=True, capture_output=True)


def test_errors_are_one_line(run) -> None:
    result = run("generate", "fake", "-p", "x", model=FakeLLM(EdgeLLMError("it\nbroke \x1b[31mbadly", "mend it")))
    assert (result.exit_code, result.stderr) == (1, "error: it broke [31mbadly; mend it\n")


def test_unknown_model(run) -> None:
    result = run("show", "smolm2")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: 'smolm2' is not a known model; did you mean smollm2? known: ")
    assert "gemma3, " in result.stderr


def test_out_of_memory_is_an_error_like_others(run) -> None:
    def exhausted(index: int) -> None:
        raise MemoryError

    result = run("generate", "fake", "-p", "x", model=FakeLLM("a", on_step=exhausted))
    assert (result.exit_code, result.stderr.startswith("error: out of memory")) == (1, True)


def test_closed_pipe_is_quiet(own_home: Path) -> None:
    code = "from edgellm.cli.main import main; main()"
    command = [sys.executable, "-c", code, "generate", "--help"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.close()
    assert child.stderr is not None
    assert child.stderr.read() == b""
    child.wait()


class TestGenerate:
    def test_text(self, run) -> None:
        model = FakeLLM("and they lived \x1b[1mhappily")
        result = run("generate", "fake", "--prompt", "Once", model=model)
        assert (result.exit_code, result.stdout, result.stderr) == (0, "and they lived [1mhappily\n", "")
        assert model.calls[0]["prompt"] == model.tokenize("Once")

    def test_json(self, run) -> None:
        result = run(
            "generate", "fake", "-p", "a b", "--json", "--logprobs", "2", "--max-tokens", "2", model=FakeLLM("x y z")
        )
        assert result.stdout.count("\n") == 1
        assert json.loads(result.stdout) == {
            "model": "fake",
            "prompt_ids": [97, 98],
            "ids": [100, 101],
            "text": "x y ",
            "finish_reason": "length",
            "stop_text": None,
            "logprobs": [
                {"id": 100, "logprob": -0.25, "top": [[0, -1.0], [1, -2.0]]},
                {"id": 101, "logprob": -0.25, "top": [[0, -1.0], [1, -2.0]]},
            ],
            "timings": {
                "prompt_tokens": 2,
                "cached_tokens": 1,
                "prompt_seconds": 0.5,
                "prompt_per_second": 2.0,
                "generated_tokens": 2,
                "generated_seconds": 0.25,
                "generated_per_second": 4.0,
            },
            "cached_tokens": 1,
        }

    def test_json_without_logprobs(self, run) -> None:
        assert json.loads(run("generate", "f", "-p", "a", "--json", model=FakeLLM("x")).stdout)["logprobs"] is None

    def test_timings(self, run) -> None:
        result = run("generate", "f", "-p", "a", "--timings", model=FakeLLM("x"))
        assert (result.stdout, result.stderr) == ("x\n", "prompt 1 tokens, 2.0 tok/s; answer 1 tokens\n")

    def test_where_the_text_comes_from(self, run, tmp_path: Path) -> None:
        path = tmp_path / "text"
        path.write_text("from a file", encoding="utf-8")
        model = FakeLLM(*"xxx")
        run("generate", "f", "--file", str(path), model=model)
        run("generate", "f", "--file", "-", model=model, input="from standard input")
        run("generate", "f", model=model, input="from a pipe\n")
        texts = ["from a file", "from standard input", "from a pipe\n"]
        assert [call["prompt"] for call in model.calls] == [model.tokenize(text) for text in texts]

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (["-p", "a", "-f", "b"], 2, "exclude each other"),
            (["-f", "/nowhere"], 1, "cannot read /nowhere"),
            (["-p", "a", "--logprobs", "3"], 2, "--logprobs needs --json"),
            (["-p", "a\udcff"], 1, "is not valid Unicode"),
        ],
    )
    def test_mistakes(self, run, arguments: list[str], code: int, message: str) -> None:
        result = run("generate", "f", *arguments, model=FakeLLM())
        assert (result.exit_code, message in result.stderr) == (code, True)

    def test_file_that_is_not_text(self, run, tmp_path: Path) -> None:
        (tmp_path / "f").write_bytes(b"\xff")
        result = run("generate", "f", "-f", str(tmp_path / "f"), model=FakeLLM())
        assert (result.exit_code, "is not UTF-8 text" in result.stderr) == (1, True)


def test_warmup(run) -> None:
    model = FakeLLM("x")
    result = run("warmup", "fake", model=model)
    assert result.stdout.startswith("fake is ready (")
    assert model.calls[0]["max_tokens"] == 1


class TestWithRealFiles:
    @pytest.fixture
    def model(self, tiny_model: Callable[..., Path]) -> Path:
        return tiny_model("llama")

    def test_tokenize(self, run, model: Path) -> None:
        plain = run("tokenize", str(model), "-p", "hello world")
        ids = [int(word) for word in plain.stdout.split()]
        assert run("tokenize", str(model), "hello world").stdout == plain.stdout
        assert run("tokenize", str(model), "hello", "-p", "world").exit_code == 2
        answer = json.loads(run("tokenize", str(model), "--json", input="hello world").stdout)
        assert answer["ids"] == ids
        assert answer["count"] == len(ids)
        assert len(run("tokenize", str(model), "-p", "hello world", "--show").stdout.splitlines()) == len(ids)
        bare = run("tokenize", str(model), "-p", "hello world", "--no-special", "--json")
        assert "".join(json.loads(bare.stdout)["texts"]).strip() == "hello world"

    def test_show(self, run, model: Path) -> None:
        summary = run("show", str(model))
        assert summary.exit_code == 0
        assert "architecture   llama" in summary.stdout
        answer = json.loads(run("show", str(model), "--json").stdout)
        assert answer["metadata"]["general.architecture"] == "llama"
        assert answer["size_bytes"] == model.stat().st_size
        assert sum(kind["count"] for kind in answer["tensor_types"].values()) == len(answer["tensors"])
        assert answer["parameters"] > 0
        keys = run("show", str(model), "--metadata").stdout
        assert len(keys.splitlines()) == len(answer["metadata"])
        tensors = run("show", str(model), "--tensors").stdout
        assert [line.split()[0] for line in tensors.splitlines()] == [tensor["name"] for tensor in answer["tensors"]]
        template = run("show", str(model), "--template")
        assert template.stdout == answer["metadata"]["tokenizer.chat_template"] + "\n"

    def test_show_something_else(self, run, tmp_path: Path) -> None:
        path = tmp_path / "bad.gguf"
        path.write_bytes(b"GGUF" + bytes(100))
        for arguments in (["show", str(path)], ["tokenize", str(path), "-p", "x"]):
            result = run(*arguments)
            assert result.exit_code == 1
            assert result.stderr.startswith("error: ")
            assert result.stderr.count("\n") == 1

    def test_list_and_remove(self, run, model: Path) -> None:
        assert run("list").stderr == "no models here yet; get the default one with: edgellm pull smollm2\n"
        assert json.loads(run("list", "--json").stdout) == []
        models_folder().mkdir(parents=True)
        (models_folder() / "tiny-Q8_0.gguf").write_bytes(model.read_bytes())
        lines = run("list").stdout.splitlines()
        assert lines[0].split() == ["NAME", "QUANT", "SIZE", "PATH"]
        assert lines[1].split()[:2] == ["tiny-Q8_0", "Q8_0"]
        [entry] = json.loads(run("list", "--json").stdout)
        assert entry["size_bytes"] == model.stat().st_size
        everything = {row["name"]: row for row in json.loads(run("list", "--all", "--json").stdout)}
        assert everything["smollm2"]["path"] is None
        assert run("show", "tiny-Q8_0").exit_code == 0
        assert run("rm", "tiny-Q8_0").stdout.startswith("removed tiny-Q8_0 (")
        result = run("rm", "tiny-Q8_0")
        assert (result.exit_code, result.stderr) == (
            1,
            "error: no downloaded model is called 'tiny-Q8_0'; downloaded: none\n",
        )

    def test_rm_never_touches_other_files(self, run, model: Path, tmp_path: Path) -> None:
        path = tmp_path / "mine.gguf"
        path.write_bytes(model.read_bytes())
        assert run("rm", str(path)).exit_code == 1
        assert path.exists()

    def test_pull_of_what_is_here(self, run, model: Path) -> None:
        assert run("pull", str(model)).stdout == f"{model}\n"

    def test_pull_offline(self, run) -> None:
        result = run("pull", "smollm2")
        assert (result.exit_code, "this is offline" in result.stderr) == (1, True)


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_generate_with_a_real_engine(run, tiny_model: Callable[..., Path], architecture: str) -> None:
    """The whole way on a small random model: the same greedy tokens as JSON, as text, and from the Python API."""
    from edgellm import LLM, Sampling

    path = tiny_model(architecture)
    flags = [
        "-p",
        "hello world",
        "--temperature",
        "0",
        "--max-tokens",
        "6",
        "--backend",
        "reference",
        "--context",
        "64",
    ]
    answer = json.loads(run("generate", str(path), *flags, "--json", "--logprobs", "3").stdout)
    assert run("generate", str(path), *flags).stdout.rstrip("\n") == clean(answer["text"]).rstrip("\n")
    with LLM.load(path, backend="reference", context=64) as llm:
        completion = llm.generate("hello world", max_tokens=6, sampling=Sampling(temperature=0), logprobs=3)
        assert (completion.ids, completion.prompt_ids) == (answer["ids"], answer["prompt_ids"])
    for step, token in zip(answer["logprobs"], answer["ids"], strict=True):
        assert (step["id"], len(step["top"])) == (token, 3)
        assert step["logprob"] == pytest.approx(step["top"][0][1])
    long = run("generate", str(path), "-p", "hello " * 100, "--backend", "reference", "--context", "64")
    assert (long.exit_code, "the context holds 64" in long.stderr) == (1, True)


def test_first_start_says_that_kernels_are_compiled(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgellm.llm import LLM

    arguments: dict[str, object] = {}

    def load(model: str, **given: object) -> FakeLLM:
        arguments.update(given, model=model)
        progress = given["progress"]
        assert callable(progress)
        for done in range(4):
            progress("kernels", done, 3)
        return FakeLLM()

    monkeypatch.setattr(LLM, "load", load)
    model = tiny_model("llama")
    assert isinstance(loading.open_model(ModelOptions(str(model), context=7, cache_type="q8_0")), FakeLLM)
    assert capsys.readouterr().err == "compiling 3 kernels for this CPU; this happens once\n"
    assert (arguments["model"], arguments["context"], arguments["cache_type"]) == (str(model), 7, "q8_0")


def test_system_errors_are_one_line(run) -> None:
    def vanished(index: int) -> None:
        raise FileNotFoundError(2, "No such file or directory", "/somewhere/x")

    result = run("generate", "fake", "-p", "x", model=FakeLLM("a", on_step=vanished))
    assert (result.exit_code, result.stderr) == (1, "error: /somewhere/x: No such file or directory\n")


class TestDoctor:
    def test_report(self, run, own_home: Path) -> None:
        result = run("doctor", "--json")
        report = json.loads(result.stdout)
        assert {"cpu", "memory", "folders", "packages", "problems", "python", "edgellm"} <= set(report)
        assert report["cpu"]["physical_cores"] >= 1
        assert report["cpu"]["features"]
        assert report["environment"]["EDGELLM_HOME"] == str(own_home)
        assert [folder["name"] for folder in report["folders"]] == ["home", "models", "kernels"]
        assert all(package["version"] for package in report["packages"] if not package["optional"])
        assert result.exit_code == 0

    def test_text(self, run) -> None:
        models_folder().mkdir(parents=True)
        (models_folder() / "a.gguf").write_bytes(bytes(1500))
        output = run("doctor").stdout
        for word in ("edgellm ", "cpu ", "cores ", "memory ", "features ", "packages ", "1 files, 1.5 kB"):
            assert word in output

    def test_missing_package(self, run, monkeypatch: pytest.MonkeyPatch) -> None:
        from edgellm.cli import doctor

        nowhere = doctor.Package("nowhere-to-be-found", "nowhere_to_be_found", "this test")
        monkeypatch.setattr(doctor, "PACKAGES", (nowhere,))
        result = run("doctor")
        assert result.exit_code == 1
        assert (
            "PROBLEM   nowhere-to-be-found is not installed (for this test): pip install nowhere-to-be-found"
            in result.stdout
        )

    def test_unwritable_home(self, run, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from edgellm.cli import doctor

        with monkeypatch.context() as patch:
            patch.setattr(doctor.os, "access", lambda *_: False)
            assert run("doctor").exit_code == 1
        own_home.write_text("a file where the folder should be")
        result = run("doctor")
        assert result.exit_code == 1
        assert f"{own_home} cannot be written to: set EDGELLM_HOME to a folder of yours" in result.stdout
