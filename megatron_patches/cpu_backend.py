"""Megatron's training loop on a machine without a GPU.

Megatron writes "cuda" wherever it means "the device I train on", and has no path for CPUs. Without a GPU this patch
gives those calls the CPU's answer: devices, streams, events, random generators, memory statistics. It never applies
where torch sees a GPU, and `torch.cuda.is_available()` stays False.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from emma.megatron_patches.machine import Machine
from emma.megatron_patches.patch import Decision, Patch, PatchError, Target

__all__ = ["PATCH", "hide_gpu_libraries", "needed_without_gpu"]


def needed_without_gpu(machine: Machine) -> Decision:
    """On where torch sees no GPU."""
    if machine.gpus:
        return Decision(False, f"{machine.gpus} GPU(s) visible")
    return Decision(True, "no GPU visible")


def hide_gpu_libraries() -> None:
    """Makes `import transformer_engine` and `import apex` fail, so that Megatron takes its paths without them.

    A machine without a GPU may have them installed, a cluster's login node for instance; their kernels need a GPU.

    Raises:
        PatchError: one of them is already imported, so Megatron may have chosen it.
    """
    for library in ("transformer_engine", "apex"):
        if sys.modules.get(library) is not None:
            raise PatchError(
                f"{library} was imported before the CPU backend. Fix: call megatron_patches.apply() first"
            )
        sys.modules[library] = None  # type: ignore[assignment]


def local_ranks() -> int:
    """Returns the number of ranks on this machine according to the launcher (torchrun, srun), else 1."""
    for variable in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"):
        if os.environ.get(variable, "").isdigit():
            return int(os.environ[variable])
    return 1


def resident_bytes() -> tuple[int, int]:
    """Returns this process's resident memory and its peak, in bytes (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    now = pages * os.sysconf("SC_PAGE_SIZE")
    return now, max(now, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


class CpuEvent:
    """The interface of a CUDA event over the host's clock: on the CPU, everything before it has happened."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._recorded = 0.0

    def record(self, stream: Any = None) -> None:
        """Notes the time."""
        self._recorded = time.perf_counter()

    def elapsed_time(self, end: CpuEvent) -> float:
        """Returns the milliseconds from this event to `end`."""
        return (end._recorded - self._recorded) * 1000.0

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def wait(self, stream: Any = None) -> None:
        """Nothing to wait for."""

    def query(self) -> bool:
        """Returns True: all work before the event is done."""
        return True


class CpuStream:
    """The interface of a CUDA stream: the CPU runs one operation after another."""

    device_index = 0
    cuda_stream = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    @staticmethod
    def priority_range() -> tuple[int, int]:
        """Returns the least and the greatest priority: there is one."""
        return 0, 0

    def wait_stream(self, stream: Any) -> None:
        """Nothing to wait for."""

    def wait_event(self, event: Any) -> None:
        """Nothing to wait for."""

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def record_event(self, event: Any = None) -> CpuEvent:
        """Returns the event, recorded now."""
        event = event or CpuEvent()
        event.record(self)
        return event

    def query(self) -> bool:
        """Returns True: nothing is pending."""
        return True


class EveryDevice:
    """Replaces `torch.cuda.default_generators`: the CPU's generator at every index."""

    def __getitem__(self, index: Any) -> Any:
        import torch

        return torch.default_generator

    def __len__(self) -> int:
        return local_ranks()


class CpuProperties:
    """What Megatron asks of `get_device_properties`, with this machine's numbers.

    The compute capability is Hopper's (9.0), for which Megatron's argument checks have the widest limits.
    """

    name = "cpu"
    major, minor = 9, 0

    def __init__(self) -> None:
        self.total_memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        self.multi_processor_count = os.cpu_count() or 1


def memory_stats(device: Any = None) -> dict[str, Any]:
    """Returns the process's resident memory (bytes) under the names of the CUDA allocator's statistics.

    What an allocator would count (allocations, segments, retries) is 0 on the CPU.
    """
    now, peak = resident_bytes()
    sizes = {
        f"{kind}.all.{when}": size
        for kind in ("allocated_bytes", "active_bytes", "reserved_bytes", "requested_bytes")
        for when, size in (("current", now), ("peak", peak))
    }
    counts = {
        f"{kind}.all.{when}": 0
        for kind in ("allocation", "segment", "active", "inactive_split")
        for when in ("current", "peak", "allocated", "freed")
    }
    return sizes | counts | {"num_alloc_retries": 0, "num_ooms": 0}


def _nothing() -> Callable[..., None]:
    # One function object per name: torch._dynamo refuses an object that has two.
    return lambda *_, **__: None


def _memory(index: int) -> Callable[..., int]:
    return lambda *_, **__: resident_bytes()[index]


CUDA: dict[str, str | None] = {
    # name in torch.cuda → its parameters
    "current_device": "",
    "device_count": "",
    "set_device": "device",
    "synchronize": "device",
    "get_device_properties": "device",
    "get_device_capability": "device",
    "get_device_name": "device",
    "device_memory_used": "device",
    "_lazy_call": "callable kwargs",
    "_lazy_init": "",
    "Stream": None,
    "Event": None,
    "current_stream": "device",
    "default_stream": "device",
    "set_stream": "stream",
    "stream": "stream",
    "empty_cache": "",
    "memory_stats": "device",
    "memory_allocated": "device",
    "max_memory_allocated": "device",
    "memory_reserved": "device",
    "max_memory_reserved": "device",
    "reset_peak_memory_stats": "device",
    "get_rng_state": "device",
    "set_rng_state": "new_state device",
    "manual_seed": "seed",
    "manual_seed_all": "seed",
    "default_generators": None,
}
# Modules that import torch.cuda._lazy_call by name, in case they are already imported.
BINDS_LAZY_CALL = {
    "megatron.core.tensor_parallel.random",
    "megatron.core.distributed.fsdp.src.megatron_fsdp.utils",
}
TENSOR_TYPE = Target("torch:Tensor.type")
TENSOR_CUDA = Target("torch:Tensor.cuda")
MODULE_CUDA = Target("torch.nn:Module.cuda", "self device")
RANGE_PUSH = Target("torch.cuda.nvtx:range_push", "msg")
RANGE_POP = Target("torch.cuda.nvtx:range_pop", "")
# Megatron asks for the generator through both the module and the package.
RANDOM = {
    name: Target(f"torch.cuda.random:{name}", CUDA[name]) for name in ("get_rng_state", "set_rng_state")
}


@contextlib.contextmanager
def _any_stream(stream: Any) -> Iterator[None]:
    yield


def _cuda_replacements() -> dict[str, Any]:
    import torch

    def current_device() -> torch.device:
        return torch.device("cpu")

    def get_rng_state(device: Any = "cuda") -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(new_state: torch.Tensor, device: Any = "cuda") -> None:
        torch.set_rng_state(new_state)

    def manual_seed(seed: int) -> None:
        torch.default_generator.manual_seed(seed)

    def manual_seed_all(seed: int) -> None:
        torch.default_generator.manual_seed(seed)

    def current_stream(device: Any = None) -> CpuStream:
        return CpuStream()

    def default_stream(device: Any = None) -> CpuStream:
        return CpuStream()

    return {
        "current_device": current_device,
        "device_count": local_ranks,
        "get_device_properties": lambda device=None: CpuProperties(),
        "get_device_capability": lambda device=None: (CpuProperties.major, CpuProperties.minor),
        "get_device_name": lambda device=None: CpuProperties.name,
        "device_memory_used": _memory(0),
        "_lazy_call": lambda callable, **_: callable(),
        "Stream": CpuStream,
        "Event": CpuEvent,
        "current_stream": current_stream,
        "default_stream": default_stream,
        "stream": _any_stream,
        "memory_stats": memory_stats,
        "memory_allocated": _memory(0),
        "max_memory_allocated": _memory(1),
        "memory_reserved": _memory(0),
        "max_memory_reserved": _memory(1),
        "get_rng_state": get_rng_state,
        "set_rng_state": set_rng_state,
        "manual_seed": manual_seed,
        "manual_seed_all": manual_seed_all,
        "default_generators": EveryDevice(),
    } | {
        name: _nothing()
        for name in (
            "set_device",
            "synchronize",
            "set_stream",
            "empty_cache",
            "reset_peak_memory_stats",
            "_lazy_init",
        )
    }


def _send_cuda_tensors_to_cpu() -> None:
    import torch
    from torch.overrides import TorchFunctionMode

    class CudaMeansCpu(TorchFunctionMode):
        """Turns every "cuda" device in a call of torch into "cpu"."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            device = kwargs.get("device")
            if device is not None and _is_cuda(device):
                kwargs = {**kwargs, "device": "cpu"}
            if any(isinstance(argument, str | torch.device) and _is_cuda(argument) for argument in args):
                args = tuple(
                    "cpu" if isinstance(argument, str | torch.device) and _is_cuda(argument) else argument
                    for argument in args
                )
            return func(*args, **kwargs)

    def _is_cuda(device: Any) -> bool:
        if isinstance(device, torch.device):
            return bool(device.type == "cuda")
        return isinstance(device, int) or (isinstance(device, str) and device.startswith("cuda"))

    CudaMeansCpu().__enter__()


def install() -> None:
    """Gives torch.cuda the CPU's answers and turns torch.compile off (Megatron's jit_fuser is torch.compile)."""
    import torch

    hide_gpu_libraries()
    for name, new in _cuda_replacements().items():
        Target(f"torch.cuda:{name}").replace(new)
    for module in BINDS_LAZY_CALL & sys.modules.keys():
        Target(f"{module}:_lazy_call").replace(torch.cuda._lazy_call)
    for name, target in RANDOM.items():
        target.replace(getattr(torch.cuda, name))
    for target in (RANGE_PUSH, RANGE_POP):
        target.replace(_nothing())
    TENSOR_CUDA.replace(lambda self, *_, **__: self)
    MODULE_CUDA.replace(lambda self, *_, **__: self)

    plain_type = TENSOR_TYPE.get()

    def cuda_type(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs:
            return plain_type(self, *args, **kwargs)
        # The distributed optimizer sorts parameters by these names. Under a TorchFunctionMode the C method calls this one
        # by name, so the answer may already have its prefix.
        return "torch.cuda." + plain_type(self).rpartition(".")[2]

    TENSOR_TYPE.replace(cuda_type)
    _send_cuda_tensors_to_cpu()
    # Megatron warns if the CPU's generator advances while the "GPU's" is in use; here they are the same.
    logging.getLogger("megatron.core.tensor_parallel.random").addFilter(
        lambda record: "CPU RNG state changed" not in record.msg
    )
    # Compiling small kernels takes minutes on a CPU, needs a C++ compiler, and gains nothing here.
    torch.compiler.set_stance("force_eager")
    if os.environ.get("RANK", "0") == "0":
        print("no GPU: Megatron trains on the CPU (patch cpu-backend)", file=sys.stderr, flush=True)


PATCH = Patch(
    name="cpu-backend",
    targets=tuple(
        itertools.chain(
            (Target(f"torch.cuda:{name}", parameters) for name, parameters in CUDA.items()),
            RANDOM.values(),
            (RANGE_PUSH, RANGE_POP, TENSOR_TYPE, TENSOR_CUDA, MODULE_CUDA),
        )
    ),
    versions={"torch": ("2.11.0", "2.12.1", "2.13.0"), "megatron-core": ("0.19.2",)},
    reason="Megatron puts every tensor on 'cuda' and asserts that it is there; without a GPU, none of it runs",
    upstream="https://github.com/NVIDIA-NeMo/Speech/issues/14244",
    condition=needed_without_gpu,
    install=install,
)
