"""`initialize_megatron` asserts that CUDA is available, and `pretrain` offers no way to turn that off."""

from __future__ import annotations

from typing import Any

from emma.megatron_patches.cpu_backend import needed_without_gpu
from emma.megatron_patches.patch import Patch, PatchError, Target

__all__ = ["PATCH"]

INITIALIZE = Target(
    "megatron.training.initialize:initialize_megatron",
    "allow_no_cuda skip_mpu_initialization get_embedding_ranks get_position_embedding_ranks store "
    "skip_model_parallel_init seed_pp_group seed_dp_group seed_tp_group seed_ep_group seed_etp_group skip_random_seed",
)
ASYNC_WORKER = Target("megatron.training.initialize:init_persistent_async_worker", "rank mp_mode")


def refuse_async_save(rank: int, mp_mode: str = "spawn") -> None:
    """Replaces the start of the worker that saves checkpoints in the background.

    The worker is a fresh interpreter that asks CUDA for its devices and dies, and the ranks wait for it forever.
    """
    raise PatchError(
        "--async-save needs a GPU: its worker process asks CUDA for devices. Fix: save synchronously here"
    )


def install() -> None:
    """Makes `allow_no_cuda` true by default; the function object stays, since other modules import it by name."""
    function: Any = INITIALIZE.get()
    function.__defaults__ = (True, *function.__defaults__[1:])
    ASYNC_WORKER.replace(refuse_async_save)


PATCH = Patch(
    name="initialize-without-cuda",
    targets=(INITIALIZE, ASYNC_WORKER),
    versions={"megatron-core": ("0.19.2",)},
    reason="pretrain calls initialize_megatron with allow_no_cuda=False, which asserts that CUDA is available, and "
    "starts a worker for asynchronous saving that cannot live without one",
    upstream="https://github.com/NVIDIA/Megatron-LM/blob/core_v0.19.2/megatron/training/initialize.py",
    condition=needed_without_gpu,
    install=install,
)
