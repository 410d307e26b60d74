"""The whole recipe of a run: its sections, and what must hold between them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, ClassVar

import orjson
from pydantic import Field

from emma.recipes.schema.data import Data
from emma.recipes.schema.guard import Guard
from emma.recipes.schema.hardware import Cluster, Precision
from emma.recipes.schema.model import Model
from emma.recipes.schema.section import Section
from emma.recipes.schema.tokenizer import Extension
from emma.recipes.schema.training import (
    Batch,
    Checkpoint,
    Logging,
    Optimizer,
    Parallelism,
    Paths,
    Safety,
    Schedule,
    Start,
    Train,
    Validation,
)

__all__ = ["Recipe"]


class Recipe(Section):
    """Everything a run is made of; `emma.recipes.load.load_recipe` reads, composes and checks one."""

    later: ClassVar[frozenset[str]] = frozenset({"train", "tokenizer_extension", "guard"})

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run and of its folder."""
    description: str = ""
    """What the run is for, in one line."""
    seed: int = Field(1234, ge=0)
    """Seed of new weights and of training, which is free of dropout; the mix has its own seed."""
    model: Model
    data: Data
    precision: Precision
    cluster: Cluster
    parallelism: Parallelism = Parallelism()
    batch: Batch
    schedule: Schedule
    optimizer: Optimizer = Optimizer()
    start: Start
    checkpoint: Checkpoint
    validation: Validation = Validation()
    safety: Safety = Safety()
    logging: Logging = Logging()
    paths: Paths = Paths()
    train: Train | None = None
    """Which part of the model is trained; default: all of it."""
    guard: Guard | None = None
    """How much validation groups may be forgotten, and what happens if they are; default: no bound."""
    tokenizer_extension: Extension | None = None
    """How `emma tokenizer extend` makes new tokens; default: its own defaults. Nothing else reads it."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Environment variables of every rank of this run; they take precedence over the cluster's."""
    megatron_args: dict[str, bool | int | float | str | list[int | float | str]] = Field(default_factory=dict)
    """Megatron arguments passed through as given, named as in `megatron.training` without the leading dashes
    (`{"log-params-norm": true}`); they take precedence over what the sections above set."""

    @property
    def data_parallel(self) -> int:
        """Data-parallel size: world size over tensor × pipeline × context."""
        p = self.parallelism
        return self.cluster.world_size // (p.tensor * p.pipeline * p.context)

    @property
    def tokens_per_step(self) -> int:
        """Tokens per optimizer step: global batch × sequence length."""
        return self.batch.global_ * self.batch.sequence_length

    @property
    def total_samples(self) -> int:
        """Sequences the run trains on: steps × global batch."""
        return self.schedule.steps * self.batch.global_

    @property
    def total_tokens(self) -> int:
        """Tokens the run trains on: steps × global batch × sequence length."""
        return self.schedule.steps * self.tokens_per_step

    @property
    def run_folder(self) -> Path:
        """`<paths.runs>/<name>`."""
        return Path(self.paths.runs) / self.name

    @property
    def mix_folder(self) -> Path:
        """`<paths.mix>/<data.name>`."""
        return Path(self.paths.mix) / self.data.name

    def to_dict(self) -> dict[str, Any]:
        """Plain mappings, lists and scalars, with the keys of the YAML files; loading them gives an equal recipe."""
        return self.model_dump(mode="json", by_alias=True)

    @property
    def sha256(self) -> str:
        """SHA-256 of the canonical JSON of the recipe, without `paths.umask`, which changes no content."""
        values = self.to_dict()
        values["paths"].pop("umask", None)
        return hashlib.sha256(orjson.dumps(values, option=orjson.OPT_SORT_KEYS)).hexdigest()
