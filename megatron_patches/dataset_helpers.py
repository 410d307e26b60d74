"""Megatron's wheel contains the compiled dataset helpers, but not the Makefile that it calls to compile them."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

from emma.megatron_patches.machine import Machine
from emma.megatron_patches.patch import Decision, Patch, PatchError, Target

__all__ = ["PATCH"]

COMPILE = Target("megatron.core.datasets.utils:compile_helpers", "")


def _makefile() -> Path:
    # find_spec imports no parent here: `megatron` is a namespace package.
    spec = importlib.util.find_spec("megatron")
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0] if places else ".") / "core" / "datasets" / "Makefile"


def condition(machine: Machine) -> Decision:
    """On where Megatron comes from its wheel, which has no Makefile."""
    if _makefile().is_file():
        return Decision(
            False, "Megatron comes from a source tree with a Makefile and can compile its helpers"
        )
    return Decision(True, "Megatron's wheel has compiled helpers and no Makefile")


def use_prebuilt_helpers() -> None:
    """Replaces `compile_helpers`: checks that the compiled module imports, instead of calling make."""
    try:
        importlib.import_module("megatron.core.datasets.helpers_cpp")
    except ImportError as error:
        raise PatchError(
            f"Megatron's compiled dataset helpers cannot be imported ({error}). "
            "Fix: install megatron-core from its wheel for this Python version and platform"
        ) from error


PATCH = Patch(
    name="prebuilt-dataset-helpers",
    targets=(COMPILE,),
    versions={"megatron-core": ("0.19.2",)},
    reason="compile_helpers runs make in the installed package, finds no Makefile there and exits the process",
    upstream="https://github.com/NVIDIA/Megatron-LM/blob/core_v0.19.2/megatron/core/datasets/utils.py",
    condition=condition,
    install=lambda: COMPILE.replace(use_prebuilt_helpers),
)
