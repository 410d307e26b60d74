"""What Megatron gets wrong for this project, one file per patch.

    from emma import megatron_patches
    megatron_patches.apply()      # before the first import of Megatron

Each patch names its targets, the versions it was tested with, its reason and the upstream thread, says where it is needed,
and refuses other versions. `status()` says what is on, what is off, and why, without importing Megatron or torch.
"""

from __future__ import annotations

from emma.megatron_patches.patch import PatchError
from emma.megatron_patches.registry import PatchStatus, apply, status

__all__ = ["PatchError", "PatchStatus", "apply", "status"]

if __name__ != "emma.megatron_patches":
    raise ImportError(
        "megatron_patches is imported as emma.megatron_patches; run modules as `python -P -m emma.megatron_patches...`"
    )
