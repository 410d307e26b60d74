"""Loading a checkpoint runs nothing that its pickles ask for.

torch and Megatron unpickle a checkpoint's `.metadata`, its common state and other objects without restriction, and
Transformer Engine does so with a layer's extra state; whoever wrote the checkpoint chooses what runs. With this patch
all of them read through `tools/inspection`, so that nothing can change between a check and the use.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

from emma.base.errors import UserError
from emma.megatron_patches.machine import Machine
from emma.megatron_patches.patch import Decision, Patch, Target
from emma.tools.inspection import objects
from emma.tools.inspection.archives import Window
from emma.tools.inspection.pickles import LARGEST
from emma.tools.inspection.tensors import read_tensors
from emma.tools.inspection.trees import PickleError

__all__ = ["PATCH", "refusal"]

_LOAD = "f map_location pickle_module weights_only mmap pickle_load_args"
LOADS = (Target("torch:load", _LOAD), Target("torch.serialization:load", _LOAD))
METADATA = Target("torch.distributed.checkpoint.filesystem:pickle")
MODULE = Target("torch.nn.modules.module:Module.load_state_dict", "self state_dict strict assign")
# Transformer Engine refuses every pickled extra state unless this is set, which it is for those that were checked.
_ALLOW = "NVTE_ALLOW_UNSAFE_PICKLE_EXTRA_STATE"

_first: UserError | None = None


def refusal() -> UserError | None:
    """The first refusal in this process: torch wraps errors of loading, and Megatron leaves without one."""
    return _first


def condition(machine: Machine) -> Decision:
    """On everywhere."""
    return Decision(True, "a checkpoint may come from anyone")


@contextlib.contextmanager
def _refusing(what: str) -> Iterator[None]:
    global _first
    try:
        yield
    except PickleError as error:
        _first = UserError(
            f"{what}: refused: {error}. Nothing of it was executed. Fix: use another checkpoint"
        )
        raise _first from None


def _name(file: Any) -> str:
    named = getattr(getattr(file, "base_stream", file), "name", None)
    return str(named) if named else "an object of the checkpoint"


def load(
    f: Any,
    map_location: Any = None,
    pickle_module: Any = None,
    *,
    weights_only: bool | None = None,
    mmap: bool | None = None,
    **pickle_load_args: Any,
) -> Any:
    """`torch.load` for tensors, plain values and the closed list, whatever `weights_only` says.

    Raises:
        UserError: the file refers to anything else.
    """
    if pickle_module is not None or isinstance(map_location, dict) or callable(map_location):
        raise TypeError("torch.load takes a device as map_location, and no pickle module, when Megatron runs")
    if not hasattr(f, "read"):
        with _refusing(str(f)):
            return objects.load(Path(os.fspath(f)), map_location)
    with _refusing(_name(f)):
        return objects.load(_whole(f), map_location)


def _whole(stream: Any) -> Any:
    """A block in a checkpoint's file, whose class in torch seeks to the wrong place when asked for the end."""
    from torch.distributed.checkpoint.utils import _ReaderView

    if not isinstance(stream, _ReaderView):
        return stream
    return io.BufferedReader(Window.of(cast("IO[bytes]", stream.base_stream), stream.offset, stream.len))


def load_metadata(file: IO[bytes]) -> Any:
    """`pickle.load` for the `.metadata` of a checkpoint."""
    with _refusing(_name(file)):
        return objects.read_metadata(file.read(LARGEST + 1))


def _holds_checked_states(state_dict: Mapping[str, Any]) -> bool:
    """Whether layers are about to unpickle bytes, all of them inert."""
    import torch

    found = False
    for key, state in state_dict.items():
        if "_extra_state" in key and isinstance(state, torch.Tensor) and state.numel():
            with _refusing(f"{key} of the checkpoint"):
                read_tensors(state.detach().cpu().numpy().tobytes())
            found = True
    return found


def checked(load_module: Callable[..., Any]) -> Callable[..., Any]:
    """`Module.load_state_dict` that looks at the layers' extra states before any layer unpickles its own."""

    def load_state_dict(
        self: Any, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        before = os.environ.get(_ALLOW)
        if _holds_checked_states(state_dict):
            os.environ[_ALLOW] = "1"
        try:
            return load_module(self, state_dict, strict, assign)
        finally:
            if before is None:
                os.environ.pop(_ALLOW, None)
            else:
                os.environ[_ALLOW] = before

    return load_state_dict


def install() -> None:
    """Replaces what unpickles a checkpoint."""
    for target in LOADS:
        target.replace(load)
    METADATA.replace(types.SimpleNamespace(load=load_metadata, dump=pickle.dump))
    MODULE.replace(checked(MODULE.get()))


PATCH = Patch(
    name="inert-loading",
    targets=(*LOADS, METADATA, MODULE),
    versions={"megatron-core": ("0.19.2",), "torch": ("2.11.0", "2.12.1", "2.13.0")},
    reason="`.metadata`, the common state and a layer's extra state are unpickled without restriction, so a checkpoint "
    "runs what its author chose",
    upstream="https://github.com/pytorch/pytorch/blob/v2.13.0/torch/distributed/checkpoint/filesystem.py",
    condition=condition,
    install=install,
)
