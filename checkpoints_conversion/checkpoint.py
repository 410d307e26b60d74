"""Finds a checkpoint folder, checks that it is complete, and tells what model it holds. Needs no torch.

An imported checkpoint describes itself in `model.yaml` beside its tensors; a run's checkpoint is described by
the run's `recipe.yaml`, two levels up; one of stock Megatron, by the arguments in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML

from emma.base.errors import CheckFailedError, UserError
from emma.base.files import atomic_write
from emma.base.manifest import FileRecord
from emma.checkpoints_conversion.config import TokenIds, check_same_shape, validated_shape
from emma.checkpoints_conversion.tokenizer_files import check_tokenizer, named_tokens, special_tokens
from emma.recipes.reading import read_yaml
from emma.recipes.schema import Recipe
from emma.recipes.schema.model import Model, Shape
from emma.tools.runs.checkpoints import (
    COMPLETE_MARK,
    checkpoint_folder,
    complete_steps,
    incomplete_steps,
    resolve_start,
    tracked_step,
)
from emma.tools.runs.integrity import verify

__all__ = [
    "SIDECAR_NAME",
    "Checkpoint",
    "check_start",
    "check_written",
    "find_checkpoint",
    "is_checkpoint",
    "keeps_fp8",
    "write_sidecar",
]

SIDECAR_NAME = "model.yaml"
TOKENIZER_FOLDER = "tokenizer"
_STEP_NAME = re.compile(r"iter_(\d{7,})")
_SHA256 = re.compile(r"^#.*sha256 ([0-9a-f]{64})")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk.

    Attributes:
        folder: holds the `.distcp` files, or the `mp_rank_…` folders of the `torch` format.
        step: optimizer step; 0 for an imported checkpoint.
        shape: the model; a `Model` for a run's checkpoint.
        tokenizer: folder with the tokenizer's files; None if unknown.
        huggingface: the base model's name on the Hub, if known.
        recipe_sha256: fingerprint of the run's recipe; empty for an imported checkpoint.
        description: the file that all this comes from.
        base_tokens: special tokens of the imported base model; None for a run's checkpoint.
        fp8_params: the run keeps its model's weights in FP8, so that only the optimizer has them unrounded.
        exact_main: the optimizer's main weights are FP32; a 16-bit copy may round to a neighbour of the model's.
    """

    folder: Path
    step: int
    shape: Shape
    tokenizer: Path | None
    huggingface: str | None
    recipe_sha256: str
    description: Path
    base_tokens: TokenIds | None
    fp8_params: bool = False
    exact_main: bool = True

    @cached_property
    def tokens(self) -> TokenIds:
        """Special tokens of the released model.

        Raises:
            UserError: the recipe's tokenizer is missing, is a different one, or lacks these tokens.
        """
        if self.base_tokens is not None:
            return self.base_tokens
        if not isinstance(self.shape, Model) or self.tokenizer is None:
            raise TypeError("a checkpoint without tokens of its own has a recipe's model and tokenizer")
        return special_tokens(self.shape.tokenizer, self.tokenizer, self.shape.vocab_size)


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a run folder, a folder of Megatron checkpoints, or a single such checkpoint."""
    return (
        (folder / ".metadata").is_file()
        or any(folder.glob("mp_rank_*"))
        or (folder / "checkpoints").is_dir()
        or any(_STEP_NAME.fullmatch(path.name) for path in folder.glob("iter_*"))
    )


def _step_folder(source: Path, step: int | None) -> tuple[Path, int]:
    if not source.is_dir():
        raise UserError(f"{source}: no such folder")
    if name := _STEP_NAME.fullmatch(source.absolute().name):
        here = int(name[1])
        if step not in (None, here):
            raise UserError(
                f"{source} is step {here}, not {step}; name the folder above it, or leave out --step"
            )
        root, step = source.absolute().parent, here
    else:
        root = source / "checkpoints" if (source / "checkpoints").is_dir() else source
    complete, broken = _complete(root)
    if step is not None and step in complete:
        return checkpoint_folder(root, step), step
    if step is not None:
        reason = broken.get(step, f"it does not exist; complete steps: {_listed(complete)}")
        raise UserError(f"step {step} of {root} cannot be used: {reason}")
    if not complete:
        faults = "; ".join(f"step {number}: {why}" for number, why in broken.items())
        if (root / "config.json").is_file() and not faults:
            raise UserError(
                f"{root}: a Hugging Face model already, no Megatron checkpoint. Fix: name a run or a folder with "
                "iter_NNNNNNN in it; `emma convert hf-to-megatron` goes the other way"
            )
        fix = "go on training" if faults else "name a run folder, its checkpoints, or one of them"
        raise UserError(
            f"{root}: no complete checkpoint ({faults or 'no folder iter_NNNNNNN in it'}). Fix: {fix}"
        )
    return checkpoint_folder(root, complete[-1]), complete[-1]


def _complete(root: Path) -> tuple[list[int], dict[int, str]]:
    """Complete steps, and why the others are not.

    Stock Megatron leaves no completion marks. If no checkpoint in the folder has one, the step in Megatron's
    tracker file counts as complete: Megatron writes that file once all ranks have saved.
    """
    complete, broken = complete_steps(root), incomplete_steps(root)
    step = tracked_step(root)
    if step in broken and not any(root.glob(f"iter_*/{COMPLETE_MARK}")):
        return [step], {number: reason for number, reason in broken.items() if number != step}
    return complete, broken


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps)) or "none"


def find_checkpoint(source: Path, step: int | None = None, *, tokenizer: Path | None = None) -> Checkpoint:
    """Finds a checkpoint and determines what it holds.

    Args:
        source: a run folder, a folder of checkpoints, or a single checkpoint folder `iter_NNNNNNN`.
        step: step to use; by default, the latest complete one.
        tokenizer: folder with tokenizer files, instead of the one named in the checkpoint's description.

    Raises:
        UserError: there is none, the step is incomplete (the message says what is missing), or nothing
            describes its model.
    """
    folder, number = _step_folder(source, step)
    sidecar, recipe = folder / SIDECAR_NAME, folder.absolute().parent.parent / "recipe.yaml"
    if sidecar.is_file():
        return _from_sidecar(folder, number, sidecar, tokenizer)
    if recipe.is_file():
        return _from_recipe(folder, number, recipe, tokenizer)
    return _from_arguments(folder, number, recipe, tokenizer)


def check_written(source: Path, step: int | None = None) -> None:
    """Refuses a Megatron checkpoint whose files are not what was written; reads all of it. A Hugging Face folder, and
    a checkpoint of stock Megatron, which lists no files, pass.

    Raises:
        CheckFailedError: names the files.
        UserError: this user may not read them.
    """
    if not is_checkpoint(source):
        return
    folder, _ = _step_folder(source, step)
    if not (folder / COMPLETE_MARK).is_file():
        return
    verdict = verify(folder)
    said = f"{folder} is {verdict.state}: {'; '.join(verdict.faults)}. Fix: "
    if verdict.state == "unreadable":
        raise UserError(f"{said}let this user read it")
    if verdict.faults:
        raise CheckFailedError(f"{said}restore it")


def check_start(recipe: Recipe) -> None:
    """Refuses a starting checkpoint that is missing, incomplete, or of a different model than the recipe's.

    Megatron itself checks a checkpoint without a description (from stock Megatron or another project): it
    compares the tensors' shapes as it loads them.

    Raises:
        UserError: says what is wrong and how to fix it.
    """
    if recipe.start.checkpoint is None:
        return
    start = resolve_start(recipe.start.checkpoint, recipe.start.step)
    folder = checkpoint_folder(start.folder, start.step)
    if (folder / SIDECAR_NAME).is_file() or (folder.absolute().parent.parent / "recipe.yaml").is_file():
        found = find_checkpoint(folder)
        check_same_shape(found.shape, recipe.model, f"start.checkpoint: {folder}", recipe.name)


def _from_sidecar(folder: Path, step: int, sidecar: Path, tokenizer: Path | None) -> Checkpoint:
    values = read_yaml(sidecar).values
    own = folder / TOKENIZER_FOLDER
    try:
        return Checkpoint(
            folder=folder,
            step=step,
            shape=validated_shape(values["shape"], str(sidecar), {}),
            tokenizer=tokenizer or (own if own.is_dir() else None),
            huggingface=values["huggingface"],
            recipe_sha256="",
            description=sidecar,
            base_tokens=TokenIds.from_dict(values["tokens"]),
        )
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{sidecar}: not a file that the import wrote ({error}); import the model again"
        ) from None


def _section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = values.get(name)
    return section if isinstance(section, Mapping) else {}


def _from_arguments(folder: Path, step: int, recipe: Path, tokenizer: Path | None) -> Checkpoint:
    """A checkpoint of stock Megatron, described by its own arguments."""
    from emma.checkpoints_conversion.stock_megatron import shape_of, stored_arguments

    arguments = stored_arguments(folder)
    # This project's runs and imports carry a completion mark. Their RoPE scaling is not among the arguments, and
    # imports leave the vocabulary to the file that is missing.
    ours = (folder / COMPLETE_MARK).is_file()
    if arguments is None or (
        ours and (getattr(arguments, "use_rope_scaling", True) or not getattr(arguments, "vocab_size", None))
    ):
        raise UserError(
            f"{folder}: neither {SIDECAR_NAME} in it nor {recipe}, and Megatron's arguments in it do not say all; the "
            "model's shape is unknown. Put the run's resolved recipe there (`emma recipe show RUN`)"
        )
    ids = None if tokenizer is None else named_tokens(tokenizer)
    shape = shape_of(arguments, folder, None if ids is None else ids.size)
    if tokenizer is not None:
        check_tokenizer(tokenizer, shape.vocab_size)
    values = vars(arguments)
    return Checkpoint(
        folder=folder,
        step=step,
        shape=shape,
        tokenizer=tokenizer,
        huggingface=None,
        recipe_sha256="",
        description=folder,
        base_tokens=TokenIds() if ids is None else ids.tokens,
        fp8_params=bool(values.get("fp8_param_gather") or values.get("fp8_param")),
        exact_main=str(values.get("main_params_dtype", "fp32")).removeprefix("torch.") in ("fp32", "float32"),
    )


def keeps_fp8(recipe: Mapping[str, Any]) -> bool:
    """Whether a resolved recipe keeps the model's weights in FP8 between steps."""
    given = _section(recipe, "megatron_args").get("fp8-param-gather")
    return _section(recipe, "precision").get("fp8_params") is True or given is True


def _from_recipe(folder: Path, step: int, recipe: Path, tokenizer: Path | None) -> Checkpoint:
    values = read_yaml(recipe).values
    try:
        model = Model.model_validate(values["model"])
    except (KeyError, ValidationError) as error:
        reason = " ".join(str(error).split())[:400]
        raise UserError(f"{recipe}: cannot read its section `model` ({reason})") from None
    with recipe.open(encoding="utf-8") as handle:
        fingerprint = _SHA256.match(handle.readline())
    return Checkpoint(
        folder=folder,
        step=step,
        shape=model,
        tokenizer=tokenizer or Path(model.tokenizer.path),
        huggingface=model.huggingface,
        recipe_sha256=fingerprint[1] if fingerprint else "",
        description=recipe,
        base_tokens=None,
        fp8_params=keeps_fp8(values),
        exact_main=_section(values, "optimizer").get("main_params_dtype", "fp32") == "fp32",
    )


def write_sidecar(
    folder: Path,
    shape: Shape,
    tokens: TokenIds,
    *,
    huggingface: str | None,
    source: Path,
    files: Sequence[FileRecord],
) -> None:
    """Writes `model.yaml` beside the tensors of an imported checkpoint.

    Args:
        folder: the checkpoint folder.
        shape: the model.
        tokens: special tokens of the base model.
        huggingface: the base model's name on the Hub, if known.
        source: folder that the model was imported from.
        files: the files read from it, with their hashes.
    """
    values: dict[str, Any] = {
        "shape": shape.model_dump(include=set(Shape.model_fields)),
        "tokens": tokens.as_dict(),
        "huggingface": huggingface,
        "source": {
            "folder": str(source),
            "files": [{"path": f.path, "bytes": f.bytes, "checksum": f.checksum} for f in files],
        },
    }
    yaml = YAML(typ="safe")
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    with atomic_write(folder / SIDECAR_NAME, "w") as handle:
        handle.write(
            "# The model in this checkpoint, for converting it back. Written by the import; the hashes are SHA-256.\n"
        )
        yaml.dump(values, handle)
