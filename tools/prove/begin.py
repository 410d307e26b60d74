"""What the first step to prove begins from: weights, moments, and how many updates came before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from emma.base.errors import UserError
from emma.checkpoints_conversion.checkpoint import Checkpoint, find_checkpoint
from emma.checkpoints_conversion.config import TokenIds, hf_config
from emma.checkpoints_conversion.parameters import locations, parameter_shapes, split_qkv
from emma.checkpoints_conversion.weights import MegatronWeights
from emma.recipes.load import load_recipe
from emma.recipes.schema import Recipe
from emma.tools.inspection.models import loading, model_options, tokenizer_options
from emma.tools.prove.logged import read_logged
from emma.tools.runs.checkpoints import checkpoint_folder, resolve_start
from emma.tools.runs.run_folder import RunFolder
from emma.tools.runs.safety import steps_to_skip

__all__ = ["Begin", "find_begin"]


@dataclass(frozen=True)
class Begin:
    """The state before a step.

    Attributes:
        source: a Hugging Face folder, or a checkpoint.
        step: the step before the first; 0 at a run's start.
        schedule_updates: updates that the schedule has made so far.
        adam_updates: updates behind the moments; 0 where these are fresh.
        has_moments: whether the source's moments are taken too, and its FP32 main weights.
    """

    source: Path | Checkpoint
    step: int = 0
    schedule_updates: int = 0
    adam_updates: int = 0
    has_moments: bool = False

    @property
    def place(self) -> Path:
        """The folder that the weights are read from."""
        return self.source if isinstance(self.source, Path) else self.source.folder

    def model(self, recipe: Recipe) -> Any:
        """transformers' model in FP32 on the CPU, with as many of the source's layers as the recipe has.

        Raises:
            UserError: the source lacks one of the model's weights, or has it in another size.
        """
        from transformers import AutoConfig, AutoModelForCausalLM

        from emma.checkpoints_conversion.parity.transformers_forward import WithoutWeights

        if isinstance(self.source, Path):
            with loading(self.source):
                config = AutoConfig.from_pretrained(self.source, **tokenizer_options(self.source))
            if config.get_text_config() is not config:
                raise UserError(
                    f"{self.source}: a model of images and text; prove from the import of its text model: leave "
                    "start.reference out"
                )
            _cut(config, recipe.model.layers)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                self.source,
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
                **model_options(self.source),
            )
            model, report = loaded
            if lost := sorted([*report["missing_keys"], *(fault[0] for fault in report["mismatched_keys"])]):
                raise UserError(
                    f"{self.source}: {lost[0]} is missing or has other sizes; copy the model again"
                )
            return model
        weights, state = self._weights(self.source), {}
        values = hf_config(recipe.model, dtype="float32", tokens=TokenIds())
        with WithoutWeights():
            config = AutoConfig.for_model(**values)
            model = AutoModelForCausalLM.from_config(config)
        for name in parameter_shapes(weights.shape):
            with weights.open(name) as stored:
                state[name] = stored.to(torch.float32, copy=True)
        model.load_state_dict(state, strict=not recipe.model.tie_embeddings, assign=True)
        model.tie_weights()
        return model

    def moments(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """First and second moment of a parameter (transformers' name), FP32 on the CPU."""
        if isinstance(self.source, Path):
            raise TypeError("a Hugging Face folder has no moments")
        weights = self._weights(self.source)
        place, sizes = locations(weights.shape)[name], parameter_shapes(weights.shape)[name]
        found = []
        for moment in ("exp_avg", "exp_avg_sq"):
            key = f"optimizer.state.{moment}.{place.key}"
            with weights.reader.open(key, place.offsets, place.sizes) as stored:
                part = stored if place.part is None else split_qkv(weights.shape, stored, place.part)
                found.append(part.reshape(sizes).to(torch.float32, copy=True))
        return found[0], found[1]

    def _weights(self, source: Checkpoint) -> MegatronWeights:
        return MegatronWeights(source, "optimizer" if self.has_moments else "model")


def _cut(config: Any, layers: int) -> None:
    """Leaves a configuration its first layers, in each list of what belongs to a layer too."""
    for key, value in vars(config).items():
        if isinstance(value, list) and len(value) == config.num_hidden_layers:
            setattr(config, key, value[:layers])
    config.num_hidden_layers = layers


def find_begin(recipe: Recipe, run: RunFolder, from_step: int | None) -> Begin:
    """The beginning of a run that does not start from scratch, or, with `from_step`, one of its checkpoints.

    `start.reference`, where the recipe names it, is read instead of the imported checkpoint, so that the
    import is proven too.

    Raises:
        UserError: the checkpoint is missing, incomplete, or holds no moments where they are needed.
    """
    if from_step is not None:
        return _continued(find_checkpoint(run.checkpoints, from_step), position=True)
    if recipe.start.mode == "weights" and recipe.start.reference is not None:
        return Begin(Path(recipe.start.reference))
    point = resolve_start(str(recipe.start.checkpoint), recipe.start.step)
    checkpoint = find_checkpoint(checkpoint_folder(point.folder, point.step))
    if recipe.start.mode == "weights":
        return Begin(checkpoint)
    return _continued(checkpoint, position=recipe.start.mode == "resume")


def _continued(checkpoint: Checkpoint, *, position: bool) -> Begin:
    adam, schedule = _updates(checkpoint.folder, checkpoint.step)
    if not position:
        return Begin(checkpoint, adam_updates=adam, has_moments=True)
    return Begin(checkpoint, checkpoint.step, schedule, adam, has_moments=True)


def _updates(folder: Path, step: int) -> tuple[int, int]:
    """Updates behind a checkpoint, of AdamW and of the schedule, counted from the records of the runs that led
    to it: steps less skipped ones; a phase continues the moments and begins its schedule anew.

    Raises:
        UserError: no run's records are above the checkpoint.
    """
    run = RunFolder(folder.absolute().parent.parent)
    if not run.recipe_file.is_file():
        raise UserError(
            f"{folder}: how many updates are behind its moments is counted from the run's records, but there is no "
            f"{run.recipe_file}. Fix: keep the checkpoint in its run folder"
        )
    recipe = load_recipe(run.path)
    adam = schedule = first = 0
    if recipe.start.mode in ("phase", "resume"):
        point = resolve_start(str(recipe.start.checkpoint), recipe.start.step)
        adam, schedule = _updates(checkpoint_folder(point.folder, point.step), point.step)
        first = point.step
    if recipe.start.mode != "resume":
        schedule = first = 0
    logged = read_logged(run)
    skipped = [one for one in steps_to_skip(recipe, run.skipped_file) if one not in logged.rows]
    own = step - first - sum(first < one <= step for one in skipped)
    return adam + own, schedule + own
