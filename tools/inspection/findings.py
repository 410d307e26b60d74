"""What an inspection found, for people and for scripts. Needs no torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emma.tools.inspection.names import DTYPES, NAMES
from emma.tools.inspection.trees import printable

__all__ = ["Inspection", "PickleFound", "TensorFound"]


@dataclass(frozen=True)
class TensorFound:
    """A tensor: its name, torch's name of its type, its sizes, and the file or rank that holds it, if not all do."""

    name: str
    dtype: str
    sizes: tuple[int, ...]
    place: str = ""

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.sizes)


@dataclass(frozen=True)
class PickleFound:
    """A pickle: where it is, how often it refers to each name, and why it is refused (None: it is inert)."""

    place: str
    names: Mapping[str, int]
    fault: str | None = None


@dataclass
class Inspection:
    """What a folder holds.

    Attributes:
        folder: the folder.
        format: `torch_dist`, `torch` (a pickle per rank), `huggingface`, or several joined by ` + `.
        step: the step that the checkpoint itself names; None where it names none.
        facts: what else it says about itself: arguments of the training, a model's type, its tokenizer.
        tensors: the model's tensors.
        others: tensors and objects beside the model's (optimizer, random numbers), by what they are → number.
        size: bytes of all files.
        pickles: the pickles in it.
        code: custom code that it brings or asks for, none of which is ever run.
        missing: what an intact folder of this format would also have.
    """

    folder: Path
    format: str
    step: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    tensors: list[TensorFound] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    size: int = 0
    pickles: list[PickleFound] = field(default_factory=list)
    code: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def refused(self) -> list[PickleFound]:
        """Pickles that no command reads."""
        return [found for found in self.pickles if found.fault is not None]

    @property
    def names(self) -> Counter[str]:
        """Names that the pickles refer to, with how often."""
        total: Counter[str] = Counter()
        for found in self.pickles:
            total.update(found.names)
        return total

    @property
    def parameters(self) -> int:
        """Elements of the model's tensors."""
        return sum(tensor.count for tensor in self.tensors)

    def as_dict(self) -> dict[str, Any]:
        """The findings as JSON-ready values."""
        return {
            "folder": str(self.folder),
            "format": self.format,
            "step": self.step,
            "inert": not self.refused,
            "parameters": self.parameters,
            "bytes": self.size,
            "missing": self.missing,
            "custom_code": self.code,
            "facts": self.facts,
            "tensors": [
                {
                    "name": t.name,
                    "dtype": t.dtype,
                    "sizes": list(t.sizes),
                    **({"in": t.place} if t.place else {}),
                }
                for t in self.tensors
            ],
            "others": dict(self.others),
            "names": {
                name: {"times": times, "inert": name in NAMES} for name, times in sorted(self.names.items())
            },
            "pickles": [
                {"place": p.place, "inert": p.fault is None, **({"fault": p.fault} if p.fault else {})}
                for p in self.pickles
            ],
        }

    def as_text(self, *, every_tensor: bool = False) -> str:
        """The findings as lines for people."""
        step = f", step {self.step}" if self.step is not None else ""
        width = sum(tensor.count * DTYPES.get(tensor.dtype, 0) for tensor in self.tensors)
        lines = [
            f"{self.folder}: {self.format}{step}, {self.size / 1e9:.3f} GB",
            f"model    {len(self.tensors)} tensors, {self.parameters:,} values, {width / 1e9:.3f} GB",
        ]
        lines += [f"         {line}" for line in self._grouped(every_tensor)]
        lines += [f"besides  {number} × {what}" for what, number in sorted(self.others.items())]
        lines += [f"{key:<8} {value}" for key, value in self.facts.items()]
        inert = sum(found.fault is None for found in self.pickles)
        lines.append(f"pickles  {inert} of {len(self.pickles)} places hold inert ones only")
        lines += [
            f"         {'inert  ' if name in NAMES else 'FOREIGN'} {name} × {times}"
            for name, times in sorted(self.names.items())
        ]
        lines += [f"REFUSED  {found.place}: {found.fault}" for found in self.refused]
        lines += [f"CODE     {line}; it is never run" for line in self.code]
        lines += [f"MISSING  {line}" for line in self.missing]
        return "\n".join(printable(line, 1000) for line in lines)

    def _grouped(self, every_tensor: bool) -> list[str]:
        if every_tensor:
            return [f"{t.name} {t.dtype} {list(t.sizes)} {t.place}".rstrip() for t in self.tensors]
        kinds = Counter(tensor.dtype for tensor in self.tensors)
        return [f"{number} in {dtype}" for dtype, number in sorted(kinds.items())]
