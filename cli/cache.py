"""`mgkeras cache`: what the cache holds, by size and age, and room made in it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from mgkeras.cli.command import Command
from mgkeras.cli.options import cache_option
from mgkeras.cli.terminal import answer, echo

if TYPE_CHECKING:
    from mgkeras.data.cache_folder import Kept

WHAT = {"left": "left by processes that were killed", "other": "of other versions"}
RUN = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command(name="cache", cls=Command)
@cache_option("List this folder of prepared exams.")
@click.option(
    "--prune-older", type=click.FloatRange(0), metavar="DAYS", help="Remove exams that were last used this long ago."
)
@click.option("--prune-unread", is_flag=True, help="Remove files of other versions and leftovers of killed processes.")
@click.option("--prune-run", type=RUN, multiple=True, metavar="RUN", help="Remove the exams of this run.")
@click.option("--keep-run", type=RUN, multiple=True, metavar="RUN", help="Leave the exams of this run, remove others.")
@click.option("--yes", is_flag=True, help="Remove without asking.")
def command(
    cache: Path,
    prune_older: float | None,
    prune_unread: bool,
    prune_run: Sequence[Path],
    keep_run: Sequence[Path],
    yes: bool,
) -> None:
    """List the prepared exams that all runs share, or remove some.

    Of several options that remove, what all of them name is removed; --prune-run and --keep-run may be given several
    times. A run whose exams were removed loses nothing, they are prepared again when they are needed. Exams that a
    running process uses stay, and so does all that mgkeras did not write as a part of the cache. On a file system
    without locks a file in CACHE/in-use that a killed process left keeps its exams until you remove it.
    """
    from mgkeras.data.cache_folder import kept_files, prunable, prune
    from mgkeras.runs.exams import exam_names

    files = kept_files(cache)
    if prune_older is None and not prune_unread and not prune_run and not keep_run:
        return answer(folder=cache, files=_list(cache, files))
    only = set().union(*map(exam_names, prune_run)) if prune_run else None
    keep = set().union(*map(exam_names, keep_run))
    going = prunable(files, older=prune_older or 0.0, unread=prune_unread, only=only, keep=keep)
    what = f"{len(going)} of {len(files)} files of the cache {cache}, {_size(going)}"
    if going and not yes:
        if not sys.stdin.isatty():
            raise click.UsageError(f"expected --yes where nobody can be asked. Received: {what}, to be removed")
        click.confirm(f"Remove {what}?", abort=True, err=True)
    gone, used = prune(cache, going)
    for who, count in Counter(used.values()).items():
        echo(f"cache {cache}: {count} exams stay, which {who} uses")
    echo(f"cache {cache}: {len(gone)} files removed, {_size(gone)}" if gone else f"cache {cache}: nothing to remove")
    size = sum(file.size for file in gone)
    return answer(folder=cache, removed=[file.path for file in gone], bytes=size, used=list(used))


def _list(cache: Path, files: Sequence[Kept]) -> list[dict[str, Any]]:
    """A line for each side's exams and for each other kind, largest first, and the same as dicts."""
    from mgkeras.data.groups import grouped

    groups = grouped(((file.kind, file.side if file.kind == "exam" else 0), file) for file in files)
    exams = sum(file.kind == "exam" for file in files)
    echo(f"cache {cache}: {exams} exams, {len(files) - exams} other files, {_size(files)}")
    found = []
    for (kind, side), group in sorted(groups.items(), key=lambda item: -sum(file.size for file in item[1])):
        days = sorted(file.days for file in group)
        what = f"exams of {side}^3" if kind == "exam" else WHAT[kind]
        echo(f"  {len(group):>7} {what}: {_size(group)}, last used {days[0]:.0f} to {days[-1]:.0f} days ago")
        size = sum(file.size for file in group)
        found.append({"kind": kind, "side": side, "files": len(group), "bytes": size, "days": [days[0], days[-1]]})
    return found


def _size(files: Sequence[Kept]) -> str:
    size = sum(file.size for file in files)
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.1f} MiB"
