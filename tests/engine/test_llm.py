"""The LLM class on small random models with the reference executor, and on a real model if there is one."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

from edgellm import (
    LLM,
    Completion,
    ContextOverflowError,
    EdgeLLMError,
    InvalidSettingError,
    ModelNotFoundError,
    OutOfMemoryError,
    Sampling,
)
from edgellm.memory import resident_bytes

GREEDY = Sampling(temperature=0)
TinyModels = Callable[..., Path]


@pytest.fixture
def llm(tiny_model: TinyModels) -> Iterator[LLM]:
    with LLM.load(tiny_model(), backend="reference") as model:
        yield model


def greedy(llm: LLM, prompt: list[int], count: int) -> list[int]:
    """What must be generated, from the logits of whole sequences computed anew."""
    ids = list(prompt)
    while len(ids) < len(prompt) + count and (
        len(ids) == len(prompt) or ids[-1] not in llm.tokenizer.end_of_generation
    ):
        ids.append(int(llm.logits(ids)[-1].argmax()))
    return ids[len(prompt) :]


def test_generate_follows_the_logits(llm: LLM) -> None:
    completion = llm.generate("hello world", max_tokens=12, sampling=GREEDY, logprobs=2)
    assert completion.prompt_ids == llm.tokenize("hello world")
    assert completion.ids == greedy(llm, completion.prompt_ids, 12)
    assert completion.text == "".join(step.text for step in completion.steps)
    logits = llm.logits([*completion.prompt_ids, *completion.ids])
    for position, step in enumerate(completion.steps, start=len(completion.prompt_ids) - 1):
        row = logits[position].astype(np.float64)
        logprobs = row - row.max() - np.log(np.exp(row - row.max()).sum())
        assert step.id is not None and step.logprob == pytest.approx(logprobs[step.id], abs=1e-3)
        assert len(step.logprobs) == 2


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_a_remembered_prefix_changes_nothing(tiny_model: TinyModels, architecture: str) -> None:
    with LLM.load(tiny_model(architecture), backend="reference") as llm:
        first = llm.generate("hello world " * 10, max_tokens=8, sampling=GREEDY)
        again = llm.generate([*first.prompt_ids, *first.ids[:-1], *first.ids[-1:]], max_tokens=8, sampling=GREEDY)
        assert again.cached_tokens == len(first.prompt_ids) + len(first.ids) - 1
        assert again.ids == greedy(llm, again.prompt_ids, 8)


def test_stream_is_generate_in_steps(llm: LLM) -> None:
    completion = llm.generate("hello", max_tokens=6, sampling=GREEDY)
    steps = list(llm.stream("hello", max_tokens=6, sampling=GREEDY))
    assert [step.id for step in steps] == completion.ids
    assert [step.finish_reason for step in steps[:-1]] == [None] * (len(steps) - 1)
    assert steps[-1].finish_reason == completion.finish_reason
    assert Completion.from_steps(completion.prompt_ids, steps).text == completion.text


def test_chat_goes_through_the_template(llm: LLM) -> None:
    messages = [{"role": "user", "content": "hello world"}]
    prompt = "<|im_start|>user\nhello world<|im_end|>\n<|im_start|>assistant\n"
    completion = llm.chat(messages, max_tokens=5, sampling=GREEDY)
    assert completion.prompt_ids == llm.tokenize(prompt) == llm.chat_ids(messages)
    assert [step.id for step in llm.chat_stream(messages, max_tokens=5, sampling=GREEDY)] == completion.ids
    assert llm.template.warning is None


def test_second_turn_of_a_chat_computes_only_what_is_new(llm: LLM) -> None:
    messages = [{"role": "user", "content": "hello world, the world in the world " * 2}]
    first = llm.chat(messages, max_tokens=1, sampling=GREEDY)
    messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "hello"}]
    second = llm.chat(messages, max_tokens=1, sampling=GREEDY)
    assert second.cached_tokens >= len(first.prompt_ids)
    assert second.timings.prompt_tokens == len(second.prompt_ids)
    assert second.ids == greedy(llm, second.prompt_ids, 1)


def test_text_and_ids(llm: LLM) -> None:
    assert llm.tokenize("<|im_end|>") == [llm.tokenizer.token_id("<|im_end|>")]
    assert len(llm.tokenize("<|im_end|>", special=False)) > 1
    for text in ("hello world", "Grüße 🍎"):
        assert llm.detokenize(llm.tokenize(text, special=False)) == text


def test_sampling_recommended_by_the_file_is_the_default(tmp_path: Path, tiny_model: TinyModels, llm: LLM) -> None:
    assert llm.sampling == Sampling()
    path = tmp_path / "advised.gguf"
    add_metadata(tiny_model(), path, {"general.sampling.temp": 0.25, "general.sampling.top_k": 3})
    with LLM.load(path, backend="reference") as advised:
        assert (advised.sampling.temperature, advised.sampling.top_k) == (0.25, 3)
        allowed = set(np.argsort(-advised.logits([5])[0])[:3].tolist())
        assert {advised.generate([5], max_tokens=1).ids[0] for _ in range(20)} <= allowed


def add_metadata(source: Path, target: Path, extra: dict[str, float | int]) -> None:
    """Copy a model file with more keys."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            sub = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub)
    for key, value in extra.items():
        (writer.add_float32 if isinstance(value, float) else writer.add_int32)(key, value)  # type: ignore[operator]
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_lone_stop_string_is_one_string(llm: LLM) -> None:
    text = llm.generate("hello", max_tokens=20, sampling=GREEDY).text
    stop = text[4:7]
    completion = llm.generate("hello", max_tokens=20, sampling=GREEDY, stop=stop)
    assert completion.text == text[: text.index(stop)]
    assert completion.stop_text == stop


def test_too_long_prompts_are_never_cut(llm: LLM) -> None:
    for use in (llm.generate, llm.stream):
        with pytest.raises(ContextOverflowError) as caught:
            use([1] * 300)
        assert (caught.value.prompt_tokens, caught.value.context_length) == (300, 256)
    with pytest.raises(ContextOverflowError):
        llm.chat([{"role": "user", "content": "hello " * 300}])


def test_bytes_are_no_prompt(llm: LLM) -> None:
    with pytest.raises(InvalidSettingError, match="bytes"):
        llm.generate(b"hello")


def test_several_threads(tiny_model: TinyModels) -> None:
    with LLM.load(tiny_model(), backend="reference") as llm:
        prompts = [f"hello world {number} " * 3 for number in range(3)]
        expected = [greedy(llm, llm.tokenize(prompt), 10) for prompt in prompts]
        results: dict[int, list[int]] = {}

        def work(number: int) -> None:
            results[number] = llm.generate(prompts[number], max_tokens=10, sampling=GREEDY).ids

        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert [results[number] for number in range(3)] == expected


def test_several_models_and_the_same_one_twice(tiny_model: TinyModels) -> None:
    paths = [tiny_model(), tiny_model(), tiny_model("gemma3"), tiny_model("llama", seed=1)]
    alone = []
    for path in paths:
        with LLM.load(path, backend="reference") as llm:
            alone.append(llm.generate("hello", max_tokens=6, sampling=GREEDY).ids)
    models = [LLM.load(path, backend="reference") for path in paths]
    streams = [model.stream("hello", max_tokens=6, sampling=GREEDY) for model in models]
    steps = [[next(stream).id for stream in streams] for _ in range(3)]
    models[0].close()
    for number in (1, 2, 3):
        ids = [step[number] for step in steps] + [step.id for step in streams[number]]
        assert ids == alone[number]
        models[number].close()


def test_cancel_from_another_thread(llm: LLM) -> None:
    cancel = threading.Event()
    ids = []
    for step in llm.stream("hello", sampling=Sampling(temperature=0, ignore_eos=True), cancel=cancel):
        if step.id is not None:
            ids.append(step.id)
        if len(ids) == 3:
            setter = threading.Thread(target=cancel.set)
            setter.start()
            setter.join()
    assert step.finish_reason == "cancelled"
    assert len(ids) == 3


def test_closed_models_say_so(tiny_model: TinyModels) -> None:
    llm = LLM.load(tiny_model(), backend="reference")
    stream = llm.stream("hello", sampling=Sampling(ignore_eos=True))
    next(stream)
    assert not llm.closed
    llm.close()
    llm.close()
    assert llm.closed and "closed" in repr(llm)
    with pytest.raises(EdgeLLMError, match="the model is closed"):
        next(stream)
    uses: list[Callable[[], object]] = [
        lambda: llm.generate([1]),
        lambda: llm.stream([1]),
        lambda: llm.logits([1]),
        llm.memory,
        lambda: llm.generate("hello"),
        lambda: llm.chat([{"role": "user", "content": "hello"}]),
    ]
    for use in uses:
        with pytest.raises(EdgeLLMError, match="closed"):
            use()


def test_collected_models_close(tiny_model: TinyModels) -> None:
    llm = LLM.load(tiny_model(), backend="reference")
    engine = llm._engine
    gone = weakref.ref(llm)
    stream = llm.stream("hello", max_tokens=5, sampling=GREEDY)
    next(stream)
    del llm
    gc.collect()
    assert gone() is not None, "a model must stay while it is being used"
    assert list(stream)[-1].finish_reason is not None
    del stream
    gc.collect()
    assert gone() is None
    with pytest.raises(EdgeLLMError, match="closed"):
        engine.memory()


def test_context_is_reported(tiny_model: TinyModels, monkeypatch: pytest.MonkeyPatch) -> None:
    with LLM.load(tiny_model(), backend="reference") as llm:
        assert (llm.context_length, llm.context_limited_by) == (256, "model")
    with LLM.load(tiny_model(), backend="reference", context=100) as llm:
        assert (llm.context_length, llm.context_limited_by) == (100, "request")
        assert llm.generate([1, 2], sampling=Sampling(ignore_eos=True)).finish_reason == "length"
        with pytest.raises(ContextOverflowError, match="101 tokens, the context holds 100"):
            llm.generate([1] * 101)
    block = llm._engine.executor.block_bytes
    monkeypatch.setattr("edgellm.llm.available_bytes", lambda: 20 * block)
    with LLM.load(tiny_model("llama", context_length=4096), backend="reference") as llm:
        assert (llm.context_length, llm.context_limited_by) == (18 * 32, "memory")
    with pytest.raises(OutOfMemoryError, match="4096 tokens"):
        LLM.load(tiny_model("llama", context_length=4096), backend="reference", context=4096)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "gpu"}, "backend is 'gpu'; it can be cpu or reference"),
        ({"cache_type": "f64"}, "cache_type is 'f64'"),
        ({"threads": 0}, "threads is 0"),
        ({"context": 0}, "context is 0"),
        ({"context": 2.5}, "context is 2.5"),
        ({"context": 257}, "257"),
    ],
)
def test_bad_settings(tiny_model: TinyModels, settings: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidSettingError) as caught:
        LLM.load(tiny_model(), **{"backend": "reference", **settings})  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        LLM.load(tmp_path / "missing.gguf")


def test_import_is_light() -> None:
    code = """
import sys, edgellm
assert "numpy" not in sys.modules, "import edgellm loads nothing"
assert edgellm.__version__.count(".") >= 2
import edgellm.llm
heavy = {"numba", "jinja2", "regex", "gguf", "rich", "prompt_toolkit", "requests"} & set(sys.modules)
assert not heavy, heavy
for name in edgellm.__all__:
    getattr(edgellm, name)
assert set(edgellm.__all__) <= set(dir(edgellm))
try:
    edgellm.nothing
except AttributeError as error:
    assert "nothing" in str(error)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_real_model_on_the_cpu(smollm2_path: Path) -> None:
    """Answers, a second turn from the cache, and memory given back."""
    llm = LLM.load(smollm2_path, context=2048)
    messages = [
        {"role": "system", "content": "You answer in one short sentence."},
        {"role": "user", "content": "What is the capital of France?"},
    ]
    first = llm.chat(messages, max_tokens=24, sampling=GREEDY)
    assert "Paris" in first.text
    messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "And of Italy?"}]
    second = llm.chat(messages, max_tokens=24, sampling=GREEDY)
    assert "Rome" in second.text
    assert second.cached_tokens >= len(first.prompt_ids)
    reused = second.ids
    llm._engine.forget()
    assert llm.chat(messages, max_tokens=24, sampling=GREEDY).ids == reused

    used, before = llm.memory(), resident_bytes()
    llm.close()
    del llm
    gc.collect()
    after = resident_bytes()
    assert before is not None and after is not None
    assert before - after > 0.8 * (used["weights"] + used["cache_used"])
