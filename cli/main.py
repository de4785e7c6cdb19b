"""The `mgkeras` command: finds its subcommands without importing what they need."""

from __future__ import annotations

import errno
import importlib
import os
import sys

import click
from mgkeras.cli.command import Group
from mgkeras.cli.terminal import echo, printable

from mgkeras.errors import MgkerasError

COMMANDS = (
    "demo",
    "import",
    "cohort",
    "mask",
    "fit",
    "tune",
    "study",
    "compare",
    "evaluate",
    "report",
    "export",
    "predict",
    "phantom",
    "cache",
    "info",
)
MODULES = {"import": "importing"}  # a module cannot be named as a keyword of Python


class Commands(Group):
    """A group whose commands live in modules of the same name, each with a ``command``."""

    def list_commands(self, context: click.Context) -> list[str]:
        """The commands in the order in which one uses them."""
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """The command of that name, or None."""
        return importlib.import_module(f"mgkeras.cli.{MODULES.get(name, name)}").command if name in COMMANDS else None


@click.command(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"max_content_width": 110},
)
@click.version_option(package_name="mgkeras")
@click.pass_context
def cli(context: click.Context) -> None:
    """Predict breast-cancer outcomes from DCE-MRI with a 3D CNN that is guided to look at the tumour.

    \b
    See it work, in minutes, on a synthetic cohort:
      mgkeras demo
    Your own exams: write cohort.csv (subject,pre,early and outcomes), then
      mgkeras mask cohort.csv                          (look through the masks)
      mgkeras fit masks/cohort.csv --outcome NAME --model guided
      mgkeras report runs/NAME-guided
      mgkeras predict runs/NAME-guided new.csv --out predictions
    The models no-mask, mask-only and guided are those of Liu et al. 2021;
    guided-context is ours.
    The Tab key completes commands and options after (also with zsh, fish)
      eval "$(_MGKERAS_COMPLETE=bash_source mgkeras)"
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main() -> None:
    """The console script: problems that a user can mend end in one message, without a traceback."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        done = cli.main(standalone_mode=False)
        sys.exit(done if isinstance(done, int) else 0)
    except (click.Abort, KeyboardInterrupt):
        click.echo("\nStopped. The same command again keeps what is finished.", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.message = printable(error.message)  # type: ignore[misc]  # final for click, which has no other way
        error.show()
        sys.exit(error.exit_code)
    except (MgkerasError, OSError) as error:
        echo(f"Error: {error}{_advice(error)}", err=True)
        sys.exit(1)


def _advice(error: Exception) -> str:
    """What to do where a folder below the working folder cannot be written, as --cache and --out are by default."""
    if not isinstance(error, OSError) or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ""
    if not isinstance(error.filename, str | os.PathLike) or os.path.isabs(error.filename):
        return ""
    return f". {os.getcwd()} cannot be written: name folders that can by --cache and --out, where the command has them"
