"""``edgellm bench``: how fast a model runs on this machine, and how fast another program runs it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from edgellm.cli.console import ProgressDisplay, notice
from edgellm.cli.loading import find_model
from edgellm.cli.options import ModelOptions
from edgellm.errors import EdgeLLMError, InvalidSettingError
from edgellm.hub.files import format_bytes

if TYPE_CHECKING:
    from rich.console import Console

    from edgellm.tools.bench_results import BenchReport, BenchResult, StartUp


def _counts(
    *names: str, default: str, help: str, auto: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """An option of whole numbers with commas between; "auto" becomes None where it is allowed."""

    def parse(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int | None, ...]:
        parts = [part.strip() for part in value.split(",")]
        try:
            return tuple(None if auto and part == "auto" else int(part) for part in parts)
        except ValueError:
            expected = f"whole numbers with commas between{', or auto' if auto else ''}"
            raise click.BadParameter(f"{value!r} was given, expected {expected}") from None

    return click.option(*names, default=default, show_default=True, metavar="N,...", callback=parse, help=help)


@click.command("bench")
@click.argument("model")
@_counts("-p", "--prompt-tokens", default="512", help="Lengths of prompts to process; 0 for none.")
@_counts("-n", "--tokens", default="128", help="Numbers of tokens to decode; 0 for none.")
@_counts("-t", "--threads", default="auto", auto=True, help="Threads; auto is what other commands take.")
@_counts("-b", "--batch", default="1", help="Sequences decoded together.")
@_counts("--depth", default="0", help="Tokens in the cache before.")
@click.option("-r", "--repetitions", type=int, default=5, show_default=True, help="Timed runs of each test.")
@click.option("--against", metavar="PYTHON", help="A Python that has llama-cpp-python: run it too, in turns.")
@click.option("--cache-type", type=click.Choice(["f16", "q8_0"]), default="f16", help="Number format of the cache.")
@click.option("--backend", type=click.Choice(["cpu", "reference"]), default="cpu", help="What computes.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with all figures.")
@click.option("--offline", is_flag=True, help="Never use the network.")
def bench_command(
    model: str,
    prompt_tokens: tuple[int, ...],
    tokens: tuple[int, ...],
    threads: tuple[int | None, ...],
    batch: tuple[int, ...],
    depth: tuple[int, ...],
    repetitions: int,
    against: str | None,
    cache_type: str,
    backend: str,
    as_json: bool,
    offline: bool,
) -> None:
    """Measure how fast MODEL runs on this machine.

    pp512: tokens per second of processing a prompt of 512 tokens. tg128: of decoding 128 tokens, one at a time, without
    sampling. Also: the share of the memory's speed that decoding reaches, time to load, time from process start to the
    first token, peak memory, and what other processes did meanwhile.
    """
    from edgellm.tools.bench import Bench, peer_command
    from edgellm.tools.bench_results import BenchSettings, warnings

    peer = None if against is None else peer_command(_interpreter(against))
    path = find_model(ModelOptions(model, offline=offline))
    settings = BenchSettings(
        path, prompt_tokens, tokens, threads, batch, depth, repetitions, cache_type, backend, peer
    )  # fmt: skip
    if not any((*prompt_tokens, *tokens)):
        raise InvalidSettingError("there is nothing to measure", "give -p or -n a number above 0")
    with ProgressDisplay() as display:
        report = Bench(settings, display, lambda result: notice(result_line(result))).run()
    for warning in warnings(report):
        notice(f"warning: {warning}")
    if as_json:
        from edgellm.cli.results import to_json

        click.echo(to_json(report.as_object(model)))
    else:
        _print_report(report)


def _interpreter(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise EdgeLLMError(f"there is no program {name}", "--against takes a Python that has llama-cpp-python")
    return path


def result_line(result: BenchResult) -> str:
    """One test, for the log on stderr."""
    line = f"{result.test}: {result.speed.median:.1f} tok/s"
    best = result.best_peer
    return line if best is None else f"{line}, llama.cpp {result.peer[best].median:.1f}, ratio {result.ratio:.2f}"


def _print_report(report: BenchReport) -> None:
    from rich.console import Console

    # Where no terminal says how wide it is, nothing is folded.
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    _print_tests(report, console)
    assert report.start is not None
    console.print(_start_line("edgellm", report.start))
    if report.peer_start is not None:
        console.print(_start_line("llama.cpp", report.peer_start))
        console.print(f"llama.cpp: {report.peer_version}; the faster of: {', '.join(report.results[0].peer)}")
    if report.bandwidth:
        speeds = ", ".join(f"{rate / 1e9:.1f} GB/s on {count}" for count, rate in sorted(report.bandwidth.items()))
        console.print(f"memory: {speeds} threads (plain reading)")
    moments = [
        f"{load.other_cores:.1f} {moment}" for moment, load in report.load.items() if load.other_cores is not None
    ]
    if moments:
        console.print(f"cores busy with other processes: {', '.join(moments)}")


def _print_tests(report: BenchReport, console: Console) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    peer = any(result.peer for result in report.results)
    heads = ["test", "threads", "batch", "depth", "tok/s", "mean ± std", "of memory"]
    for number, head in enumerate(heads + (["llama.cpp", "mean ± std", "ratio"] if peer else [])):
        table.add_column(head, justify="right" if number else "left")
    for result in report.results:
        test, speed = result.test, result.speed
        share = "" if result.bandwidth_share is None else f"{100 * result.bandwidth_share:.0f} %"
        cells = [
            test.name, str(test.threads or "auto"), str(test.batch), str(test.depth), f"{speed.median:.1f}",
            f"{speed.mean:.1f} ± {speed.std:.1f}", share,
        ]  # fmt: skip
        if result.best_peer is not None:
            other = result.peer[result.best_peer]
            cells += [f"{other.median:.1f}", f"{other.mean:.1f} ± {other.std:.1f}", f"{result.ratio:.2f}"]
        table.add_row(*cells)
    console.print(table)


def _start_line(name: str, start: StartUp) -> str:
    memory = "" if start.peak_memory is None else f", peak memory {format_bytes(start.peak_memory)}"
    weights = start.memory.get("weights")
    if weights is not None:
        memory += f" (weights {format_bytes(weights)}, cache used {format_bytes(start.memory.get('cache_used', 0))})"
    first = start.first_token
    return (
        f"{name}: loads in {start.load.median:.2f} s, first token {first.median:.2f} s after the start"
        f" (best {min(first.runs):.2f} s){memory}"
    )
