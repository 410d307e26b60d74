"""Merges: several models of one shape become one, by arithmetic on their weights."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from emma.recipes.schema.section import Section

__all__ = ["TASK_METHODS", "Merge", "Method", "Parent"]

Method = Literal["linear", "slerp", "task_vector", "ties", "dare_linear", "dare_ties"]
TASK_METHODS = frozenset({"task_vector", "ties", "dare_linear", "dare_ties"})
"""Methods on differences from a base."""
_SPARSE = TASK_METHODS - {"task_vector"}


class Parent(Section):
    """A model that takes part."""

    path: str
    """Hugging Face folder, run folder, folder of Megatron checkpoints, or one such checkpoint (`iter_NNNNNNN`)."""
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]*$")
    """What messages, manifest and other keys call it; by default the folder's name. Of several `steps`, `@STEP` follows."""
    step: int | None = Field(None, ge=0)
    """Of Megatron checkpoints: which one; by default the latest complete one."""
    steps: list[int] | None = None
    """Of Megatron checkpoints: several, each a model of its own."""
    weight: float = 1.0
    """Its factor: in the average, or of its difference from the base (the λ of a task vector)."""
    density: float | None = Field(None, gt=0, le=1)
    """Its own share of values that `ties` and `dare_*` keep; by default the merge's."""
    huggingface: str | None = None
    """Its name on the Hub, for the card; by default what its run or import knows."""
    license: str | None = None
    """Its licence's Hub identifier, for the release; by default what its run or its card says."""

    @model_validator(mode="after")
    def _which(self) -> Self:
        if self.step is not None and self.steps is not None:
            raise ValueError("step and steps: give one of them")
        if self.steps is not None and (len(set(self.steps)) != len(self.steps) or len(self.steps) < 2):
            raise ValueError(f"steps are {self.steps}: give two or more distinct ones")
        return self


class Merge(Section):
    """How models become one. All arithmetic is in FP32, rounded once to the type of the result."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the merge; by default that of its file."""
    description: str = ""
    """What it is for, in one line."""
    method: Method
    """`linear`: weighted average. `slerp`: two models along the arc between them. On differences from `base`: `task_vector`
    adds them up; `ties` keeps each one's largest values, and of these the ones with the sign that prevails; `dare_linear`
    keeps random values and scales them up; `dare_ties` does that and then lets signs prevail."""
    base: Parent | None = None
    """The model that the others were trained from."""
    models: list[Parent] = Field(min_length=1)
    """The models, in the order of the arithmetic."""
    average: Literal["uniform", "ema", "linear", "1-sqrt", "cosine"] | None = None
    """Weights of the `steps` of one run, instead of `weight`. `uniform`; `ema`: an exponential moving average with
    `ema_decay`; the others stand for a decay of the learning rate over these steps."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """With `average: ema`: what is kept of the average at each step."""
    normalize: bool | None = None
    """Divide by the sum of the weights (with signs that prevail: of those that count, value by value). By default true for
    `linear` and `ties`, as in mergekit."""
    scale: float = 1.0
    """Factor of the merged difference (mergekit's `lambda`)."""
    density: float | None = Field(None, gt=0, le=1)
    """Share of each difference's values that `ties` and `dare_*` keep."""
    rescale: Literal["density", "l1", "none"] = "density"
    """How `dare_*` makes up for dropped values: `density` divides by it, as in the paper; `l1` restores the sum of
    magnitudes of each tensor, as mergekit does."""
    seed: int = Field(1234, ge=0)
    """Of the values that `dare_*` keeps."""
    t: float | None = Field(None, ge=0, le=1)
    """Of `slerp`: 0 is the first model, 1 the second."""
    weights: Literal["auto", "model", "optimizer"] = "auto"
    """Of Megatron checkpoints: the weights of the forward pass (model), or the optimizer's FP32 main weights. auto: the
    latter where the run kept the former in FP8."""
    dtype: Literal["fp32", "bf16", "fp16"] | None = None
    """Type of the result; by default that of the models, which then must agree."""
    format: Literal["huggingface", "megatron"] | None = None
    """What is written; by default Megatron if all models are such checkpoints."""
    tokenizer: str | None = None
    """Name of the model whose tokenizer, chat template and special tokens the result gets; by default the first with the
    most tokens."""
    allow_distant: bool = False
    """Merge models that lie far from the base (or the first model), which are refused because they are seldom its kin."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        steps = [parent for parent in self.models if parent.steps is not None]
        if (self.method in TASK_METHODS) != (self.base is not None):
            raise ValueError(
                f"method {self.method} "
                + (
                    "needs a base"
                    if self.base is None
                    else "has no base: list it among models to average with it"
                )
            )
        if self.base is not None and (
            self.base.steps or self.base.weight != 1 or self.base.density is not None
        ):
            raise ValueError("base: one model, which has neither weight nor density")
        if self.method == "slerp" and (len(self.models) != 2 or steps or self.t is None):
            raise ValueError("slerp takes two models and t")
        if self.method != "slerp" and self.t is not None:
            raise ValueError("t goes with slerp")
        own = [parent.density for parent in self.models]
        if self.method in _SPARSE and self.density is None and None in own:
            raise ValueError(f"{self.method} needs a density")
        if self.method not in _SPARSE and (self.density is not None or any(own)):
            raise ValueError(f"density goes with {', '.join(sorted(_SPARSE))}")
        if not self.method.startswith("dare_") and self.rescale != "density":
            raise ValueError("rescale goes with dare_linear and dare_ties")
        if self.method not in TASK_METHODS and self.scale != 1:
            raise ValueError("scale goes with methods that have a base")
        if self.method == "slerp" and (self.normalize is not None or any(p.weight != 1 for p in self.models)):
            raise ValueError("slerp has t instead of weights")
        if self.method == "linear" and len(self.models) == 1 and not steps:
            raise ValueError("an average takes two or more models")
        if (self.average == "ema") != (self.ema_decay is not None):
            raise ValueError("average: ema and ema_decay go together")
        if self.average is not None:
            if self.method != "linear" or len(self.models) != 1 or not steps:
                raise ValueError("average goes with method linear and one model with steps")
            if self.models[0].weight != 1 or self.normalize is not None:
                raise ValueError("average gives the weights: leave out weight and normalize")
        return self

    @property
    def normalized(self) -> bool:
        """`normalize`, or its default."""
        return self.method in ("linear", "ties") if self.normalize is None else self.normalize
