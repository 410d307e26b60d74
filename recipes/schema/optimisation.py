"""Optimisations: which shares of a run's mix are free, what is to fall, and what may not rise."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from emma.recipes.schema.section import Section

Other = Literal["cross_check", "proportional"]
_OTHERS: list[Other] = ["cross_check", "proportional"]

__all__ = ["Check", "Limit", "Objective", "Optimisation", "Proxy"]


class Proxy(Section):
    """The small runs from which shares are learnt."""

    overrides: dict[str, Any] = Field(default_factory=dict)
    """Keys of every proxy that differ from the run's, e.g. a smaller model of the same tokenizer, fewer steps, another
    layout. Its learning rate must have decayed by its end: proxies that are cut off early rank mixes by speed."""


class Objective(Section):
    """What is to fall."""

    groups: list[str] = Field(default_factory=lambda: ["category-monolingual-*"])
    """Validation groups that count, by name or pattern."""
    weights: Literal["languages", "tokens"] | dict[str, float] = "languages"
    """How they count: `languages`, by their number of languages, so that each language counts once; `tokens`, by their
    training tokens in the run's mix; or a number for each group."""


class Limit(Section):
    """How much worse validation groups may become."""

    group: str
    """A validation group, by name or pattern (`*`)."""
    worse: float | None = Field(ge=0)
    """Most that its bits per byte may rise against the run's own mix, as a part of them: 0.01 is 1 %. null: no limit."""


class Check(Section):
    """The proof of a proposal, with seeds that no proxy has seen."""

    seeds: int = Field(3, ge=2)
    """Runs of each mix that is compared; each has a seed of its own."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Keys that differ from the proxies', e.g. the next larger model."""
    compare: list[Other] = Field(default_factory=lambda: _OTHERS)
    """Mixes beside the run's own and the proposal: `cross_check`, the proposal of a law of another family (`ridge`; where
    that is the law, `transfer`); `proportional`, one run of every group by its size."""


class Optimisation(Section):
    """A search for the shares of a run's mix: small runs, a law fitted to them, the front of mixes that it predicts, and a
    check with new seeds."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the file, and of the folder in `<paths.runs>/<run>-mix`."""
    description: str = ""
    """What it is for, in one line."""
    proxy: Proxy = Field(default_factory=Proxy)
    """The small runs."""
    proxies: int | None = Field(None, ge=8)
    """Mixes to train; default: four for each group, and at least 32."""
    replicates: int = Field(5, ge=3)
    """Runs of the run's own mix with other seeds, which tell the noise."""
    held_out: float = Field(0.25, gt=0, le=0.5)
    """Part of the proxies that the law is tried on before it is fitted to all."""
    spread: float = Field(0.8, gt=0, le=2)
    """Standard deviation of the logarithms of the proxies' shares around the run's."""
    reach: float = Field(1.2, gt=0, le=3)
    """Most by which the logarithm of a share may move: a proposal lies among the proxies."""
    seed: int = Field(0, ge=0)
    """Seed of the design."""
    fixed: list[str] = Field(default_factory=list)
    """Components or groups (`component/category`), by name or pattern, whose shares stay."""
    objective: Objective = Field(default_factory=Objective)
    """What is to fall."""
    limits: list[Limit] = Field(
        default_factory=lambda: [
            Limit(group="*", worse=0.02),
            Limit(group="language-eng_Latn", worse=0.01),
        ]
    )
    """How much each validation group may get worse; of several that fit a group, the last one holds."""
    law: Literal["transfer", "log_linear", "ridge"] = "transfer"
    """The law: `transfer`, a power of a group's own share and of what other text counts for it; `log_linear`,
    c + exp(a · p); `ridge`, linear in the logarithms of shares."""
    repeats: float = Field(15.4, ge=0)
    """R* of the value of repeated tokens (Muennighoff et al., arXiv 2305.16264); 0: a repeated token counts like a new
    one."""
    concurrent: int = Field(8, gt=0)
    """Runs at the same time."""
    check: Check = Field(default_factory=Check)
    """The proof of a proposal."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.limits:
            raise ValueError(
                "limits is empty: what has no limit goes to its bound, and the objective alone says nothing of the price"
            )
        if not self.objective.groups:
            raise ValueError("objective.groups is empty; name the groups that are to fall")
        weights = self.objective.weights
        if isinstance(weights, dict) and not (weights and min(weights.values()) > 0):
            raise ValueError("objective.weights: give every group a number above 0")
        return self
