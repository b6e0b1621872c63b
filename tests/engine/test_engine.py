"""The engine against an executor that checks every cache slot it is told to use."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
from fakes import FakeExecutor, FakeTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.engine import Engine, Request
from edgellm.errors import ContextOverflowError, EdgeLLMError, InvalidSettingError, OutOfMemoryError
from edgellm.platforms.batch import BLOCK_TOKENS, Batch, Float32Array
from edgellm.results import Completion, Step
from edgellm.sampling import Sampling

GREEDY = Sampling(temperature=0)
BYTES = [bytes([value]) for value in range(64)]


def make_engine(
    executor: FakeExecutor | None = None, context: int = 256, **settings: int
) -> tuple[Engine, FakeExecutor]:
    executor = executor or FakeExecutor()
    pieces = BYTES + [b"?"] * (executor.graph.vocabulary_size - len(BYTES))
    return Engine(executor, FakeTokenizer(pieces), context, **settings), executor  # type: ignore[arg-type]


def run(engine: Engine, prompt: Sequence[int], max_tokens: int | None = 8, **settings: object) -> Completion:
    request = Request(max_tokens=max_tokens, sampling=GREEDY, **settings)  # type: ignore[arg-type]
    return Completion.from_steps(prompt, engine.stream(prompt, request))


def greedy(executor: FakeExecutor, prompt: Sequence[int], count: int) -> list[int]:
    """What an engine must generate, computed without one."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(executor.logits_after(tokens).argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 31, 32, 33, 64, 100])
@pytest.mark.parametrize("chunk_rows", [1, 7, 16])
def test_any_prompt_length_and_chunk(length: int, chunk_rows: int) -> None:
    engine, executor = make_engine(chunk_rows=chunk_rows)
    prompt = [token * 7 % 60 for token in range(length)]
    for expected_cache in (0, length - 1):  # the second time everything is there but the last logits
        rows = executor.rows
        completion = run(engine, prompt, max_tokens=40)
        assert completion.ids == greedy(executor, prompt, 40)
        assert completion.finish_reason == "length"
        assert completion.cached_tokens == expected_cache
        assert executor.rows - rows == length - expected_cache + 39
        assert completion.prompt_ids == prompt


def test_second_turn_computes_only_what_is_new() -> None:
    engine, executor = make_engine()
    first = run(engine, list(range(40)), max_tokens=10)
    second_prompt = [*range(40), *first.ids, 1, 2, 3]
    rows = executor.rows
    second = run(engine, second_prompt, max_tokens=1)
    # The last token of the answer was chosen, but never computed.
    assert second.cached_tokens == 40 + 9
    assert executor.rows - rows == 1 + 3
    assert second.timings.prompt_tokens == 53
    assert second.ids == greedy(executor, second_prompt, 1)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.lists(st.tuples(st.integers(0, 2), st.integers(1, 40)), min_size=1, max_size=4),
            st.integers(0, 12),
            st.booleans(),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_shared_beginnings_never_change_the_answer(requests: list[tuple[list[tuple[int, int]], int, bool]]) -> None:
    engine, executor = make_engine(blocks=9)  # few enough that old prefixes must make room
    open_streams = []
    for runs, max_tokens, keep_open in requests:
        prompt = [token for token, count in runs for _ in range(count)]
        try:
            if keep_open and len(open_streams) < 2:  # its blocks stay in use while the others run
                stream = engine.stream(prompt, Request(max_tokens=100, sampling=GREEDY))
                steps = [next(stream)]
                open_streams.append((prompt, stream, steps))
                continue
            completion = run(engine, prompt, max_tokens)
        except OutOfMemoryError:
            assert open_streams, "one request alone must always fit"
            continue
        assert completion.ids == greedy(executor, prompt, max_tokens)
    for prompt, stream, steps in open_streams:
        for _ in range(5):
            try:
                steps.append(next(stream))
            except OutOfMemoryError:
                assert len(open_streams) > 1
                break
        assert [step.id for step in steps] == greedy(executor, prompt, len(steps))


def test_threads_take_turns_and_stay_correct() -> None:
    engine, executor = make_engine(FakeExecutor(step_seconds=0.001), blocks=64, chunk_rows=8)
    prompts = [[number] * 20 + list(range(number, number + 30)) for number in range(4)]
    results: dict[int, list[Completion]] = {}
    barrier = threading.Barrier(len(prompts))

    def work(number: int) -> None:
        barrier.wait()
        results[number] = [run(engine, prompts[number], max_tokens=20) for _ in range(2)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for number, prompt in enumerate(prompts):
        assert [completion.ids for completion in results[number]] == [greedy(executor, prompt, 20)] * 2
    # Nobody waits for a whole generation of somebody else.
    owners = [next(n for n, prompt in enumerate(prompts) if step[:2] == tuple(prompt[:2])) for step in executor.steps]
    first_end = min(len(owners) - 1 - owners[::-1].index(number) for number in range(len(prompts)))
    assert set(owners[: first_end + 1]) == set(range(len(prompts)))


def test_who_waits_is_next() -> None:
    # Chunks of a prompt follow each other at once: the thread that just had its turn is the first to ask again, and
    # must let the other one go first. Every step here lasts until the other thread is waiting.
    executor = FakeExecutor()
    engine, _ = make_engine(executor, chunk_rows=1)
    original, turns = executor.step, {0: 0, 1: 0}

    def step(batch: Batch) -> Float32Array:
        owner = int(batch.tokens[0])
        turns[owner] += 1
        patience = time.monotonic() + 10
        while turns[1 - owner] < 40 and not engine._gate.locked() and time.monotonic() < patience:
            time.sleep(0.0005)
        return original(batch)

    executor.step = step  # type: ignore[method-assign]
    threads = [threading.Thread(target=run, args=(engine, [number] * 40, 1)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    owners = [step[0] for step in executor.steps]
    assert len(owners) == 80
    assert all(a != b for a, b in pairwise(owners))


@pytest.mark.parametrize("steps_before", [0, 1, 5])
def test_cancel_at_any_token(steps_before: int) -> None:
    engine, executor = make_engine()
    cancel = threading.Event()
    stream = engine.stream(list(range(50)), Request(sampling=GREEDY, cancel=cancel))
    steps = [next(stream) for _ in range(steps_before)]
    cancel.set()
    steps += list(stream)
    completion = Completion.from_steps(range(50), steps)
    assert completion.finish_reason == "cancelled"
    assert completion.ids == greedy(executor, range(50), steps_before)
    assert steps[-1].id is None and steps[-1].timings is not None
    assert executor.rows == (50 + steps_before - 1 if steps_before else 0)
    assert run(engine, list(range(50)), max_tokens=1).cached_tokens == (49 if steps_before else 0)


def test_cancel_within_the_prompt_keeps_what_was_computed() -> None:
    cancel = threading.Event()
    executor = FakeExecutor()
    original = executor.step

    def cancel_in_second_chunk(batch: object) -> object:
        if executor.rows:
            cancel.set()
        return original(batch)  # type: ignore[arg-type]

    executor.step = cancel_in_second_chunk  # type: ignore[method-assign, assignment]
    engine, _ = make_engine(executor, chunk_rows=10)
    completion = run(engine, list(range(55)), cancel=cancel)
    assert (completion.finish_reason, completion.ids, executor.rows) == ("cancelled", [], 20)
    executor.step = original  # type: ignore[method-assign]
    again = run(engine, list(range(55)), max_tokens=3)
    assert again.cached_tokens == 20
    assert again.ids == greedy(executor, range(55), 3)


def test_abandoned_streams_give_their_blocks_back() -> None:
    engine, executor = make_engine(blocks=4, context=128)
    for _ in range(10):
        stream = engine.stream([1] * 100, Request(sampling=GREEDY))
        next(stream)
        del stream
        gc.collect()
    engine.forget()
    assert engine.memory()["cache_used"] == 0
    assert run(engine, [1] * 100, max_tokens=28).ids == greedy(executor, [1] * 100, 28)


def test_context_end() -> None:
    engine, executor = make_engine(context=50, blocks=2)
    completion = run(engine, [3] * 45, max_tokens=None)
    assert completion.finish_reason == "length"
    assert completion.ids == greedy(executor, [3] * 45, 5)
    with pytest.raises(ContextOverflowError) as caught:
        run(engine, [3] * 51)
    assert (caught.value.prompt_tokens, caught.value.context_length) == (51, 50)
    assert "51" in str(caught.value) and "50" in str(caught.value)
    with pytest.raises(ContextOverflowError, match="no room for an answer"):
        run(engine, [3] * 50)
    rows = executor.rows
    completion = run(engine, [3] * 50, max_tokens=0)
    assert (completion.ids, completion.text, completion.finish_reason) == ([], "", "length")
    assert executor.rows > rows


def test_empty_prompt() -> None:
    engine, _ = make_engine()
    with pytest.raises(InvalidSettingError, match="empty"):
        engine.prepare([])
    executor = FakeExecutor()
    beginning = Engine(executor, FakeTokenizer(BYTES, bos_id=5), 64)  # type: ignore[arg-type]
    assert beginning.prepare([]) == [5]
    assert run(beginning, [], max_tokens=3).ids == greedy(executor, [5], 3)


@pytest.mark.parametrize("bad", [[-1], [64], [1.5], ["a"], [[1, 2]], [[1], [2, 3]], [None], [True], [1 << 70]])
def test_bad_ids_are_refused(bad: list[object]) -> None:
    engine, executor = make_engine()
    with pytest.raises(InvalidSettingError, match="ids"):
        engine.stream(bad, Request())  # type: ignore[arg-type]
    with pytest.raises(InvalidSettingError, match="ids"):
        engine.logits(bad)  # type: ignore[arg-type]
    assert executor.rows == 0


@pytest.mark.parametrize(
    ("name", "value"), [("max_tokens", -1), ("max_tokens", 1.0), ("logprobs", -1), ("logprobs", True)]
)
def test_bad_numbers_are_refused(name: str, value: object) -> None:
    with pytest.raises(InvalidSettingError, match=name):
        Request(**{name: value})  # type: ignore[arg-type]


def test_full_cache_is_a_clear_error_and_others_go_on() -> None:
    engine, executor = make_engine(blocks=4, context=128)
    holder = engine.stream([1] * 90, Request(sampling=GREEDY))
    ids = [next(holder).id]
    with pytest.raises(OutOfMemoryError, match="running requests"):
        run(engine, [2] * 60)
    ids += [next(holder).id for _ in range(20)]
    assert ids == greedy(executor, [1] * 90, 21)
    holder.close()  # type: ignore[attr-defined]
    assert run(engine, [2] * 60).ids == greedy(executor, [2] * 60, 8)


def test_running_requests_share_a_beginning() -> None:
    engine, executor = make_engine(blocks=16)
    prompt = [1] * (2 * BLOCK_TOKENS)
    first = engine.stream([*prompt, 2], Request(sampling=GREEDY))
    next(first)
    second = run(engine, [*prompt, 3], max_tokens=4)
    assert second.cached_tokens == 2 * BLOCK_TOKENS
    assert second.ids == greedy(executor, [*prompt, 3], 4)


def test_failed_step_leaves_no_trace() -> None:
    executor = FakeExecutor()
    engine, _ = make_engine(executor, chunk_rows=16)
    original = executor.step

    def fail(batch: object) -> object:
        if executor.rows >= 32:
            raise KeyboardInterrupt
        return original(batch)  # type: ignore[arg-type]

    executor.step = fail  # type: ignore[method-assign, assignment]
    with pytest.raises(KeyboardInterrupt):
        run(engine, [4] * 60)
    executor.step = original  # type: ignore[method-assign]
    completion = run(engine, [4] * 60)
    assert completion.cached_tokens == 32
    assert completion.ids == greedy(executor, [4] * 60, 8)


def test_numbers_that_are_none_are_an_error() -> None:
    executor = FakeExecutor()
    engine, _ = make_engine(executor)
    executor.logits_after = lambda tokens: np.array([0.0] * 63 + [np.nan], np.float32)  # type: ignore[method-assign]
    with pytest.raises(EdgeLLMError, match="not numbers"):
        run(engine, [1])


def test_logits_of_all_positions() -> None:
    engine, executor = make_engine(chunk_rows=7)
    ids = [token % 50 for token in range(100)]
    logits = engine.logits(ids)
    assert logits.shape == (100, 64) and logits.dtype == np.float32
    for position in range(100):
        np.testing.assert_array_equal(logits[position], executor.logits_after(ids[: position + 1]))
    assert engine.memory()["cache_used"] == 0
    assert run(engine, ids).cached_tokens == 0
    assert engine.logits([]).shape == (0, 64)
    with pytest.raises(ContextOverflowError):
        engine.logits([1] * 257)


def test_logits_chunks_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgellm.engine.LOGITS_CHUNK_BYTES", 5 * 64 * 4)
    engine, executor = make_engine()
    engine.logits([1] * 32)
    lengths = [len(step) for step in executor.steps]
    assert max(b - a for a, b in zip([0, *lengths], lengths, strict=False)) == 5
    monkeypatch.setattr("edgellm.engine.available_bytes", lambda: 1000)
    with pytest.raises(OutOfMemoryError, match=r"logits of 32 tokens take 8.0 KiB, 1000 B"):
        engine.logits([1] * 32)


def test_logprobs_are_the_models_own() -> None:
    engine, executor = make_engine()
    request = Request(max_tokens=5, sampling=Sampling(temperature=5.0, seed=1), logprobs=3)
    steps = list(engine.stream([1, 2], request))
    tokens = [1, 2]
    for step in steps:
        logits = executor.logits_after(tokens).astype(np.float64)
        expected = logits - np.log(np.exp(logits).sum())
        assert step.id is not None and step.logprob == pytest.approx(expected[step.id], abs=1e-5)
        best = np.argsort(-expected)[:3]
        assert [token for token, _ in step.top_logprobs] == best.tolist()
        np.testing.assert_allclose([value for _, value in step.top_logprobs], expected[best], atol=1e-5)
        tokens.append(step.id)
    assert len(next(engine.stream([1], Request(logprobs=1000))).top_logprobs) == 64
    assert next(engine.stream([1], Request())).logprob is None


def test_close_ends_everything() -> None:
    engine, executor = make_engine()
    stream = engine.stream([1, 2, 3], Request(sampling=GREEDY))
    next(stream)
    engine.close()
    engine.close()
    assert executor.closed
    with pytest.raises(EdgeLLMError, match="closed"):
        next(stream)
    for use in (lambda: engine.stream([1], Request()), lambda: engine.logits([1]), engine.memory):
        with pytest.raises(EdgeLLMError, match="closed"):
            use()


def test_close_waits_for_the_running_step() -> None:
    engine, executor = make_engine(FakeExecutor(step_seconds=0.02))
    errors: list[BaseException] = []
    started = threading.Event()

    def work() -> None:
        try:
            for _ in engine.stream([1], Request(sampling=GREEDY)):
                started.set()
        except EdgeLLMError as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert started.wait(60)
    engine.close()
    assert not executor._busy
    thread.join(60)
    assert len(errors) == 1 and "closed" in str(errors[0])


# Text: the fake model says what a script tells it to.


def speaking_engine(
    pieces: Sequence[bytes], end: bool = True, context: int = 4096
) -> tuple[Engine, Callable[..., list[Step]]]:
    """An engine that says the given pieces in turn, one token each, and then the end of generation."""
    vocabulary = [b"<start>", b"<end>", *dict.fromkeys(pieces)]
    said = [vocabulary.index(piece, 2) for piece in pieces] + [1]
    executor = FakeExecutor(len(vocabulary), script=lambda tokens: said[min(len(tokens), len(said)) - 1])
    engine = Engine(executor, FakeTokenizer(vocabulary, ends=[1]), context)  # type: ignore[arg-type]

    def speak(**settings: object) -> list[Step]:
        return list(engine.stream([0], Request(sampling=GREEDY, **settings)))  # type: ignore[arg-type]

    return engine, speak


def test_end_of_generation_is_counted_but_not_shown() -> None:
    _, speak = speaking_engine([b"Hel", b"lo"])
    completion = Completion.from_steps([0], speak())
    assert (completion.text, completion.ids, completion.finish_reason) == ("Hello", [2, 3, 1], "stop")
    assert completion.stop_text is None
    assert completion.timings.generated_tokens == 3


def test_characters_are_never_cut() -> None:
    data = "é🍎漢".encode()
    _, speak = speaking_engine([bytes([byte]) for byte in data])
    texts = [step.text for step in speak()]
    assert "".join(texts) == "é🍎漢"
    assert set(texts) == {"", "é", "🍎", "漢"}
    # Cut short in the middle of a character: what there is of it is shown as one replacement.
    assert "".join(step.text for step in speak(max_tokens=3)) == "é\ufffd"


def test_stop_string_across_tokens() -> None:
    _, speak = speaking_engine([b"one ", b"st", b"art ", b"s", b"to", b"p two"])
    steps = speak(stop=("stop",))
    completion = Completion.from_steps([0], steps)
    assert (completion.text, completion.finish_reason, completion.stop_text) == ("one start ", "stop", "stop")
    assert [step.text for step in steps] == ["one ", "", "start ", "", "", ""]
    assert completion.ids == [2, 3, 4, 5, 6, 7]


def test_special_token_as_stop_string() -> None:
    vocabulary = [b"<start>", b"a", b"<note>", b"b"]
    executor = FakeExecutor(len(vocabulary), script=lambda tokens: min(len(tokens), 3))
    engine = Engine(executor, FakeTokenizer(vocabulary, special=[0, 2]), 64)  # type: ignore[arg-type]
    assert run(engine, [0], max_tokens=3).text == "ab"  # not shown
    completion = run(engine, [0], stop=("<note>",))
    assert (completion.text, completion.ids, completion.stop_text) == ("a", [1, 2], "<note>")
    assert completion.finish_reason == "stop"


def test_logits_beyond_the_vocabulary_are_never_chosen() -> None:
    executor = FakeExecutor(64, script=lambda tokens: 60)
    engine = Engine(executor, FakeTokenizer(BYTES[:50]), 64)  # type: ignore[arg-type]
    steps = list(engine.stream([1], Request(max_tokens=20, logprobs=50, sampling=Sampling(temperature=2.0))))
    assert all(step.id is not None and step.id < 50 for step in steps)
    assert all(token < 50 for step in steps for token, _ in step.top_logprobs)
    with pytest.raises(InvalidSettingError, match="0 to 49"):
        engine.prepare([50])
    assert engine.logits([1]).shape == (1, 64)


def test_held_text_is_shown_at_the_end() -> None:
    _, speak = speaking_engine([b"a", b"b", b"c"])
    assert [step.text for step in speak(stop=("bcd",))] == ["a", "", "", "bc"]
    assert [step.text for step in speak(stop=("bcd",), max_tokens=2)] == ["a", "b"]


def test_held_text_is_shown_when_cancelled() -> None:
    engine, _ = speaking_engine([b"a", b"b", b"c"])
    cancel = threading.Event()
    stream = engine.stream([0], Request(sampling=GREEDY, stop=("bcd",), cancel=cancel))
    assert [next(stream).text, next(stream).text] == ["a", ""]
    cancel.set()
    last = next(stream)
    assert (last.text, last.finish_reason, last.id) == ("b", "cancelled", None)


@settings(deadline=None, max_examples=100)
@given(st.text(alphabet="abé🍎", min_size=1, max_size=12), st.text(alphabet="abé🍎", min_size=1, max_size=3), st.data())
def test_stop_strings_at_any_split(text: str, stop: str, data: st.DataObject) -> None:
    encoded = text.encode()
    borders = sorted({0, len(encoded), *data.draw(st.lists(st.integers(0, len(encoded)), max_size=8))})
    _, speak = speaking_engine([encoded[a:b] for a, b in pairwise(borders)])
    completion = Completion.from_steps([0], speak(stop=(stop,)))
    found = text.find(stop)
    assert completion.text == (text if found < 0 else text[:found])
    assert completion.stop_text == (None if found < 0 else stop)
    assert completion.finish_reason == "stop"


def test_timings_add_up() -> None:
    engine, _ = make_engine(FakeExecutor(step_seconds=0.001))
    timings = run(engine, [1] * 20, max_tokens=5).timings
    assert (timings.prompt_tokens, timings.cached_tokens, timings.generated_tokens) == (20, 0, 5)
    assert timings.prompt_seconds > 0 and timings.generated_seconds > 0
    assert timings.prompt_per_second == pytest.approx(20 / timings.prompt_seconds)
    assert timings.generated_per_second == pytest.approx(4 / timings.generated_seconds)


def test_broken_off_streams_are_no_completion() -> None:
    with pytest.raises(ValueError, match="last step"):
        Completion.from_steps([1], [Step("a", 1)])
