"""`initialize_megatron` asserts that CUDA is there; `pretrain` gives no way to tell it otherwise."""

from __future__ import annotations

from typing import Any

from megatron_patches.cpu_backend import needed_without_gpu
from megatron_patches.registry import Patch, Target

__all__ = ["PATCH"]

INITIALIZE = Target(
    "megatron.training.initialize:initialize_megatron",
    "allow_no_cuda skip_mpu_initialization get_embedding_ranks get_position_embedding_ranks store "
    "skip_model_parallel_init seed_pp_group seed_dp_group seed_tp_group seed_ep_group seed_etp_group skip_random_seed",
)


def install() -> None:
    """Makes `allow_no_cuda` true by default: the function object stays, since others import it by name."""
    function: Any = INITIALIZE.get()
    function.__defaults__ = (True, *function.__defaults__[1:])


PATCH = Patch(
    name="initialize-without-cuda",
    targets=(INITIALIZE,),
    versions={"megatron-core": ("0.19.2",)},
    reason="pretrain calls initialize_megatron with allow_no_cuda=False, which asserts that CUDA is available",
    upstream="https://github.com/NVIDIA/Megatron-LM/blob/core_v0.19.2/megatron/training/initialize.py",
    condition=needed_without_gpu,
    install=install,
)
