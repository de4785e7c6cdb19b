"""Kinds of values that options of settings take."""

from __future__ import annotations

from typing import Any

import click
from mgkeras.cli.terminal import import_tensorflow

from mgkeras.settings import ADDONS_OPTIMIZERS


class OptimizerName(click.Choice):
    """A name of settings.OPTIMIZERS; one that this installation lacks is refused before anything is read."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        name = super().convert(value, param, ctx)
        if name in ADDONS_OPTIMIZERS:
            import_tensorflow()
            from mgkeras.models.keras_compat import NeedsAddons, check_optimizer

            try:
                check_optimizer(name)
            except NeedsAddons as error:
                self.fail(str(error), param, ctx)
        return name


class Range(click.ParamType):
    """NUMBER, or LOW:HIGH or LOW:HIGH:log as a tuple (low, high, log); each number checked as the option's own type."""

    name = "number|low:high[:log]"

    def __init__(self, number: click.ParamType) -> None:
        self.number = number

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A number, or (low, high, log)."""
        if not isinstance(value, str) or ":" not in value:
            return self.number.convert(value, param, ctx)
        low, high, *scale = value.split(":")
        ends = [self.number.convert(end, param, ctx) for end in (low, high)]
        if scale not in ([], ["log"]) or ends[0] >= ends[1] or (scale and ends[0] <= 0):
            self.fail(f"expected LOW:HIGH or LOW:HIGH:log, LOW < HIGH, above 0 for log. Received: {value}", param, ctx)
        return (*ends, bool(scale))
