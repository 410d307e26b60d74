"""The closed list of what a checkpoint's pickles may name. Needs no torch.

Everything that stock Megatron, torch and this project write is here; a name that is not here is refused. An entry is
one class or function, never a module. It says what a pickle may do with the name, and why checkpoints need it. None of
these classes has its own `__init__`, `__setstate__` or `__reduce__` called: `objects.py` fills their attributes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["DTYPES", "NAMES", "STORAGES", "Entry"]

STORAGES: Mapping[str, str] = MappingProxyType(
    {
        "DoubleStorage": "float64",
        "FloatStorage": "float32",
        "HalfStorage": "float16",
        "BFloat16Storage": "bfloat16",
        "LongStorage": "int64",
        "IntStorage": "int32",
        "ShortStorage": "int16",
        "CharStorage": "int8",
        "ByteStorage": "uint8",
        "BoolStorage": "bool",
    }
)
"""torch's names for the type of a tensor's bytes → dtype. `UntypedStorage` stands for single bytes."""

DTYPES: Mapping[str, int] = MappingProxyType(
    {
        "float64": 8,
        "float32": 4,
        "float16": 2,
        "bfloat16": 2,
        "float8_e4m3fn": 1,
        "float8_e5m2": 1,
        "float8_e8m0fnu": 1,
        "int64": 8,
        "int32": 4,
        "int16": 2,
        "int8": 1,
        "uint64": 8,
        "uint32": 4,
        "uint16": 2,
        "uint8": 1,
        "bool": 1,
    }
)
"""dtype → bytes of an element."""


@dataclass(frozen=True)
class Entry:
    """What a pickle may do with a name.

    Attributes:
        kind: `value` (a plain value is computed here), `record` (made empty, then given attributes), `tuple` (made from
            its fields), `member` (of an enumeration, called with its value), `call` (stands for a tensor or an array),
            `mapping` (filled item by item), `dtype` or `storage` (named, never called), `argument` (named only as an
            argument of a `call`).
        reason: why checkpoints need it.
    """

    kind: str
    reason: str


def _closed_list() -> dict[str, Entry]:
    found: dict[str, Entry] = {}

    def add(kind: str, reason: str, module: str, *names: str) -> None:
        found.update({f"{module}.{name}": Entry(kind, reason) for name in names})

    add("value", "sets, byte strings and complex numbers in protocol 2", "builtins", "set", "frozenset")
    add("value", "byte strings in protocol 2", "builtins", "bytearray", "bytes")
    add("value", "byte strings in protocol 2", "_codecs", "encode")
    add("mapping", "a module's state dict, the hooks of a tensor", "collections", "OrderedDict")
    add("record", "Megatron's arguments, saved with each checkpoint", "argparse", "Namespace")
    add("member", "`args.exit_signal`", "signal", "Signals")
    add("value", "the folder in a checkpoint's metadata", "pathlib", "Path", "PosixPath", "PurePosixPath")
    add("value", "the same, written by Python 3.13", "pathlib._local", "Path", "PosixPath", "PurePosixPath")

    add("dtype", "type of a tensor; Megatron's arguments", "torch", *DTYPES)
    add("storage", "type of a tensor's bytes", "torch", *STORAGES)
    add("storage", "bytes of a tensor of a newer type", "torch.storage", "UntypedStorage")
    add("call", "sizes of a tensor", "torch", "Size")
    add("value", "layout in a tensor's properties", "torch.serialization", "_get_layout")
    tensors = ("_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter")
    add("call", "a tensor", "torch._utils", *tensors)
    add("call", "a tensor's bytes in extra states", "torch.storage", "_load_from_bytes")
    add("call", "the same, written under Megatron", "megatron.core.safe_globals", "safe_load_from_bytes")

    for module in ("numpy._core.multiarray", "numpy.core.multiarray"):
        add("call", "state of numpy's random numbers", module, "_reconstruct")
    add("call", "type of that state", "numpy", "dtype")
    add("argument", "class of that state", "numpy", "ndarray")

    dcp = "torch.distributed.checkpoint"
    records = (
        *("Metadata", "StorageMeta", "MetadataIndex", "TensorStorageMetadata", "BytesStorageMetadata"),
        *("TensorProperties", "ChunkStorageMetadata"),
    )
    add("record", "`.metadata`: which tensors there are, and in which blocks", f"{dcp}.metadata", *records)
    add("member", "`.metadata`: a tensor's properties", f"{dcp}.metadata", "_MEM_FORMAT_ENCODING")
    add("record", "`.metadata`: where a block lies", f"{dcp}.filesystem", "_StorageInfo")
    plans = ("SavePlan", "WriteItem", "TensorWriteData", "BytesIOWriteData")
    add("record", "`.metadata`: the plan of the save, which Megatron adds", f"{dcp}.planner", *plans)
    add("member", "`.metadata`: the plan of the save", f"{dcp}.planner", "WriteItemType")
    strategy = "megatron.core.dist_checkpointing.strategies.torch"
    add("record", "`.metadata` of Megatron 0.15", strategy, "MCoreMetadata", "MCoreSavePlan")

    enums = ("AttnBackend", "CudaGraphModule", "CudaGraphScope", "InferenceCudaGraphScope")
    add("member", "Megatron's arguments", "megatron.core.transformer.enums", *enums)
    add("member", "Megatron's arguments", "megatron.core.enums", "ModelType")
    rerun = ("RerunDiagnostic", "RerunMode", "RerunState")
    add("member", "state of Megatron's repeated steps", "megatron.core.rerun_state_machine", *rerun)

    te = "transformer_engine.common.recipe"
    recipes = (
        *("DelayedScaling", "Float8CurrentScaling", "Float8BlockScaling", "MXFP8BlockScaling"),
        *("NVFP4BlockScaling", "MMParams", "QParams"),
    )
    add("record", "extra state of an FP8 layer", te, *recipes)
    te_delayed = ("megatron.core.extensions.transformer_engine", "TEDelayedScaling")
    add("record", "extra state of an FP8 layer with delayed scaling", *te_delayed)
    add("member", "extra state of an FP8 layer", te, "Format")
    add("tuple", "extra state of an FP8 layer", te, "_FormatHelper")
    return found


NAMES: Mapping[str, Entry] = MappingProxyType(_closed_list())
"""`module.name` → entry. There is no way to add one while a program runs."""
