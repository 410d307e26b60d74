"""A tensor as a pickle describes it, checked before anything is made. Needs no torch."""

from __future__ import annotations

import io
import math
from collections import Counter
from typing import Any

from emma.tools.inspection.archives import Archive
from emma.tools.inspection.names import DTYPES, STORAGES
from emma.tools.inspection.pickles import Pickle, read
from emma.tools.inspection.trees import Persistent, PickleError, Record, as_mapping, walk

__all__ = ["TensorForm", "extent", "read_tensors", "tensor_form"]


class TensorForm:
    """What a pickle says about a tensor, checked: it lies within its bytes.

    Attributes:
        storage: where its bytes are in the archive, or in an archive of their own.
        dtype: torch's name of its type.
        inner: that archive, as in extra states; None where the tensor's bytes are in the archive around it.
        offset: first element, counted in elements of the storage.
        sizes, strides: in elements.
        requires_grad: whether it is a parameter or asks for gradients.
        parameter: whether it is a `torch.nn.Parameter`.
    """

    def __init__(self, record: Record) -> None:
        self.parameter = record.name == "torch._utils._rebuild_parameter"
        if self.parameter:
            inner, requires_grad, hooks = record.arguments
            self.__init__(inner)  # type: ignore[misc]
            self.parameter, self.requires_grad = True, requires_grad is True
            _no_hooks(hooks)
            return
        storage, offset, sizes, strides, requires_grad, hooks, *rest = record.arguments
        third = rest.pop(0) if record.name == "torch._utils._rebuild_tensor_v3" else None
        _no_hooks(hooks)
        if rest not in ([], [None], [{}]):
            raise PickleError("a tensor with attributes of its own")
        self.inner: Archive | None = None
        if isinstance(storage, Record) and storage.name.endswith("load_from_bytes"):
            self.inner = _inner(storage)
            storage = self.inner.tree
        if not isinstance(storage, Persistent):
            raise PickleError("a tensor without bytes")
        self.storage = storage
        self.dtype = STORAGES.get(storage.storage, "uint8")
        if third is not None:
            self.dtype = third.name.removeprefix("torch.")
        if self.dtype not in DTYPES:
            raise PickleError(f"a tensor of type {self.dtype}")
        self.offset, self.requires_grad = extent(offset), requires_grad is True
        self.sizes = tuple(extent(size) for size in sizes)
        self.strides = tuple(extent(stride) for stride in strides)
        if len(self.sizes) != len(self.strides) or len(self.sizes) > 32:
            raise PickleError(f"a tensor of {len(self.sizes)} sizes and {len(self.strides)} strides")

    @property
    def reach(self) -> int:
        """Elements of the storage that the tensor reaches."""
        if not all(self.sizes):
            return 0
        return 1 + self.offset + sum((s - 1) * t for s, t in zip(self.sizes, self.strides, strict=True))

    def check(self, stored: int) -> None:
        """Raises PickleError unless the tensor lies within `stored` bytes, no element twice as often as there is room."""
        width = DTYPES[self.dtype]
        if self.reach * width > stored or math.prod(self.sizes) * width > stored:
            raise PickleError(f"a tensor of sizes {list(self.sizes)} and type {self.dtype} in {stored} bytes")


def read_tensors(data: bytes) -> Pickle:
    """A pickle that another library is about to read: its tensors, and the archives within it, are read as well.

    Raises:
        PickleError: any of it is refused.
    """
    found = read(data)
    names = Counter(found.names)
    for value in walk(found.value):
        if isinstance(value, Record) and value.name.endswith("load_from_bytes"):
            names.update(_inner(value).names)
        if (form := tensor_form(value)) is not None and form.inner is not None:
            form.check(form.inner.span(form.storage)[1])
    return Pickle(found.value, found.end, names)


def _inner(record: Record) -> Archive:
    content = record.arguments[0] if len(record.arguments) == 1 else None
    if not isinstance(content, bytes):
        raise PickleError("a tensor without bytes")
    return Archive(io.BytesIO(content))


def tensor_form(value: Any) -> TensorForm | None:
    """The tensor that a value of a tree stands for; None if it is something else.

    Raises:
        PickleError: it stands for a tensor that cannot be.
    """
    if not isinstance(value, Record) or not value.name.startswith("torch._utils._rebuild_"):
        return None
    try:
        return TensorForm(value)
    except (TypeError, ValueError, AttributeError) as error:
        if isinstance(error, PickleError):
            raise
        raise PickleError(f"a tensor with other arguments than torch's ({error})") from None


def extent(value: Any) -> int:
    """A number of elements; PickleError if it is not one."""
    if not isinstance(value, int) or not 0 <= value < 1 << 62:
        raise PickleError(f"a tensor with the size {value!r}")
    return value


def _no_hooks(hooks: Any) -> None:
    if hooks is not None and as_mapping(hooks) != {}:
        raise PickleError("a tensor with hooks")
