"""The part of `mgkeras predict` that asks a server: its options, and exams scored by it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from mgkeras.cli.options import TABLE, checked_cohort, gathered
from mgkeras.cli.terminal import Terminal, import_tensorflow

if TYPE_CHECKING:
    from mgkeras.data.cohort import Cohort

# of_server: how a server is asked, and the outcome of its model
server_options = gathered(
    "of_server",
    dict,
    click.option(
        "--proxy", is_flag=True, help="Send exams through the proxy that the environment names; else none is used."
    ),
    click.option(
        "--timeout",
        type=click.FloatRange(0, min_open=True),
        default=120.0,
        show_default=True,
        help="Wait this many seconds for each whole answer of a server, sending included.",
    ),
    click.option(
        "--outcome",
        default=None,
        help="Score a served model against this column of 0 and 1.  [default: that of --preprocessing]",
    ),
    click.option(
        "--signature",
        type=click.Choice(("predict_exam", "predict_bytes")),
        default=None,
        help="Send the server this: whole exams, or the network's cubes.  [default: predict_bytes over REST "
        "with --preprocessing, and for a mask-only model; else predict_exam]",
    ),
    click.option(
        "--preprocessing",
        type=TABLE,
        default=None,
        help="Take preprocessing.json of the served export; with it, exams are made small before they are sent over "
        "REST. A mask-only model needs it.",
    ),
)


def scored_by_server(
    url: str,
    table: Path,
    out: Path,
    skip_invalid: bool,
    console: Terminal,
    *,
    preprocessing: Path | None,
    signature: str | None,
    outcome: str | None,
    timeout: float,
    proxy: bool,
) -> tuple[Cohort, dict[str, Any]]:
    """The checked cohort and what score_cohort finds of it by a server; the last five are of server_options."""
    from mgkeras.serving.transport import address_of

    rest = address_of(url).rest
    if not rest:
        import_tensorflow()  # the protos bring it
    from mgkeras.data.phases import files_of
    from mgkeras.inference.score import score_cohort
    from mgkeras.serving.client import connect, read_preprocessing

    about = read_preprocessing(preprocessing) if preprocessing else None
    served = connect(url, preprocessing=about, signature=signature, timeout_s=timeout, proxy=proxy, tell=console.line)
    console.line(f"{served.source}, asked for {served.signature}")
    if rest and served.signature == "predict_exam":
        console.line("note: whole exams as JSON are tens of MB each; --preprocessing FILE or grpc:// is faster")
    if outcome is None and about:
        outcome = about.settings.outcome
    need = files_of(about.settings.volume) if about else None
    cohort = checked_cohort(table, outcome, console, need=need, predict=True, skip_invalid=skip_invalid)
    count = console.counter("exams")
    return cohort, score_cohort(
        cohort,
        served.score,
        out,
        source=served.source,
        kind=served.kind,
        trained_on=about.trained_on if about else None,
        progress=count,
    )
