"""One rank of a save or a load for `benchmarks.checkpoints`: what it reads, writes and holds meanwhile."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from emma.recipes.load import load_recipe
from emma.recipes.schema import Recipe
from emma.tools.runs.checkpoints import LoadPlan

__all__ = ["load_rank", "save_rank"]


def _io() -> dict[str, int]:
    lines = (line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return {name: int(value) for name, value in lines}


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) << 10
    raise ValueError(name)


def measured(work: Callable[[], Any]) -> dict[str, float]:
    """Runs `work`; returns bytes read and written, the rise of the resident set at its peak, and seconds."""
    import ctypes
    import gc

    import torch

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    torch.distributed.barrier()
    Path("/proc/self/clear_refs").write_text("5")
    before, held, start = _io(), _status("VmRSS"), time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    after, peak = _io(), _status("VmHWM")
    torch.distributed.barrier()
    return {
        "read": after["rchar"] - before["rchar"],
        "written": after["wchar"] - before["wchar"],
        "memory": peak - held,
        "seconds": seconds,
    }


def build(recipe: Recipe, load: LoadPlan, folder: Path) -> tuple[Any, Any, Any]:
    """Model, optimizer and schedule of this rank, as Megatron's training loop builds them."""
    from megatron.core.optimizer import get_megatron_optimizer
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.training.argument_utils import gpt_config_from_args, pretrain_cfg_container_from_args
    from megatron.training.arguments import parse_and_validate_args
    from megatron.training.initialize import initialize_megatron
    from megatron.training.training import get_megatron_optimizer_config, get_optimizer_param_scheduler

    from emma.tools.training.arguments import megatron_arguments

    sys.argv = ["benchmark", *megatron_arguments(recipe, load, 0, folder, None)]
    args = parse_and_validate_args()
    config = gpt_config_from_args(args)
    container = pretrain_cfg_container_from_args(args, config)
    initialize_megatron()
    args.iteration = args.num_floating_point_operations_so_far = 0
    model = config.get_builder_cls()(config).build_distributed_models(
        pg_collection=ProcessGroupCollection.use_mpu_process_groups(), ddp_config=container.ddp
    )
    optimizer = get_megatron_optimizer(get_megatron_optimizer_config(args)[0], model)
    return model, optimizer, get_optimizer_param_scheduler(optimizer)


def save_rank(recipe_file: str, folder: str) -> dict[str, Any]:
    """One rank of a save."""
    from megatron.training.checkpointing import save_checkpoint

    recipe = load_recipe(recipe_file)
    model, optimizer, schedule = build(recipe, LoadPlan("scratch"), Path(folder))
    optimizer.state_dict()
    return measured(lambda: save_checkpoint(1, model, optimizer, schedule, 0))


def load_rank(recipe_file: str, folder: str) -> dict[str, Any]:
    """One rank of a load."""
    from megatron.training.checkpointing import load_checkpoint

    recipe = load_recipe(recipe_file)
    model, optimizer, schedule = build(recipe, LoadPlan("resume", folder, 1), Path(folder))
    optimizer.state_dict()
    return measured(lambda: load_checkpoint(model, optimizer, schedule))
