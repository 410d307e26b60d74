"""Options that the commands of `emma convert` share, and what they print of released weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from emma.commands.amount import Amount

__all__ = [
    "DRY_RUN",
    "DTYPE",
    "JSON",
    "OVERWRITE",
    "PATH",
    "TEXT",
    "TEXT_ONLY",
    "TOLERANCE",
    "WEIGHTS",
    "Size",
    "Steps",
    "say_released",
]

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
PATH = click.Path(path_type=Path)


class Size(click.ParamType[int]):
    """`5GB`, `500MB`, or a number of bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"([\d.]+)\s*([KMGT]?B?)", str(value).strip().upper())
        if match is None or match[2] not in _UNITS or float(match[1]) <= 0:
            self.fail(f"{value!r} is not a size; write 5GB, 500MB, or a number of bytes", param, ctx)
        return int(float(match[1]) * _UNITS[match[2]])


class Steps(click.ParamType[tuple[int, ...]]):
    """`1000,2000,3000`."""

    name = "steps"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = str(value).replace(",", " ").split()
        if not parts or not all(part.isdigit() for part in parts):
            self.fail(f"{value!r} is not a list of steps; write 1000,2000,3000", param, ctx)
        return tuple(int(part) for part in parts)


DTYPE = click.option(
    "--dtype",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    help="Cast the weights; by default every weight keeps its type.",
)
TEXT_ONLY = click.option(
    "--text-only",
    is_flag=True,
    help="Of a model of images and text, take the text model and leave the rest behind.",
)
OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace DST if it exists.")
DRY_RUN = click.option("--dry-run", is_flag=True, help="Check the input and show what would be written.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
TEXT = click.option(
    "--text",
    type=PATH,
    help="Text for the logits: JSON lines or parquet with `text` and `language`, or plain text, one per line. "
    "By default a built-in sample of 19 languages.",
)
WEIGHTS = click.option(
    "--weights",
    type=click.Choice(["auto", "model", "optimizer"]),
    default="auto",
    show_default=True,
    help="Of a Megatron checkpoint: the weights of the forward pass (model), or the optimizer's FP32 main weights. "
    "auto: the latter if the run kept the former in FP8 (precision.fp8_params), which rounds them.",
)
TOLERANCE = click.option(
    "--tolerance",
    type=Amount(at_least=0),
    default=1e-4,
    show_default=True,
    help="Largest allowed difference between two logits.",
)


def say_released(record: dict[str, Any]) -> None:
    """Says which weights were released, and how far they are from the others."""
    from emma.checkpoints_conversion.main_weights import release_sentence

    click.echo(f"weights: {release_sentence(record)}")
