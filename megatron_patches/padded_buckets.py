"""The distributed optimizer saves parameters from the wrong places where its gradient buckets are padded.

`--dist-ckpt-optim-fully-reshardable` gathers each buffer of main weights and moments into one long tensor and
cuts it into parameters. The gathered tensor leaves out the padding at the ends of the buckets; the cuts count it.
"""

from __future__ import annotations

import functools
from typing import Any

from emma.megatron_patches.machine import Machine
from emma.megatron_patches.patch import Decision, Patch, PatchError, Target

__all__ = ["PATCH", "gathered_ranges"]

CUT = Target(
    "megatron.core.optimizer.distrib_optimizer:DistributedOptimizer.sharded_param_state_fully_reshardable",
    "self model_sharded_state_dict is_loading metadata",
)


def condition(machine: Machine) -> Decision:
    """On everywhere."""
    return Decision(True, "a resumed run must find its own weights, whatever the padding of its buckets")


def gathered_ranges(buffer: Any) -> dict[Any, tuple[int, int, int]]:
    """Where each parameter of a buffer lies in the gathered tensor, in elements.

    Args:
        buffer: Megatron's `_ParamAndGradBuffer`.

    Returns:
        Parameter → (start, end, bucket), in the order of `buffer.param_index_map`, whose positions count the
        padding.

    Raises:
        PatchError: a parameter would reach beyond its bucket.
    """
    first, gathered = [], 0  # by bucket: the first element that the gathered tensor takes from it
    for bucket in buffer.buckets:
        first.append(gathered)
        gathered += bucket.numel_unpadded
    ranges = {}
    for parameter, (start, end, number) in buffer.param_index_map.items():
        bucket = buffer.buckets[number]
        if not 0 <= start - bucket.offset <= end - bucket.offset <= bucket.numel_unpadded:
            raise PatchError(
                f"patch {PATCH.name}: a parameter at {start} to {end} of a buffer is not inside its bucket, which holds "
                f"{bucket.numel_unpadded} elements from {bucket.offset} on. Nothing is saved"
            )
        shift = first[number] - bucket.offset
        ranges[parameter] = (start + shift, end + shift, number)
    return ranges


def install() -> None:
    """Lets the original cut by the positions in the gathered tensor: it reads them from `param_index_map`.

    Raises:
        PatchError: the function is not Megatron's any more, and may count otherwise.
    """
    cut = CUT.get()
    if not cut.__module__.startswith("megatron."):
        raise PatchError(
            f"patch {PATCH.name}: another patch has replaced {CUT.path}; this one must come before it"
        )

    @functools.wraps(cut)
    def cut_where_gathered(self: Any, *values: Any, **named: Any) -> Any:
        padded = [buffer.param_index_map for buffer in self.buffers]
        gathered = [gathered_ranges(buffer) for buffer in self.buffers]
        try:
            for buffer, ranges in zip(self.buffers, gathered, strict=True):
                buffer.param_index_map = ranges
            return cut(self, *values, **named)
        finally:
            for buffer, ranges in zip(self.buffers, padded, strict=True):
                buffer.param_index_map = ranges

    CUT.replace(cut_where_gathered)


PATCH = Patch(
    name="padded-buckets",
    targets=(CUT,),
    versions={"megatron-core": ("0.19.2",)},
    reason="where gradient buckets are padded (24 or 96 data-parallel ranks, --ddp-pad-buckets-for-high-nccl-busbw), a "
    "checkpoint's main weights and moments are those of other parameters, and a resume destroys the model",
    upstream="https://github.com/NVIDIA/Megatron-LM/pull/5077",
    condition=condition,
    install=install,
)
