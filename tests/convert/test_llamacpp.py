"""llama.cpp reads what we write and continues texts with the tokens of the original model.

Needs an interpreter with llama-cpp-python, which ``peers/setup`` of the shared material makes: EDGELLM_PEERS_PYTHON, or
where that script puts it.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

Peer = subprocess.Popen[str]

COUNT = 16  # tokens that a text is continued by
PROGRAM = """
import json, sys
import numpy as np
import llama_cpp

for line in sys.stdin:
    path, prompts, count = json.loads(line)
    exact = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32, "flash_attn": False}
    model = llama_cpp.Llama(path, n_ctx=128, n_batch=128, n_threads=2, logits_all=True, verbose=False, **exact)
    answers = []
    for prompt in prompts:
        ids = list(prompt)
        model.reset()
        model.eval(ids)
        logits = np.array(model.scores[: len(ids)])
        while len(ids) < len(prompt) + count:
            best = int(np.argmax(model.scores[model.n_tokens - 1]))
            ids.append(best)
            model.eval([best])
        answers.append({"logits": logits.tolist(), "ids": ids[len(prompt) :]})
    model.close()
    print("answer", json.dumps(answers), flush=True)
"""


@pytest.fixture(scope="session")
def peer() -> Iterator[Peer]:
    """A process with llama-cpp-python that answers one request a line."""
    default = Path.home() / ".cache" / "edgellm-peers" / "bin" / "python"
    python = os.environ.get("EDGELLM_PEERS_PYTHON") or str(default)
    try:
        done = subprocess.run([python, "-c", "import llama_cpp"], capture_output=True)
    except OSError:
        pytest.skip(f"no interpreter {python}: run peers/setup of the shared material or set EDGELLM_PEERS_PYTHON")
    if done.returncode:
        pytest.skip(f"{python} has no llama-cpp-python")
    with subprocess.Popen([python, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def _ask(peer: Peer, path: Path, prompts: list[list[int]], count: int) -> list[dict[str, list]]:
    assert peer.stdin is not None
    assert peer.stdout is not None
    peer.stdin.write(json.dumps([str(path), prompts, count]) + "\n")
    peer.stdin.flush()
    for line in peer.stdout:  # the library prints lines of its own now and then
        if line.startswith("answer "):
            answers: list[dict[str, list]] = json.loads(line.removeprefix("answer "))
            return answers
    pytest.fail("llama.cpp ended while it answered")


# Not here: mistral, whose window llama.cpp does not know; deepseek_v2, which it reads with 26 or 27 layers only.
NAMES = (
    "llama", "llama-linear", "llama-yarn", "llama3-rope", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe",
    "gemma", "gemma2", "gemma3", "phi2", "phi3", "gpt2", "smollm3", "gpt_oss", "deepseek_v3", "granite", "olmo2",
    "cohere", "cohere2",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_greedy_tokens(name: str, peer: Peer, shared: Path, converted_path: Callable[..., Path]) -> None:
    """Logits as the original's, as near as llama.cpp's tables of GELU in half precision allow, and our own tokens."""
    reference = np.load(shared / "fixtures" / name / "reference.npz")
    prompts = [reference[f"ids_{part}"].tolist() for part in ("a", "b", "long")]
    path = converted_path(name)
    answers = _ask(peer, path, prompts, COUNT)
    for part, answer in zip(("a", "b", "long"), answers, strict=True):
        expected = reference[f"logits_{part}"]
        logits = np.array(answer["logits"])
        assert np.abs(logits - expected).max() < 5e-4 * np.abs(expected).max()
    assert [answer["ids"] for answer in answers] == [ids for ids, _ in _own_greedy(path, prompts)]


def test_deepseek_v2_with_as_many_layers_as_the_small_model(peer: Peer, shared: Path, tmp_path: Path) -> None:
    """The dense first layer, then the others over and over."""
    from checkpoints import read_safetensors, safetensors_bytes, write_json

    from edgellm.convert import convert

    source = shared / "fixtures" / "deepseek_v2"
    tensors = read_safetensors(source / "model.safetensors")
    for layer in range(3, 27):
        for name, entry in list(tensors.items()):
            if name.startswith(f"model.layers.{2 - layer % 2}."):
                tensors[name.replace(f"layers.{2 - layer % 2}.", f"layers.{layer}.")] = entry
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    (tmp_path / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    config = {**json.loads((source / "config.json").read_text()), "num_hidden_layers": 27}
    write_json(tmp_path / "config.json", config)
    path = convert(tmp_path, tmp_path / "out.gguf").path
    prompts = [np.load(source / "reference.npz")["ids_b"].tolist()]
    found = [answer["ids"] for answer in _ask(peer, path, prompts, COUNT)]
    assert found == [ids for ids, _ in _own_greedy(path, prompts)]


def test_bitnet(peer: Peer, shared: Path, tmp_path: Path) -> None:
    """llama.cpp knows BitNet's first architecture, with SiLU, and rounds activations by blocks, not by rows as the
    original does: its logits are off by up to 5e-3 of the largest. So the texts are those whose tokens are not nearly
    tied with others."""
    from checkpoints import read_safetensors, safetensors_bytes, write_json

    from edgellm.convert import ConvertSettings, convert

    source = shared / "models" / "bitnet-tiny"
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(read_safetensors(source / "model.safetensors")))
    (tmp_path / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    config = {**json.loads((source / "config.json").read_text()), "hidden_act": "silu"}
    write_json(tmp_path / "config.json", config)
    with np.load(source / "reference.npz") as arrays:
        text = arrays["ids_a"].tolist()
    prompts = [text[start : start + 13] for start in range(0, 180, 12)]
    for kind in ("tq1_0", "tq2_0"):
        path = convert(tmp_path, tmp_path / f"{kind}.gguf", ConvertSettings(type=kind)).path
        clear = {number: ids for number, (ids, margin) in enumerate(_own_greedy(path, prompts)) if margin > 2e-3}
        assert len(clear) >= 8
        found = _ask(peer, path, [prompts[number] for number in clear], COUNT)
        assert [answer["ids"] for answer in found] == list(clear.values())


def _own_greedy(path: Path, prompts: list[list[int]]) -> list[tuple[list[int], float]]:
    """The continuations of our reference executor, and by how much of the largest logit, at least, a token led."""
    from edgellm import LLM

    own = []
    with LLM.load(str(path), backend="reference", context=128) as llm:
        for prompt in prompts:
            ids, margin = list(prompt), np.inf
            while len(ids) < len(prompt) + COUNT:
                logits = llm.logits(ids)[-1]
                second, best = np.sort(logits)[-2:]
                margin = min(margin, (best - second) / np.abs(logits).max())
                ids.append(int(logits.argmax()))
            own.append((ids[len(prompt) :], float(margin)))
    return own
