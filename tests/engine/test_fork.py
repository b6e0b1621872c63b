"""Forked children: what the parent was not doing at that moment works there; the rest says so instead of hanging."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from kernel_calls import exit_status

from edgellm import LLM, EdgeLLMError, Sampling
from edgellm.locks import ForkAwareLock

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
GREEDY = Sampling(temperature=0, ignore_eos=True)
PATIENCE = 120.0
TinyModels = Callable[..., Path]


def test_a_lock_held_by_another_thread_is_torn_in_the_child() -> None:
    lock, free = ForkAwareLock(), ForkAwareLock()
    held, ending = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            ending.wait(PATIENCE)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(PATIENCE)

    def work() -> None:
        with free:
            pass
        assert lock.torn and not free.torn
        with pytest.raises(EdgeLLMError, match="forked while another thread"), lock:
            pass
        assert exit_status(lambda: lock.acquire()) == 1  # it stays so in the child's own children

    try:
        assert exit_status(work) == 0
    finally:
        ending.set()
        holder.join(PATIENCE)
    with lock:  # the parent's is as it was
        pass


@pytest.mark.parametrize("threads", [1, 3])
def test_parent_and_child_generate_the_same(tiny_model: TinyModels, threads: int) -> None:
    with LLM.load(tiny_model(), threads=threads) as llm:
        ids = llm.generate("hello world", max_tokens=8, sampling=GREEDY).ids

        def work() -> None:
            assert llm.generate("hello world", max_tokens=8, sampling=GREEDY).ids == ids
            llm.close()

        for _ in range(3):
            assert exit_status(work) == 0
            assert llm.generate("hello world", max_tokens=8, sampling=GREEDY).ids == ids
        assert exit_status(llm.close) == 0


def test_a_child_forked_while_another_thread_generates(tiny_model: TinyModels) -> None:
    """It gets the right answer, or is told; the parent goes on."""
    with LLM.load(tiny_model(), threads=2) as llm:
        ids = llm.generate("hello world", max_tokens=8, sampling=GREEDY).ids
        ending = threading.Event()
        errors: list[BaseException] = []

        def keep_generating() -> None:
            try:
                while not ending.is_set():
                    assert llm.generate("hello world", max_tokens=8, sampling=GREEDY).ids == ids
            except BaseException as error:
                errors.append(error)

        def work() -> None:
            try:
                assert llm.generate("hello world", max_tokens=8, sampling=GREEDY).ids == ids
            except EdgeLLMError as error:
                assert "forked" in str(error)
            llm.close()

        caller = threading.Thread(target=keep_generating, daemon=True)
        caller.start()
        try:
            for _ in range(20):
                assert exit_status(work) == 0
        finally:
            ending.set()
            caller.join(PATIENCE)
        assert not errors
        assert not caller.is_alive()
