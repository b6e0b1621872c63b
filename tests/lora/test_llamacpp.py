"""llama.cpp reads the adapters that we write and continues texts with the same tokens.

Needs an interpreter with llama-cpp-python: EDGELLM_PEERS_PYTHON, or where ``peers/setup`` of the shared material puts
it.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from adapters import make_adapter

from edgellm import LLM, Adapter, Sampling
from edgellm.convert import ConvertSettings, convert, convert_adapter

PROGRAM = """
import json, sys
import numpy as np
import llama_cpp

path, adapter, prompt, count = json.loads(sys.argv[1])
model = llama_cpp.Llama(path, lora_path=adapter, n_ctx=128, n_threads=1, logits_all=True, verbose=False)
model.eval(prompt)
ids = []
while len(ids) < count:
    ids.append(int(np.argmax(model.scores[model.n_tokens - 1])))
    model.eval(ids[-1:])
print("answer", json.dumps(ids))
"""


@pytest.fixture(scope="module")
def peer() -> str:
    """An interpreter with llama-cpp-python."""
    default = Path.home() / ".cache" / "edgellm-peers" / "bin" / "python"
    python = os.environ.get("EDGELLM_PEERS_PYTHON") or str(default)
    try:
        done = subprocess.run([python, "-c", "import llama_cpp"], capture_output=True)
    except OSError:
        pytest.skip(f"no interpreter {python}: run peers/setup of the shared material or set EDGELLM_PEERS_PYTHON")
    if done.returncode:
        pytest.skip(f"{python} has no llama-cpp-python")
    return python


@pytest.mark.parametrize(
    ("family", "modules"),
    [
        ("llama", ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")),
        ("smollm3", ("q_proj", "k_proj", "v_proj", "gate_proj", "down_proj")),
        ("phi3", ("qkv_proj", "gate_up_proj")),
    ],
)
def test_same_greedy_tokens(peer: str, family: str, modules: tuple[str, ...], shared: Path, tmp_path: Path) -> None:
    checkpoint, base, path = shared / "fixtures" / family, tmp_path / "base.gguf", tmp_path / "a.gguf"
    convert(checkpoint, base, ConvertSettings(type="f32", name="tiny", threads=1))
    convert_adapter(make_adapter(tmp_path / "adapter", checkpoint, modules, 11).folder, base, path)
    prompt = [5, 17, 9, 33, 58, 21]
    with LLM.load(base, backend="reference", adapters=[Adapter(path)]) as llm:
        greedy = Sampling(temperature=0, ignore_eos=True)
        ours = llm.generate(prompt, max_tokens=16, sampling=greedy).ids
        assert ours != llm.generate(prompt, max_tokens=16, sampling=greedy, adapters={}).ids
    asked = json.dumps([str(base), str(path), prompt, 16])
    done = subprocess.run([peer, "-c", PROGRAM, asked], capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(done.stdout.split("answer ")[1]) == ours
