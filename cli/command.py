"""Commands and groups of `mgkeras`: -h, -q, -v and --json everywhere, options in groups, COHORT as an argument."""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import click
from mgkeras.cli.terminal import mode

from mgkeras.errors import MgkerasError

GROUPS = {  # title: its options; options.py adds those of settings; others stand under Options
    "Data": (
        "--outcome --stratify --folds --leave-out --split --phases --skip-invalid --allow-thin --labels --outcomes "
        "--covariates --labels-only --subject-column --clinical --tta --trust"
    ),
    "Training": "--model --preset --config --set --seed --fold --jobs --scheduler --cluster --yes --deterministic",
    "Guidance": "",
    "Network and volumes": "",
    "Device": "--precision --jit --space-to-depth --gpus",
    "Where things go": "--out --cache --overwrite --keep-map --max-mb --dicom",
}
GROUP_OF = {option: title for title, options in GROUPS.items() for option in options.split()}
EVERY = "Every command"


def _note(context: click.Context, option: click.Parameter, value: bool) -> None:
    """Leaves in the context what Terminal and echo look for."""
    if value:
        context.meta[f"mgkeras.{option.name}"] = context
        if option.name == "verbose":
            os.environ["TF_CPP_MIN_LOG_LEVEL"] = "0"


def _flag(name: str, *names: str, text: str) -> click.Option:
    return click.Option([*names, name], is_flag=True, is_eager=True, expose_value=False, callback=_note, help=text)


COMMON = (
    _flag("quiet", "-q", "--quiet", text="Print warnings and errors, and no progress."),
    _flag("verbose", "-v", "--verbose", text="Print TensorFlow's own messages too, and a traceback with an error."),
    _flag("json", "--json", text="Print what was found as JSON, and nothing else on stdout."),
)


class _Helped(click.Command):
    """Its help option has two names whoever asks first: click keeps the one of its first call."""

    def get_help_option_names(self, ctx: click.Context) -> list[str]:
        """-h and --help."""
        return ["-h", "--help"]


class Command(_Helped):
    """A command with COMMON options, whose help shows options in GROUPS."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.params.extend(COMMON)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Takes --cohort TABLE, which it was once, as the argument COHORT, the last one."""
        if any(param.name == "table" for param in self.params):
            args = _cohort_last(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs it; with -v an error that a user can mend has its traceback too."""
        try:
            return super().invoke(ctx)
        except (MgkerasError, OSError):
            if mode("verbose"):
                traceback.print_exc()
            raise

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options by group."""
        rows: dict[str, list[tuple[str, str]]] = {"Options": [], **{title: [] for title in GROUPS}, EVERY: []}
        for param in self.get_params(ctx):
            common = param in COMMON or "--help" in param.opts
            record = None if isinstance(param, click.Argument) else param.get_help_record(ctx)
            if record:
                rows[EVERY if common else GROUP_OF.get(param.opts[-1], "Options")].append(record)
        for title, records in rows.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


class Group(_Helped, click.Group):
    """A group of such commands, which tells their names where it is asked for another."""

    command_class = Command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command of the first word."""
        names = self.list_commands(ctx)
        if not ctx.resilient_parsing and args and args[0] not in names and not args[0].startswith("-"):
            near = get_close_matches(args[0], names, n=1)
            ctx.fail(
                f"expected one of the commands {', '.join(names)}. Received: {args[0]}"
                + (f". Did you mean {near[0]}?" if near else "")
            )
        return super().resolve_command(ctx, args)


def _cohort_last(args: Sequence[str]) -> list[str]:
    kept, tables, rest = [], [], iter(args)
    for word in rest:
        if word == "--cohort":
            tables += [table for table in (next(rest, None),) if table is not None]
        elif word.startswith("--cohort="):
            tables.append(word.partition("=")[2])
        else:
            kept.append(word)
    return kept + tables
