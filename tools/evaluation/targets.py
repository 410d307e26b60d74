"""Finds the model to evaluate: a run's export, or any folder with a Hugging Face model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from emma.base.errors import UserError
from emma.base.files import read_json, sha256_file
from emma.recipes.compose import list_names
from emma.tools.inspection.models import check_model

if TYPE_CHECKING:
    from emma.recipes.schema import Recipe

__all__ = ["Target", "default_window", "exported_steps", "fingerprint", "resolve_run", "resolve_target"]

_STEP = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Target:
    """A model to evaluate.

    `model` is its name in tables (`<run>/step-N`, or the folder's name); `folder` holds config, weights and
    tokenizer. A run's export also has the run folder (`run`), the optimizer step and the run's recipe.
    """

    model: str
    folder: Path
    run: Path | None = None
    step: int | None = None
    recipe: Recipe | None = None


def resolve_run(run: str | Path, overrides: Sequence[str] = ()) -> tuple[Path, Recipe]:
    """Run folder and recipe of RUN, which is a run folder, a name in recipes/runs or a YAML file.

    A run folder that was moved stays usable: its actual path counts, not the one that its recipe names.

    Raises:
        UserError: no such run, or it has no folder yet.
    """
    from emma.recipes.load import load_recipe

    recipe = load_recipe(run, overrides)
    folder = Path(run)
    if not (folder / "recipe.yaml").is_file():
        folder = recipe.run_folder
    if not folder.is_dir():
        raise UserError(
            f"run {recipe.name}: its folder {folder} does not exist; train it with `emma train {run}`"
        )
    return folder, recipe


def exported_steps(run: Path) -> list[int]:
    """Steps with a Hugging Face export in `run/hf/`, ascending."""
    folders = (run / "hf").glob("step-*") if (run / "hf").is_dir() else ()
    steps = [int(match[1]) for folder in folders if (match := _STEP.fullmatch(folder.name))]
    return sorted(step for step in steps if (run / "hf" / f"step-{step}" / "config.json").is_file())


def resolve_target(run_or_folder: str, step: int | None = None) -> Target:
    """The model that RUN_OR_FOLDER names.

    Args:
        run_or_folder: a folder with `config.json` and safetensors, or a RUN with exports in `hf/`.
        step: which of the run's exports to take; default the latest.

    Raises:
        UserError: it is neither a model folder nor a run, or the run lacks the export.
    """
    folder = Path(run_or_folder)
    if (folder / "config.json").is_file():
        if step is not None:
            raise UserError(
                f"{folder} is a model folder, so --step {step} has no meaning; leave it out or give a run"
            )
        check_model_folder(folder)
        return Target(folder.resolve().name, folder)
    # A folder may have the name of a shipped run, as `demo` has after the demo: then the run is meant.
    known = (folder / "recipe.yaml").is_file() or run_or_folder in list_names("runs")
    if folder.is_dir() and not known:
        fix = (
            f"export its checkpoint with `emma convert megatron-to-hf {folder} OUTPUT`"
            if any(folder.glob("iter_*"))
            else "name the folder that holds one of them"
        )
        raise UserError(
            f"{folder}: neither a model folder (config.json) nor a run folder (recipe.yaml). Fix: {fix}"
        )
    run, recipe = resolve_run(run_or_folder)
    steps = exported_steps(run)
    if not steps:
        raise UserError(
            f"run {recipe.name}: no export in {run / 'hf'}; "
            f"write one with `emma convert megatron-to-hf {run} {run / 'hf'}/step-N`"
        )
    if step is not None and step not in steps:
        raise UserError(
            f"run {recipe.name}: step {step} is not exported; exported are {', '.join(map(str, steps))}"
        )
    chosen = steps[-1] if step is None else step
    export = run / "hf" / f"step-{chosen}"
    check_model_folder(export)
    return Target(f"{recipe.name}/step-{chosen}", export, run, chosen, recipe)


def check_model_folder(folder: Path) -> None:
    """Raises UserError unless `folder` holds config, safetensors and a tokenizer, and asks for no code of its own."""
    for pattern, what in (
        ("config.json", "a config"),
        ("*.safetensors", "weights in safetensors format"),
        ("tokenizer*", "a tokenizer"),
    ):
        if not any(folder.glob(pattern)):
            raise UserError(
                f"{folder}: no {pattern}, so {what} is missing; give a complete Hugging Face model folder"
            )
    check_model(folder)


def default_window(folders: Sequence[Path]) -> int:
    """Tokens of context that all these models take, at most 4096: models being compared get equal context."""
    longest = [read_json(folder / "config.json").get("max_position_embeddings") for folder in folders]
    return min(4096, *(length for length in longest if length))


def fingerprint(folder: Path) -> str:
    """SHA-256 over the names and contents of config, weights and tokenizer, which identifies the model."""
    import hashlib

    files = sorted(
        path
        for pattern in ("config.json", "*.safetensors", "tokenizer.json", "tokenizer.model")
        for path in folder.glob(pattern)
    )
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name} {sha256_file(path)}\n".encode())
    return digest.hexdigest()
