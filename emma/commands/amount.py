"""Numbers on the command line."""

from __future__ import annotations

from math import isfinite
from typing import Any

import click

__all__ = ["Amount"]


class Amount(click.FloatRange):
    """A finite number within bounds. click's own `FLOAT` takes `nan` and `inf`, and `FloatRange` takes `nan`."""

    def __init__(
        self, *, above: float | None = None, at_least: float | None = None, at_most: float = 1e12
    ) -> None:
        super().__init__(min=at_least if above is None else above, max=at_most, min_open=above is not None)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number.

        Raises:
            click.BadParameter: it is none, not finite, or out of bounds.
        """
        number = click.FLOAT.convert(value, param, ctx)
        if not isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return super().convert(value, param, ctx)
