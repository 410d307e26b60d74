"""The published measurements that the plan is checked against (`published.yaml`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pydantic import Field
from ruamel.yaml import YAML

from emma.recipes.load import load_recipe
from emma.recipes.schema import Recipe
from emma.recipes.schema.section import Section
from emma.tools.plan.memory import GIB, Memory, estimate_memory, memory_limit
from emma.tools.plan.throughput import expected_throughput

__all__ = ["Measurement", "comparison", "measurements"]


class Measurement(Section):
    """One published run; `published.yaml` says what the keys mean."""

    source: str
    overrides: list[str]
    tokens_per_second: float | None = Field(None, gt=0)
    memory_gb: float | None = Field(None, gt=0)
    logits_gib: float | None = Field(None, gt=0)
    fits: bool

    def recipe(self) -> Recipe:
        """The run that was measured, as a recipe."""
        return load_recipe("emma_llama3_8b_bi", self.overrides)

    def memory(self) -> Memory:
        """The plan's estimate for it."""
        memory = estimate_memory(self.recipe())
        return memory if self.logits_gib is None else replace(memory, logits=self.logits_gib)


def measurements() -> list[Measurement]:
    """All measurements, in the file's order."""
    rows = YAML(typ="safe").load(Path(__file__).with_name("published.yaml").read_text(encoding="utf-8"))
    return [Measurement.model_validate(row) for row in rows]


def comparison() -> str:
    """Markdown table of every measurement beside the plan; `python -P -m emma.tools.plan.published` prints it."""
    lines = [
        "| Run | Memory estimated, GB (GiB) | may be used, GiB | measured | Speed estimated | measured | difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for measurement in measurements():
        recipe, memory = measurement.recipe(), measurement.memory()
        measured = "fits" if measurement.fits else "does not fit"
        if measurement.memory_gb is not None:
            difference = memory.total * GIB / 1e9 / measurement.memory_gb - 1
            measured = f"{measurement.memory_gb:.0f} GB ({difference:+.1%})"
        throughput, speed = expected_throughput(recipe), measurement.tokens_per_second
        estimated = f"{throughput.tokens_per_second_per_gpu:,.0f}" if throughput else "–"
        off = f"{throughput.tokens_per_second_per_gpu / speed - 1:+.1%}" if throughput and speed else "–"
        lines.append(
            f"| {measurement.source} | {memory.total * GIB / 1e9:.1f} ({memory.total:.1f}) | {memory_limit(recipe):.1f} "
            f"| {measured} | {estimated} | {f'{speed:,.0f}' if speed else '–'} | {off} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(comparison())
