"""Checks and describes a run before its ranks start. Needs no torch."""

from __future__ import annotations

from importlib.util import find_spec

from emma.base.errors import RecipeError, UserError
from emma.base.extras import install_command
from emma.recipes.schema import Recipe
from emma.tools.mix.layout import MixInfo, check_shards, read_mix
from emma.tools.runs.checkpoints import LoadPlan, complete_steps
from emma.tools.runs.forgetting import FEWEST_DOCUMENTS
from emma.tools.runs.run_folder import RunFolder
from emma.tools.runs.safety import steps_to_skip
from emma.tools.training.arguments import megatron_arguments

__all__ = ["check_mix", "describe", "preview_arguments"]


def check_mix(recipe: Recipe) -> MixInfo:
    """The recipe's mix, checked against what the run will ask of it.

    Raises:
        UserError: the mix is missing, has another number of samples, sequence length or vocabulary, or its
            token store has changed.
    """
    folder = recipe.mix_folder
    if not folder.is_dir():
        raise UserError(f"{folder}: the mix does not exist. Fix: `emma mix build {recipe.name}`")
    mix = read_mix(folder)
    if mix.sequence_length != recipe.batch.sequence_length:
        raise RecipeError(
            "batch.sequence_length",
            f"{recipe.batch.sequence_length}, but {folder} was built for {mix.sequence_length}",
            "build the mix again, or set its length",
        )
    if mix.samples != recipe.total_samples:
        raise RecipeError(
            "schedule.steps",
            f"steps × batch.global = {recipe.schedule.steps} × {recipe.batch.global_} = {recipe.total_samples} samples, "
            f"but {folder} holds {mix.samples}",
            "build the mix again (`emma mix build`), or set the steps it was built for",
        )
    if mix.vocab_size > recipe.model.vocab_size:
        raise RecipeError(
            "model.vocab_size",
            f"{recipe.model.vocab_size}, but the mix was tokenised with {mix.vocab_size} ids",
            "use the model whose tokenizer packed the text",
        )
    guarded = recipe.guard.groups if recipe.guard is not None else {}
    for key, groups in (
        ("validation.groups", recipe.validation.groups or []),
        ("validation.alert_above", recipe.validation.alert_above),
        ("guard.groups", guarded),
    ):
        unknown = sorted(set(groups) - set(mix.groups))
        if unknown:
            raise RecipeError(
                key,
                f"`{unknown[0]}` is not a group of {folder}",
                f"choose from {', '.join(sorted(mix.groups))}",
            )
    for name in guarded:
        if (documents := mix.groups[name]["documents"]) < FEWEST_DOCUMENTS:
            raise RecipeError(
                "guard.groups",
                f"{name} has {documents} validation documents, which cannot show forgetting beyond chance",
                f"guard groups of at least {FEWEST_DOCUMENTS} documents, or set more apart for validation",
            )
    check_shards(mix)
    if recipe.logging.wandb_project is not None and find_spec("wandb") is None:
        raise RecipeError(
            "logging.wandb_project",
            f"`{recipe.logging.wandb_project}` needs the package wandb, which is not installed",
            f"{install_command('wandb')}, or remove the key: metrics.jsonl and TensorBoard need no package",
        )
    return mix


def describe(recipe: Recipe, run: RunFolder, mix: MixInfo) -> str:
    """A few lines on what the launch will do."""
    p, steps = recipe.parallelism, complete_steps(run.checkpoints)
    begin = f"resumes from step {steps[-1]}" if steps else f"starts from {recipe.start.mode}"
    if not steps and recipe.start.checkpoint:
        begin += f" of {recipe.start.checkpoint}"
    return "\n".join(
        [
            f"run      {run.path}: {begin}, to step {recipe.schedule.steps}",
            f"model    {recipe.model.name}, {recipe.precision.name}",
            f"mix      {recipe.mix_folder}: {mix.samples:,} samples of {mix.sequence_length} tokens, "
            f"{len(mix.groups)} validation groups",
            f"layout   {recipe.cluster.world_size} ranks = tensor {p.tensor} × pipeline {p.pipeline} × context {p.context} "
            f"× data {recipe.data_parallel}, micro-batch {recipe.batch.micro}, global batch {recipe.batch.global_}",
            f"output   {run.metrics_file}, {run.logs}",
        ]
    )


def preview_arguments(recipe: Recipe, run: RunFolder) -> list[str]:
    """Megatron's arguments for the next launch. What is not on disk yet has a stand-in: 0 for the end-of-text
    id of a missing mix, the recipe's words for the checkpoint to start from, and no launch's folder to save in."""
    end = read_mix(recipe.mix_folder).end_id if recipe.mix_folder.is_dir() else 0
    steps = complete_steps(run.checkpoints)
    if steps:
        load = LoadPlan("resume", str(run.checkpoints), steps[-1])
    else:
        load = LoadPlan(recipe.start.mode, recipe.start.checkpoint, recipe.start.step)
    tensorboard = run.tensorboard if recipe.logging.tensorboard else None
    skip = steps_to_skip(recipe, run.skipped_file)
    saves = run.path / "writing" / "NNNNNN-TOKEN" / "checkpoints"
    return megatron_arguments(recipe, load, end, saves, tensorboard, skip)
