"""What a command prints: its answer on stdout, its progress on stderr, as lines or, on a terminal, as a bar."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click


def mode(name: str) -> Any:
    """What -q, -v or --json left in the context: 'quiet', 'verbose' or 'json', or a demo 'step'; None outside one."""
    context = click.get_current_context(silent=True)
    return context.meta.get(f"mgkeras.{name}") if context else None


def printable(text: Any) -> str:
    """A text in which what a terminal would obey, or hide, is spelt out: \\x1b for an escape."""
    return "".join(
        character if character.isprintable() or character in "\n\t" else f"\\x{ord(character):02x}"
        for character in str(text)
    )


def echo(text: Any, **options: Any) -> None:
    """click.echo of what tables, files and servers may have a part in; with --json on stderr, without with -q."""
    if not mode("json"):
        click.echo(printable(text), **options)
    elif not mode("quiet"):
        click.echo(printable(text), **{**options, "err": True})


def answer(**found: Any) -> None:
    """With --json, what the command found as one JSON object, which is all that it prints on stdout."""
    if (asked := mode("json")) and asked is click.get_current_context():  # not of a command that another command runs
        click.echo(json.dumps(found, indent=2, default=str))


class Terminal:
    """Progress on stderr: lines that stay, and on a terminal a bar (rich.progress), elsewhere plain lines."""

    def __init__(self) -> None:
        self.quiet = bool(mode("quiet"))
        self.live = sys.stderr.isatty() and not self.quiet
        self.bar: Any = None
        self.step: set[str] | None = mode("step")  # what was told before, in a command that is a step of another
        if context := click.get_current_context(silent=True):
            context.call_on_close(self.end_bar)

    def line(self, text: str) -> None:
        """A line that stays; with -q only warnings and errors do."""
        self.end_bar()
        if self.step is not None:
            if text in self.step:
                return
            self.step.add(text)
        if not self.quiet or text.lstrip().startswith(("warning", "error")):
            click.echo(printable(text), err=True)

    def next(self, text: str) -> None:
        """What to type next; nothing where the command is a step of another, which types it."""
        if self.step is None:
            self.line(f"Next: {text}")

    def tick(self, text: str) -> None:
        """What is done: beside the bar until the next tick, and elsewhere a line."""
        if self.live:
            self._show(description=printable(text.strip()))
        else:
            self.line(text)

    def counter(self, what: str) -> Callable[[int, int], None]:
        """A function of (done, of): a bar; off a terminal a line at every tenth part, not to fill a log."""

        def count(done: int, of: int) -> None:
            if self.live:
                self._show(description=printable(what), completed=done, total=of)
                if done == of:
                    self.end_bar()
            elif done == of or done * 10 // of > (done - 1) * 10 // of:
                self.line(f"  {what} {done}/{of}")

        return count

    def steps(self, done: int, of: int) -> None:
        """How far an epoch is: a bar on a terminal, nothing elsewhere."""
        if self.live:
            self._show(completed=done, total=of)

    def console(self, **more: Any) -> Any:
        """The same for mgkeras.training, see training.progress.Console."""
        from mgkeras.training.progress import Console

        return Console(self.line, self.tick, self.counter, steps=self.steps, **more)

    def end_bar(self) -> None:
        """Leaves the bar as it is; the next one begins below."""
        if self.bar:
            self.bar.stop()
        self.bar = None

    def _show(self, **values: Any) -> None:
        if self.bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}", markup=False), BarColumn(20), MofNCompleteColumn())
            self.bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
            self.bar.add_task("", total=None)
            self.bar.start()
        self.bar.update(self.bar.task_ids[0], **values)


@contextmanager
def quiet_import() -> Iterator[None]:
    """Keeps the lines back that TensorFlow's C++ prints while it is imported; shows them if that fails, or with -v."""
    if mode("verbose"):
        yield
        return
    sys.stderr.flush()
    with tempfile.TemporaryFile() as kept:
        before = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            kept.seek(0)
            os.write(before, kept.read())
            raise
        finally:
            os.dup2(before, 2)
            os.close(before)


def import_tensorflow() -> None:
    """Imports TensorFlow, quietly; call it before anything of mgkeras.training or mgkeras.models."""
    with quiet_import():
        import tensorflow as tf

        tf.constant(0)  # the first use prints too
    if not mode("verbose"):
        logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it warns that each fold traces a model of its own
