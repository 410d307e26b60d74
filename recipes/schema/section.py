"""What all recipe sections share."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

__all__ = ["Section"]


class Section(BaseModel):
    """A part of a recipe. Unknown keys and wrong types are refused; values do not change after loading.

    The docstring under a field documents its key (meaning, unit, default); `emma recipe explain` prints it.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    later: ClassVar[frozenset[str]] = frozenset()
    """Keys that came after recipes were first written: at their default they are left out of what is written and hashed,
    so that the fingerprints of older recipes stay."""

    @model_serializer(mode="wrap")
    def _written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        fields = type(self).model_fields
        return {
            key: value
            for key, value in values.items()
            if key not in self.later
            or getattr(self, key) != fields[key].get_default(call_default_factory=True)
        }
