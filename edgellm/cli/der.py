"""``edgellm der``: the diarization error rate of one RTTM file against another."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgellm.cli.console import clean, notice
from edgellm.errors import CorruptFileError

if TYPE_CHECKING:
    from edgellm.diarization import ErrorRate


@click.command("der")
@click.argument("reference", type=click.Path(path_type=Path))
@click.argument("hypothesis", type=click.Path(path_type=Path))
@click.option(
    "--collar",
    type=click.FloatRange(0),
    default=0.25,
    show_default=True,
    help="Seconds on each side of a boundary in REFERENCE that are not scored.",
)
@click.option("--skip-overlap", is_flag=True, help="Do not score where several people speak in REFERENCE.")
@click.option("--uem", type=click.Path(path_type=Path), help="File of the parts to score; else all is scored.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def der_command(
    reference: Path, hypothesis: Path, collar: float, skip_overlap: bool, uem: Path | None, as_json: bool
) -> None:
    """Compare HYPOTHESIS with REFERENCE, two RTTM files: missed speech, false alarms and confusion of speakers.

    The rate is their sum as a share of all speech in REFERENCE; overlapping speech counts for each speaker. Files of
    REFERENCE that HYPOTHESIS does not have count as missed.
    """
    from edgellm.diarization import ErrorRate, diarization_error_rate, read_rttm
    from edgellm.diarization.rttm import read_uem

    truth, guess = read_rttm(reference), read_rttm(hypothesis)
    if not truth:
        raise CorruptFileError(f"{reference} holds no turns", "give an RTTM file with the truth")
    scored = read_uem(uem) if uem is not None else {}
    for name in sorted(guess.keys() - truth.keys()):
        notice(f"{name} is not in {reference}: left out")
    rates = {
        name: diarization_error_rate(turns, guess.get(name, []), collar, skip_overlap, scored.get(name))
        for name, turns in truth.items()
    }
    total = sum(rates.values(), ErrorRate())
    if as_json:
        from edgellm.cli.results import to_json

        click.echo(to_json({"total": _figures(total), "files": {name: _figures(rate) for name, rate in rates.items()}}))
        return
    width = max([len("TOTAL"), *(len(name) for name in rates)])
    click.echo(f"{'FILE'.ljust(width)}  {'DER':>8} {'MISSED':>8} {'FALSE':>8} {'CONFUSED':>8}  SPEECH")
    rows = [*rates.items(), ("TOTAL", total)] if len(rates) != 1 else list(rates.items())
    for name, rate in rows:
        shares = [rate.rate, *(_share(part, rate) for part in (rate.missed, rate.false_alarm, rate.confusion))]
        columns = " ".join(f"{100 * share:7.2f}%" for share in shares)
        click.echo(clean(f"{name.ljust(width)}  {columns}  {rate.total:.2f} s"))


def _share(part: float, rate: ErrorRate) -> float:
    return part / rate.total if rate.total else float(part > 0)


def _figures(rate: ErrorRate) -> dict[str, float]:
    return {"rate": round(rate.rate, 6), **{name: round(value, 6) for name, value in asdict(rate).items()}}
