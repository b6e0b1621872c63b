"""Greedy tokens of a model and their logits, on whatever processor this runs: the half of `edgellm.tools.check_arm`
that is run on both machines."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from edgellm.gguf import GGUFFile, open_gguf
from edgellm.models import build_graph
from edgellm.platforms.batch import BLOCK_TOKENS, Batch
from edgellm.platforms.cpu import CPUExecutor
from edgellm.weights import WeightStore


def _step(executor: CPUExecutor, ids: list[int], start: int, blocks: int) -> NDArray[np.float32]:
    """Logits after the tokens from position ``start`` on."""
    count = len(ids) - start
    batch = Batch(
        tokens=np.array(ids[start:], np.int32),
        positions=np.arange(start, len(ids), dtype=np.int32),
        sequences=np.zeros(count, np.int32),
        block_tables=np.arange(blocks, dtype=np.int32)[None],
        outputs=np.array([count - 1], np.int32),
    )
    logits: NDArray[np.float32] = executor.step(batch)[0].copy()
    return logits


def generate(
    file: GGUFFile, prompt: list[int], tokens: int, follow: list[int] | None
) -> tuple[list[int], NDArray[np.float32]]:
    """The next tokens and the logits (tokens, vocabulary) they were chosen by; ``follow`` chooses others."""
    executor = CPUExecutor(build_graph(file, None), WeightStore(file), threads=2)
    blocks = -(-(len(prompt) + tokens) // BLOCK_TOKENS)
    executor.reserve(blocks)
    ids, rows, start = list(prompt), [], 0
    for number in range(tokens):
        rows.append(_step(executor, ids, start, blocks))
        start = len(ids)
        ids.append(int(rows[-1].argmax()) if follow is None else follow[number])
    executor.close()
    return ids[len(prompt) :], np.array(rows)


@click.command()
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("output", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--prompt", default="", help="Text to continue.")
@click.option("--tokens", default=8, help="How many tokens.")
@click.option("--follow", type=click.Path(exists=True, path_type=Path), help="Continue as another run's output did.")
def main(model: Path, output: Path, prompt: str, tokens: int, follow: Path | None) -> None:
    """Write ids and logits of greedy tokens of MODEL to OUTPUT (.npz)."""
    with open_gguf(model) as file:
        if follow is None:
            from edgellm.tokenizer import Tokenizer

            prompt_ids, chosen = Tokenizer.load(file).encode(prompt), None
        else:
            with np.load(follow) as other:
                prompt_ids, chosen = other["prompt"].tolist(), other["ids"].tolist()
            tokens = len(chosen)
        ids, logits = generate(file, prompt_ids, tokens, chosen)
    np.savez(output, prompt=np.array(prompt_ids), ids=np.array(ids), logits=logits)


if __name__ == "__main__":
    main()
