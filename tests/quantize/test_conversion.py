"""Whole files: sizes foretold to the byte, what is refused, and that nothing half-written is ever seen."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner
from filelock import FileLock

from edgellm import LLM
from edgellm.cli.main import edgellm
from edgellm.errors import EdgeLLMError
from edgellm.gguf import TensorType, open_gguf
from edgellm.quantize import QuantizeSettings, quantize
from edgellm.quantize.mixtures import MIXTURES
from edgellm.splitting import SplitSettings, split

Make = Callable[..., Path]
BITS_AT_MOST_OFF = {"Q2_K": 0.5, "TQ1_0": 0.9, "TQ2_0": 0.9, "Q3_K": 0.3}
"""By how much of their spread values may be off, for types of few bits."""


@pytest.mark.parametrize("mixture", MIXTURES)
def test_a_dry_run_tells_the_truth(tiny_model: Make, tmp_path: Path, mixture: str) -> None:
    """Size to the byte and types; every tensor is near what it was; keys are those of the model, and two more."""
    model = tiny_model(layers=3, width=256, feed_forward=288)
    target = tmp_path / "made.gguf"
    planned = quantize(model, target, QuantizeSettings(mixture), dry_run=True)
    assert not target.exists()
    done = quantize(model, target, QuantizeSettings(mixture))
    assert target.stat().st_size == planned.size_bytes == done.size_bytes
    assert planned.tensors == done.tensors
    with open_gguf(model) as before, open_gguf(target) as after:
        assert {tensor.name: tensor.type for tensor in planned.tensors} == {
            name: info.type.name for name, info in after.tensors.items()
        }
        for name, info in after.tensors.items():
            values, found = before.decode(name), after.decode(name)
            limit = BITS_AT_MOST_OFF.get(info.type.name, 0.15)
            assert np.sqrt(((values - found) ** 2).mean()) <= limit * values.std() + 1e-6, name
        assert after.metadata["general.file_type"] == MIXTURES[mixture].file_type
        assert after.metadata["general.quantization_version"] == 2
        for key in before.metadata:
            assert before.stored_key(key) == after.stored_key(key)


@pytest.mark.parametrize("mixture", ["Q4_K_M", "IQ4_XS", "Q5_1", "TQ2_0"])
def test_the_model_runs(tiny_model: Make, tmp_path: Path, mixture: str) -> None:
    model = tiny_model(layers=2, width=256, feed_forward=256)
    quantize(model, tmp_path / "made.gguf", QuantizeSettings(mixture))
    with LLM.load(tmp_path / "made.gguf", backend="reference", context=64) as llm:
        assert np.isfinite(llm.logits(llm.tokenize("hello world"))).all()
    reader = gguf.GGUFReader(tmp_path / "made.gguf")
    assert len(reader.tensors) == 20


def test_threads_do_not_change_the_file(tiny_model: Make, tmp_path: Path) -> None:
    model = tiny_model(layers=2, width=256, feed_forward=256)
    for threads in (1, 2, 5):
        quantize(model, tmp_path / f"{threads}.gguf", QuantizeSettings("Q4_K_M", threads=threads))
    contents = {(tmp_path / f"{threads}.gguf").read_bytes() for threads in (1, 2, 5)}
    assert len(contents) == 1


def test_split_models(tiny_model: Make, tmp_path: Path) -> None:
    """Joined or kept apart, the tensors are those of the whole model quantized."""
    model = tiny_model(layers=3, width=64)
    parts = split(model, tmp_path / "parts", SplitSettings(max_tensors=10)).paths
    whole = tmp_path / "whole.gguf"
    quantize(model, whole, QuantizeSettings("Q5_0"))
    quantize(parts[1], tmp_path / "joined.gguf", QuantizeSettings("Q5_0"))
    assert (tmp_path / "joined.gguf").read_bytes() == whole.read_bytes()
    settings = QuantizeSettings("Q5_0", keep_split=True)
    planned = quantize(parts[0], tmp_path / "kept", settings, dry_run=True)
    done = quantize(parts[0], tmp_path / "kept", settings)
    assert [path.name for path in done.paths] == [f"kept-0000{part + 1}-of-00003.gguf" for part in range(3)]
    assert sum(path.stat().st_size for path in done.paths) == planned.size_bytes
    with open_gguf(whole) as one, open_gguf(done.paths[2]) as three:
        assert list(one.tensors) == list(three.tensors)
        for name in one.tensors:
            assert np.array_equal(one.raw(name), three.raw(name))


def test_quantizing_again_must_be_asked_for(tiny_model: Make, tmp_path: Path) -> None:
    model = tiny_model(weight_types=("Q8_0",), embedding_type="Q8_0")
    with pytest.raises(EdgeLLMError, match="--allow-requantize"):
        quantize(model, tmp_path / "made.gguf", QuantizeSettings("Q4_0"))
    quantize(model, tmp_path / "made.gguf", QuantizeSettings("Q4_0", allow_requantize=True))
    quantize(model, tmp_path / "same.gguf", QuantizeSettings("Q8_0"))  # nothing changes


def test_a_type_for_tensors_that_are_not_there(tiny_model: Make, tmp_path: Path) -> None:
    settings = QuantizeSettings("Q4_0", tensor_types=(("attn_v", "Q8_0"), ("atn_q", "Q8_0")))
    with pytest.raises(EdgeLLMError, match="'atn_q'"):
        quantize(tiny_model(), tmp_path / "made.gguf", settings, dry_run=True)


def test_outputs_that_cannot_be(tiny_model: Make, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(tiny_model().read_bytes())
    there = tmp_path / "there.gguf"
    there.write_text("mine")
    for output, force, message in (
        (there, False, "exists already"),
        (model, True, "the model itself"),
        (tmp_path / "none" / "made.gguf", False, "no folder"),
    ):
        with pytest.raises(EdgeLLMError, match=message):
            quantize(model, output, QuantizeSettings("Q4_0", force=force))
    assert there.read_text() == "mine"
    assert model.read_bytes() == tiny_model().read_bytes()
    quantize(model, there, QuantizeSettings("Q4_0", force=True))
    with open_gguf(there) as made:
        assert made.tensors["blk.0.attn_q.weight"].type is TensorType.Q4_0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf", "there.gguf"]


@pytest.mark.parametrize(("bad", "message"), [(np.nan, "not finite"), (np.inf, "not finite"), (1e30, "too large")])
def test_weights_that_cannot_be_quantized(tiny_model: Make, tmp_path: Path, bad: float, message: str) -> None:
    """The error names the tensor, and there is no file."""
    model = tmp_path / "model.gguf"
    model.write_bytes(tiny_model().read_bytes())
    with open_gguf(model) as file:
        place = file.tensors["blk.1.ffn_up.weight"].offset + 400
    with model.open("r+b") as out:
        out.seek(place)
        out.write(np.float32(bad).tobytes())
    with pytest.raises(EdgeLLMError, match=rf"blk\.1\.ffn_up\.weight .*{message}"):
        quantize(model, tmp_path / "made.gguf", QuantizeSettings("Q4_0"))
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_the_command(tiny_model: Make, tmp_path: Path) -> None:
    model, output = tiny_model(width=256, feed_forward=256), tmp_path / "made.gguf"
    arguments = ["quantize", str(model), str(output), "q4_k", "--tensor-type", "attn_v=Q8_0", "--output-type", "Q5_K"]
    dry = CliRunner().invoke(edgellm, [*arguments, "--dry-run", "--json"])
    assert dry.exit_code == 0, dry.output
    planned = json.loads(dry.stdout)
    assert not output.exists()
    text = CliRunner().invoke(edgellm, [*arguments, "--dry-run"]).stdout
    assert "blk.0.attn_v.weight" in text
    done = json.loads(CliRunner().invoke(edgellm, [*arguments, "--json"]).stdout)
    assert done["size_bytes"] == planned["size_bytes"] == output.stat().st_size
    assert done["type"] == "Q4_K_M"
    kinds = {tensor["name"]: tensor["type"] for tensor in done["tensors"]}
    assert kinds["blk.0.attn_v.weight"] == "Q8_0"
    assert kinds["token_embd.weight"] == "Q5_K"  # it is the output matrix as well
    for wrong, message in (
        (["Q4_9"], "known: "),
        (["Q4_0", "--tensor-type", "attn"], "REGEX=TYPE"),
        (["Q4_0", "--imatrix", str(tmp_path / "none")], "cannot read"),
    ):
        failed = CliRunner().invoke(edgellm, ["quantize", str(model), str(tmp_path / "other.gguf"), *wrong])
        assert failed.exit_code in (1, 2)
        assert message in failed.output


def test_a_warm_run_does_not_load_the_compiler(tiny_model: Make, tmp_path: Path) -> None:
    model = tiny_model()
    quantize(model, tmp_path / "warm.gguf", QuantizeSettings("Q4_0"))
    program = (
        "import sys; from edgellm.quantize import *; "
        f"quantize({str(model)!r}, {str(tmp_path / 'made.gguf')!r}, QuantizeSettings('Q4_0')); "
        "sys.exit('numba' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


# -- interrupted at any moment -----------------------------------------------------------------------------------


def command(model: Path, output: Path) -> list[str]:
    program = "from edgellm.cli.main import main; main()"
    return [sys.executable, "-c", program, "quantize", str(model), str(output), "Q4_0", "--force", "--threads", "2"]


@pytest.mark.skipif(os.name != "posix", reason="kills a process")
def test_killed_at_any_moment_the_old_or_the_new_file_is_there(tiny_model: Make, tmp_path: Path) -> None:
    model, output = tiny_model(layers=8, width=256, feed_forward=512), tmp_path / "made.gguf"
    subprocess.run(command(model, output), check=True, capture_output=True)
    new = output.read_bytes()
    began = time.monotonic()
    subprocess.run(command(model, output), check=True, capture_output=True)
    takes = time.monotonic() - began
    generator = random.Random(1)
    for _ in range(8):
        old = b"an older file"
        output.write_bytes(old)
        with subprocess.Popen(command(model, output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            time.sleep(generator.uniform(0.5, 1.05) * takes)
            process.send_signal(signal.SIGKILL)
        assert output.read_bytes() in (old, new)
    for left in tmp_path.glob(".edgellm-*.part"):
        for path in (left / "lock", left):  # one may be killed before it makes a lock
            if path.exists():
                os.utime(path, (0, 0))  # a while later
    subprocess.run(command(model, output), check=True, capture_output=True)
    assert [path.name for path in tmp_path.iterdir()] == ["made.gguf"]  # what the killed ones left is gone


def test_only_what_killed_runs_left_a_while_ago_is_swept_away(tiny_model: Make, tmp_path: Path) -> None:
    def left(name: str, files: Sequence[str], age: float) -> Path:
        folder = tmp_path / f".edgellm-{name}.part"
        folder.mkdir()
        for path in (*(folder / file for file in files), folder):
            path.touch()
            os.utime(path, (time.time() - age,) * 2)
        return folder

    unlocked, locked = left("unlocked", ["made.gguf"], 3600), left("locked", ["made.gguf", "lock"], 3600)
    beginning, running = left("beginning", [], 1), left("running", ["made.gguf", "lock"], 3600)
    with FileLock(running / "lock"):
        os.utime(running / "lock", (0, 0))  # opening it may have changed that
        quantize(tiny_model(), tmp_path / "made.gguf", QuantizeSettings("Q4_0"))
    assert not unlocked.exists()
    assert not locked.exists()
    assert beginning.is_dir() and (running / "made.gguf").is_file()


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_a_full_disk_leaves_the_old_file(tiny_model: Make, tmp_path: Path) -> None:
    """The size of files is limited to what the system gives a process, as a full disk does: one line, no leftovers."""
    model, output = tiny_model(layers=8, width=256, feed_forward=512), tmp_path / "made.gguf"
    output.write_bytes(b"an older file")
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)); "
    started = command(model, output)
    done = subprocess.run([*started[:2], limit + started[2], *started[3:]], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "free some" in done.stderr
    assert output.read_bytes() == b"an older file"
    assert [path.name for path in tmp_path.iterdir()] == ["made.gguf"]
