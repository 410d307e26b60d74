"""The models of a merge, opened, and refused where they don't belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from emma.base.errors import UserError
from emma.base.files import read_json
from emma.base.manifest import MANIFEST_NAME
from emma.checkpoints_conversion.checkpoint import Checkpoint, find_checkpoint, is_checkpoint
from emma.checkpoints_conversion.config import (
    TokenIds,
    shape_differences,
    token_ids_from_hf,
)
from emma.checkpoints_conversion.dtypes import dtype_name, parse_dtype
from emma.checkpoints_conversion.merging.coefficients import coefficients
from emma.checkpoints_conversion.merging.vocabularies import SharedRows, Vocabulary, shared_rows
from emma.checkpoints_conversion.parameters import parameter_shapes
from emma.checkpoints_conversion.tokenizer_files import has_tokenizer
from emma.checkpoints_conversion.weights import HuggingFaceWeights, MegatronWeights
from emma.recipes.reading import read_yaml
from emma.recipes.schema.merge import Merge, Parent
from emma.recipes.schema.model import Model, Shape

__all__ = ["Family", "Member", "open_family"]


@dataclass(frozen=True)
class Member:
    """One model, opened.

    Attributes:
        label: its name in the merge.
        settings: what the recipe says of it.
        weights: its parameters.
        weight: its factor.
        density: share of values that it keeps, where that matters.
        checkpoint: a Megatron checkpoint; None for a Hugging Face folder.
    """

    label: str
    settings: Parent
    weights: HuggingFaceWeights | MegatronWeights
    weight: float
    density: float
    checkpoint: Checkpoint | None

    @property
    def folder(self) -> Path:
        return self.weights.folder

    @property
    def tokenizer(self) -> Path | None:
        """Folder with the tokenizer's files."""
        if self.checkpoint is not None:
            return self.checkpoint.tokenizer
        return self.folder if has_tokenizer(self.folder) else None

    @property
    def tokens(self) -> TokenIds:
        """Special tokens."""
        if self.checkpoint is not None:
            return self.checkpoint.tokens
        return token_ids_from_hf(self.folder, self.weights.shape.vocab_size)

    @cached_property
    def _manifest(self) -> dict[str, Any]:
        """What this project's stage that wrote the folder recorded."""
        path = self.folder / MANIFEST_NAME
        found = read_json(path) if path.is_file() else {}
        return found["extra"] if isinstance(found, dict) and isinstance(found.get("extra"), dict) else {}

    @cached_property
    def _run(self) -> dict[str, Any]:
        """Section `model` of the recipe of the run that this is a checkpoint or an export of."""
        path = self.folder.absolute().parent.parent / "recipe.yaml"
        section = read_yaml(path).values.get("model") if path.is_file() else None
        return section if isinstance(section, dict) else {}

    @property
    def origin(self) -> str | None:
        """The open base model's name on the Hub, of which this is a descendant, if that is recorded."""
        recorded = self.checkpoint.huggingface if self.checkpoint else self._manifest.get("huggingface")
        return recorded or self._run.get("huggingface")

    @property
    def licenses(self) -> list[str]:
        """Hub identifiers of the licences that bind it; empty if unknown."""
        if self.settings.license is not None:
            return [self.settings.license]
        if merged := self._manifest.get("licenses"):
            return list(merged)
        if self.checkpoint is not None and isinstance(self.checkpoint.shape, Model):
            return [self.checkpoint.shape.license]
        found = self._run.get("license") or _card_license(self.folder)
        return [found] if found else []


def _card_license(folder: Path) -> str | None:
    from emma.tools.hub.cards import read_card

    if not (folder / "README.md").is_file():
        return None
    found = read_card(folder)[0].get("license")
    return found if isinstance(found, str) else None


@dataclass(frozen=True)
class Family:
    """The models of a merge, which fit together.

    Attributes:
        recipe: how they become one.
        base: of the methods that have one.
        models: the others, in order.
        vocabulary: the rows of their embeddings.
    """

    recipe: Merge
    base: Member | None
    models: tuple[Member, ...]
    vocabulary: SharedRows

    @property
    def members(self) -> tuple[Member, ...]:
        """All of them, the base first."""
        return (self.base, *self.models) if self.base is not None else self.models

    @property
    def grown(self) -> tuple[Member, ...]:
        """Those with all of the result's rows."""
        return tuple(self.members[number] for number in self.vocabulary.grown)

    @cached_property
    def shape(self) -> Shape:
        """The result's."""
        found = next((member for member in self.grown if member in self.models), self.grown[0]).weights.shape
        return Shape.model_validate(found.model_dump(include=set(Shape.model_fields)))

    @property
    def companion(self) -> Member:
        """Whose tokenizer, chat template and special tokens the result gets."""
        if self.recipe.tokenizer is None:
            return next((m for m in self.models if m in self.grown and m.tokenizer), self.grown[0])
        return next(member for member in self.members if member.label == self.recipe.tokenizer)

    @property
    def megatron(self) -> bool:
        """Whether a Megatron checkpoint is written."""
        if self.recipe.format is not None:
            return self.recipe.format == "megatron"
        return all(member.checkpoint is not None for member in self.members)

    def dtype(self, name: str) -> torch.dtype:
        """Type of a parameter of the result."""
        if self.recipe.dtype is not None:
            return parse_dtype(self.recipe.dtype)
        return self.models[0].weights.dtype(name)


def _opened(settings: Parent, step: int | None, label: str, weight: float, recipe: Merge) -> Member:
    folder, density = Path(settings.path), settings.density or recipe.density or 1.0
    if is_checkpoint(folder):
        checkpoint = find_checkpoint(folder, step)
        return Member(
            label, settings, MegatronWeights(checkpoint, recipe.weights), weight, density, checkpoint
        )
    if step is not None:
        raise UserError(
            f"{folder} is no run and holds no Megatron checkpoints, so it has no step {step}; leave step out"
        )
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; correct the path of {label} in the merge's recipe")
    return Member(label, settings, HuggingFaceWeights(folder), weight, density, None)


def _expanded(recipe: Merge) -> list[tuple[Parent, int | None, float]]:
    """Models with steps → one for each, in ascending order, with their weights."""
    result: list[tuple[Parent, int | None, float]] = []
    for parent in recipe.models:
        if parent.steps is None:
            result.append((parent, parent.step, parent.weight))
            continue
        steps = sorted(parent.steps)
        weights = [parent.weight] * len(steps)
        if recipe.average is not None:
            weights = coefficients(recipe.average, steps, recipe.ema_decay)
        result += [(parent, step, weight) for step, weight in zip(steps, weights, strict=True)]
    return result


def _label(parent: Parent, step: int | None) -> str:
    name = parent.name or Path(parent.path).absolute().name
    return name if step is None else f"{name}@{step}"


def open_family(recipe: Merge) -> Family:
    """Opens the models of a merge and checks all that needs no weights.

    Raises:
        UserError: a model is missing or damaged, or differs from the others in architecture, configuration, sizes or types
            of parameters, tokenizer, or base.
    """
    base = None
    if recipe.base is not None:
        base = _opened(recipe.base, recipe.base.step, _label(recipe.base, recipe.base.step), 1.0, recipe)
    models = tuple(
        _opened(parent, step, _label(parent, step), weight, recipe)
        for parent, step, weight in _expanded(recipe)
    )
    members = (base, *models) if base else models
    labels = [member.label for member in members]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise UserError(f"two models of the merge are called {twice}; give each a `name` of its own")
    if recipe.tokenizer is not None and recipe.tokenizer not in labels:
        raise UserError(
            f"tokenizer: {recipe.tokenizer} is no model of this merge; use one of {', '.join(labels)}"
        )
    if recipe.normalized and recipe.method != "slerp" and abs(sum(model.weight for model in models)) < 1e-8:
        raise UserError(
            "the weights sum to zero, and the result is divided by their sum; change them, or normalize"
        )
    _check_shapes(members)
    _check_origins(members)
    vocabulary = shared_rows([Vocabulary(m.label, m.weights.shape.vocab_size, m.tokenizer) for m in members])
    family = Family(recipe, base, models, vocabulary)
    _check_dtypes(family)
    if family.companion not in family.grown:
        raise UserError(
            f"tokenizer: {family.companion.label} has fewer tokens than the result, whose new rows come from "
            f"{', '.join(member.label for member in family.grown)}; name one of these"
        )
    return family


def _check_shapes(members: Sequence[Member]) -> None:
    first = members[0]
    for other in members[1:]:
        shapes = [each.weights.shape.model_copy(update={"vocab_size": 0}) for each in (first, other)]
        if differences := shape_differences(*shapes):
            raise UserError(
                f"{first.label} ({first.folder}) and {other.label} ({other.folder}) are different networks: "
                f"{'; '.join(differences)}; only models of one configuration can be merged"
            )


def _check_origins(members: Sequence[Member]) -> None:
    known = [(member.label, member.origin) for member in members if member.origin]
    for label, origin in known[1:]:
        if origin != known[0][1]:
            raise UserError(
                f"{known[0][0]} descends from {known[0][1]}, and {label} from {origin}; only models of one base can be merged"
            )


def _check_dtypes(family: Family) -> None:
    if family.recipe.dtype is not None:
        return
    first = family.members[0]
    for name in parameter_shapes(family.shape):
        for other in family.members[1:]:
            if (one := first.weights.dtype(name)) != (found := other.weights.dtype(name)):
                raise UserError(
                    f"{name} is {dtype_name(one)} in {first.label} and {dtype_name(found)} in {other.label}; say in which type "
                    "the result is to be written (dtype: bf16, fp16 or fp32)"
                )
