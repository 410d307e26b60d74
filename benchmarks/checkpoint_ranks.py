"""One rank of a save or a load for `benchmarks.checkpoints`: what it reads, writes and holds meanwhile."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.measure import family, proportional_memory
from emma.recipes.load import load_recipe
from emma.recipes.schema import Recipe
from emma.tools.runs.checkpoints import LoadPlan

__all__ = ["load_by_layer_rank", "load_rank", "save_rank"]


def _counters(name: str) -> dict[str, int]:
    """Lines of /proc/self/`name` that hold a number, in bytes."""
    found = {}
    for line in Path("/proc/self", name).read_text().splitlines():
        key, _, value = line.partition(":")
        number, *unit = value.split() or [""]
        if number.isdigit():
            found[key] = int(number) << (10 if unit == ["kB"] else 0)
    return found


def measured(work: Callable[[], Any]) -> dict[str, float]:
    """Runs `work` on all ranks at once.

    Returns:
        `read` and `written`, bytes that the rank asked files for (sockets do not count as files in `rchar`, which
        holds `read`; what the rank sends others counts in `wchar`, so `written` is of use at a save only); `memory`,
        the highest resident set beyond what it was before, in bytes; `seconds`.
    """
    import torch

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    torch.distributed.barrier()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before, held, start = _counters("io"), _counters("status")["VmRSS"], time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    after, peak = _counters("io"), _counters("status")["VmHWM"]
    torch.distributed.barrier()
    return {
        "read": after["rchar"] - before["rchar"],
        "written": after["wchar"] - before["wchar"],
        "memory": peak - held,
        "seconds": seconds,
    }


@contextmanager
def _watched(found: dict[str, float]) -> Iterator[None]:
    """Puts the rise of proportional memory of this process and its children, at its peak, into `memory`."""
    import torch

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    torch.distributed.barrier()

    def memory() -> int:
        return sum(proportional_memory(process) for process in family(os.getpid()))

    before, peak, done = memory(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield
    done.set()
    watcher.join()
    found["memory"] = peak - before


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
    optimizer.state_dict()  # creates the moments
    return model, optimizer, get_optimizer_param_scheduler(optimizer)


def save_rank(recipe_file: str, folder: str) -> dict[str, dict[str, float]]:
    """Saves step 1, and step 2 in the background by the writer that forks (the one that needs no GPU).

    Returns:
        `save` and `background` as `measured` does; `seconds` of `background` is the time until training could go
        on, and its `memory` is that of the rank and its writer together.
    """
    from megatron.training import get_args
    from megatron.training.async_utils import maybe_finalize_async_save
    from megatron.training.checkpointing import save_checkpoint

    recipe = load_recipe(recipe_file)
    model, optimizer, schedule = build(recipe, LoadPlan("scratch"), Path(folder))
    found = {"save": measured(lambda: save_checkpoint(1, model, optimizer, schedule, 0))}
    args = get_args()
    args.async_save, args.async_strategy = True, "mcore"
    memory: dict[str, float] = {}
    with _watched(memory):
        found["background"] = measured(lambda: save_checkpoint(2, model, optimizer, schedule, 0))
        maybe_finalize_async_save(blocking=True, terminate=True)
    found["background"] |= memory
    return found


def load_rank(recipe_file: str, folder: str) -> dict[str, float]:
    """Loads step 1; as `measured`."""
    from megatron.training.checkpointing import load_checkpoint

    recipe = load_recipe(recipe_file)
    model, optimizer, schedule = build(recipe, LoadPlan("resume", folder, 1), Path(folder))
    return measured(lambda: load_checkpoint(model, optimizer, schedule))


def load_by_layer_rank(checkpoint: str, tensor: int) -> dict[str, float]:
    """Loads an import of Llama 3 8B, or of some of its layers, at a tensor-parallel size, a layer at a time, through Megatron's parallel load.

    A layer's memory is given back before the next is loaded: the four ranks together never hold the model.

    Returns:
        `read`: bytes that the loads read; `stored`: bytes of the checkpoint's `.distcp` files; `compared`: tensors
        compared with what the conversion's reader finds in the files; `different`: those that differ.
    """
    import torch
    from megatron.core import dist_checkpointing, mpu
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
    from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelLoadStrategyWrapper
    from megatron.core.dist_checkpointing.strategies.torch import TorchDistLoadShardedStrategy
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.utils import unwrap_model
    from megatron.training.argument_utils import gpt_config_from_args
    from megatron.training.arguments import parse_and_validate_args
    from megatron.training.initialize import initialize_megatron

    from emma.checkpoints_conversion.torch_dist_reader import TorchDistReader
    from emma.tools.training.arguments import megatron_arguments

    (folder,) = Path(checkpoint).glob("iter_*")
    stored = TorchDistReader(folder)
    recipe = load_recipe(
        "emma_llama3_8b_bi",
        [
            "layout=local_cpu",
            "precision=bf16",
            "cluster.gpus_per_node=4",
            f"model.layers={stored.size('decoder.layers.mlp.linear_fc2.weight')[0]}",
            f"parallelism={{tensor: {tensor}, sequence: {str(tensor > 1).lower()}}}",
        ],
    )
    flags = megatron_arguments(recipe, LoadPlan("scratch"), 0, Path(checkpoint), None)
    # Weights stay unset: memory costs nothing until it is touched.
    sys.argv = ["benchmark", *flags, "--no-initialization"]
    config = gpt_config_from_args(parse_and_validate_args())
    initialize_megatron()
    (model,) = config.get_builder_cls()(config).build_distributed_models(
        pg_collection=ProcessGroupCollection.use_mpu_process_groups(), wrap_with_ddp=False
    )
    groups: dict[str, dict[str, Any]] = {}
    for name, entry in unwrap_model(model).sharded_state_dict().items():
        words = name.split(".")
        if not name.endswith("_extra_state"):
            groups.setdefault(".".join(words[:3] if "layers" in words else words), {})[name] = entry
    strategy = FullyParallelLoadStrategyWrapper(
        TorchDistLoadShardedStrategy(), mpu.get_data_parallel_group(with_context_parallel=True)
    )
    found = {"read": 0, "different": 0, "compared": 0}
    found["stored"] = sum(path.stat().st_size for path in folder.glob("*.distcp"))
    for group in groups.values():
        apply_factories(group)
        entries = _flat(group)
        before = _counters("io")["rchar"]
        loaded = dist_checkpointing.load(
            dict(entries), str(folder), strategy, validate_access_integrity=False
        )
        found["read"] += _counters("io")["rchar"] - before
        for name, entry in entries.items():
            if mpu.get_data_parallel_rank() == 0 and isinstance(entry, ShardedTensor):
                axis, shape = entry.prepend_axis_num, tuple(entry.local_shape)
                with stored.open(entry.key, entry.global_offset, (1,) * axis + shape) as original:
                    found["compared"] += 1
                    found["different"] += not torch.equal(loaded[name], original.reshape(shape))
            _give_back(entry.data)
    return found


def _flat(group: dict[str, Any]) -> dict[str, Any]:
    """Entries of a group, those in lists (gate and up) by name and number."""
    found = {}
    for name, entry in group.items():
        for number, part in enumerate(entry if isinstance(entry, list) else [entry]):
            found[f"{name}.{number}"] = part
    return found


def _give_back(tensor: Any) -> None:
    """Returns the pages that a tensor's data fill to the system."""
    page = 4096
    begin, size = tensor.data_ptr(), tensor.numel() * tensor.element_size()
    first, last = -(-begin // page) * page, (begin + size) // page * page
    if last > first:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), 4)  # MADV_DONTNEED
