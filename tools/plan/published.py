"""The published measurements that the plan is held against (`published.yaml`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pydantic import Field
from ruamel.yaml import YAML

from recipes.load import load_recipe
from recipes.schema import Recipe
from recipes.schema.section import Section
from tools.plan.memory import Memory, estimate_memory

__all__ = ["Measurement", "measurements"]


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
    """All of them, in the file's order."""
    rows = YAML(typ="safe").load(Path(__file__).with_name("published.yaml").read_text(encoding="utf-8"))
    return [Measurement.model_validate(row) for row in rows]
