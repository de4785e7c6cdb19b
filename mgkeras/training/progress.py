"""What a training says of itself: lines, and the time that is left."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from mgkeras.settings import Settings
from mgkeras.training.devices import Device
from mgkeras.training.fit import EpochReport, TrainingError

Say = Callable[[str], None]
LONG_SECONDS = 86_400.0  # ours, because a day of a CPU is more than a user expects of a command


@dataclass(frozen=True)
class Console:
    """Where progress goes: ``line`` for what stays, ``tick`` for what the next tick may overwrite, ``counter`` makes a
    function of (done, of) for what is counted, ``agree`` asks whether to go on with what takes days, ``steps`` gets
    (done, of) of the steps of an epoch."""

    line: Say
    tick: Say
    counter: Callable[[str], Callable[[int, int], None]] = lambda what: lambda done, of: None
    agree: Callable[[str], bool] = lambda text: True  # asks whether to go on
    steps: Callable[[int, int], None] = lambda done, of: None


def console_of(say: Callable[[str, str], None]) -> Console:
    """The console of a worker: ``say`` is a function of (kind, text) as of workers.Told."""

    def long(text: str) -> bool:
        say("long", text)  # whether to go on is asked by the process that started this one
        return True

    return Console(lambda text: say("line", text), lambda text: say("tick", text), agree=long)


class Clock:
    """Turns epoch reports into progress lines with the time left.

    Args:
        settings: of the run.
        console: gets the lines.
        rounds: how many folds, of all models, are still trained one after the other, the first to begin among them.
    """

    def __init__(self, settings: Settings, console: Console, rounds: float) -> None:
        self.settings, self.console, self.rounds = settings, console, rounds + 1

    def begin(self, number: int, held_out: int, train: int) -> None:
        training = self.settings.training
        self.fold, self.done, self.began = number, 0, time.monotonic()
        self.rounds -= 1
        self.left = self.rounds * training.epochs
        self.console.line(
            f"{self.settings.model}: fold {number + 1}/{training.folds}, {train} subjects to train on, "
            f"{held_out} held out"
        )

    def pace(self, seconds: float, steps: int, device: Device) -> None:
        """Tells the time of all folds that are left, once it is known how long a step takes."""
        training = self.settings.training
        fold = seconds * steps * training.epochs
        whole = fold * self.rounds
        text = (
            f"a step takes {seconds:.2g} s: about {_duration(fold)} for a fold, {_duration(whole)} for all that is left"
        )
        self.console.line(f"  {text}")
        if device.kind == "cpu" and whole > LONG_SECONDS and not self.console.agree(text):
            raise too_long(text)

    def epoch(self, report: EpochReport) -> None:
        self.done += 1
        remaining = self.left - report.epoch
        seconds = (time.monotonic() - self.began) / self.done * remaining
        self.console.tick(
            f"  fold {self.fold + 1}/{self.settings.training.folds}  epoch {report.epoch}/{report.epochs}  "
            f"CE {report.ce:.3f}  Dice {report.dice:.3f}  AUC {report.auc:.3f}  {report.seconds:.1f} s  "
            f"{f'{report.skipped} steps skipped (float16 overflow)  ' if report.skipped else ''}"
            f"{_duration(seconds)} left in all"
        )


def too_long(text: str) -> TrainingError:
    """What is told where nobody agreed to days of training."""
    return TrainingError(
        f"a training of more than a day on a CPU wants --yes. Received: {text}. A GPU or --jobs make it shorter, as do "
        "--preset demo or a smaller --side with another --out"
    )


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds) // 60, 60)
    if hours >= 48:
        return f"{hours / 24:.0f} days"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {round(seconds) % 60} s"
